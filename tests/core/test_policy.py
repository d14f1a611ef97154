"""``publish.yaml``: its schema, its globs, the built-in deny rules."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ari_core.errors import ConfigurationError
from ari_core.policy import DENY, Globs, Policy, Verdict, load_policy

DEFAULTS = {
    "visibility": "staged",
    "license": None,
    "max_file_mb": 100,
    "backend": None,
    "required": False,
    "auto_promote": False,
}


@pytest.fixture
def policy_of(tmp_path):
    def make(text):
        (tmp_path / "publish.yaml").write_text(text, encoding="utf-8")
        return load_policy(tmp_path)

    return make


# -- globs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("README.md", "README.md", True),
        ("README.md", "readme.md", False),
        ("README.md", "code/README.md", False),
        ("code/*.py", "code/a.py", True),
        ("code/*.py", "code/sub/a.py", True),
        ("code/*.py", "code/sub/a.pyc", False),
        ("**/a.py", "a.py", True),
        ("**/a.py", "x/y/a.py", True),
        ("**/a.py", "xa.py", False),
        ("**/**/a.py", "a.py", True),
        ("data/**", "data/x/y", True),
        ("data/**", "data", False),
        ("data/**", "data2/x", False),
        ("**/raw/**", "raw/x", True),
        ("**/raw/**", "data/raw/x", True),
        ("**/raw/**", "data/rawer/x", False),
        ("**", "anything/at.all", True),
        ("?.txt", "a.txt", True),
        ("?.txt", "ab.txt", False),
        ("[ab].txt", "b.txt", True),
        ("[!ab].txt", "b.txt", False),
        ("[ab.txt", "[ab.txt", True),
        ("a[[]b", "a[b", True),
        ("a.b", "axb", False),
        ("a\nb*", "a\nb\nc", True),
        ("été/*", "été/x", True),
    ],
)
def test_glob(glob, path, matches):
    assert Globs([glob]).match(path) is matches
    assert Globs(["zzz", glob, "y*y"]).match(path) is matches


def test_no_globs_match_nothing():
    assert not Globs([]).match("a")
    assert not Globs([]).match("")


def naive(pattern, text):
    """The documented meaning, as slow as it reads."""
    if pattern.startswith("**/") and naive(pattern[3:], text):
        return True
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(_naive_rest(pattern[1:], text[skip:]) for skip in range(len(text) + 1))
    return _naive_rest(pattern, text)


def _naive_rest(pattern, text):
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(_naive_rest(pattern[1:], text[skip:]) for skip in range(len(text) + 1))
    if not text:
        return False
    if pattern.startswith("[ab]"):
        return text[0] in "ab" and _naive_rest(pattern[4:], text[1:])
    if pattern.startswith("[!a]"):
        return text[0] != "a" and _naive_rest(pattern[4:], text[1:])
    return pattern[0] in ("?", text[0]) and _naive_rest(pattern[1:], text[1:])


_TOKENS = st.sampled_from(["a", "b", "A", ".", "/", "*", "?", "[ab]", "[!a]", "**/", "/**", "é"])
_GLOB = st.lists(_TOKENS, min_size=1, max_size=6).map("".join)
_PATH = st.text("abA./é", min_size=1, max_size=7)


@given(globs=st.lists(_GLOB, max_size=3), path=_PATH)
def test_globs_mean_what_is_documented(globs, path):
    assert Globs(globs).match(path) is any(naive(glob, path) for glob in globs)


@given(glob=st.text("ab[]!-^&|~#\\*?", min_size=1, max_size=8), path=_PATH)
def test_any_text_is_a_glob(glob, path):
    Globs([glob]).match(path)


@given(glob=_GLOB, folder=st.text("ab/", min_size=1, max_size=3), name=_PATH)
def test_a_folder_in_which_something_matches_may_match_below(glob, folder, name):
    globs = Globs([glob])
    if globs.match(f"{folder}/{name}"):
        assert globs.may_match_below(folder)


def test_a_folder_beside_the_beginnings_cannot_match_below():
    globs = Globs(["data/r*/x", "code/plain.py"])
    assert not globs.may_match_below("figures")
    assert not globs.may_match_below("code/plain.py")
    assert globs.may_match_below("code")
    assert globs.may_match_below("data")


def test_a_glob_that_backtracks_does_not_hang():
    assert not Globs(["*a" * 30 + "b"]).match("a" * 2000)


# -- deny rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", DENY)
def test_every_deny_rule_holds_at_any_depth_and_in_any_case(rule):
    everything = Policy(include=["**"])
    name = rule.replace("/**", "/some/file").replace("*", "thing")
    for path in (name, f"deep/er/{name}", name.upper(), f"deep/{name.title()}"):
        assert everything.verdict(path) is Verdict.DENIED, path
    assert DENY[rule], "a rule without a reason"


@pytest.mark.parametrize(
    "path",
    [
        "ok.key.txt",
        "id_rsa.pub",
        "secrets",
        "secrets.md",
        "my-secrets/x",
        "environment.json",
        "env",
        "code/env.py",
        "x.env",
        "keynote.keys",
        ".gitignore",
        ".github/workflows/ci.yml",
        "gcloud/run.py",
        "docker/config.json",
        "docs/.ariel",
    ],
)
def test_harmless_names_are_not_denied(path):
    assert Policy(include=["**"]).verdict(path) is Verdict.WANTED


def test_verdicts():
    policy = Policy(include=["data/**"], exclude=["data/raw/**"])
    assert policy.verdict("data/a") is Verdict.WANTED
    assert policy.verdict("data/raw/a") is Verdict.EXCLUDED
    assert policy.verdict("notes/raw/a") is Verdict.NOT_ASKED
    assert policy.verdict("notes/.env") is Verdict.DENIED
    assert policy.verdict("data/a", "data/raw/a") is Verdict.EXCLUDED
    assert policy.verdict("data/a", "x/id_rsa") is Verdict.DENIED
    assert policy.verdict_below("data") is Verdict.WANTED
    assert policy.verdict_below("data/raw") is Verdict.EXCLUDED
    assert policy.verdict_below("notes") is Verdict.NOT_ASKED
    assert policy.verdict_below("data/secrets") is Verdict.DENIED
    assert policy.verdict_below("data/x", "secrets") is Verdict.DENIED


# -- the file ----------------------------------------------------------------------------------------------------


def test_defaults_without_a_file(tmp_path):
    policy = load_policy(tmp_path)
    assert policy.publish_section() == DEFAULTS
    assert policy.max_file_bytes == 100 * 1024 * 1024
    assert policy.verdict("code/x") is Verdict.WANTED
    assert policy.verdict("figures/x") is Verdict.NOT_ASKED


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "exclude: []\n"])
def test_defaults_for_what_is_not_said(policy_of, text):
    policy = policy_of(text)
    assert policy.publish_section() == DEFAULTS
    assert policy.verdict("reproduce.sh") is Verdict.WANTED


def test_everything_said(policy_of):
    policy = policy_of(
        "include: ['**']\n"
        "exclude:\n  - data/raw/**\n"
        "max_file_mb: 0.5\n"
        "visibility: unlisted\n"
        "required: true\n"
        "auto_promote: yes\n"
        "license: (Apache-2.0 OR MIT) AND LicenseRef-x.1\n"
        "backend: my-lab.s3\n"
        "zenodo: {communities: [a, {identifier: b}], publication_date: 2027-01-01}\n"
    )
    assert policy.publish_section() == {
        "visibility": "unlisted",
        "license": "(Apache-2.0 OR MIT) AND LicenseRef-x.1",
        "max_file_mb": 0.5,
        "backend": "my-lab.s3",
        "required": True,
        "auto_promote": True,
    }
    assert policy.max_file_bytes == 512 * 1024
    assert policy.zenodo.told() == {"communities": ["a", "b"], "date": "2027-01-01"}


def test_whole_megabytes_stay_whole_numbers(policy_of):
    assert repr(policy_of("max_file_mb: 7\n").publish_section()["max_file_mb"]) == "7"
    assert repr(policy_of("max_file_mb: 7.0\n").publish_section()["max_file_mb"]) == "7"


def test_embargo(policy_of):
    policy = policy_of("visibility: embargoed-until:2027-02-28\n")
    assert policy.publish_section()["visibility"] == "embargoed-until:2027-02-28"


QUOTES = "a glob that starts with * needs quotes: '*.py'"
VISIBILITIES = "allowed: staged, private-token, unlisted, public, embargoed-until:YYYY-MM-DD"


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("# x\ninclde: []\n", 2, ["unknown key 'inclde'", "did you mean 'include'"]),
        ("zzzzzz: 1\n", 1, ["unknown key 'zzzzzz'", "known: auto_promote, backend, exclude, include"]),
        ("visibility: pubic\n", 1, ["'visibility' cannot be 'pubic'", "did you mean 'public'?", VISIBILITIES]),
        ("visibility: Public\n", 1, ["'visibility' cannot be 'Public'", "did you mean 'public'?"]),
        ("visibility: no\n", 1, ["'visibility' must be text, found false", VISIBILITIES]),
        ("visibility: [public]\n", 1, ["'visibility' must be text, found a list", VISIBILITIES]),
        ("visibility: 2027-01-01\n", 1, ["did you mean 'embargoed-until:2027-01-01'?", VISIBILITIES]),
        ("visibility: embargoed-until:2027-02-30\n", 1, ["there is no such day"]),
        ("visibility: embargoed-until:20270203\n", 1, [VISIBILITIES]),
        ("visibility: embargoed-until:\n  2027-02-03\n", 1, ["not YAML"]),
        ("a: 1\nvisibility: embargoed-until: 2027-02-03\n", 2, ["not YAML: mapping values"]),
        ("max_file_mb: 0100\n", 1, ["must be a number, found '0100'", "allowed: a number above 0"]),
        ("max_file_mb: '5'\n", 1, ["must be a number, found '5'"]),
        ("max_file_mb: true\n", 1, ["must be a number, found true"]),
        ("max_file_mb: 0\n", 1, ["must be greater than 0, found 0"]),
        ("max_file_mb: -1\n", 1, ["must be greater than 0, found -1"]),
        ("max_file_mb: .inf\n", 1, ["must be a number, found '.inf'"]),
        ("max_file_mb: .nan\n", 1, ["must be a number, found '.nan'"]),
        ("max_file_mb: 99999999999999999999999\n", 1, ["must be a number"]),
        ("max_file_mb: 1.0e+40\n", 1, ["must be less than or equal to 8796093022208"]),
        ("include: '**'\n", 1, ["'include' must be a list, found '**'", "allowed: a list of globs, such as"]),
        ("include:\n", 1, ["'include' must be a list, found nothing"]),
        ("include:\n  - a\n  - no\n", 3, ["'include[1]' must be text, found false: put it in quotes"]),
        ("include:\n  - ''\n", 2, ["'include[0]' cannot be ''"]),
        ("include:\n  - a\n  - /code/**\n", 3, ["'include[1]' cannot be '/code/**'", "relative to ear/"]),
        ("exclude: ['../**']\n", 1, ["'exclude[0]' cannot be '../**'", "relative to ear/"]),
        ("include: ['a/../b']\n", 1, ["'include[0]' cannot be 'a/../b'", "relative to ear/"]),
        ("exclude:\n- ./data/**\n", 2, ["'exclude[0]' cannot be './data/**'", "relative to ear/"]),
        ("exclude:\n- .\n", 2, ["'exclude[0]' cannot be '.'", "relative to ear/"]),
        ("include: [**/*]\n", 1, [QUOTES]),
        ("include:\n- a\n- *.py\n", 3, [QUOTES]),
        ("include:\n  [*foo]\n", 2, [QUOTES]),
        ("include: [*foo*]\n", 1, [QUOTES]),
        ("include:\n  - *\n", 2, [QUOTES]),
        ("exclude: {a: b}\n", 1, ["'exclude' must be a list, found a mapping"]),
        ("license: ''\n", 1, ["'license' cannot be ''", "an SPDX expression, such as MIT"]),
        ("license: 1.0\n", 1, ["'license' must be text, found 1.0: put it in quotes"]),
        ("license: MIT; rm -rf\n", 1, ["'license' cannot be 'MIT; rm -rf'"]),
        ("license: ' () '\n", 1, ["'license' cannot be"]),
        ("backend: a b\n", 1, ["'backend' cannot be 'a b'"]),
        ("backend: '../x'\n", 1, ["'backend' cannot be '../x'"]),
        ("required: 'yes'\n", 1, ["'required' must be true or false, found 'yes'"]),
        ("auto_promote: 1\n", 1, ["'auto_promote' must be true or false, found 1"]),
        ("zenodo: x\n", 1, ["'zenodo' must be a mapping, found 'x'"]),
        ("zenodo:\n  title: x\n  titel: x\n", 3, ["unknown key 'titel'; did you mean 'title'?"]),
        ("zenodo:\n  version: 1.10\n", 2, ["'zenodo.version' must be text, found 1.1: put it in quotes"]),
        (
            "zenodo:\n  creators:\n  - name: x\n    orcdi: y\n",
            4,
            ["unknown key 'orcdi'; did you mean 'orcid'?"],
        ),
        ("zenodo:\n  creators:\n  - affiliation: x\n", 3, ["'zenodo.creators[0].name' is missing"]),
        ("license: MIT\nbackend: x\nlicense: GPL-3.0\n", 3, ["'license' is there twice"]),
        ("zenodo:\n  a: 1\n  a: 2\n", 3, ["'a' is there twice"]),
        ("- include\n", 1, ["must be a mapping", "found a list"]),
        ("just text\n", 1, ["must be a mapping", "found 'just text'"]),
        ("1: x\n", 1, ["keys must be text"]),
        ("include: &a [x]\nexclude: *a\n", 2, ["aliases"]),
        ("---\nlicense: MIT\n---\nlicense: X\n", 3, ["not YAML: expected a single document"]),
        ("include: [x\nfoo\n", 3, ["not YAML"]),
        ("zenodo: !!python/object/apply:os.system ['true']\n", 1, ["tag", "is not allowed"]),
        ("include: [\x1b]\n", 1, ["U+001B"]),
        ('visibility: "\\e[31m"\n', 1, ["cannot be '\\x1b[31m'"]),
        ('license: "\\ud800"\n', 1, ["'license' cannot be '\\ud800'", "allowed: an SPDX"]),
        ("include: " + "[" * 100_000 + "\n", None, ["nested too deeply"]),
    ],
)
def test_what_is_wrong_is_one_line_with_place_finding_and_advice(policy_of, tmp_path, text, line, parts):
    with pytest.raises(ConfigurationError) as caught:
        policy_of(text)
    message = caught.value.message
    place = f"{tmp_path}/publish.yaml" + (f", line {line}" if line else "")
    assert message.startswith(place + ": ")
    for part in parts:
        assert part in message
    assert message.isprintable()
    assert caught.value.exit_code == 2


def test_a_mistake_inside_zenodo_is_not_explained_by_what_zenodo_is(policy_of):
    with pytest.raises(ConfigurationError) as caught:
        policy_of("zenodo:\n  creators:\n  - {name: x, orcid: '1'}\n")
    assert caught.value.message.endswith("cannot be '1': an ORCID iD is written 0000-0002-1825-0097")


@pytest.mark.parametrize("glob", ["..a/**", "a../b", ".hidden/**", "a/...", "[.].x", "*/", "code/"])
def test_globs_with_dots_and_slashes_that_lead_nowhere_else(policy_of, glob):
    assert policy_of(f"include: ['{glob}']\n").include == [glob]


def test_the_first_of_several_mistakes_is_told(policy_of):
    with pytest.raises(ConfigurationError, match="line 2: 'license'"):
        policy_of("backend: x\nlicense: []\nvisibility: z\n")


def test_a_byte_order_mark_or_other_encoding(tmp_path):
    (tmp_path / "publish.yaml").write_bytes(b"license: MIT\nbackend: caf\xe9\n")
    with pytest.raises(ConfigurationError, match="line 2: not UTF-8"):
        load_policy(tmp_path)


def test_a_huge_file_is_refused_unread(tmp_path):
    (tmp_path / "publish.yaml").write_bytes(b"# " + b"x" * 1024 * 1024)
    with pytest.raises(ConfigurationError, match="larger than the limit of 1048576 bytes"):
        load_policy(tmp_path)


def test_a_link_that_leads_nowhere_is_not_taken_for_no_file(tmp_path):
    (tmp_path / "publish.yaml").symlink_to("gone.yaml")
    with pytest.raises(ConfigurationError, match="leads nowhere"):
        load_policy(tmp_path)


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "publish.yaml")
    with pytest.raises(ConfigurationError, match="not a regular file"):
        load_policy(tmp_path)


def test_a_glob_of_many_stars_costs_no_more_than_one():
    many, one = Globs(["**/" * 1300 + "x"]), Globs(["**/x"])
    for path in ("x", "a/x", "a/b/c/x", "y", "xa", "a/xb"):
        assert many.match(path) == one.match(path)
    assert len(many._regex.pattern) + sum(map(len, many._literal)) < 100
