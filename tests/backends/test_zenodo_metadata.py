"""What an InvenioRDM repository is told of a bundle, and what it would not have taken."""

import json
from datetime import date

import pytest
from support import zenodo_rules

from ari_backends.zenodo.metadata import missing, record_metadata
from ari_core.citation import RELATIONS, ROLES, TYPES, describe
from ari_core.errors import ConfigurationError

TODAY = date(2027, 5, 6)
NOTES = "The digest is <abc>.\n\nTo verify: x & y"
NEAREST_TO_NOTHING = {"title": "Runs", "creators": [{"name": "Doe, Jane"}]}

CFF = b"""\
cff-version: 1.2.0
title: Tipping points in small lakes
type: dataset
abstract: |
  Lakes of <10 m, "deep" & shallow.

  <script>alert(1)</script>
authors:
  - {family-names: van Gogh, given-names: Vincent Willem, orcid: "https://orcid.org/0000-0002-1825-0097",
     affiliation: Uni X}
  - {name: The Lake Collaboration}
  - {alias: octocat}
license: CC-BY-4.0
version: "1.10"
date-released: 2026-02-03
keywords: [lakes, early warning]
doi: 10.5281/zenodo.77
preferred-citation: {type: article, title: Lakes, doi: 10.1234/lakes}
repository-code: https://github.com/example/lakes
"""


def told(description, **more):
    """The metadata, which Zenodo takes without a complaint."""
    metadata = record_metadata(NEAREST_TO_NOTHING | description, notes=NOTES, today=TODAY, **more)
    kept, errors = zenodo_rules.clean(metadata)
    assert errors == []
    zenodo_rules.check_vocabularies(kept)
    json.dumps(metadata)
    return metadata


def test_a_citation_cff_becomes_a_record():
    description = describe({"CITATION.cff": CFF}, section=None, license=None)
    assert missing(description) == []
    assert told(description, own={"10.5281/ZENODO.77", "10.5281/zenodo.76"}) == {
        "resource_type": {"id": "dataset"},
        "title": "Tipping points in small lakes",
        "publication_date": "2026-02-03",
        "publisher": "Zenodo",
        "creators": [
            {
                "person_or_org": {
                    "type": "personal",
                    "family_name": "van Gogh",
                    "given_name": "Vincent Willem",
                    "identifiers": [{"scheme": "orcid", "identifier": "0000-0002-1825-0097"}],
                },
                "affiliations": [{"name": "Uni X"}],
            },
            {"person_or_org": {"type": "organizational", "name": "The Lake Collaboration"}},
            {"person_or_org": {"type": "personal", "family_name": "octocat"}},
        ],
        "description": "<p>Lakes of &lt;10 m, &quot;deep&quot; &amp; shallow.</p>"
        "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>",
        "additional_descriptions": [
            {
                "description": "<p>The digest is &lt;abc&gt;.</p><p>To verify: x &amp; y</p>",
                "type": {"id": "notes"},
            }
        ],
        "version": "1.10",
        "rights": [{"id": "cc-by-4.0"}],
        "subjects": [{"subject": "lakes"}, {"subject": "early warning"}],
        "related_identifiers": [
            {
                "identifier": "10.1234/lakes",
                "scheme": "doi",
                "relation_type": {"id": "issupplementto"},
                "resource_type": {"id": "publication-article"},
            },
            {
                "identifier": "https://github.com/example/lakes",
                "scheme": "url",
                "relation_type": {"id": "isderivedfrom"},
            },
        ],
    }


def test_what_is_not_said_is_left_out_or_filled_in():
    assert told({}) == {
        "resource_type": {"id": "dataset"},
        "title": "Runs",
        "publication_date": "2027-05-06",
        "publisher": "Zenodo",
        "creators": [{"person_or_org": {"type": "personal", "family_name": "Doe", "given_name": "Jane"}}],
        "additional_descriptions": [
            {
                "description": "<p>The digest is &lt;abc&gt;.</p><p>To verify: x &amp; y</p>",
                "type": {"id": "notes"},
            }
        ],
    }


def test_the_authors_own_notes_are_not_taken_for_those_of_the_record():
    notes = told({"notes": "The digest is <def>."})["additional_descriptions"]
    assert [note["type"]["id"] for note in notes] == ["notes", "other"]
    assert "abc" in notes[0]["description"]


def test_markup_in_zenodos_own_spelling_stays():
    assert told({"abstract_html": "<p>a <b>b</b></p>"})["description"] == "<p>a <b>b</b></p>"


@pytest.mark.parametrize(
    ("name", "family", "given"),
    [
        ("Doe, Jane", "Doe", "Jane"),
        ("Jane Doe", "Jane Doe", None),
        ("King, Martin Luther, Jr.", "King, Martin Luther, Jr.", None),
        ("Doe,", "Doe", None),
        (", Jane", "Jane", None),
        (",", ",", None),
    ],
)
def test_one_comma_tells_family_and_given_name_apart(name, family, given):
    (person,) = told({"creators": [{"name": name}]})["creators"]
    assert person["person_or_org"]["family_name"] == family
    assert person["person_or_org"].get("given_name") == given


