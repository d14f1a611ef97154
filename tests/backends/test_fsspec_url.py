"""Any URL that fsspec knows: the contract, in its memory and against a server; changes, refusals, secrets."""

import contextlib
import json
from importlib.util import find_spec
from urllib.parse import parse_qs, urlsplit

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from fsspec.registry import _registry, known_implementations
from support.bundles import make_bundle
from support.httpd import Server
from support.run import ari, error_of

from ari_backends._claims import FSSPEC_SCHEMES, fsspec_claims
from ari_backends.fsspec_url import FsspecSettings, FsspecUrl
from ari_core.conformance import BackendContract
from ari_core.contract import CHUNK, Claim, OpenContext
from ari_core.errors import (
    AccessDenied,
    ConfigurationError,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    RateLimited,
    Unavailable,
    Unsupported,
)
from ari_core.plugins import load_plugins
from ari_core.settings import load_settings, open_for_ref

SECRET = "hunter2-hunter2"  # noqa: S105 - what must never be shown


class Trouble:
    """Where a test lets a file system fail, and with what."""

    def __init__(self):
        self.at, self.error = None, None

    def check(self, step):
        if self.at in {step, "denied"}:
            raise self.error


TROUBLE = Trouble()


class Kept(MemoryFile):
    """A file for each reader, as elsewhere: those of fsspec's memory share one."""

    def read(self, size=-1):
        if self.tell():
            TROUBLE.check("read")
        return super().read(size)


class Shelf(MemoryFileSystem):
    """fsspec's memory, which can fail."""

    def info(self, path, **more):
        TROUBLE.check("stat")
        return super().info(path, **more)

    def _open(self, path, mode="rb", **more):
        TROUBLE.check("open")
        file = super()._open(path, mode, **more)
        return Kept(self, path, file.getvalue()) if mode == "rb" else file


