"""Clone over https from servers that misbehave, through the public function: a verified tree, or nothing."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from functools import partial

import pytest
from support import archives
from support.httpd import Authority, Server, StaticFile, forget_proxies, servers
from support.places import Place, photograph, tree

from ari_core import AriError, clone, verify, wrappers
from ari_core.errors import (
    AccessDenied,
    ArchiveRefusedError,
    ConfigurationError,
    ContentMismatchError,
    DestinationExistsError,
    DigestMismatchError,
    DigestSpellingError,
    IntegrityError,
    NotFound,
    PluginError,
    Unavailable,
    VerificationError,
)

_random = random.Random(7)
FILES = {"README.md": b"read me\n", "data/noise.bin": _random.randbytes(200_000), "run.sh": b"#!/bin/sh\n"}
ARCHIVE = archives.bundle(FILES, executables={"run.sh"})
DIGEST = archives.bundle_digest(FILES)
ARCHIVE_SHA256 = hashlib.sha256(ARCHIVE).hexdigest()
TREE = {name: (data, name == "run.sh") for name, data in FILES.items()}
OTHER_FILES = {**FILES, "README.md": b"read us\n"}
OTHER = archives.bundle(OTHER_FILES, executables={"run.sh"})
TOKEN = "canary-token-51d0"  # noqa: S105 - a canary
QUERY = "X-Signature=canary-query-33be"
CANARIES = (TOKEN, "canary-query-33be")
SIZE = len(ARCHIVE)


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(autouse=True)
def _alone_and_fast(monkeypatch):
    """No proxies of the machine's, and nobody waits before trying again."""
    forget_proxies(monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(
        wrappers,
        "RetryPolicy",
        partial(wrappers.RetryPolicy, sleep=lambda _seconds: None, jitter=lambda _limit: 0.0),
    )


@pytest.fixture
def serve(authority):
    with servers(authority) as start:
        yield start


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "place")


@pytest.fixture
def get(authority, place):
    """Clones a URL to `place.dest`."""

    def run(url, **more):
        options = {"ca_file": str(authority.file), "token": TOKEN, **more.pop("options", {})}
        return clone(url, place.dest, **{"expect_sha256": DIGEST, "options": options} | more)

    return run


@pytest.fixture
def refused(get, place):
    """Checks that a clone is refused in one line without secrets, and that nothing changed anywhere."""

    def run(kind, exit_code, url, **more):
        before = photograph(place.root)
        with pytest.raises(AriError) as caught:
            get(url, **more)
        error = caught.value
        assert isinstance(error, kind), repr(error)
        assert error.exit_code == exit_code
        told = f"{error} {error.hint}"
        assert not any(canary in told for canary in CANARIES)
        assert told.isprintable()
        assert photograph(place.root) == before
        return error

    return run


def methods(server):
    return [request.method for request in server.seen]


# -- what works --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [True, False], ids=["https", "http on loopback"])
@pytest.mark.parametrize("position", [0, 1, -1], ids=["manifest first", "in the middle", "last"])
def test_clone(serve, get, place, tls, position):
    archive = archives.bundle(FILES, position=position, executables={"run.sh"})
    server = serve(StaticFile(archive), tls=tls)
    done = get(server.url("/study.tar.gz"))
    found = tree(place.dest)
    assert found.pop("manifest.lock")
    assert found == TREE
    assert (done.anchored_by, done.bundle_sha256) == ("paper", DIGEST)
    assert done.archive_sha256 == hashlib.sha256(archive).hexdigest()
    assert done.ref == server.url("/study.tar.gz")
    assert methods(server) == ["HEAD", "GET"]  # read once, whatever the order of the members