def test_a_contributor_has_a_role():
    (person,) = told({"contributors": [{"name": "Roe, Max", "role": "DataCurator"}]})["contributors"]
    assert person["role"] == {"id": "datacurator"}


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("MIT", {"id": "mit"}),
        ("apache-2.0", {"id": "apache-2.0"}),
        ("ODC-By-1.0", {"id": "odc-by-1.0"}),
        ("CC-BY-NC-ND-4.0", {"id": "cc-by-nc-nd-4.0"}),
        ("GPL-3.0", {"id": "gpl-3.0-only"}),
        ("GPL-3.0+", {"id": "gpl-3.0-or-later"}),
        ("LGPL-2.1-or-later", {"id": "lgpl-2.1-or-later"}),
        (
            "Foo-1.0",
            {"title": {"en": "Foo-1.0"}, "link": "https://spdx.org/licenses/Foo-1.0.html"},
        ),
        ("MIT OR Apache-2.0", {"title": {"en": "MIT OR Apache-2.0"}}),
        ("LicenseRef-ours", {"title": {"en": "LicenseRef-ours"}}),
        ("https://x.example/t", {"title": {"en": "https://x.example/t"}, "link": "https://x.example/t"}),
    ],
)
def test_a_license_is_named_by_its_id_only_where_the_vocabulary_has_it(said, right):
    assert told({"license": said})["rights"] == [right]


@pytest.mark.parametrize(
    ("text", "scheme", "identifier"),
    [
        ("https://doi.org/10.1234/AbC(1)", "doi", "10.1234/AbC(1)"),
        ("doi:10.1234/x", "doi", "10.1234/x"),
        ("https://arxiv.org/abs/2101.00001v2", "arxiv", "arXiv:2101.00001v2"),
        ("arXiv:hep-th/9901001", "arxiv", "arXiv:hep-th/9901001"),
        ("https://hdl.handle.net/2117/1", "handle", "hdl:2117/1"),
        ("pmid:123", "pmid", "pmid:123"),
        ("urn:nbn:de:101:1-201102033592", "urn", "urn:nbn:de:101:1-201102033592"),
        ("ark:/12148/btv1b8449691v", "ark", "ark:/12148/btv1b8449691v"),
        ("https://github.com/x/y", "url", "https://github.com/x/y"),
        ("978-3-16-148410-0", "isbn", "9783161484100"),
        ("ISBN 0-306-40615-2", "isbn", "0306406152"),
    ],
)
def test_the_kind_of_an_identifier_is_told_from_its_looks(text, scheme, identifier):
    related = told({"related": [{"identifier": text, "relation": "cites"}]})["related_identifiers"]
    assert related == [{"identifier": identifier, "scheme": scheme, "relation_type": {"id": "cites"}}]


def test_an_issn_is_recognised():
    (related,) = record_metadata(
        {"related": [{"identifier": "ISSN 0378-5955", "relation": "isPartOf"}]}, notes="n", today=TODAY
    )["related_identifiers"]
    assert (related["scheme"], related["identifier"]) == ("issn", "0378-5955")


@pytest.mark.parametrize(
    ("description", "named"),
    [
        ({"related": [{"identifier": "978-3-16-148410-1", "relation": "cites"}]}, "978-3-16-148410-1"),
        ({"related": [{"identifier": "0378-5956", "relation": "cites"}]}, "0378-5956"),
        ({"related": [{"identifier": "our paper", "relation": "cites"}]}, "our paper"),
        ({"related": [{"identifier": "http://x\x1b", "relation": "cites"}]}, "x\\x1b"),
        ({"language": "English"}, "English"),
        ({"language": "xx"}, "xx"),
        ({"grants": ["10.13039/9::1"]}, "10.13039/9::1"),
    ],
)
def test_what_the_repository_could_not_take_is_refused_by_name(description, named):
    with pytest.raises(ConfigurationError) as caught:
        record_metadata(description, notes=NOTES, today=TODAY)
    assert named in caught.value.message
    assert caught.value.hint


def test_alternate_identifiers_have_a_place_of_their_own():
    metadata = told({"related": [{"identifier": "10.1234/x", "relation": "isAlternateIdentifier"}]})
    assert metadata["identifiers"] == [{"identifier": "10.1234/x", "scheme": "doi"}]
    assert "related_identifiers" not in metadata


@pytest.mark.parametrize(("code", "id_"), [("en", "eng"), ("de", "deu"), ("ZH", "zho"), ("deu", "deu")])
def test_languages(code, id_):
    assert told({"language": code})["languages"] == [{"id": id_}]


def test_grants_name_their_funder():
    europe = {"funder": {"id": "00k4n6c32"}, "award": {"id": "00k4n6c32::283595"}}
    nsf = {"funder": {"id": "021nxhr62"}, "award": {"id": "021nxhr62::1"}}
    metadata = told({"grants": ["283595", "10.13039/501100000780::283595", "10.13039/100000001::1"]})
    assert metadata["funding"] == [europe, europe, nsf]


def test_every_word_that_an_author_may_use_is_in_the_repositorys_vocabulary():
    for kind in TYPES:
        told({"type": kind})
    for relation in set(RELATIONS) - {"isAlternateIdentifier"}:
        told({"related": [{"identifier": "10.1234/x", "relation": relation}]})
    for role in ROLES:
        told({"contributors": [{"name": "x", "role": role}]})


def test_what_publishing_would_be_refused_for_is_known_before():
    assert missing(NEAREST_TO_NOTHING) == []
    title, creators = missing({})
    assert "title of at least 3 characters" in title
    assert "`title` under `zenodo:` in publish.yaml" in title
    assert "`authors` in CITATION.cff" in creators
    assert len(missing({"title": "ab", "creators": [{"name": "x"}]})) == 1


@pytest.mark.parametrize(
    "description", [{}, {"title": "ab"}, {"title": "Runs"}, NEAREST_TO_NOTHING | {"abstract": "x"}]
)
def test_what_is_missing_is_what_the_repository_complains_of(description):
    _, errors = zenodo_rules.clean(record_metadata(description, notes=NOTES, today=TODAY))
    assert len(errors) == len(missing(description))
