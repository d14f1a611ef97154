"""Bundles and manifests on their way out, over the real uvicorn, from stores that do what a test needs."""

import base64
import hashlib
import http.client
import io
import os
import random
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel
from support.archives import bundle, manifest
from support.asgi import Serving

from ari_core.contract import Artifact, Backend, Capabilities, Locator, Visibility
from ari_core.errors import NotFound, Unavailable, Unsupported
from ari_core.limits import Limits
from ari_server import download, problems
from ari_server.config import ServerConfig
from ari_server.logs import RequestLog, SecurityHeaders
from ari_server.rows import Row

FILES = {"README.md": b"hello\n", "noise": random.Random(1).randbytes(1_500_000)}
ARCHIVE = bundle(FILES)
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()
ID = SHA256[:16]
TAG = f'"{SHA256}"'
SIZE = len(ARCHIVE)
PATH = f"/artifact/{ID}"
MANIFEST = manifest(FILES)
FOREVER = "public, max-age=31536000, immutable"


class Store(Backend):
    """Streams files of a folder; counts what it is asked, and does as it is told.

    Attributes:
        asked: Calls so far.
        reads: Reads of streams so far.
        closed: Set when a stream was closed.
        short: Ends so many bytes early.
        failing: Raised by everything.
    """

    name = "for-tests"
    capabilities = Capabilities(ranges=True)
    Settings = BaseModel

    def __init__(self, folder):
        super().__init__(settings=None)
        self.folder, self.asked, self.reads, self.short = folder, 0, 0, 0
        self.closed = threading.Event()
        self.failing = None

    def file(self, locator):
        return self.folder / locator

    def _resolve(self, ref):
        return Locator(ref)

    def _ref(self, locator):
        return locator

    def _stat(self, locator):
        self.asked += 1
        if self.failing:
            raise self.failing
        if not self.file(locator).exists():
            raise NotFound(f"there is no {locator}")
        return Artifact(locator, size=self.file(locator).stat().st_size)

    @contextmanager
    def _open(self, locator, offset):
        data = self.file(locator).read_bytes()
        stream = io.BytesIO(data[: len(data) - self.short])
        stream.seek(offset)
        try:
            yield _Counting(self, stream)
        finally:
            self.closed.set()


class _Counting:
    def __init__(self, store, stream):
        self._store, self._stream = store, stream

    def read(self, size):
        self._store.reads += 1
        return self._stream.read(size)


class Local(Store):
    """Keeps archives in files, and says where."""

    def local_path(self, locator):
        self._stat(locator)
        return self.file(locator)


class WithManifest(Local):
    """Has manifests beside the bundles; what it has is `beside`."""

    beside = MANIFEST

    def manifest(self, locator):
        self.asked += 1
        if self.beside is None:
            raise Unsupported("none")
        return self.beside


class Registry:
    """As much of a registry as downloads need."""

    def __init__(self, store, data, threads=8, **settings):
        self.store, self.limits, self.threads = store, Limits(), threads
        self.config = ServerConfig(data=data, **settings)
        self.rows = {}
        self.forgotten = []
        self._limiters = {}

    def put(self, data=ARCHIVE, level=Visibility.PUBLIC, **changes):
        sha256 = hashlib.sha256(data).hexdigest()
        place = Locator(sha256[:16])
        self.store.file(place).write_bytes(data)
        row = Row(
            id=place,
            archive_sha256=sha256,
            bundle_sha256=None,
            size=len(data),
            visibility=level,
            created=datetime.now(UTC),
            locator=place,
        )
        self.rows[place] = replace(row, **changes)
        return self.rows[place]

    def forget(self, row):
        self.forgotten.append(row.id)

    async def in_thread(self, call, *arguments, pool="short"):
        limiter = self._limiters.setdefault(pool, anyio.CapacityLimiter(self.threads))
        return await anyio.to_thread.run_sync(call, *arguments, limiter=limiter)

    async def reading(self, call, *arguments):
        return await self.in_thread(call, *arguments, pool="reading")