@pytest.fixture(autouse=True)
def _shelf(monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setitem(_registry, "memory", Shelf)
    yield
    TROUBLE.at = TROUBLE.error = None


@pytest.fixture
def backend():
    with FsspecUrl(FsspecSettings()) as backend:
        yield backend


def place(data, url="memory://shelf/bundle.tar.gz"):
    MemoryFileSystem().pipe_file(url, data)
    return url


def read(backend, url, piece=CHUNK):
    with backend.open(backend.resolve(url)) as stream:
        return b"".join(iter(lambda: stream.read(piece), b""))


def pretend(monkeypatch, scheme, error=None):
    """Lets `scheme` be read from fsspec's memory by a file system that notes its options, or raises `error`."""
    seen = []

    class Pretended(Shelf):
        protocol = scheme

        def __init__(self, **options):
            seen.append(options)
            if error:
                raise error
            super().__init__()

        @classmethod
        def _strip_protocol(cls, path):
            return "/" + path.rpartition("://")[2].strip("/")

    monkeypatch.setitem(_registry, scheme, Pretended)
    return seen


# -- the contract ------------------------------------------------------------------------------------------------


class Reading(BackendContract):
    @contextlib.contextmanager
    def break_store(self, backend, step):
        TROUBLE.at, TROUBLE.error = step, PermissionError("no") if step == "denied" else OSError("down")
        yield
        TROUBLE.at = None


class TestMemory(Reading):
    @pytest.fixture
    def backend(self):
        with FsspecUrl(FsspecSettings()) as backend:
            yield backend

    def seed(self, backend, bundle):
        return backend.resolve(place(bundle.archive, f"memory://shelf/{bundle.archive_sha256}.tar.gz"))

    def absent(self, backend):
        return "memory://shelf/none.tar.gz#0123456789abcdef"

    def raw_corrupt(self, backend, locator):
        file = MemoryFileSystem.store[locator.partition("#")[0].removeprefix("memory:/")]
        with file.getbuffer() as data:
            data[-1] ^= 1


class NameNode:
    """As much of WebHDFS as reading takes; the data come from a second place, where the first redirects to."""

    def __init__(self):
        self.files = {}

    def __call__(self, seen, wire):
        url = urlsplit(seen.target)
        wanted = {key: value[0] for key, value in parse_qs(url.query).items()}
        path = url.path.removeprefix("/webhdfs/v1")
        try:
            if path not in self.files:
                self._refuse(wire, 404, "FileNotFoundException")
            elif wanted["op"] == "GETFILESTATUS":
                TROUBLE.check("stat")
                facts = {"type": "FILE", "length": len(self.files[path]), "modificationTime": 1, "pathSuffix": ""}
                self._answer(wire, 200, {"FileStatus": facts})
            elif "data" not in wanted:
                TROUBLE.check("open")
                if int(wanted["offset"]):
                    TROUBLE.check("read")
                wire.redirect(f"http://{seen.headers['host']}{seen.target}&data=1", 307)
            else:
                start = int(wanted["offset"])
                wire.answer(200, {}, self.files[path][start : start + int(wanted["length"])])
        except PermissionError:
            self._refuse(wire, 403, "AccessControlException")
        except OSError:
            self._refuse(wire, 500, "IOException")

    def _refuse(self, wire, status, kind):
        self._answer(wire, status, {"RemoteException": {"exception": kind, "message": "no"}})

    def _answer(self, wire, status, facts):
        wire.answer(status, {"Content-Type": "application/json"}, json.dumps(facts).encode())


class TestWebHdfs(Reading):
    large = 2 * 1024 * 1024  # sixteen of the blocks it is read in here

    @pytest.fixture(autouse=True)
    def node(self):
        with Server(NameNode()) as server:
            self.server = server
            yield server.respond

    @pytest.fixture
    def backend(self, node, monkeypatch):
        monkeypatch.setattr("fsspec.implementations.webhdfs.WebHDFS.blocksize", CHUNK)
        options = json.dumps({"user": "ada", "password": SECRET})
        with FsspecUrl(FsspecSettings(storage_options=options)) as backend:
            yield backend

    def url(self, name):
        return f"webhdfs://127.0.0.1:{self.server.port}/{name}.tar.gz"

    def seed(self, backend, bundle):
        self.server.respond.files[f"/{bundle.archive_sha256}.tar.gz"] = bundle.archive
        return backend.resolve(self.url(bundle.archive_sha256))

    def absent(self, backend):
        return self.url("none") + "#0123456789abcdef"

    def raw_corrupt(self, backend, locator):
        ((path, archive),) = self.server.respond.files.items()
        self.server.respond.files[path] = archive[:-1] + bytes([archive[-1] ^ 1])


# -- the whole program -------------------------------------------------------------------------------------------


def test_a_bundle_is_cloned_and_what_is_no_bundle_is_not(tmp_path):
    digest = make_bundle(tmp_path / "b.tar.gz").bundle_sha256
    with Server(NameNode()) as server:
        server.respond.files["/b.tar.gz"] = (tmp_path / "b.tar.gz").read_bytes()
        server.respond.files["/broken.tar.gz"] = b"no archive"
        url = f"webhdfs://127.0.0.1:{server.port}"
        done = ari("clone", f"{url}/b.tar.gz", tmp_path / "copy", "--expect-sha256", digest)
        assert (done.returncode, (tmp_path / "copy").is_dir()) == (0, True), done.stderr
        done = ari("clone", f"{url}/broken.tar.gz", tmp_path / "broken")
        assert (done.returncode, (tmp_path / "broken").exists()) == (1, False)


def test_what_is_missing_is_named_with_what_installs_it(tmp_path):
    if find_spec("gcsfs"):
        pytest.skip("gcsfs is installed here")
    done = ari("clone", "gs://bucket/b.tar.gz", tmp_path / "copy")
    assert done.returncode == 2
    assert error_of(done) == ("'gs:' cannot be read yet", "Please install gcsfs to access Google Storage")


# -- which refs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ref", ["gs://b/k", "SFTP://host/x", "sftp://[::1]/x", "abfs://c@account/x", "memory://x"]
)
def test_what_is_claimed(ref):
    assert fsspec_claims(ref) is Claim.SCHEME
    assert load_plugins().select(ref).name == "fsspec"


