"""`ari clone --mirror` for people: hosts that are down, hang or serve something else, and what is printed."""

import os
import socket

import pytest
from support.bundles import FILES, contents, make_bundle
from support.httpd import Server, StaticFile, forget_proxies
from support.places import photograph
from support.run import ari, ari_json, error_of

NAME = "/study.tar.gz"


@pytest.fixture
def bundles(tmp_path):
    """Bytes of the paper's bundle, of an older one and of an altered one; and the digest in the paper."""
    manifest = make_bundle(tmp_path / "good.tar.gz")
    make_bundle(tmp_path / "older.tar.gz", {**FILES, "README.md": b"a year ago\n"})
    good, older = ((tmp_path / f"{name}.tar.gz").read_bytes() for name in ("good", "older"))
    altered = good[:200] + bytes([good[200] ^ 1]) + good[201:]
    return {"good": good, "older": older, "altered": altered}, manifest.bundle_sha256


@pytest.fixture
def here(tmp_path, monkeypatch):
    forget_proxies(monkeypatch)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def down():
    """A URL where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}{NAME}"


def skipped(done):
    return [line.removeprefix("warning: ") for line in done.stderr.splitlines()]


def test_a_mirror_with_an_older_or_altered_bundle_under_the_same_name_is_refused(here, bundles, down):
    """Row F7 of the attacks: refused by the digest, and the next copy is used."""
    data, digest = bundles
    with (
        Server(StaticFile(data["older"])) as older,
        Server(StaticFile(data["altered"])) as altered,
        Server(StaticFile(data["good"])) as good,
    ):
        urls = [server.url(NAME) for server in (older, altered, good)]
        mirrors = [word for url in urls for word in ("--mirror", url)]
        done = ari("clone", down, "--expect-sha256", digest, *mirrors)
        assert done.returncode == 0
        first, second, third = skipped(done)
        assert first.startswith(f"skipped '{down}': ")
        assert "refused" in first
        assert second.startswith(f"skipped '{urls[0]}': this is another bundle: expected {digest}, got ")
        assert third.startswith(f"skipped '{urls[1]}': ")
        assert f"  read           {urls[2]}\n" in done.stdout
        assert contents(here / "study").keys() == {*FILES, "manifest.lock"}
        assert (here / "study/README.md").read_bytes() == FILES["README.md"]
        assert os.listdir(here) == ["study"]

        status, told = ari_json("clone", urls[0], "again", "--expect-sha256", digest, *mirrors)
        assert (status, told["ref"], told["anchored_by"]) == (0, urls[2], "paper")
        assert [(copy["ref"], copy["exit_code"]) for copy in told["skipped"]] == [(url, 1) for url in urls[:2]]
        assert all(copy.keys() == {"ref", "error", "exit_code"} for copy in told["skipped"])


def test_a_host_that_hangs_is_skipped(here, bundles):
    data, digest = bundles

    def hang(_request, wire):
        wire.hang()

    with Server(hang) as silent, Server(StaticFile(data["good"])) as good:
        options = ["--mirror", good.url(NAME), "--expect-sha256", digest]
        done = ari("clone", silent.url(NAME), "out", *options, env={**os.environ, "ARI_DEADLINE": "0.3"})
    assert done.returncode == 0
    (line,) = skipped(done)
    assert line.startswith(f"skipped '{silent.url(NAME)}': ")
    assert "0.3 seconds" in line
    assert contents(here / "out").keys() == {*FILES, "manifest.lock"}


def test_a_backend_that_is_not_installed_is_skipped(here, tmp_path, bundles):
    (tmp_path / "without/botocore").mkdir(parents=True)
    (tmp_path / "without/botocore/__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'botocore'\", name='botocore')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "without")}
    digest = bundles[1]
    options = ["--mirror", str(tmp_path / "good.tar.gz"), "--expect-sha256", digest]
    done = ari("clone", "s3://bucket/study.tar.gz", *options, env=environment)
    assert done.returncode == 0
    (line,) = skipped(done)
    assert line.startswith("skipped 's3://bucket/study.tar.gz': the backend 's3' is not installed")
    assert "botocore" in line
    assert (here / "study").is_dir()


def test_a_damaged_local_copy_falls_through_to_the_configured_mirrors(here, tmp_path, bundles):
    data, digest = bundles
    (here / "usb.tar.gz").write_bytes(data["altered"])
    os.link(tmp_path / "good.tar.gz", tmp_path / f"{digest}.tar.gz")
    config = tmp_path / "config.yaml"
    config.write_text(f"mirrors:\n- {tmp_path}/{{id}}.tar.gz\n- {tmp_path}/{{bundle_sha256}}.tar.gz\n")
    environment = {**os.environ, "ARI_CONFIG": str(config)}
    options = ["--expect-sha256", digest, "--no-extract"]
    status, told = ari_json("clone", "usb.tar.gz", "kept", *options, env=environment)
    assert (status, [copy["ref"] for copy in told["skipped"]]) == (0, ["usb.tar.gz"])
    assert (here / "kept").read_bytes() == data["good"]


def test_a_checkpoint_names_its_copies(here, tmp_path, bundles):
    data, digest = bundles
    place = here / "run"
    (place / "ear").mkdir(parents=True)
    with Server(StaticFile(data["good"])) as server:
        url = server.url(NAME)
        (place / "publish_record.json").write_text(
            f'{{"ref": "file://{tmp_path}/unplugged/b.tar.gz", "bundle_sha256": "{digest}", '
            f'"copies": [{{"ref": "{url}"}}]}}'
        )
        done = ari("clone", "run", "copy")
    assert done.returncode == 0
    assert "names a copy" not in done.stdout
    assert "compared with the publish record, not with a paper" in done.stdout
    assert skipped(done)[0].startswith("skipped 'run': ")
    assert f"only {url} was checked, NOT the other files in run" in done.stderr


def test_when_all_fail_there_is_one_line_with_all_and_nothing_is_left(here, bundles, down):
    data, digest = bundles
    with Server(StaticFile(data["older"])) as older:
        options = ["--mirror", older.url(NAME), "--mirror", "absent.tar.gz", "--expect-sha256", digest]
        before = photograph(here)
        done = ari("clone", down, *options)
        status, told = ari_json("clone", down, *options)
    assert (done.returncode, status) == (1, 1)
    message, hint = error_of(done)
    assert message.startswith(f"none of 3 copies could be used: '{down}': ")
    assert f"; '{older.url(NAME)}': this is another bundle: expected {digest}, got " in message
    assert message.endswith("; 'absent.tar.gz': there is no file or folder 'absent.tar.gz'")
    assert told.pop("error") == {"kind": "digest-mismatch", "message": message, "hint": hint}
    (tried,) = told.values()
    assert told == {"skipped": tried}
    assert [copy["ref"] for copy in tried] == [down, older.url(NAME), "absent.tar.gz"]
    assert [copy["exit_code"] for copy in tried] == [5, 1, 3]
    assert all(copy["error"] in message for copy in tried)
    assert photograph(here) == before


def test_a_mirror_without_a_digest_is_a_mistake(here, bundles):
    with Server(StaticFile(bundles[0]["good"])) as server:
        done = ari("clone", server.url(NAME), "--mirror", server.url(NAME))
        assert server.seen == []
    assert done.returncode == 2
    assert "--expect-sha256" in error_of(done)[1]
    assert os.listdir(here) == []