def test_default_destination(serve, authority, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = serve(StaticFile(ARCHIVE)).url(f"/some/study.tar.gz?{QUERY}")
    assert clone(url, options={"ca_file": str(authority.file)}).dest == tmp_path / "study"


def test_stored_archive_is_the_one_served(serve, get, place):
    get(serve(StaticFile(ARCHIVE)).url(), extract=False)
    assert place.dest.read_bytes() == ARCHIVE


def test_artifact_of_a_registry(serve, get):
    headers = {"X-ARI-Sha256": ARCHIVE_SHA256, "X-ARI-Visibility": "public"}
    server = serve(StaticFile(ARCHIVE, headers=headers))
    done = get(server.url(f"/artifact/{ARCHIVE_SHA256[:16]}"), expect_sha256=None)
    assert done.anchored_by == "archive-id"


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
@pytest.mark.parametrize(
    "options",
    [{}, {"etag": None}, {"ranges": False}, {"announce": None}, {"etag": None, "ranges": False, "announce": None}],
    ids=["all proofs", "no etag", "ranges ignored", "ranges not announced", "nothing"],
)
@pytest.mark.parametrize("position", [0, -1], ids=["manifest first", "manifest last"])
def test_cut_connections(serve, get, place, options, reset, position):
    archive = archives.bundle(FILES, position=position, executables={"run.sh"})
    get(serve(StaticFile(archive, cuts=[100_000, 150_000], reset=reset, **options)).url())
    assert tree(place.dest)["data/noise.bin"] == (FILES["data/noise.bin"], False)


def test_f3_token_stays_where_it_belongs(serve, get, place):
    elsewhere = serve(StaticFile(ARCHIVE, cuts=[100_000]), host="localhost")

    def respond(request, wire):
        location = elsewhere.url(f"/key?{QUERY}")
        wire.answer(307, {"Location": location, "Set-Cookie": f"session={TOKEN}; Path=/"})

    first = serve(respond)
    done = get(first.url())
    assert done.ref == first.url()
    assert all(request.headers["authorization"] == f"Bearer {TOKEN}" for request in first.seen)
    assert methods(elsewhere) == ["HEAD", "GET", "GET"]
    assert not any(TOKEN.encode() in request.raw for request in elsewhere.seen)
    assert TOKEN not in repr(done)
    assert place.dest.is_dir()


# -- F2 ----------------------------------------------------------------------------------------------------------


def get_with(answer):
    """A responder with a proper HEAD, and `answer` for each GET."""
    file = StaticFile(ARCHIVE)
    return lambda request, wire: file(request, wire) if request.method == "HEAD" else answer(request, wire)


def always(status, headers, body):
    return get_with(lambda request, wire: wire.answer(status, headers, body))


def cut_and_then(answer):
    """A responder whose first GET is cut in the middle; `answer` gives the second."""
    file = StaticFile(ARCHIVE, cuts=[SIZE // 2])

    def respond(request, wire):
        if request.method == "GET" and file.gets:
            answer(request, wire)
        else:
            file(request, wire)

    return respond


def rest_of(body, **headers):
    first, total = SIZE // 2, len(body)
    fields = {"ETag": '"v1"', "Content-Range": f"bytes {first}-{total - 1}/{total}", **headers}
    return lambda request, wire: wire.answer(206, fields, body[first:])


ROTTEN = ARCHIVE[:-5000] + bytes([ARCHIVE[-5000] ^ 1]) + ARCHIVE[-4999:]
HALF = SIZE // 2

F2 = {
    "always cut": (Unavailable, 5, StaticFile(ARCHIVE, cuts=[1000] * 100, etag=None, ranges=False)),
    "always cut, with proofs": (Unavailable, 5, StaticFile(ARCHIVE, cuts=[1] * 100)),
    "fewer bytes, chunked": (Unavailable, 5, get_with(lambda request, wire: wire.chunked({}, ARCHIVE[:-1]))),
    "more bytes, chunked": (IntegrityError, 1, get_with(lambda request, wire: wire.chunked({}, ARCHIVE + b"x"))),
    "shorter than announced by HEAD": (IntegrityError, 1, always(200, {}, ARCHIVE[:-1])),
    "longer than announced by HEAD": (IntegrityError, 1, always(200, {}, ARCHIVE + b"x")),
    "shorter, consistently": (ArchiveRefusedError, 1, StaticFile(ARCHIVE[:-1])),
    "longer, consistently": (ArchiveRefusedError, 1, StaticFile(ARCHIVE + b"x")),
    "gzip encoding": (IntegrityError, 1, always(200, {"Content-Encoding": "gzip"}, ARCHIVE)),
    "gzip encoding, consistently": (IntegrityError, 1, StaticFile(ARCHIVE, headers={"Content-Encoding": "gzip"})),
    "a part for the whole": (
        IntegrityError,
        1,
        always(206, {"Content-Range": f"bytes 0-{SIZE - 1}/{SIZE}"}, ARCHIVE),
    ),
    "another bundle": (DigestMismatchError, 1, StaticFile(OTHER)),
    "one bit flipped": (
        ContentMismatchError,
        1,
        StaticFile(archives.gzip(archives.plain_bundle(FILES).replace(b"read me\n", b"read mf\n"))),
    ),
    "one bit of the stream flipped": (VerificationError, 1, StaticFile(ROTTEN)),
    "a page": (ArchiveRefusedError, 1, StaticFile(b"<!DOCTYPE html><title>Log in</title>")),
    "empty": (ArchiveRefusedError, 1, StaticFile(b"")),
    "another archive than the header says": (
        IntegrityError,
        1,
        StaticFile(ARCHIVE, headers={"X-ARI-Sha256": "ab" * 32}),
    ),
    "on resume: other object, told": (IntegrityError, 1, cut_and_then(rest_of(OTHER, ETag='"v2"'))),
    "on resume: other object whole": (
        IntegrityError,
        1,
        cut_and_then(lambda request, wire: wire.answer(200, {"ETag": '"v2"'}, OTHER)),
    ),
    "on resume: other bytes, not told": (
        VerificationError,
        1,
        cut_and_then(rest_of(ARCHIVE[:HALF] + bytes(SIZE - HALF))),
    ),
    "on resume: other range": (
        IntegrityError,
        1,
        cut_and_then(rest_of(ARCHIVE, **{"Content-Range": f"bytes {HALF + 1}-{SIZE - 1}/{SIZE}"})),
    ),
    "on resume: other total": (
        IntegrityError,
        1,
        cut_and_then(rest_of(ARCHIVE, **{"Content-Range": f"bytes {HALF}-{SIZE}/{SIZE + 1}"})),
    ),
    "gone between HEAD and GET": (NotFound, 3, always(404, {}, b"")),
    "refused": (AccessDenied, 4, always(403, {}, b"")),
}


@pytest.mark.parametrize("case", F2)
def test_f2(serve, refused, case):
    kind, exit_code, respond = F2[case]
    refused(kind, exit_code, serve(respond).url(f"/x?{QUERY}"))


def test_says_that_it_got_a_page(serve, refused):
    page = StaticFile(b"<!DOCTYPE html><title>Log in</title>")
    assert "web page" in refused(ArchiveRefusedError, 1, serve(page).url()).message


def test_f2_restarts_once(serve, refused):
    """Inside one reading; the wrapper around may ask anew a bounded number of times."""
    file = StaticFile(ARCHIVE, cuts=[1000] * 100, ranges=False)
    refused(Unavailable, 5, serve(file).url())
    assert file.gets <= 12


# -- F3 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/x?" + QUERY,
        "http://example.org/x?" + QUERY,
        "file:///etc/passwd",
        "ftp://127.0.0.1:{port}/x",
        "simplecache::file:///etc/passwd",
        "https://me:canary-token-51d0@127.0.0.1:{port}/x",
        "/start",
    ],
)
def test_f3(serve, refused, location):
    bait = serve(StaticFile(ARCHIVE), tls=False)
    server = serve(lambda request, wire: wire.redirect(location.format(port=bait.port)))
    assert "redirects" in refused(IntegrityError, 1, server.url("/start")).message
    assert not bait.seen
    assert len(server.seen) == 1


def test_f3_fourth_hop(serve, refused):
    server = serve(lambda request, wire: wire.redirect(request.target + "x"))
    assert "more than 3 redirects" in refused(IntegrityError, 1, server.url("/r")).message
    assert len(server.seen) == 4


# -- before the network ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", ["", DIGEST.upper(), DIGEST[:63], DIGEST + "\n", "sha256:" + DIGEST])
def test_d1_misspelt_digest_sends_nothing(serve, refused, digest):
    server = serve(StaticFile(ARCHIVE))
    refused(DigestSpellingError, 2, server.url(), expect_sha256=digest)
    assert not server.seen


def test_existing_destination_sends_nothing(serve, refused, place):
    place.dest.mkdir()
    (place.dest / "mine").write_text("mine")
    server = serve(StaticFile(ARCHIVE))
    refused(DestinationExistsError, 2, server.url())
    assert not server.seen


@pytest.mark.parametrize("options", [{"max_download": "much"}, {"ca_file": "/nowhere"}, {"no_such": "1"}])
def test_wrong_setting_sends_nothing(serve, refused, options):
    server = serve(StaticFile(ARCHIVE))
    refused(ConfigurationError, 2, server.url(), options=options)
    assert not server.seen


@pytest.mark.parametrize("form", ["simplecache::{}", "filecache::{}", "{}::file:///etc/passwd", "zip://x::{}"])
def test_f4_chained_urls_send_nothing(serve, place, form):
    server = serve(StaticFile(ARCHIVE), tls=False)
    before = photograph(place.root)
    with pytest.raises(AriError) as caught:
        clone(form.format(server.url()), place.dest)
    assert caught.value.exit_code in {2, 3}
    assert not server.seen
    assert photograph(place.root) == before


def test_http_elsewhere_is_refused(place):
    with pytest.raises(PluginError) as caught:
        clone("http://example.org/bundle.tar.gz", place.dest)
    assert caught.value.exit_code == 2


def test_max_download(serve, get, refused, place):
    server = serve(StaticFile(ARCHIVE))
    error = refused(IntegrityError, 1, server.url(), options={"max_download": str(SIZE - 1)})
    assert "max_download" in error.message
    get(server.url(), options={"max_download": str(SIZE)})
    assert place.dest.is_dir()


# -- verify, and the command -------------------------------------------------------------------------------------


def test_verify_reads_it_all_and_writes_nothing(serve, authority, place):
    before = photograph(place.root)
    options = {"ca_file": str(authority.file)}
    good = verify(serve(StaticFile(ARCHIVE, cuts=[1000])).url(), expect_sha256=DIGEST, options=options)
    assert (good.ok, good.anchored_by, good.archive_sha256) == (True, "paper", ARCHIVE_SHA256)
    bad = verify(serve(StaticFile(OTHER)).url(), expect_sha256=DIGEST, options=options)
    assert not bad.ok
    assert photograph(place.root) == before


def ari(*arguments, cwd):
    command = [
        sys.executable,
        "-c",
        "import sys; from ari_core.cli import main; sys.exit(main())",
        *map(str, arguments),
    ]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_command(serve, authority, place):
    (place.root / "token").write_text(TOKEN + "\n")
    server = serve(StaticFile(ARCHIVE))
    options = ["--expect-sha256", DIGEST, "--token-file", place.root / "token", "-o", f"ca_file={authority.file}"]
    done = ari("clone", server.url(), place.dest, *options, "--json", cwd=place.root)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bundle_sha256"] == DIGEST
    assert {request.headers["authorization"] for request in server.seen} == {f"Bearer {TOKEN}"}
    found = tree(place.dest)
    assert found.pop("manifest.lock")
    assert found == TREE
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("status", "exit_code"), [(401, 4), (404, 3), (410, 3), (400, 2)], ids=["denied", "absent", "deleted", "other"]
)
def test_command_that_fails(serve, authority, place, status, exit_code):
    (place.root / "token").write_text(TOKEN)
    before = photograph(place.root)
    url = serve(lambda request, wire: wire.answer(status)).url(f"/x?{QUERY}")
    options = ["--token-file", place.root / "token", "-o", f"ca_file={authority.file}"]
    done = ari("clone", url, place.dest, *options, cwd=place.root)
    assert (done.returncode, done.stdout) == (exit_code, "")
    assert "Traceback" not in done.stderr
    assert not any(canary in done.stderr for canary in CANARIES)
    assert photograph(place.root) == before