def app_of(place):
    app = FastAPI(openapi_url=None)
    problems.install(app)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(RequestLog)

    @app.api_route("/artifact/{digits}", methods=["GET", "HEAD"])
    async def _bundle(digits: str, request: Request):
        return await download.bundle(
            request, place.registry.rows[digits], place.registry, head=request.method == "HEAD"
        )

    @app.api_route("/artifact/{digits}/manifest.lock", methods=["GET", "HEAD"])
    async def _manifest(digits: str, request: Request):
        return await download.manifest(request, place.registry.rows[digits], place.registry)

    return app


@pytest.fixture(params=[Store, Local])
def registry(request, tmp_path):
    made = Registry(request.param(tmp_path), tmp_path)
    made.put()
    return made


@pytest.fixture(scope="module")
def running():
    place = SimpleNamespace(registry=None)
    with Serving(app_of(place)) as serving:
        yield place, serving


@pytest.fixture
def serve(running, monkeypatch):
    """Puts a registry behind the server."""
    place, serving = running
    monkeypatch.setattr(download, "_manifests", download._Manifests())

    def put_behind(registry):
        place.registry = registry
        serving.lines.clear()
        return serving

    return put_behind


@pytest.fixture
def server(registry, serve):
    return serve(registry)


def test_a_bundle_comes_whole_with_what_its_reader_needs_to_check_it(server):
    status, headers, body = server.get(PATH)
    assert (status, body) == (200, ARCHIVE)
    assert headers["content-type"] == "application/gzip"
    assert headers["content-length"] == str(SIZE)
    assert headers["x-ari-sha256"] == SHA256
    assert headers["x-ari-visibility"] == "public"
    assert headers["etag"] == TAG
    assert headers["accept-ranges"] == "bytes"
    assert headers["repr-digest"] == f"sha-256=:{base64.b64encode(hashlib.sha256(ARCHIVE).digest()).decode()}:"
    assert headers["content-disposition"] == f'attachment; filename="bundle-{ID}.tar.gz"'
    assert headers["cache-control"] == FOREVER
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("level", Visibility)
def test_head_says_the_same_as_get_and_asks_the_store_nothing(server, registry, level):
    registry.put(level=level)
    _, wanted, _ = server.get(PATH)
    before = registry.store.asked
    status, headers, body = server.request("HEAD", PATH)
    assert (status, body) == (200, b"")
    changing = {"date", "x-request-id"}
    assert {k: v for k, v in headers.items() if k not in changing} == {
        k: v for k, v in wanted.items() if k not in changing
    }
    assert registry.store.asked == before


