"""What a bundle is, gathered from ``publish.yaml``, CITATION.cff, .zenodo.json and codemeta.json."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tables import code, table

from ari_core.citation import CITATION_FILES, MAX_CITATION_BYTES, Deposit, describe, describe_file
from ari_core.errors import AriError, ConfigurationError
from ari_core.policy import load_policy

SOFTWARE_CFF = """\
# Made with cffinit
cff-version: 1.2.0
message: "If you use this software, please cite it as below."
type: software
title: Reservoir sampling for
  tipping points
abstract: >-
  Code and results for the study of tipping
  points in <10 m lakes & rivers.

  Second paragraph.
authors:
  - family-names: Beethoven
    given-names: Ludwig
    name-particle: van
    name-suffix: Jr.
    orcid: https://orcid.org/0000-0002-1825-0097
    affiliation: University of Bonn
    email: lvb@example.org
  - name: The Lake Collaboration
    website: https://lakes.example.org
  - alias: octocat
  - given-names: Sukarno
keywords:
  - limnology
  - "early warning"
license: Apache-2.0
repository-code: "https://github.com/example/tipping"
version: 1.10
date-released: 2026-02-03
doi: 10.5281/zenodo.1234567
identifiers:
  - type: doi
    value: 10.17605/OSF.IO/ABCDE
    description: The registered report
  - type: swh
    value: swh:1:rel:22ece559cc7cc2364edc5e5593d63ae8bd229f9f
  - type: url
    value: https://lakes.example.org/v1
preferred-citation:
  type: article
  title: Tipping points in small lakes
  authors:
    - family-names: Beethoven
      given-names: Ludwig
  doi: https://doi.org/10.1234/lakes.2026
  journal: Journal of Lakes
  year: 2026
