"""A plugin runs with the user's rights, yet cannot make core hand out anything that does not verify (row F5)."""

import http.server
import os
import threading

import pytest
from support.bundles import contents, make_bundle
from support.evil import SPEC, Evil

from ari_core import clone, delete, plugins, promote, streams, verify, wrappers
from ari_core.errors import AriError, NotFound, Unsupported
from ari_core.plugins import LoadedPlugins, Plugin
from ari_core.record import Record, write_record
from ari_core.wrappers import RetryBackend, RetryPolicy


@pytest.fixture
def here(tmp_path, monkeypatch):
    honest = plugins.load_plugins().plugins
    loaded = LoadedPlugins((*honest, Plugin("evil:evil", "evil", "1", "evil", "ok", None, (SPEC,))))
    monkeypatch.setattr(plugins, "load_plugins", lambda *_: loaded)
    monkeypatch.setenv("ARI_DEADLINE", "1")
    monkeypatch.setattr(streams, "_PATIENCE_SECONDS", 0.1)  # for the thread that will never end
    monkeypatch.setattr(wrappers, "RetryBackend", lambda inner: RetryBackend(inner, RetryPolicy(tries=1)))
    Evil.forever.clear()
    manifest = make_bundle(tmp_path / "b.tar.gz", {"a": os.urandom(300_000), "b": b"b"})
    Evil.bundle = (tmp_path / "b.tar.gz").read_bytes()
    make_bundle(tmp_path / "other.tar.gz", {"a": b"other"})
    Evil.other = (tmp_path / "other.tar.gz").read_bytes()
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder, manifest
    Evil.forever.set()


def test_the_honest_case_works(here):
    folder, manifest = here
    assert clone("evil://honest", "out", expect_sha256=manifest.bundle_sha256).anchored_by == "paper"
    assert contents(folder / "out").keys() == {"a", "b", "manifest.lock"}


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("wrong", 1),
        ("other", 5),
        ("short", 5),
        ("long", 1),
        ("verified", 1),
        ("path", 1),
        ("text", 70),
        ("none", 70),
        ("too-much", 70),
        ("no-artifact", 70),
        ("raises", 70),
        ("raises-reading", 70),
        ("exits", 70),
        ("hangs", 5),
        ("hangs-reading", 5),
    ],
)
def test_whatever_a_plugin_does_nothing_unverified_comes_out(here, how, status):
    folder, manifest = here
    if how == "path":  # a locator of its own choosing is only ever handed back to it
        assert clone("evil://path", "out", expect_sha256=manifest.bundle_sha256)
        return
    with pytest.raises(AriError) as caught:
        clone(f"evil://{how}", "out", expect_sha256=manifest.bundle_sha256)
    assert caught.value.exit_code == status, caught.value
    assert caught.value.message.isprintable()
    assert os.listdir(folder) == []


def test_others_are_not_affected(here, tmp_path):
    _, manifest = here
    with pytest.raises(AriError):
        verify("evil://raises")
    assert verify(str(tmp_path / "b.tar.gz"), expect_sha256=manifest.bundle_sha256).ok


def test_a_record_in_a_strangers_folder_gets_no_token(tmp_path, monkeypatch):
    """Whoever made the folder chose the host: what the reader has for other hosts must not go there."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            seen.append(self.headers.get("Authorization"))
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            ref = f"http://127.0.0.1:{server.server_port}/bundle.tar.gz"
            (tmp_path / "ear_published").mkdir()
            write_record(tmp_path, Record(backend="https", ref=ref, bundle_sha256="0" * 64))
            monkeypatch.setenv("ARI_HTTPS_TOKEN", "canary")
            with pytest.raises(NotFound):
                verify(str(tmp_path))
            assert set(seen) == {None}
            seen.clear()
            for call in (delete, lambda folder: promote(folder, target="public")):
                with pytest.raises(Unsupported, match="record cannot be right"):
                    call(tmp_path)
            assert seen == []
            seen.clear()
            with pytest.raises(NotFound):
                verify(ref)
            assert set(seen) == {"Bearer canary"}
        finally:
            server.shutdown()
            thread.join()