@pytest.mark.parametrize("level", Visibility)
@pytest.mark.parametrize("what", ["", "/manifest.lock"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_only_what_is_public_may_be_kept_by_anybody(server, registry, level, what, method):
    registry.put(level=level)
    _, headers, _ = server.request(method, PATH + what)
    assert headers["cache-control"] == (FOREVER if level is Visibility.PUBLIC else "private, no-store")


@pytest.mark.parametrize(
    ("given", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, SIZE),
        ("bytes=7-99", 7, 100),
        ("Bytes=7-99", 7, 100),
        (f"bytes=1000000-{SIZE * 2}", 1_000_000, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        ("bytes=-1", SIZE - 1, SIZE),
        (f"bytes=-{SIZE}", 0, SIZE),
        (f"bytes=-{SIZE + 1}", 0, SIZE),
    ],
)
def test_one_range_gives_exactly_that_part(server, given, start, end):
    status, headers, body = server.get(PATH, ("Range", given))
    assert status == 206
    assert body == ARCHIVE[start:end]
    assert headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert headers["content-length"] == str(end - start)
    assert headers["etag"] == TAG


@pytest.mark.parametrize("given", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 9}", "bytes=-0"])
def test_a_range_behind_the_end_is_refused_with_the_size(server, given):
    status, headers, body = server.get(PATH, ("Range", given))
    assert status == 416
    assert headers["content-range"] == f"bytes */{SIZE}"
    assert headers["content-type"] == "application/problem+json"
    assert b'"kind":"range"' in body


@pytest.mark.parametrize(
    "given",
    [
        "bytes=0-1,5-6",
        "bytes=" + ",".join(f"{n}-{n}" for n in range(1000)),
        "bytes=" + "0" * 5000 + "-1",
        "bytes=9-2",
        "bytes=-",
        "bytes=",
        "bytes",
        "bytes=a-b",
        "bytes=0x1-2",
        "bytes=+1-2",
        "bytes=1--2",
        "bytes=\u0661-".encode().decode("latin-1"),
        "bytes 0-1",
        "lines=0-1",
        "",
    ],
)
def test_what_is_no_single_range_is_ignored(server, given):
    status, headers, body = server.get(PATH, ("Range", given))
    assert (status, body) == (200, ARCHIVE)
    assert "content-range" not in headers


def test_two_range_headers_are_ignored(server):
    status, _, body = server.get(PATH, ("Range", "bytes=0-1"), ("Range", "bytes=0-1"))
    assert (status, len(body)) == (200, SIZE)


@pytest.mark.parametrize("given", [TAG, f"W/{TAG}", f'"x", W/"y",{TAG}', "*", " * "])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_who_has_it_gets_no_bytes(server, registry, given, method):
    status, headers, body = server.request(method, PATH, [("If-None-Match", given), ("Range", "bytes=0-1")])
    assert (status, body) == (304, b"")
    assert headers["etag"] == TAG
    assert headers["cache-control"] == FOREVER
    assert registry.store.asked == 0


@pytest.mark.parametrize("given", [SHA256, f'"{SHA256[:16]}"', '"x"', "", f'"{SHA256.upper()}"', '"' * 9000])
def test_who_has_something_else_gets_it(server, given):
    status, _, body = server.get(PATH, ("If-None-Match", given))
    assert (status, body) == (200, ARCHIVE)


@pytest.mark.parametrize(
    ("given", "status"),
    [(TAG, 206), (f"W/{TAG}", 200), ('"x"', 200), ("Wed, 21 Oct 2099 07:28:00 GMT", 200), ("", 200)],
)
def test_a_download_goes_on_only_with_the_very_same_bytes(server, given, status):
    got, _, body = server.get(PATH, ("Range", "bytes=5-"), ("If-Range", given))
    assert got == status
    assert body == (ARCHIVE[5:] if status == 206 else ARCHIVE)


# -- trouble -----------------------------------------------------------------------------------------------------


def test_what_the_store_has_lost_is_not_found_and_leaves_the_index(server, registry):
    (registry.store.folder / ID).unlink()
    assert server.get(PATH)[0] == 404
    assert registry.forgotten == [ID]


@pytest.mark.parametrize("what", ["", "/manifest.lock"])
def test_what_cannot_be_told_stays_in_the_index(server, registry, what):
    registry.store.failing = Unavailable("no route to /secret/place")
    status, headers, body = server.get(PATH + what)
    assert status == 503
    assert int(headers["retry-after"]) > 0
    assert b"secret" not in body
    assert registry.forgotten == []


@pytest.mark.parametrize(
    "change", [lambda file: file.write_bytes(b"short"), lambda file: os.truncate(file, SIZE - 1)]
)
def test_a_damaged_file_is_never_sent(serve, tmp_path, change):
    registry = Registry(Local(tmp_path), tmp_path)
    registry.put()
    change(tmp_path / ID)
    server = serve(registry)
    status, _, body = server.get(PATH)
    assert status == 502
    assert str(tmp_path).encode() not in body
    assert ID in server.logged("ERROR")


def test_a_link_in_place_of_a_bundle_is_not_followed(serve, tmp_path):
    registry = Registry(Local(tmp_path), tmp_path)
    registry.put()
    (tmp_path / ID).rename(tmp_path / "elsewhere")
    (tmp_path / ID).symlink_to("elsewhere")
    server = serve(registry)
    assert server.get(PATH)[0] == 500


@pytest.mark.parametrize("registry", [Store], indirect=True)
def test_a_store_that_ends_early_never_makes_a_body_that_looks_whole(server, registry):
    registry.store.short = 10
    with pytest.raises(http.client.IncompleteRead):
        server.get(PATH)
    assert server.logged("cut off a download")
    assert "status=200" in server.logged("end=aborted")


LARGE = os.urandom(24_000_000)


def _begin(server, path):
    """Asks for a download and reads only its head."""
    sock = server.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(1)
    return sock


def _rest(sock):
    with sock, sock.makefile("rb") as stream:
        return stream.read()


def test_what_is_deleted_while_it_is_read_comes_whole(server, registry):
    row = registry.put(LARGE)
    sock = _begin(server, f"/artifact/{row.id}")
    (registry.store.folder / row.id).unlink()
    assert _rest(sock) == LARGE


def test_a_file_that_shrinks_while_it_is_read_cuts_the_connection(serve, tmp_path):
    registry = Registry(Local(tmp_path), tmp_path)
    row = registry.put(LARGE)
    server = serve(registry)
    sock = _begin(server, f"/artifact/{row.id}")
    os.truncate(tmp_path / row.id, 20_000_000)
    assert len(_rest(sock)) <= 20_000_000
    assert server.logged("cut off a download")


@pytest.mark.parametrize("registry", [Store], indirect=True)
def test_slow_readers_hold_no_thread(serve, registry):
    registry.threads = 1
    row = registry.put(LARGE)
    server = serve(registry)
    slow = [_begin(server, f"/artifact/{row.id}") for _ in range(3)]
    assert server.get(PATH)[2] == ARCHIVE
    for sock in slow:
        assert _rest(sock) == LARGE


@pytest.mark.parametrize("registry", [Store], indirect=True)
def test_nothing_more_is_read_for_a_reader_who_left(server, registry):
    row = registry.put(LARGE)
    sock = _begin(server, f"/artifact/{row.id}")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closing resets
    sock.close()
    assert registry.store.closed.wait(30)
    assert registry.store.reads < len(LARGE) / download.CHUNK


def test_files_that_the_system_cannot_look_ahead_in_are_read_all_the_same(serve, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "preadv", refuse)
    registry = Registry(Local(tmp_path), tmp_path)
    registry.put()
    server = serve(registry)
    assert server.get(PATH)[2] == ARCHIVE


# -- nginx sends -------------------------------------------------------------------------------------------------


@pytest.fixture
def behind_nginx(serve, tmp_path):
    folder = tmp_path / "artifacts"
    folder.mkdir()
    registry = Registry(Local(folder), tmp_path, accel="/_artifacts/")
    registry.put()
    serving = serve(registry)
    return serving, folder, registry


def test_nginx_is_told_what_to_send(behind_nginx):
    status, headers, body = behind_nginx[0].get(PATH, ("Range", "bytes=0-1"))
    assert (status, body) == (200, b"")
    assert headers["x-accel-redirect"] == f"/_artifacts/{ID}"
    assert headers["etag"] == TAG
    assert headers["content-disposition"].startswith("attachment")
    assert "content-range" not in headers


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (("Range", "bytes=0-1,5-6"), 200),
        (("Range", "bytes=9-2"), 200),
        (("If-Unmodified-Since", "Wed, 21 Oct 2015 07:28:00 GMT"), 200),
        (("Range", f"bytes={SIZE}-"), 416),
    ],
)
def test_what_nginx_would_answer_differently_is_answered_by_us(behind_nginx, header, status):
    got, headers, body = behind_nginx[0].get(PATH, header)
    assert got == status
    assert "x-accel-redirect" not in headers
    assert status == 416 or body == ARCHIVE