@pytest.mark.parametrize(
    "ref",
    [
        "file:///etc/passwd",
        "local:///etc/passwd",
        "/etc/passwd",
        "simplecache::file:///etc/passwd",
        "gs://b/k::file:///etc/passwd",
        "zip://x::gs://b/k",
        "dir::file:///etc",
        "memory://[::1]/x::file:///etc/passwd",
        "reference://x",
        "git:///etc",
        "ftp://host/x",
        "data:text/plain,x",
        "gs:/b/k",
        "memory",
        "",
    ],
)
def test_what_is_not(backend, ref):
    assert fsspec_claims(ref) is Claim.NO
    with pytest.raises(Unsupported):
        backend.resolve(ref)


def test_no_other_backend_claims_any_of_them():
    plugins = load_plugins()
    for scheme in FSSPEC_SCHEMES:
        claims = {spec.name for spec in plugins.backends.values() if spec.claims(f"{scheme}://host/a/b.tar.gz")}
        assert claims == {"fsspec"}


def test_fsspec_knows_them_all():
    assert set(known_implementations) >= FSSPEC_SCHEMES


@pytest.mark.parametrize("ref", ["memory://a b", "memory://a\nb", "memory://\u00e4"])
def test_a_ref_is_one_word(backend, ref):
    with pytest.raises(Unsupported):
        backend.resolve(ref)


# -- versions ----------------------------------------------------------------------------------------------------


def test_a_file_that_changed_is_not_taken_for_the_same(backend):
    url = place(b"one")
    locator = backend.resolve(url)
    place(b"two")
    with pytest.raises(IntegrityError, match="changed"):
        backend.stat(locator)
    with pytest.raises(IntegrityError, match="changed"), backend.open(locator):
        pass
    assert read(backend, url) == b"two"


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ({"etag": "a"}, {"etag": "b"}, False),
        ({"generation": 1}, {"generation": 2}, False),
        ({"mtime": 1.5}, {"mtime": 2.5}, False),
        ({"size": 1}, {"size": 2}, False),
        ({"etag": "a", "time": 1}, {"etag": "a", "time": 2}, True),  # that of the last access
        ({}, {}, True),
    ],
)
def test_what_tells_versions_apart(backend, monkeypatch, before, after, same):
    url = place(b"1")
    facts = {"name": "x", "type": "file", "size": 1}
    monkeypatch.setattr(Shelf, "info", lambda *_, **__: {**facts, **before})
    locator = backend.resolve(url)
    monkeypatch.setattr(Shelf, "info", lambda *_, **__: {**facts, **after})
    assert (backend.resolve(url) == locator) is same


def test_nothing_is_remembered_between_two_looks(backend):
    url = place(b"one")
    locator = backend.resolve(url)
    MemoryFileSystem().rm(url)
    with pytest.raises(NotFound):
        backend.stat(locator)


def test_a_folder_is_no_archive(backend):
    place(b"x", "memory://shelf/inner/a")
    with pytest.raises(NotFound, match="this is a folder"):
        backend.resolve("memory://shelf/inner")


# -- the file system's own trouble -------------------------------------------------------------------------------


class HttpError(Exception):
    def __init__(self, status, attribute="status_code"):
        super().__init__(f"answer {status}")
        setattr(self, attribute, status)


