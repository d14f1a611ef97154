"""The client against a real server: the conformance suite through a wire that can be cut, and two users."""

import contextlib
import socket
import sqlite3
import struct
import threading
from datetime import UTC, datetime, timedelta

import pytest
from support.httpd import forget_proxies
from support.registry import Registry

from ari_backends.ari_registry.backend import AriRegistry
from ari_core.conformance import BackendContract, make_bundle
from ari_core.conformance.knobs import new, read_all
from ari_core.contract import CHUNK, OpenContext, SupportsShare, Visibility
from ari_core.errors import AccessDenied

CUT_AFTER = 10_000


class Wire:
    """Forwards connections to a server, and cuts them as `trouble` says (a `Step` of the conformance suite)."""

    def __init__(self, port):
        self._port, self.trouble = port, None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self):
        # Closing alone does not wake a thread that waits in accept or recv.
        for end in [self._listener, *self._ends]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        for end in [self._listener, *self._ends]:
            end.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [client, server]
                state = {"left": None}
                for pump in (self._requests, self._answers):
                    self._threads.append(threading.Thread(target=pump, args=(client, server, state)))
                    self._threads[-1].start()

    def _requests(self, client, server, state):
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                match self.trouble, data[:14]:
                    case ("stat", b"HEAD /artifact") | ("open", b"GET /artifact/"):
                        break
                    case ("read", b"GET /artifact/") | ("list", b"GET /artifacts"):
                        state["left"] = CUT_AFTER if self.trouble == "read" else 500
                    case ("put", b"POST /artifact"):
                        server.sendall(data)
                        break
                server.sendall(data)
        _cut(client, server)

    def _answers(self, client, server, state):
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if state["left"] is not None:
                    client.sendall(data[: state["left"]])
                    state["left"] -= len(data)
                    if state["left"] <= 0:
                        break
                else:
                    client.sendall(data)
        _cut(client, server)


def _cut(*ends):
    for end in ends:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Registry(tmp_path_factory.mktemp("registry"), workers=2) as server:
        yield server


@pytest.fixture(scope="module")
def alice(server):
    return server.token("alice")


@pytest.fixture(scope="module")
def bob(server):
    return server.token("bob")


@pytest.fixture(autouse=True)
def _an_empty_server(server, alice, bob, monkeypatch):
    forget_proxies(monkeypatch)
    for token in alice, bob:
        for item in server.listed(token, mine=1):
            assert server.delete(f"/artifact/{item['id']}", token).status_code == 200


@pytest.fixture
def wire(server):
    wire = Wire(server.port)
    yield wire
    wire.close()


@pytest.fixture
def connect(wire):
    with contextlib.ExitStack() as stack:

        def make(token=None):
            backend = AriRegistry(AriRegistry.Settings(url=wire.url, token=token), OpenContext())
            backend._sleep = lambda _seconds: None
            return stack.enter_context(backend)

        yield make


class TestConformance(BackendContract):
    @pytest.fixture
    def backend(self, connect, alice):
        return connect(alice)

    @pytest.fixture(autouse=True)
    def _behind_the_back(self, server, wire, alice):
        self.server, self.wire, self.alice = server, wire, alice

    def reopen(self, backend):
        other = super().reopen(backend)
        other._sleep = backend._sleep
        return other

    def raw_corrupt(self, backend, locator):
        (path,) = self.server.data.glob("artifacts/*/bundle.tar.gz")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)

    @contextlib.contextmanager
    def break_store(self, backend, step):
        if step == "denied":
            self._set_revoked("2024-01-01T00:00:00Z")
        else:
            self.wire.trouble = step
        yield
        self.wire.trouble = None
        self._set_revoked(None)

    def _set_revoked(self, when):
        with contextlib.closing(sqlite3.connect(self.server.data / "tokens.db")) as database, database:
            changed = database.execute("UPDATE tokens SET revoked_at = ? WHERE id = ?", (when, self.alice.id))
            assert changed.rowcount == 1


def test_a_lost_upload_answer_is_not_sent_again(connect, alice):
    store = connect(alice)
    bundle = make_bundle(seed=3)
    assert store.put(bundle.source(), new())[1]
    source = bundle.source()
    assert store.put(source, new())[1] is False
    assert source.reads == 0


def test_what_another_user_has_is_sent_in_full_and_owned_apart(connect, server, alice, bob):
    bundle = make_bundle(seed=4)
    first, second = connect(alice), connect(bob)
    locator = first.put(bundle.source(), new())[0].locator
    source = bundle.source()
    artifact, created = second.put(source, new())
    assert (artifact.locator, created, source.reads) == (locator, True, 1)
    second.raise_visibility(locator, Visibility.PUBLIC)
    first.delete(locator)
    assert read_all(connect(), locator) == bundle.archive
    assert [entry for entry, _ in first.list()] == []
    assert [entry.locator for entry, _ in second.list()] == [locator]


def test_a_shared_token_opens_one_artifact_for_a_reader_without_an_account(connect, server, alice):
    store = connect(alice)
    bundle, other = make_bundle(seed=5), make_bundle(seed=6)
    locator = store.put(bundle.source(), new())[0].locator
    elsewhere = store.put(other.source(), new())[0].locator
    for place in locator, elsewhere:
        store.raise_visibility(place, Visibility.PRIVATE_TOKEN)
    made = store.optional(SupportsShare).share(locator, timedelta(days=1))
    server.issued.append(made.token)
    assert timedelta(hours=23) < made.expires - datetime.now(UTC) <= timedelta(days=1)
    reader = connect(made.token)
    assert read_all(reader, reader.resolve(made.url)) == bundle.archive
    for place, who in ((elsewhere, reader), (locator, connect())):
        with pytest.raises(AccessDenied):
            read_all(who, place)


def test_a_listing_is_whole_over_many_pages(connect, alice, monkeypatch):
    monkeypatch.setattr("ari_backends.ari_registry.backend._PAGE", 2)
    store = connect(alice)
    stored = {store.put(make_bundle(seed=seed).source(), new())[0].locator for seed in range(5)}
    whole = list(store.list())
    assert {artifact.locator for artifact, _ in whole} == stored
    assert [artifact.locator for artifact, _ in whole] == list(
        dict.fromkeys(artifact.locator for artifact, _ in whole)
    )
    for index, (_, cursor) in enumerate(whole):
        assert [entry.locator for entry, _ in store.list(cursor)] == [e.locator for e, _ in whole[index + 1 :]]


def test_a_download_goes_on_where_it_was_cut(connect, wire, alice):
    bundle = make_bundle(CHUNK)
    reader = connect(alice)
    locator = reader.put(bundle.source(), new())[0].locator
    cuts = []

    def mend(_seconds):
        cuts.append(wire.trouble)
        wire.trouble = None

    reader._sleep = mend
    wire.trouble = "read"
    assert read_all(reader, locator) == bundle.archive
    assert cuts == ["read"]