def test_behind_nginx_the_rest_stays_ours(behind_nginx):
    server, folder, registry = behind_nginx
    assert server.get(PATH, ("If-None-Match", TAG))[0] == 304
    assert server.request("HEAD", PATH)[1]["content-length"] == str(SIZE)
    os.truncate(folder / ID, 5)
    assert server.get(PATH)[0] == 502
    (folder / ID).unlink()
    assert server.get(PATH)[0] == 404
    assert registry.forgotten == [ID]


@pytest.mark.parametrize("store", [Store, Local])
def test_what_nginx_cannot_reach_is_sent_by_us(serve, tmp_path, store):
    (tmp_path / "elsewhere").mkdir()
    registry = Registry(store(tmp_path / "elsewhere"), tmp_path / "data", accel="/_artifacts")
    registry.put()
    server = serve(registry)
    status, headers, body = server.get(PATH)
    assert (status, body) == (200, ARCHIVE)
    assert "x-accel-redirect" not in headers


# -- manifests ---------------------------------------------------------------------------------------------------


def _manifest_server(serve, tmp_path, beside, **changes):
    store = WithManifest(tmp_path)
    store.beside = beside
    registry = Registry(store, tmp_path)
    registry.put(**changes)
    return registry, serve(registry)


@pytest.mark.parametrize("known", [None, hashlib.sha256(MANIFEST).hexdigest()])
@pytest.mark.parametrize("beside", [MANIFEST, None])
def test_a_manifest_comes_byte_for_byte_as_in_the_bundle(serve, tmp_path, beside, known):
    _, server = _manifest_server(serve, tmp_path, beside, manifest_sha256=known)
    status, headers, body = server.get(f"{PATH}/manifest.lock")
    assert (status, body) == (200, MANIFEST)
    assert headers["content-type"] == "application/json"
    assert headers["etag"] == f'"{hashlib.sha256(MANIFEST).hexdigest()}"'
    assert server.request("HEAD", f"{PATH}/manifest.lock")[1]["content-length"] == str(len(MANIFEST))
    again = ("If-None-Match", headers["etag"])
    assert server.get(f"{PATH}/manifest.lock", again)[0] == 304