class AuthenticationException(Exception):  # noqa: N818 - as it is called in paramiko
    pass


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("x"), NotFound),
        (HttpError(404), NotFound),
        (HttpError(404, "code"), NotFound),
        (PermissionError("x"), AccessDenied),
        (HttpError(403, "code"), AccessDenied),
        (AuthenticationException("x"), AccessDenied),
        (HttpError(429), RateLimited),
        (HttpError(503), Unavailable),
        (ConnectionResetError("x"), Unavailable),
        (TimeoutError("x"), Unavailable),
        (ModuleNotFoundError("x"), InvalidConfiguration),
        (ValueError("x"), InvalidConfiguration),
    ],
)
def test_what_it_raises_is_put_into_our_words(backend, error, kind):
    url = place(b"x")
    TROUBLE.at, TROUBLE.error = "stat", error
    with pytest.raises(kind, match=r"memory://shelf/bundle\.tar\.gz: ") as caught:
        backend.resolve(url)
    assert type(caught.value) is kind


def test_after_trouble_it_connects_anew(backend, monkeypatch):
    opened = pretend(monkeypatch, "sftp")
    place(b"x", "memory://host/x")
    url = "sftp://host/x"
    assert read(backend, url) == b"x"
    assert len(opened) == 1
    TROUBLE.at, TROUBLE.error = "stat", ConnectionResetError()
    with pytest.raises(Unavailable):
        backend.resolve(url)
    TROUBLE.at = None
    assert read(backend, url) == b"x"
    assert len(opened) == 2


# -- credentials -------------------------------------------------------------------------------------------------


def test_its_options_are_passed_on_and_caches_are_off(monkeypatch):
    seen = pretend(monkeypatch, "sftp")
    settings = load_settings(
        FsspecUrl, environment={"ARI_FSSPEC_STORAGE_OPTIONS": '{"password": "p", "protocol": "file"}'}
    )
    place(b"x", "memory://host/x")
    with FsspecUrl(settings) as backend:
        backend.resolve("sftp://host/x")
    # skip_instance_cache is taken out by fsspec itself.
    assert seen == [{"password": "p", "use_listings_cache": False}]


@pytest.mark.parametrize("text", ["[]", "3", "{", "token=x", "[" * 100_000])
def test_options_that_are_no_json_object(text):
    with pytest.raises(ConfigurationError, match="storage_options") as caught:
        load_settings(FsspecUrl, options={"storage_options": text}, environment={})
    assert text not in caught.value.message


def test_what_is_secret_is_in_no_message(monkeypatch):
    pretend(monkeypatch, "sftp", ConnectionError(f"cannot log in with {SECRET}"))
    options = json.dumps({"password": SECRET})
    with FsspecUrl(FsspecSettings(storage_options=options)) as backend:
        assert SECRET not in repr(backend.settings)
        with pytest.raises(Unavailable) as caught:
            backend.resolve("sftp://host/x")
    assert caught.value.message == "sftp://host/x: ConnectionError"


def test_a_password_does_not_stand_in_a_ref(backend, monkeypatch):
    assert not pretend(monkeypatch, "sftp")
    with pytest.raises(InvalidConfiguration, match="holds a password") as caught:
        backend.resolve(f"sftp://ada:{SECRET}@host/x?y={SECRET}")
    assert SECRET not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(("given", "used"), [({}, "anon"), ({"token": "mine"}, "mine")])
def test_a_record_s_place_is_read_without_credentials_that_were_not_given(monkeypatch, given, used):
    seen = pretend(monkeypatch, "gs")
    place(b"x", "memory://bucket/x")
    options = {"storage_options": json.dumps(given)} if given else {}
    backend = open_for_ref(
        "gs://bucket/x",
        options,
        OpenContext(anonymous=True),
        environment={"ARI_FSSPEC_STORAGE_OPTIONS": '{"token": "environment"}'},
    )
    backend.resolve("gs://bucket/x")
    assert seen == [{"token": used, "use_listings_cache": False}]


def test_what_cannot_be_kept_from_credentials_is_not_asked_for_a_record(monkeypatch):
    seen = pretend(monkeypatch, "sftp")
    with pytest.raises(AccessDenied, match="not read for a record"):
        open_for_ref("sftp://evil/x", {}, OpenContext(anonymous=True)).resolve("sftp://evil/x")
    assert not seen