# -- K5 ----------------------------------------------------------------------------------------------------------


class Weather:
    """A responder for a bad network: cuts, resets, flips, other objects, troubled answers, all at random."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.lies = False

    def __call__(self, request, wire):
        dice = self.random
        body = ARCHIVE
        if dice.random() < 0.1:
            wire.answer(dice.choice([429, 500, 503]))
            return
        if request.method == "GET" and dice.random() < 0.15:
            self.lies = True
            at = dice.randrange(SIZE)
            body = dice.choice([OTHER, ARCHIVE[:at], ARCHIVE[:at] + bytes([ARCHIVE[at] ^ 1]) + ARCHIVE[at + 1 :]])
        cuts = [dice.randrange(len(body) + 1)] if dice.random() < 0.5 else []
        etag = dice.choice(['"v1"', '"v1"', '"v2"', None])
        StaticFile(body, etag=etag, ranges=dice.random() < 0.7, cuts=cuts, reset=dice.random() < 0.5)(
            request, wire
        )


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.long)])
def test_k5_verified_tree_or_nothing(place, count):
    before = photograph(place.root)
    cloned = 0
    for seed in range(count):
        with Server(Weather(seed)) as server:
            try:
                clone(server.url(), place.dest, expect_sha256=DIGEST)
            except AriError as error:
                assert error.exit_code in {1, 5}, f"seed {seed}: {error!r}"  # noqa: PT017 - which one varies
            else:
                cloned += 1
                found = tree(place.dest)
                assert found.pop("manifest.lock")
                assert found == TREE, f"seed {seed}"
                shutil.rmtree(place.dest)
        assert photograph(place.root) == before, f"seed {seed}"
    assert 0 < cloned < count