def test_a_manifest_that_was_altered_in_the_store_is_not_believed(serve, tmp_path):
    known = hashlib.sha256(MANIFEST).hexdigest()
    _, server = _manifest_server(serve, tmp_path, MANIFEST.replace(b"README", b"README2"), manifest_sha256=known)
    assert server.get(f"{PATH}/manifest.lock")[2] == MANIFEST


def test_a_bundle_without_the_manifest_that_was_stored_is_the_stores_failure(serve, tmp_path):
    _, server = _manifest_server(serve, tmp_path, None, manifest_sha256="0" * 64)
    assert server.get(f"{PATH}/manifest.lock")[0] == 502


def test_a_bundle_that_does_not_verify_any_more_is_the_stores_failure(serve, tmp_path):
    _, server = _manifest_server(serve, tmp_path, None, data=b"no archive at all")
    row_id = hashlib.sha256(b"no archive at all").hexdigest()[:16]
    assert server.get(f"/artifact/{row_id}/manifest.lock")[0] == 502


def test_a_manifest_that_is_known_by_its_digest_needs_no_store_to_say_it_is_unchanged(serve, tmp_path):
    known = hashlib.sha256(MANIFEST).hexdigest()
    registry, server = _manifest_server(serve, tmp_path, MANIFEST, manifest_sha256=known)
    assert server.get(f"{PATH}/manifest.lock", ("If-None-Match", f'W/"{known}"'))[0] == 304
    assert registry.store.asked == 0


def test_a_manifest_asked_for_again_is_not_searched_again(serve, tmp_path):
    registry, server = _manifest_server(serve, tmp_path, None)
    server.get(f"{PATH}/manifest.lock")
    before = registry.store.asked
    assert server.get(f"{PATH}/manifest.lock")[2] == MANIFEST
    assert registry.store.asked == before


def test_manifests_are_kept_within_bounds(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_CACHED_MANIFESTS", len(MANIFEST) + 10)
    registry, server = _manifest_server(serve, tmp_path, None)
    other = registry.put(bundle({"other": b"1"}))
    for path in (PATH, f"/artifact/{other.id}", PATH):
        assert server.get(f"{path}/manifest.lock")[0] == 200
    assert len(download._manifests._kept) == 1


def test_the_manifest_of_what_the_store_has_lost_is_not_found(serve, tmp_path):
    registry, server = _manifest_server(serve, tmp_path, None)
    Path(tmp_path / ID).unlink()
    assert server.get(f"{PATH}/manifest.lock")[0] == 404
    assert registry.forgotten == [ID]
