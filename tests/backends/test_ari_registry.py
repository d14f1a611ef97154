"""The client of the registry: where it is configured, where tokens go, what answers mean. Rows F3 and H16."""

import contextlib
import hashlib
import json
import os
import re
import stat
import subprocess
import time
import traceback
import warnings
from datetime import timedelta

import pytest
from support.httpd import Server, forget_proxies
from support.run import ARI, ari, ari_json, error_of

from ari_backends._claims import ari_registry_claims
from ari_backends.ari_registry.places import configured
from ari_core.conformance import make_bundle
from ari_core.conformance.knobs import new, read_all
from ari_core.contract import CHUNK, Claim, Locator, OpenContext, SupportsShare, Visibility
from ari_core.errors import (
    AccessDenied,
    AlreadyExists,
    AriError,
    ConfigurationError,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    QuotaExceeded,
    RateLimited,
    Unavailable,
    Unsupported,
)
from ari_core.settings import open_backend
from ari_core.wrappers import RetryBackend, RetryPolicy

ONE, TWO = make_bundle(seed=1), make_bundle(seed=2)
ID = ONE.archive_sha256[:16]
TOKEN = "ari_canary-5d1e"  # noqa: S105 - a canary
OTHER_TOKEN = "ari_canary-77b0"  # noqa: S105 - a canary
CANARIES = (TOKEN, OTHER_TOKEN)


class Desk:
    """A responder that answers as our server does, as far as these tests need it."""

    def __init__(self, *bundles, users=None):
        self.held = {bundle.archive_sha256: bundle.archive for bundle in bundles}
        self.owned = set()
        self.users = {TOKEN: "alice", OTHER_TOKEN: "bob"} if users is None else users
        self.instead = None  # another answer to uploads
        self.uploads = []

    def __call__(self, request, wire):
        body = read_body(request, wire)
        path = request.target.partition("?")[0].removeprefix("/reg")
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.users:
            problem(wire, 401, "this token is not known")
        elif path == "/version":
            as_json(wire, {"version": "9.9", "service": "ari-registry", "uploads": ["raw", "multipart"]})
        elif path == "/artifacts":
            as_json(wire, {"artifacts": [], "next": None, "user": self.users.get(token)})
        elif path == "/artifact" and request.method == "POST":
            self._upload(request, wire, body)
        else:
            self._artifact(request, wire, path)

    def _upload(self, request, wire, body):
        self.uploads.append((request.headers, body))
        if self.instead:
            self.instead(self, wire, body)
            return
        digest = self.store(body)
        as_json(wire, {"id": digest[:16], "duplicate": False, "visibility": "staged", "archive_sha256": digest})

    def store(self, body):
        digest = hashlib.sha256(body).hexdigest()
        self.held[digest] = body
        self.owned.add(digest)
        return digest

    def _artifact(self, request, wire, path):
        number, _, rest = path.removeprefix("/artifact/").partition("/")
        digest = next((digest for digest in self.held if number and digest.startswith(number)), None)
        if digest is None:
            problem(wire, 404, "no such artifact")
        elif rest == "meta":
            owners = {"owners": [{"user": "alice"}]} if digest in self.owned else {}
            as_json(wire, {"id": digest[:16], "archive_sha256": digest, "size": len(self.held[digest]), **owners})
        else:
            headers = {"X-ARI-Sha256": digest, "X-ARI-Visibility": "public", "ETag": f'"{digest}"'}
            if request.method == "HEAD":
                lines = [f"{k}: {v}" for k, v in {**headers, "Content-Length": len(self.held[digest])}.items()]
                wire.send(("\r\n".join(["HTTP/1.1 200 -", *lines]) + "\r\n\r\n").encode())
                wire.keep = True
            else:
                wire.answer(200, headers, self.held[digest])


def read_body(request, wire):
    """Reads what belongs to a request and was not read with its head."""
    body = request.raw.partition(b"\r\n\r\n")[2]
    length = int(request.headers.get("content-length", 0))
    while len(body) < length:
        data = wire.socket.recv(65536)
        if not data:
            break
        body += data
    return body


def as_json(wire, data, status=200, kind="application/json", **headers):
    wire.answer(status, {"Content-Type": kind, **headers}, json.dumps(data).encode())


def problem(wire, status, detail, **headers):
    as_json(wire, {"detail": detail}, status, "application/problem+json", **headers)