"""

ZENODO_JSON = {
    "title": "Tipping  points",
    "upload_type": "publication",
    "publication_type": "preprint",
    "description": "<p>Some <b>bold</b> words</p>",
    "access_right": "open",
    "creators": [
        {"name": "Doe, Jane", "affiliation": "Uni X", "orcid": "0000-0002-1694-233x", "gnd": "170118215"},
        {"name": "Team Y", "affiliation": "", "orcid": None},
    ],
    "contributors": [{"name": "Roe, Max", "type": "datacurator"}],
    "keywords": ["a", "b"],
    "license": {"id": "cc-by"},
    "version": "v2",
    "publication_date": "2026-01-02",
    "language": "eng",
    "notes": "Thanks",
    "references": ["Doe J (2020)"],
    "related_identifiers": [
        {"identifier": "10.1234/paper", "relation": "isSupplementTo", "resource_type": "publication-article"}
    ],
    "communities": [{"identifier": "lakes"}],
    "grants": [{"id": "10.13039/501100000780::283595"}],
}

CODEMETA_JSON = {
    "@context": "https://doi.org/10.5063/schema/codemeta-2.0",
    "@type": "SoftwareSourceCode",
    "name": "tipping",
    "description": "Lakes & rivers",
    "author": [
        {
            "@type": "Person",
            "@id": "http://orcid.org/0000-0002-1825-0097",
            "givenName": "Jane",
            "familyName": "Doe",
            "affiliation": {"@type": "Organization", "name": "Uni X"},
        },
        {"@type": "Organization", "name": "Team Y"},
        {"type": "Role", "schema:author": "_:author_1", "roleName": "maintainer"},
    ],
    "contributor": "Max Roe",
    "keywords": "limnology, early warning,",
    "license": "https://spdx.org/licenses/GPL-3.0-or-later.html",
    "version": "1.10",
    "datePublished": "2026-02-03T10:00:00Z",
    "identifier": "https://doi.org/10.1234/osf.1",
    "codeRepository": "https://github.com/example/tipping",
    "referencePublication": {"@type": "ScholarlyArticle", "@id": "https://doi.org/10.1234/lakes"},
    "funder": {"@type": "Organization", "name": "ERC"},
}


def one(name, text):
    raw = text if isinstance(text, bytes) else (text if isinstance(text, str) else json.dumps(text)).encode()
    return describe({name: raw}, section=None, license=None)


# -- what is understood ------------------------------------------------------------------------------------------


def test_a_citation_cff():
    assert one("CITATION.cff", SOFTWARE_CFF) == {
        "title": "Reservoir sampling for tipping points",
        "abstract": "Code and results for the study of tipping points in <10 m lakes & rivers.\nSecond paragraph.",
        "creators": [
            {
                "family": "van Beethoven Jr.",
                "given": "Ludwig",
                "affiliation": "University of Bonn",
                "orcid": "0000-0002-1825-0097",
            },
            {"name": "The Lake Collaboration", "organization": True},
            {"name": "octocat"},
            {"given": "Sukarno"},
        ],
        "keywords": ["limnology", "early warning"],
        "license": "Apache-2.0",
        "version": "1.10",
        "date": "2026-02-03",
        "related": [
            {"identifier": "10.5281/zenodo.1234567", "relation": "isVariantFormOf"},
            {"identifier": "10.17605/OSF.IO/ABCDE", "relation": "isVariantFormOf"},
            {
                "identifier": "https://archive.softwareheritage.org/swh:1:rel:"
                "22ece559cc7cc2364edc5e5593d63ae8bd229f9f",
                "relation": "isVariantFormOf",
            },
            {
                "identifier": "10.1234/lakes.2026",
                "relation": "isSupplementTo",
                "resource_type": "publication-article",
            },
            {"identifier": "https://github.com/example/tipping", "relation": "isDerivedFrom"},
        ],
        "type": "software",
    }


def test_a_minimal_citation_cff_claims_nothing_more():
    text = "cff-version: 1.2.0\nmessage: Cite\ntitle: Runs\nauthors:\n- family-names: Doe\n  given-names: Jane\n"
    assert one("CITATION.cff", text) == {"title": "Runs", "creators": [{"family": "Doe", "given": "Jane"}]}


def test_a_preferred_citation_that_is_no_paper_is_not_what_the_bundle_supplements():
    text = "title: X\npreferred-citation:\n  type: software\n  title: Y\n  doi: 10.5281/zenodo.1\n"
    assert one("CITATION.cff", text) == {"title": "X"}


def test_several_licenses_of_a_citation_cff_are_a_choice():
    assert one("CITATION.cff", "license:\n  - MIT\n  - Apache-2.0\n") == {"license": "MIT OR Apache-2.0"}
    assert one("CITATION.cff", "license-url: https://example.org/terms\n") == {
        "license": "https://example.org/terms"
    }


def test_a_zenodo_json():
    assert one(".zenodo.json", ZENODO_JSON) == {
        "title": "Tipping points",
        "abstract_html": "<p>Some <b>bold</b> words</p>",
        "creators": [
            {"name": "Doe, Jane", "affiliation": "Uni X", "orcid": "0000-0002-1694-233X"},
            {"name": "Team Y"},
        ],
        "contributors": [{"name": "Roe, Max", "role": "DataCurator"}],
        "keywords": ["a", "b"],
        "license": "CC-BY-4.0",
        "version": "v2",
        "date": "2026-01-02",
        "language": "eng",
        "notes": "Thanks",
        "references": ["Doe J (2020)"],
        "related": [
            {"identifier": "10.1234/paper", "relation": "isSupplementTo", "resource_type": "publication-article"}
        ],
        "type": "publication-preprint",
        "communities": ["lakes"],
        "grants": ["10.13039/501100000780::283595"],
    }


def test_a_description_without_markup_is_plain_text():
    assert one(".zenodo.json", {"description": "p < 0.05 & so on"}) == {"abstract": "p < 0.05 & so on"}
    assert one(".zenodo.json", {"description": "a &lt; b"}) == {"abstract_html": "a &lt; b"}


def test_a_codemeta_json():
    assert one("codemeta.json", CODEMETA_JSON) == {
        "title": "tipping",
        "abstract": "Lakes & rivers",
        "creators": [
            {"family": "Doe", "given": "Jane", "affiliation": "Uni X", "orcid": "0000-0002-1825-0097"},
            {"name": "Team Y", "organization": True},
        ],
        "contributors": [{"name": "Max Roe", "role": "Other"}],
        "keywords": ["limnology", "early warning"],
        "license": "GPL-3.0-or-later",
        "version": "1.10",
        "date": "2026-02-03",
        "related": [
            {"identifier": "10.1234/osf.1", "relation": "isVariantFormOf"},
            {"identifier": "10.1234/lakes", "relation": "isSupplementTo"},
            {"identifier": "https://github.com/example/tipping", "relation": "isDerivedFrom"},
        ],
        "type": "software",
    }


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("MIT", "MIT"),
        ("(Apache-2.0 OR MIT) AND BSD-3-Clause", "(Apache-2.0 OR MIT) AND BSD-3-Clause"),
        ("cc-zero", "CC0-1.0"),
        ("https://spdx.org/licenses/MIT", "MIT"),
        ("https://opensource.org/licenses/BSD-3-Clause", "BSD-3-Clause"),
        ("https://creativecommons.org/licenses/by-nc-sa/4.0/", "CC-BY-NC-SA-4.0"),
        ("http://creativecommons.org/publicdomain/zero/1.0/legalcode.de", "CC0-1.0"),
        ("https://example.org/our-terms", "https://example.org/our-terms"),
    ],
)
def test_licenses(said, meant):
    assert one("codemeta.json", {"@context": "x", "license": said}) == {"license": meant}
    assert one(".zenodo.json", {"license": said}) == {"license": meant}


@pytest.mark.parametrize("empty", [None, "", " \u2028", [], {}])
def test_what_was_left_empty_was_not_said(empty):
    assert one(".zenodo.json", dict.fromkeys(ZENODO_JSON, empty)) == {}


def test_the_table_in_the_documentation_has_every_key():
    document = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    rows = table(document, "in `zenodo` and `.zenodo.json`", "in `CITATION.cff`", "in `codemeta.json`", "rules")
    assert [code(row[0]) for row in rows] == [[key] for key in Deposit.model_fields]
    for *_, cff, codemeta, _ in rows:
        for key in code(cff)[:1]:
            assert one("CITATION.cff", re.sub(f"(?m)^{key}:", "else:", SOFTWARE_CFF)) != one(
                "CITATION.cff", SOFTWARE_CFF
            )
        for key in code(codemeta)[:1]:
            less = {name: value for name, value in CODEMETA_JSON.items() if name != key}
            assert one("codemeta.json", less) != one("codemeta.json", CODEMETA_JSON), key


def test_empty_words_in_a_list_were_not_said_either():
    assert one(".zenodo.json", {"keywords": ["", "a", " "], "references": [""]}) == {"keywords": ["a"]}


# -- what wins ---------------------------------------------------------------------------------------------------


def test_the_first_file_counts_and_the_others_are_not_read():
    files = {
        "codemeta.json": b"not json",
        ".zenodo.json": b'{"title": "Z", "version": "1"}',
        "CITATION.cff": b"title: C\n",
        "README.md": b"\xff",
    }
    assert describe(files, section=None, license=None) == {"title": "C"}
    del files["CITATION.cff"]
    assert describe(files, section=None, license=None) == {"title": "Z", "version": "1"}
    del files[".zenodo.json"]
    with pytest.raises(ConfigurationError, match=r"^codemeta\.json"):
        describe(files, section=None, license=None)
    del files["codemeta.json"]
    assert describe(files, section=None, license=None) == {}


def test_publish_yaml_wins_field_by_field():
    files = {"CITATION.cff": b"title: C\nabstract: plain\nversion: 1.0\nlicense: MIT\nkeywords: [x]\n"}
    section = {"title": "P", "description": "<b>bold</b>", "keywords": ["p", "q"]}
    assert describe(files, section=section, license="Apache-2.0") == {
        "title": "P",
        "abstract_html": "<b>bold</b>",
        "version": "1.0",
        "license": "Apache-2.0",
        "keywords": ["p", "q"],
    }
    assert describe({}, section={"license": "ISC"}, license="MIT") == {"license": "ISC"}


def test_the_checked_section_of_publish_yaml_is_taken_as_it_is(tmp_path):
    (tmp_path / "publish.yaml").write_text("zenodo:\n  title: Runs\n  communities: [lakes]\nlicense: MIT\n")
    policy = load_policy(tmp_path)
    described = describe({}, section=policy.zenodo, license=policy.license)
    assert described == {"title": "Runs", "communities": ["lakes"], "license": "MIT"}


def test_one_file_says_by_its_name_what_it_is():
    assert describe_file("/x/mine.cff", b"title: A\ntype: dataset\n") == {"title": "A", "type": "dataset"}
    assert describe_file("mine.json", b'{"title": "A", "else": 1}') == {"title": "A"}
    assert describe_file("mine.json", b'{"@context": "x", "name": "A"}') == {"title": "A"}
    assert describe_file("mine.yaml", b"title: A\nupload_type: software\n") == {"title": "A", "type": "software"}
    with pytest.raises(
        ConfigurationError, match=r"^mine.yaml, line 2: unknown key 'titel'; did you mean 'title'\?"
    ):
        describe_file("mine.yaml", b"version: 'A'\ntitel: x\n")


# -- what is wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("CITATION.cff", "title: [x]\n", ["line 1", "'title' must be text, found a list"]),
        (
            "CITATION.cff",
            "title: a\nauthors:\n- orcid: x\n",
            ["line 3", "authors[0]", "cannot be 'x': an ORCID iD"],
        ),
        (
            "CITATION.cff",
            "authors:\n- name: x\n- name: y\n  orcid: https://orcid.org/0000-0002-1825-0098\n",
            ["line 4", "'authors[1].orcid'", "last digit"],
        ),
        ("CITATION.cff", "authors:\n- affiliation: X\n", ["line 2", "'authors[0]' has no name"]),
        ("CITATION.cff", "authors: Jane\n", ["line 1", "'authors' must be a list, found 'Jane'"]),
        ("CITATION.cff", "doi: zenodo.12\n", ["line 1", "'doi' cannot be 'zenodo.12': a DOI starts with 10."]),
        ("CITATION.cff", "identifiers:\n- type: doi\n  value: x\n", ["line 2", "a DOI starts with 10."]),
        (
            "CITATION.cff",
            "a: 1\ndate-released: 2026-02-30\n",
            ["line 2", "'date-released' cannot be '2026-02-30'"],
        ),
        ("CITATION.cff", "type: code\n", ["line 1", "'type' must be 'software' or 'dataset', found 'code'"]),
        (
            "CITATION.cff",
            "license: 'MIT; x'\n",
            ["line 1", "'license[0]' cannot be 'MIT; x': a license is an SPDX"],
        ),
        ("CITATION.cff", "title: &a x\nabstract: *a\n", ["line 2", "aliases"]),
        ("CITATION.cff", "title: a\ntitle: b\n", ["line 2", "is there twice"]),
        ("CITATION.cff", "title: 'a\\\n", ["not YAML"]),
        ("CITATION.cff", "- a\n", ["line 1", "must be a mapping"]),
        ("CITATION.cff", b"title: \xff\n", ["line 1", "not UTF-8"]),
        ("CITATION.cff", 'title: "a\\x07b"\n', ["line 1", "'title' cannot hold the character U+0007"]),
        ("CITATION.cff", "x: " + "[" * 100_000, ["nested too deeply"]),
        (".zenodo.json", '{\n"title": x}', ["line 2", "not JSON"]),
        (".zenodo.json", "[1]", ["must be a JSON object"]),
        (".zenodo.json", b"\xff", ["not UTF-8"]),
        (".zenodo.json", "[" * 1_000_000, ["more than 30000 values"]),
        (".zenodo.json", "[" * 20_000, ["nested too deeply"]),
        (".zenodo.json", '{"n": ' + "1" * 5000 + "}", ["a number that is too long"]),
        (".zenodo.json", {"title": 3}, ["'title' must be text, found 3"]),
        (".zenodo.json", {"title": "a\ud800b"}, ["'title' cannot hold the character U+D800"]),
        (".zenodo.json", {"creators": [{"affiliation": "x"}]}, ["'creators[0].name' is missing"]),
        (".zenodo.json", {"creators": ["Jane"]}, ["'creators[0]' must be a mapping, found 'Jane'"]),
        (".zenodo.json", {"upload_type": "datset"}, ["'upload_type' cannot be 'datset'; did you mean 'dataset'?"]),
        (".zenodo.json", {"publication_type": "artcle"}, ["did you mean 'article'"]),
        (
            ".zenodo.json",
            {"related_identifiers": [{"identifier": "10.1/x", "relation": "isSuplementTo"}]},
            ["'related_identifiers[0].relation'", "did you mean 'isSupplementTo'"],
        ),
        (
            ".zenodo.json",
            {"related_identifiers": [{"identifier": "10.1/x"}]},
            ["'related_identifiers[0].relation' is missing"],
        ),
        (".zenodo.json", {"contributors": [{"name": "x", "type": "Boss"}]}, ["type' cannot be 'Boss'"]),
        (".zenodo.json", {"publication_date": "2026"}, ["a date is written 2027-02-28"]),
        ("codemeta.json", {"@context": "x", "author": [3]}, ["'author[0]' must be a mapping, found 3"]),
        ("codemeta.json", {"@context": "x", "author": {"email": "x"}}, ["'author[0]' has no name"]),
        ("codemeta.json", {"@context": "x", "version": 1.0}, ["'version' must be text, found 1.0"]),
        ("codemeta.json", {"@context": "x", "codeRepository": {"a": 1}}, ["'codeRepository[0]' must be text"]),
    ],
)
def test_what_is_wrong_in_a_file_of_the_bundle_is_one_line_that_names_it(name, text, parts):
    with pytest.raises(ConfigurationError) as caught:
        one(name, text)
    message = caught.value.message
    assert message.startswith(name)
    for part in parts:
        assert part in message
    assert message.isprintable()
    assert "ear curate" in caught.value.hint


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        ({"titel": "x"}, ["unknown key 'titel'; did you mean 'title'?"]),
        ({"community": "x"}, ["unknown key 'community'; did you mean 'communities'?"]),
        ({"access_right": "open"}, ["unknown key 'access_right'"]),
        ({"creators": [{"name": "x", "orcdi": "y"}]}, ["unknown key 'orcdi'; did you mean 'orcid'?"]),
        ({"creators": [{"name": "x", "type": ""}]}, ["unknown key 'type'; known: affiliation, name, orcid"]),
        ("x", ["must be a mapping"]),
    ],
)
def test_unknown_keys_in_publish_yaml_are_refused_with_the_nearest_one(section, parts):
    with pytest.raises(ConfigurationError) as caught:
        describe({}, section=section, license=None)
    assert caught.value.message.startswith("publish.yaml: ")
    for part in parts:
        assert part in caught.value.message


def test_a_license_in_a_foreign_manifest_is_checked_too():
    for wrong in ("MIT\x1b[31m", ["MIT"], 3):
        with pytest.raises(ConfigurationError, match=r"^manifest\.lock: 'license'"):
            describe({}, section=None, license=wrong)


@pytest.mark.parametrize("name", CITATION_FILES)
def test_a_huge_file_is_refused_unread(name):
    with pytest.raises(ConfigurationError, match=f"^{name}: larger than the limit of {MAX_CITATION_BYTES} bytes"):
        one(name, b" " * (MAX_CITATION_BYTES + 1))


# -- whatever it is ----------------------------------------------------------------------------------------------

_TEXT = st.text(max_size=12) | st.sampled_from(
    [
        "0000-0002-1825-0097",
        "10.1234/x",
        "MIT",
        "2026-02-03",
        "dataset",
        "isSupplementTo",
        "<p>x</p>",
        "Doe, J",
        "x",
    ]
)
_KEYS = st.sampled_from(
    sorted(
        {*ZENODO_JSON, *CODEMETA_JSON, "@id", "type", "familyName", "givenName", "name", "affiliation", "orcid"}
        | {"identifier", "relation", "scheme", "resource_type", "@list", "id", "authors", "family-names", "alias"}
        | {"doi", "identifiers", "value", "preferred-citation", "date-released", "repository-code", "license-url"}
    )
) | st.text(max_size=5)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=6),
    max_leaves=12,
)
_TOP = st.dictionaries(_KEYS, _VALUES, max_size=8)
_NEARLY = st.builds(lambda good, wrong: good | wrong, st.sampled_from([ZENODO_JSON, CODEMETA_JSON, {}]), _TOP)
_RAW = st.binary(max_size=40) | _NEARLY.map(lambda data: json.dumps(data).encode())  # JSON is YAML, nearly


@settings(max_examples=100, deadline=None)
@given(
    files=st.dictionaries(st.sampled_from(CITATION_FILES), _RAW, max_size=3),
    section=st.none() | _TOP,
    license_=st.none() | _TEXT,
)
def test_anything_is_either_described_or_refused_in_one_line(files, section, license_):
    message, described = "", {}
    try:
        described = describe(files, section=section, license=license_)
    except AriError as error:
        message = error.message
    assert message.isprintable()
    json.dumps(described, allow_nan=False, ensure_ascii=False).encode()
    assert all(described.values())