@pytest.fixture(autouse=True)
def _no_proxy_of_the_machine(monkeypatch):
    forget_proxies(monkeypatch)


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """The current folder, which is no checkpoint."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return folder


@pytest.fixture
def serve():
    with contextlib.ExitStack() as stack:
        yield lambda respond: stack.enter_context(Server(respond))


@pytest.fixture
def connect():
    """Opens backends as a command does, with all their settings; `told` is what the user sees."""
    with contextlib.ExitStack() as stack:

        def make(checkpoint=None, *, anonymous=False, warn=lambda _line: None, **options):
            told = []

            def note(line):
                told.append(line)
                warn(line)

            context = OpenContext(checkpoint, note, anonymous)
            backend = stack.enter_context(open_backend("ari-registry", options, context))
            backend.told = told
            return backend

        yield make


def configure(folder, *registries, mode=0o600):
    """Writes .ari/registries.yaml; each registry is name, URL and perhaps token."""
    text = "registries:\n"
    for name, url, *token in registries:
        text += f"  - name: {name}\n    url: {url}\n" + "".join(f"    token: {word}\n" for word in token)
    return write(folder, text, mode)


def write(folder, text, mode=0o600):
    path = folder / ".ari" / "registries.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    path.write_text(text)
    path.chmod(mode)
    return path


def tokens(server):
    """Returns the tokens that a server was sent, with None for each request without one."""
    return [request.headers.get("authorization", "").removeprefix("Bearer ") or None for request in server.seen]


def refused(kind, action):
    """Checks that `action` raises exactly `kind`, and tells nobody a token; returns the error."""
    with pytest.raises(kind) as caught:
        action()
    assert type(caught.value) is kind
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.hint)
    for canary in CANARIES:
        assert canary not in told
    assert "\n" not in str(caught.value)
    return caught.value


# -- refs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "claim"),
    [
        (f"ari://{ID}", Claim.SCHEME),
        (f"ari://lab/{ID}", Claim.SCHEME),
        ("ari:nonsense", Claim.SCHEME),  # refused later, with the reason
        (f"https://lab.example/artifact/{ID}", Claim.EXACT),
        (f"https://lab.example/some/prefix/artifact/{'a' * 64}/", Claim.EXACT),
        (f"http://127.0.0.1:8290/artifact/{ID}", Claim.EXACT),
        (f"http://lab.example/artifact/{ID}", Claim.NO),
        (f"https://lab.example/artifact/{ID[:15]}", Claim.NO),
        (f"https://lab.example/artifact/{'a' * 65}", Claim.NO),
        (f"https://lab.example/artifact/{ID.upper()}", Claim.NO),
        (f"https://lab.example/artifact/{ID}?key=1", Claim.NO),
        (f"https://lab.example/artifact/{ID}/manifest.lock", Claim.NO),
        ("https://lab.example/bundle.tar.gz", Claim.NO),
        (f"simplecache::https://lab.example/artifact/{ID}", Claim.NO),
        ("", Claim.NO),
    ],
)
def test_claims(ref, claim):
    if ID.isdigit():
        pytest.skip("an id without letters has no upper case")
    assert ari_registry_claims(ref) == claim


@pytest.mark.parametrize("ref", ["ari:", "ari://", "ari://lab", f"ari://a/b/{ID}", f"ari://{ID}?x", f"ari:{ID}"])
def test_what_is_no_ref_is_refused(connect, ref):
    assert "ari://REGISTRY/ID" in refused(Unsupported, lambda: connect().resolve(ref)).hint


def test_an_https_ref_of_an_unknown_registry_is_read_anonymously(connect, serve):
    server = serve(Desk(ONE))
    store = connect()
    locator = store.resolve(f"{server.origin}/artifact/{ID}")
    assert locator == f"{server.origin}/artifact/{ID}#{ONE.archive_sha256}"
    assert store.resolve(store.ref(locator)) == locator
    assert read_all(store, locator) == ONE.archive
    assert set(tokens(server)) == {None}


def test_a_server_that_answers_with_another_archive_is_caught_at_once(connect, serve):
    desk = Desk()
    desk.held[ONE.archive_sha256[:16] + "0" * 48] = TWO.archive
    server = serve(desk)
    locator = connect().resolve(f"{server.origin}/artifact/{ID}")
    del desk.held[ONE.archive_sha256[:16] + "0" * 48]
    desk.held[ONE.archive_sha256] = ONE.archive
    refused(NotFound, lambda: connect().stat(locator))

    def liar(request, wire):
        wire.answer(200, {"X-ARI-Sha256": "0" * 64})

    refused(IntegrityError, lambda: connect().resolve(f"{serve(liar).origin}/artifact/{ID}"))


# -- registries.yaml: the four places -----------------------------------------------------------------------------


def test_the_first_file_found_wins(connect, tmp_path, here, monkeypatch):
    named = configure(tmp_path / "named", ("named", "https://named.example"))
    checkpoint = tmp_path / "run"
    files = [
        (named, "named"),
        (configure(checkpoint, ("run", "https://run.example")), "run"),
        (configure(here, ("here", "https://here.example")), "here"),
        (configure(tmp_path / "home", ("home", "https://home.example")), "home"),
    ]
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ARI_REGISTRIES_FILE", str(named))
    monkeypatch.setenv("ARI_REGISTRY_URL", "https://environment.example")
    for path, name in files:
        deprecated = pytest.warns(DeprecationWarning, match="1.0") if name == "home" else contextlib.nullcontext()
        with deprecated:
            assert [entry.name for entry in connect(checkpoint).candidates()] == [name]
        assert configured(checkpoint) == f"registries.yaml in {path.parent}"
        monkeypatch.delenv("ARI_REGISTRIES_FILE", raising=False)
        path.unlink()
    assert [entry.url for entry in connect(checkpoint).candidates()] == ["https://environment.example"]
    assert configured(checkpoint) == "ARI_REGISTRY_URL"
    monkeypatch.delenv("ARI_REGISTRY_URL")
    assert configured(checkpoint) is None
    refused(InvalidConfiguration, connect(checkpoint).candidates)


def test_a_named_file_has_to_exist(connect, here, monkeypatch, tmp_path):
    configure(here, ("here", "https://here.example"))
    monkeypatch.setenv("ARI_REGISTRIES_FILE", str(tmp_path / "gone.yaml"))
    error = refused(ConfigurationError, lambda: connect().candidates())
    assert "ARI_REGISTRIES_FILE" in error.message
    assert "gone.yaml" in error.message
    assert configured(None)  # so that a publication does not go somewhere else instead


def test_the_checkpoint_of_the_command_counts_before_that_of_the_environment(connect, tmp_path, monkeypatch):
    configure(tmp_path / "one", ("one", "https://one.example"))
    configure(tmp_path / "two", ("two", "https://two.example"))
    monkeypatch.setenv("ARI_CHECKPOINT_DIR", str(tmp_path / "two"))
    assert connect(tmp_path / "one").candidates()[0].name == "one"
    assert connect().candidates()[0].name == "two"


def test_the_home_folders_file_works_and_says_that_it_is_deprecated(connect, serve, tmp_path, monkeypatch):
    server = serve(Desk(ONE))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    configure(tmp_path / "home", ("lab", server.origin, "$LAB_TOKEN"), mode=0o664)
    store = connect()
    with pytest.warns(DeprecationWarning, match="deprecated"):
        store.resolve(f"ari://{ID}")
    assert ["1.0" in line for line in store.told] == [True]
    assert tokens(server) == [TOKEN]
    monkeypatch.chdir(tmp_path / "home")  # it is the user's own file wherever they stand
    with pytest.warns(DeprecationWarning, match="deprecated"):
        connect().resolve(f"ari://{ID}")


# -- registries.yaml: what is in it -------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["$ARI_LAB", "${ARI_LAB}", TOKEN, f"'{TOKEN}'"])
def test_a_token_is_a_literal_or_a_variable(connect, serve, here, monkeypatch, spelling):
    server = serve(Desk(ONE))
    monkeypatch.setenv("ARI_LAB", TOKEN)
    configure(here, ("lab", server.origin, spelling))
    connect().resolve(f"ari://lab/{ID}")
    assert tokens(server) == [TOKEN]


@pytest.mark.parametrize("value", [None, ""])
def test_an_unset_variable_is_an_error_only_for_the_registry_that_is_used(
    connect, serve, here, monkeypatch, value
):
    server = serve(Desk(ONE))
    if value is not None:
        monkeypatch.setenv("ARI_LAB", value)
    path = configure(here, ("lab", server.origin, "$ARI_LAB"), ("other", server.origin + "/reg"))
    assert connect().resolve(f"ari://other/{ID}")
    error = refused(ConfigurationError, lambda: connect().resolve(f"ari://lab/{ID}"))
    assert error.message.startswith(f"{path}, line 4: the variable ARI_LAB is not set")
    assert tokens(server) == [None]


def test_a_variable_without_its_dollar_is_not_sent_as_a_token(connect, serve, here, monkeypatch):
    server = serve(Desk(ONE))
    monkeypatch.setenv("ARI_LAB", "secret")
    configure(here, ("lab", server.origin, "ARI_LAB"))
    error = refused(ConfigurationError, lambda: connect().resolve(f"ari://lab/{ID}"))
    assert (error.message.partition(": ")[2], error.hint) == (
        "the token is the name of a variable",
        "write $ before it",
    )
    assert tokens(server) == []


@pytest.mark.parametrize("spelling", ["$ARI", "${ARI_LAB", "$", "$9", "two words", "zoë"])
def test_a_token_that_is_neither_is_an_error(connect, serve, here, spelling):
    server = serve(Desk(ONE))
    configure(here, ("lab", server.origin, f"'{spelling}'"))
    refused(ConfigurationError, lambda: connect().resolve(f"ari://lab/{ID}"))
    assert not server.seen


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("registries:\n- {name: a, url: 'https://x.example'}\n- {name: a, url: 'https://y.example'}", 3, "twice"),
        ("registries:\n- name: a\n  url: http://x.example", 3, "is not https"),
        ("registries:\n- name: a\n  url: https://me:canary-5d1e@x.example", 3, "user name or password"),
        ("registries:\n- name: a\n  url: https://x.example/?a=b", 3, "has no '?'"),
        ("registries:\n- name: a\n  url: https://x.example/?", 3, "has no '?'"),
        ("registries:\n- name: a\n  url: https://x.example/#b", 3, "has no '?'"),
        ("registries:\n- name: a/b\n  url: https://x.example", 2, "letters, digits"),
        ("registries:\n- name: a\n  ulr: https://x.example", 3, "did you mean 'url'"),
        ("registries:\n- name: a\n  url: https://x.example\n  token: 12345678", 4, "in quotes"),
        ("registries:\n- name: a", 2, "'registries[0].url' is missing"),
        ("registry: []", 1, "unknown key"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(connect, here, text, line, says):
    path = write(here, text)
    error = refused(ConfigurationError, lambda: connect().candidates())
    assert error.message.startswith(f"{path}, line {line}: ")
    assert says in error.message
    assert "canary" not in error.message
    assert "12345678" not in error.message


def test_slash_and_prefix(connect, serve, here):
    server = serve(Desk(ONE))
    configure(here, ("lab", server.origin + "/reg/", TOKEN))
    locator = connect().resolve(f"ari://{ID}")
    assert connect().ref(locator) == f"{server.origin}/reg/artifact/{ID}"
    assert [request.target for request in server.seen] == [f"/reg/artifact/{ID}"]


# -- files that may be a stranger's: row H16 ----------------------------------------------------------------------


@pytest.fixture(params=["checkpoint", "current folder"])
def stranger(request, tmp_path, here):
    """A folder whose registries.yaml may have come with a download."""
    return tmp_path / "download" if request.param == "checkpoint" else here


def test_only_ari_variables_expand_in_a_strangers_file(connect, serve, stranger, monkeypatch):
    server = serve(Desk(ONE))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", TOKEN)
    path = configure(stranger, ("lab", server.origin, "$AWS_SECRET_ACCESS_KEY"))
    error = refused(ConfigurationError, lambda: connect(stranger).resolve(f"ari://{ID}"))
    assert f"{path}, line 4: refused" in error.message
    assert not server.seen
    monkeypatch.setenv("ARI_REGISTRIES_FILE", str(path))  # the user vouches for it
    connect(stranger).resolve(f"ari://{ID}")
    assert tokens(server) == [TOKEN]


def test_the_environments_token_goes_nowhere_but_to_the_environments_registry(
    connect, serve, stranger, monkeypatch
):
    server = serve(Desk(ONE))
    monkeypatch.setenv("ARI_REGISTRY_TOKEN", TOKEN)
    monkeypatch.setenv("ARI_REGISTRY_URL", "https://lab.example")
    configure(stranger, ("lab", server.origin, "$ARI_REGISTRY_TOKEN"))
    error = refused(ConfigurationError, lambda: connect(stranger).resolve(f"ari://{ID}"))
    assert "https://lab.example" in error.message
    assert not server.seen


@pytest.mark.parametrize("who", ["group", "others", "the folder"])
def test_a_strangers_file_that_others_can_write_is_refused(connect, serve, stranger, who):
    server = serve(Desk(ONE))
    path = configure(
        stranger, ("lab", server.origin, TOKEN), mode={"group": 0o620, "others": 0o602}.get(who, 0o600)
    )
    if who == "the folder":
        path.parent.chmod(0o770)
    error = refused(ConfigurationError, lambda: connect(stranger).resolve(f"ari://{ID}"))
    assert "can be written by other users" in error.message
    assert not server.seen


def test_a_file_of_somebody_else_is_refused(connect, serve, stranger, monkeypatch):
    server = serve(Desk(ONE))
    path = configure(stranger, ("lab", server.origin, TOKEN))
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    error = refused(ConfigurationError, lambda: connect(stranger).resolve(f"ari://{ID}"))
    assert "belongs to another user" in error.message
    assert not server.seen


def test_a_new_origin_is_named_before_anything_is_sent_and_only_once(
    connect, serve, stranger, monkeypatch, tmp_path
):
    server = serve(Desk(ONE))
    monkeypatch.setenv("ARI_REGISTRY_TOKEN", TOKEN)
    path = configure(stranger, ("lab", server.origin, "$ARI_REGISTRY_TOKEN"))
    seen_before = []
    store = connect(stranger, warn=lambda _line: seen_before.append(len(server.seen)))
    store.resolve(f"ari://{ID}")
    (line,) = store.told
    assert str(path) in line
    assert server.origin in line
    assert TOKEN not in line
    assert seen_before == [0]
    assert tokens(server) == [TOKEN]
    known = tmp_path / "state" / "ari" / "origins"
    assert known.read_text() == server.origin + "\n"
    assert stat.S_IMODE(known.stat().st_mode) == 0o600
    again = connect(stranger)
    again.resolve(f"ari://{ID}")
    assert again.told == []
    second = serve(Desk(ONE))
    configure(stranger, ("lab", second.origin, "$ARI_REGISTRY_TOKEN"))
    third = connect(stranger)
    third.resolve(f"ari://{ID}")
    assert second.origin in third.told[0]
    assert known.read_text() == f"{server.origin}\n{second.origin}\n"


@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_new_origin_is_named_also_before_a_given_token_goes_there(connect, serve, stranger, monkeypatch, given):
    server = serve(Desk(ONE))
    path = configure(stranger, ("lab", server.origin))
    if given == "environment":
        monkeypatch.setenv("ARI_ARI_REGISTRY_TOKEN", TOKEN)
    seen_before = []
    options = {"token": TOKEN} if given == "option" else {}
    store = connect(stranger, warn=lambda _line: seen_before.append(len(server.seen)), **options)
    store.resolve(f"ari://{ID}")
    (line,) = store.told
    assert str(path) in line
    assert server.origin in line
    assert seen_before == [0]
    assert tokens(server) == [TOKEN]


def test_without_a_token_there_is_nothing_to_name(connect, serve, stranger, tmp_path):
    configure(stranger, ("lab", serve(Desk(ONE)).origin))
    store = connect(stranger)
    store.resolve(f"ari://{ID}")
    assert store.told == []
    assert not (tmp_path / "state").exists()


def test_what_cannot_be_noted_is_only_a_warning(connect, serve, stranger, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    server = serve(Desk(ONE))
    configure(stranger, ("lab", server.origin, TOKEN))
    store = connect(stranger)
    assert store.resolve(f"ari://{ID}")
    assert len(store.told) == 2


# -- where tokens go: row F3 --------------------------------------------------------------------------------------


def test_a_token_does_not_cross_a_redirect_to_another_port(connect, serve):
    there = serve(Desk(ONE))
    server = serve(lambda request, wire: wire.redirect(there.origin + request.target))
    store = connect(url=server.origin, token=TOKEN)
    assert read_all(store, store.resolve(f"ari://{ID}")) == ONE.archive
    assert set(tokens(server)) == {TOKEN}
    assert set(tokens(there)) == {None}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_what_changes_something_follows_no_redirect(connect, serve, status):
    there = serve(Desk())
    desk = Desk()

    def respond(request, wire):
        if request.method in {"POST", "DELETE"}:
            read_body(request, wire)
            wire.redirect(there.origin + request.target, status)
            wire.keep = False
        else:
            desk(request, wire)

    server = serve(respond)
    store = connect(url=server.origin, token=TOKEN)
    locator = Locator(f"{server.origin}/artifact/{ID}#{ONE.archive_sha256}")
    for action in (
        lambda: store.put(ONE.source(), new()),
        lambda: store.raise_visibility(locator, Visibility.PUBLIC),
        lambda: store.delete(locator),
        lambda: store.optional(SupportsShare).share(locator, None),
    ):
        refused(InvalidConfiguration, action)
    assert not there.seen


def test_a_configured_token_goes_to_its_registry_alone(connect, serve, here):
    server, other = serve(Desk(ONE)), serve(Desk(ONE))
    configure(here, ("lab", server.origin + "/reg", TOKEN))
    store = connect()
    for ref in (
        f"{other.origin}/reg/artifact/{ID}",  # another port
        f"{server.origin}/artifact/{ID}",  # another registry on the same host
        f"{server.origin}/reg/artifact/{ID}",
    ):
        store.resolve(ref)
    assert tokens(other) == [None]
    assert tokens(server) == [None, TOKEN]


def test_an_escaped_way_out_of_a_registry_gets_no_token(connect, serve, here):
    server = serve(Desk(ONE))
    configure(here, ("lab", server.origin + "/reg", TOKEN))
    with contextlib.suppress(AriError):
        connect().resolve(f"{server.origin}/reg/%2e%2E/other/artifact/{ID}")
    assert tokens(server) == [None]


def test_of_two_accounts_on_one_registry_the_picked_one_counts(connect, serve, here):
    server = serve(Desk(ONE))
    configure(here, ("alice", server.origin, TOKEN), ("bob", server.origin, OTHER_TOKEN))
    connect().resolve(f"{server.origin}/artifact/{ID}")
    connect(registry="bob").resolve(f"{server.origin}/artifact/{ID}")
    assert tokens(server) == [TOKEN, OTHER_TOKEN]


def test_a_given_token_goes_where_the_ref_leads(connect, serve, here):
    lab, other = serve(Desk(ONE)), serve(Desk(ONE))
    configure(here, ("lab", lab.origin, OTHER_TOKEN))
    connect(token=TOKEN).resolve(f"{other.origin}/artifact/{ID}")
    connect(token=TOKEN).resolve(f"ari://{ID}")
    assert (tokens(other), tokens(lab)) == ([TOKEN], [TOKEN])


def test_a_given_token_is_not_tried_on_every_registry(connect, serve, here):
    one, two = serve(Desk()), serve(Desk(ONE))
    configure(here, ("one", one.origin), ("two", two.origin))
    error = refused(InvalidConfiguration, lambda: connect(token=TOKEN).resolve(f"ari://{ID}"))
    assert "--registry" in error.hint
    connect(token=TOKEN).resolve(f"ari://two/{ID}")
    assert (tokens(one), tokens(two)) == ([], [TOKEN])


def test_a_given_token_does_not_follow_a_record_in_a_checkpoint(connect, serve, tmp_path):
    lab, elsewhere = serve(Desk(ONE)), serve(Desk(ONE))
    configure(tmp_path / "run", ("lab", lab.origin))
    store = connect(tmp_path / "run", token=TOKEN)
    store.resolve(f"{elsewhere.origin}/artifact/{ID}")
    store.resolve(f"{lab.origin}/artifact/{ID}")
    assert (tokens(elsewhere), tokens(lab)) == ([None], [TOKEN])


def test_the_environments_setting_goes_to_no_unknown_place(connect, serve, monkeypatch):
    server = serve(Desk(ONE))
    monkeypatch.setenv("ARI_ARI_REGISTRY_TOKEN", TOKEN)
    connect().resolve(f"{server.origin}/artifact/{ID}")
    connect(url=server.origin).resolve(f"{server.origin}/artifact/{ID}")
    assert tokens(server) == [None, TOKEN]


def test_the_environments_setting_stays_with_the_environments_registry(connect, serve, here, monkeypatch):
    ours, other = serve(Desk(ONE)), serve(Desk(ONE))
    monkeypatch.setenv("ARI_ARI_REGISTRY_TOKEN", TOKEN)
    configure(here, ("ours", ours.origin), ("other", other.origin, OTHER_TOKEN))
    connect().resolve(f"{ours.origin}/artifact/{ID}")
    connect(registry="other").resolve(f"ari://{ID}")
    monkeypatch.setenv("ARI_ARI_REGISTRY_URL", ours.origin)
    connect().resolve(f"ari://{ID}")
    connect(url=other.origin).resolve(f"ari://{ID}")
    assert (tokens(ours), tokens(other)) == ([TOKEN, TOKEN], [OTHER_TOKEN, None])


def test_anonymous_uses_no_token_of_files_or_environment(connect, serve, here, monkeypatch):
    server = serve(Desk(ONE))
    configure(here, ("lab", server.origin, TOKEN))
    for ref in (f"ari://lab/{ID}", f"{server.origin}/artifact/{ID}"):
        connect(anonymous=True).resolve(ref)
    (here / ".ari" / "registries.yaml").unlink()
    monkeypatch.setenv("ARI_REGISTRY_URL", server.origin)
    monkeypatch.setenv("ARI_REGISTRY_TOKEN", TOKEN)
    connect(anonymous=True).resolve(f"ari://{ID}")
    assert set(tokens(server)) == {None}
    connect(anonymous=True, token=OTHER_TOKEN).resolve(f"ari://{ID}")
    assert tokens(server)[-1] == OTHER_TOKEN


def test_nothing_is_sent_without_the_token_it_needs(connect, serve):
    server = serve(Desk())
    store = connect(url=server.origin)
    locator = Locator(f"{server.origin}/artifact/{ID}")
    for action in (
        store.probe,
        lambda: store.put(ONE.source(), new()),
        lambda: store.raise_visibility(locator, Visibility.PUBLIC),
        lambda: store.delete(locator),
        lambda: list(store.list()),
    ):
        assert "--token-file" in refused(AccessDenied, action).hint
    assert [request.target for request in server.seen] == ["/version"]


# -- several registries -------------------------------------------------------------------------------------------


@pytest.fixture
def two(serve, here):
    """Two registries, the second of which has the artifact."""
    servers = serve(Desk()), serve(Desk(ONE))
    configure(here, ("one", servers[0].origin, TOKEN), ("two", servers[1].origin, OTHER_TOKEN))
    return servers


def test_a_bare_ref_is_looked_for_in_order(connect, two):
    one, second = two
    assert connect().resolve(f"ari://{ID}").startswith(second.origin)
    assert (tokens(one), tokens(second)) == ([TOKEN], [OTHER_TOKEN])


def test_a_registry_can_be_picked(connect, two, monkeypatch):
    one, _ = two
    assert connect().resolve(f"ari://two/{ID}")
    assert connect(registry="two").resolve(f"ari://{ID}")
    monkeypatch.setenv("ARI_REGISTRY_NAME", "two")
    assert connect().resolve(f"ari://{ID}")
    assert not one.seen
    refused(NotFound, lambda: connect(registry="one").resolve(f"ari://{ID}"))
    assert (
        "did you mean 'two'"
        in refused(InvalidConfiguration, lambda: connect().resolve(f"ari://twoo/{ID}")).message
    )


def test_a_web_servers_404_is_one(connect, serve):
    refused(NotFound, lambda: connect().resolve(f"{serve(Page(404)).origin}/artifact/{ID}"))


@pytest.mark.parametrize("there", [True, False])
def test_one_that_cannot_be_asked_does_not_hide_the_others_nor_pass_for_absent(connect, serve, here, there):
    broken = serve(lambda _request, wire: wire.answer(503))
    second = serve(Desk(ONE) if there else Desk())
    configure(here, ("broken", broken.origin), ("two", second.origin))
    if there:
        assert connect().resolve(f"ari://{ID}").startswith(second.origin)
        return
    error = refused(Unavailable, lambda: connect().resolve(f"ari://{ID}"))
    assert broken.origin in error.message
    assert "503" in error.message


def test_absent_everywhere_names_who_was_asked(connect, serve, here):
    configure(here, ("one", serve(Desk()).origin), ("two", serve(Desk()).origin))
    error = refused(NotFound, lambda: connect().resolve(f"ari://{ID}"))
    assert "one (http" in error.message
    assert "two (http" in error.message


def test_publishing_goes_to_the_first_or_the_picked_one(connect, two):
    one, second = two
    assert connect().put(TWO.source(), new())[0].locator.startswith(one.origin)
    assert connect(registry="two").put(TWO.source(), new())[0].locator.startswith(second.origin)


# -- sending ------------------------------------------------------------------------------------------------------


def test_an_upload_is_raw_with_size_and_digest(connect, serve):
    desk = Desk()
    store = connect(url=serve(desk).origin, token=TOKEN)
    store.put(ONE.source(), new(wish=Visibility.UNLISTED, description={"license": "MIT"}))
    ((headers, body),) = desk.uploads
    assert body == ONE.archive
    assert headers["content-type"] == "application/gzip"
    assert headers["content-length"] == str(len(ONE.archive))
    assert re.fullmatch(r"sha-256=:[A-Za-z0-9+/]{43}=:", headers["repr-digest"])
    assert headers["x-ari-visibility"] == "unlisted"
    assert json.loads(headers["x-ari-metadata"]) == {"license": "MIT"}
    assert "transfer-encoding" not in headers


def patiently(store):
    return RetryBackend(store, RetryPolicy(sleep=lambda _seconds: None))


def test_after_a_lost_answer_it_asks_before_it_sends_again(connect, serve):
    desk = Desk()

    def lose_the_answer(desk, wire, body):
        desk.store(body)
        wire.reset()

    desk.instead = lose_the_answer
    artifact, created = patiently(connect(url=serve(desk).origin, token=TOKEN)).put(ONE.source(), new())
    assert artifact.archive_sha256 == ONE.archive_sha256
    assert created is False
    assert len(desk.uploads) == 1


@pytest.mark.parametrize(("first", "after"), [("lost", None), ("403", AccessDenied), ("503", AccessDenied)])
def test_after_a_lost_answer_to_a_delete_what_others_still_own_is_not_taken_for_a_refusal(
    connect, serve, first, after
):
    """The server has taken our claim away, and says from then on that we may not."""
    asked = []

    def co_owned(request, wire):
        if request.method != "DELETE":
            Desk(ONE)(request, wire)
        elif asked.append(request) or (len(asked) == 1 and first == "lost"):
            wire.reset()
        elif len(asked) == 1 and first == "503":
            problem(wire, 503, "not now")
        else:
            problem(wire, 403, "this token may not do that")

    store = patiently(connect(url=serve(co_owned).origin, token=TOKEN))
    locator = store.resolve(f"{store.inner.settings.url}/artifact/{ID}")
    if after is None:
        store.delete(locator)
    else:
        refused(after, lambda: store.delete(locator))
    assert len(asked) == (1 if first == "403" else 2)


def test_what_somebody_else_stored_is_sent_all_the_same(connect, serve):
    desk = Desk(ONE)
    _, created = connect(url=serve(desk).origin, token=TOKEN).put(ONE.source(), new())
    assert created
    assert len(desk.uploads) == 1


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (401, AccessDenied, "the reason"),
        (403, AccessDenied, "the reason"),
        (409, AlreadyExists, "the reason"),
        (413, QuotaExceeded, "the reason"),
        (422, IntegrityError, "the reason"),
        (429, RateLimited, "429"),
        (500, Unavailable, "500"),
        (503, Unavailable, "503"),
        (507, QuotaExceeded, "the reason"),
        (418, Unsupported, "the reason"),
    ],
)
def test_a_refused_upload_says_why(connect, serve, status, kind, says):
    desk = Desk()
    desk.instead = lambda _desk, wire, _body: problem(
        wire, status, f"the reason, with the token {TOKEN}", **{"Retry-After": "7", "X-Request-ID": "0a1b"}
    )
    store = connect(url=serve(desk).origin, token=TOKEN)
    error = refused(kind, lambda: store.put(ONE.source(), new()))
    assert says in error.message
    assert getattr(error, "retry_after", 7.0) == 7.0
    assert status < 500 or error.message.endswith(" (X-Request-ID 0a1b)")


def test_no_foreign_text_passes_for_the_id_of_a_request(connect, serve):
    desk = Desk()
    desk.instead = lambda _desk, wire, _body: problem(wire, 500, "no", **{"X-Request-ID": "7) run this: (rm"})
    store = connect(url=serve(desk).origin, token=TOKEN)
    assert "run this" not in refused(Unavailable, lambda: store.put(ONE.source(), new())).message


def test_a_refused_token_is_known_by_where_it_comes_from(connect, serve, here, monkeypatch):
    server = serve(Desk(ONE, users={}))
    monkeypatch.setenv("ARI_LAB", TOKEN)
    path = configure(here, ("lab", server.origin, "$ARI_LAB"))
    error = refused(AccessDenied, lambda: connect().resolve(f"ari://{ID}"))
    assert f"it comes from ARI_LAB, named in {path}, line 4" in error.hint
    assert "ari config check" in error.hint


def test_an_answer_before_everything_was_sent_is_heard(connect, serve):
    """The server has refused and closed: what counts is its reason, not the broken pipe."""
    large = make_bundle(8 * CHUNK)
    desk = Desk()

    def respond(request, wire):
        if request.method != "POST":
            desk(request, wire)
            return
        wire.socket.recv(CHUNK)
        problem(wire, 422, "a file is not in the manifest", Connection="close")
        wire.keep = False

    store = connect(url=serve(respond).origin, token=TOKEN)
    error = refused(IntegrityError, lambda: store.put(large.source(), new()))
    assert "a file is not in the manifest" in error.message


def test_a_server_that_stored_something_else_is_not_believed(connect, serve):
    desk = Desk()
    desk.instead = lambda _desk, wire, _body: as_json(wire, {"id": "0" * 16, "duplicate": False})
    store = connect(url=serve(desk).origin, token=TOKEN)
    refused(IntegrityError, lambda: store.put(ONE.source(), new()))


class Page:
    """A responder with a page for people, whatever is asked."""

    def __init__(self, status):
        self.status = status

    def __call__(self, request, wire):
        read_body(request, wire)
        wire.answer(
            self.status, {"Content-Type": "text/html"}, b"" if request.method == "HEAD" else b"<h1>hi</h1>"
        )


@pytest.mark.parametrize("status", [404, 410])
def test_a_proxys_page_is_no_proof_that_something_is_gone(connect, serve, status):
    """Else `ari ear delete` would note a deletion that did not happen."""
    server = serve(Page(status))
    store = connect(url=server.origin, token=TOKEN)
    locator = Locator(f"{server.origin}/artifact/{ID}")
    for action in (lambda: store.stat(locator), lambda: store.delete(locator)):
        refused(Unsupported, action)
    refused(InvalidConfiguration, store.probe)


class Odd(Desk):
    """Answers one kind of request in another way."""

    def __init__(self, fits, answer):
        super().__init__(ONE)
        self._fits, self._odd = fits, answer

    def __call__(self, request, wire):
        if self._fits(request):
            read_body(request, wire)
            self._odd(wire)
        else:
            super().__call__(request, wire)


@pytest.mark.parametrize(
    "answer",
    [
        lambda wire: wire.answer(200, {"Content-Type": "text/html"}, b"<h1>please log in</h1>"),
        lambda wire: as_json(wire, {"deleted": "f" * 16}),
        lambda wire: as_json(wire, {"deleted": False}),
        lambda wire: as_json(wire, {}),
    ],
)
def test_only_a_registrys_own_word_makes_something_deleted(connect, serve, answer):
    """Else the record would lose what is still there."""
    server = serve(Odd(lambda request: request.method == "DELETE", answer))
    store = connect(url=server.origin, token=TOKEN)
    refused(IntegrityError, lambda: store.delete(store.resolve(f"ari://{ID}")))


def test_a_promotion_to_less_than_was_asked_for_is_none(connect, serve):
    """Else the record would say that it was promoted."""
    answer = {"id": ID, "visibility": "staged"}
    server = serve(Odd(lambda request: request.target.endswith("/promote"), lambda wire: as_json(wire, answer)))
    store = connect(url=server.origin, token=TOKEN)
    locator = store.resolve(f"ari://{ID}")
    assert "public" in refused(IntegrityError, lambda: store.raise_visibility(locator, Visibility.PUBLIC)).message


@pytest.mark.parametrize("token", ["", "arif_x\ny", "arif_x y", None])
def test_a_fetch_token_that_is_none_is_not_handed_on(connect, serve, token):
    answer = {"id": "t1", "token": token}
    server = serve(Odd(lambda request: request.target.endswith("/tokens"), lambda wire: as_json(wire, answer)))
    store = connect(url=server.origin, token=TOKEN)
    locator = store.resolve(f"ari://{ID}")
    refused(IntegrityError, lambda: store.optional(SupportsShare).share(locator, None))


def test_a_listing_that_goes_in_a_circle_ends(connect, serve):
    item = {"id": ID, "archive_sha256": ONE.archive_sha256, "size": 5, "cursor": "c"}
    page = {"artifacts": [item], "next": "c"}
    server = serve(Odd(lambda request: request.target.startswith("/artifacts"), lambda wire: as_json(wire, page)))
    store = connect(url=server.origin, token=TOKEN)
    refused(IntegrityError, lambda: [None for _ in zip(range(1000), store.list(), strict=False)])
    assert len(server.seen) < 10


def test_an_answer_that_comes_drop_by_drop_is_given_up(connect, serve, monkeypatch):
    monkeypatch.setenv("ARI_DEADLINE", "0.2")

    def drip(wire):
        wire.send(b"HTTP/1.1 200 -\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(200):
                wire.send(b" ")
                time.sleep(0.02)
        wire.keep = False

    server = serve(Odd(lambda request: request.target.endswith("/promote"), drip))
    store = connect(url=server.origin, token=TOKEN)
    locator = store.resolve(f"ari://{ID}")
    error = refused(Unavailable, lambda: store.raise_visibility(locator, Visibility.PUBLIC))
    assert "slowly" in error.message


def test_a_page_for_people_is_no_answer_of_a_registry(connect, serve):
    server = serve(Page(200))
    store = connect(url=server.origin, token=TOKEN)
    refused(InvalidConfiguration, store.probe)
    with pytest.raises(AriError):
        store.put(ONE.source(), new())


def test_the_question_before_a_deletion_shows_a_strangers_ref_escaped(tmp_path):
    """Raw, it could paint another question over this one."""
    record = {"backend": "ari-registry", "ref": "https://lab.example/artifact/x\x1b[2K\x1b[1GDelete nothing"}
    (tmp_path / "publish_record.json").write_text(json.dumps(record))
    (tmp_path / "ear").mkdir()
    ours, its = os.openpty()
    with os.fdopen(ours, "wb", buffering=0) as terminal, os.fdopen(its, "rb", buffering=0) as stdin:
        terminal.write(b"n\n")
        command = [ARI, "ear", "delete", tmp_path]
        done = subprocess.run(command, stdin=stdin, capture_output=True, check=False, timeout=60)
    assert b"artifact/x\\x1b[2K" in done.stderr
    assert b"\x1b" not in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize("file", ["/dev/zero", "long"])
def test_what_is_no_token_file_is_not_read_whole(tmp_path, file):
    (tmp_path / "long").write_text("a" * 70_000)
    done = ari("clone", f"https://lab.example/artifact/{ID}", "--token-file", tmp_path / file)
    assert done.returncode == 2
    assert "too long" in error_of(done)[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--registry", ""], "'registry' is empty"),
        (["--backend", "ari-registry", "-o", "url="], "'url' is empty"),
        (["--backend", ""], "no backend ''"),
        (["--token", ""], "one word"),
        (["--token", "a\nb"], "one word"),
        (["--token-file", "two-words"], "one word"),
        (["--token-file", "absent"], "no token file"),
    ],
)
def test_what_an_unset_variable_or_a_slip_leaves_is_refused_and_not_overlooked(serve, tmp_path, arguments, says):
    """Else it would be published to another place than was meant."""
    server = serve(Desk())
    (tmp_path / "ear").mkdir()
    (tmp_path / "ear/README.md").write_text("a")
    (tmp_path / "ear/publish.yaml").write_text("include: ['**']\n")
    (tmp_path / "two-words").write_text("ari_a\nari_b\n")
    assert ari("ear", "curate", cwd=tmp_path).returncode == 0
    env = environment(tmp_path, ARI_REGISTRY_URL=server.origin, ARI_REGISTRY_TOKEN=TOKEN)
    done = ari("ear", "publish", *arguments, cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert says in error_of(done)[0]
    assert not server.seen


def test_share(connect, serve):
    asked = []

    def respond(request, wire):
        if request.target.endswith("/tokens"):
            asked.append(json.loads(read_body(request, wire)))
            as_json(wire, {"id": "t1", "token": "arif_x", "expires_at": "2030-01-02T03:04:05Z"})
        else:
            Desk(ONE)(request, wire)

    server = serve(respond)
    store = connect(url=server.origin, token=TOKEN)
    locator = store.resolve(f"ari://{ID}")
    made = store.optional(SupportsShare).share(locator, timedelta(days=1))
    assert (made.url, made.token, made.id) == (f"{server.origin}/artifact/{ID}", "arif_x", "t1")
    assert made.expires.isoformat() == "2030-01-02T03:04:05+00:00"
    store.optional(SupportsShare).share(locator, None)
    assert asked == [{"expires_in": 86400}, {"expires_in": None}]


# -- ari config check ---------------------------------------------------------------------------------------------


def environment(tmp_path, **more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ARI_")}
    return {**kept, **more}


def test_config_check_tells_who_one_is_and_never_the_token(serve, here, tmp_path):
    server = serve(Desk())
    path = configure(here, ("lab", server.origin, "$ARI_LAB"), ("open", server.origin + "/reg"))
    done = ari("config", "check", env=environment(tmp_path, ARI_LAB=TOKEN))
    assert done.returncode == 0, done.stderr
    assert f"read       {path} (the current folder)" in done.stdout
    assert f"token   accepted, as alice (from ARI_LAB, named in {path}, line 4)" in done.stdout
    assert "none: only what is public" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    assert f"to {server.origin}, where none was sent before" in done.stderr
    code, told = ari_json("config", "check", "--registry", "lab", env=environment(tmp_path, ARI_LAB=TOKEN))
    assert code == 0
    assert told["warnings"] == []  # the first run said it
    assert [place["found"] for place in told["looked"]] == [True]
    (lab,) = told["registries"]
    assert (lab["reachable"], lab["version"], lab["token"], lab["user"]) == (True, "9.9", "accepted", "alice")


@pytest.mark.parametrize(
    ("value", "code", "state"), [("ari_wrong", 4, "refused"), (None, 2, "unknown")], ids=["wrong", "unset"]
)
def test_config_check_fails_as_a_command_would(serve, here, tmp_path, value, code, state):
    configure(here, ("lab", serve(Desk()).origin, "$ARI_LAB"))
    more = {"ARI_LAB": value} if value else {}
    status, told = ari_json("config", "check", env=environment(tmp_path, **more))
    assert status == code
    (lab,) = told["registries"]
    assert (lab["reachable"], lab["token"]) == (True, state)
    assert "ARI_LAB" in lab["problem"] + str(lab["hint"])


def test_a_token_that_may_not_is_told_from_one_that_is_not_taken(connect, serve):
    for status, says, hint in (
        (401, "the token is not accepted", "check the token"),  # HEAD brings no sentence
        (403, "(Forbidden)", "the token is valid, but not for this"),
    ):
        server = serve(lambda _, wire, status=status: problem(wire, status, ""))
        store = connect(url=server.origin, token=TOKEN)
        error = refused(AccessDenied, lambda store=store, at=server.origin: store.resolve(f"{at}/artifact/{ID}"))
        assert says in error.message
        assert hint in error.hint


def test_without_a_registry_no_deprecated_place_is_recommended(connect, here):
    error = refused(InvalidConfiguration, lambda: connect().resolve(f"ari://{ID}"))
    assert str(here / ".ari") in error.message
    assert " or " not in error.message
    assert "ARI_REGISTRIES_FILE" in error.hint


def test_config_check_of_a_server_that_is_not_there(tmp_path):
    with Server(Desk()) as server:
        url = server.origin
    env = environment(tmp_path, ARI_REGISTRY_URL=url, ARI_REGISTRY_TOKEN=TOKEN)
    status, told = ari_json("config", "check", env=env)
    assert status == 5
    assert told["registries"][0]["reachable"] is False
    assert "whether the server runs" in told["registries"][0]["hint"]
    assert told["registries"][0]["token_from"] == "ARI_REGISTRY_TOKEN"  # noqa: S105 - the name of a variable


def test_config_check_without_any_configuration(tmp_path):
    done = ari("config", "check", env=environment(tmp_path))
    assert done.returncode == 2
    assert "no registry is configured" in error_of(done)[0]
    assert f"{tmp_path / 'here' / '.ari' / 'registries.yaml'}" in error_of(done)[0]


def test_config_check_shows_the_deprecation(serve, tmp_path, here):
    home = tmp_path / "home"
    configure(home, ("lab", serve(Desk()).origin))
    done = ari("config", "check", env=environment(tmp_path, HOME=str(home)))
    assert done.returncode == 0
    assert done.stderr.count("deprecated") == 1


def test_configured_never_raises(monkeypatch):
    with warnings.catch_warnings():
        for value in ("", "relative", "/dev/null/x", "~nobody-of-that-name", "x" * 5000):
            monkeypatch.setenv("HOME", value)
            monkeypatch.setenv("ARI_CHECKPOINT_DIR", value)
            assert configured(None) is None
