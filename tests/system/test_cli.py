"""The command line as scripts and people meet it: one JSON object, exit codes, one clear line for bad input."""

import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.bundles import make_bundle, make_tree
from support.run import ARI, ari, ari_json, error_of


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "run"
    (folder / "ear" / "code").mkdir(parents=True)
    (folder / "ear" / "code" / "run.py").write_text("print(1)\n")
    return folder


# -- JSON --------------------------------------------------------------------------------------------------------


def test_json_of_a_whole_session(checkpoint, tmp_path):
    status, curated = ari_json("ear", "curate", checkpoint)
    assert status == 0
    assert {
        "ear_published_dir",
        "manifest_path",
        "bundle_sha256",
        "included_files",
        "excluded_count",
        "skipped",
        "warnings",
    } <= curated.keys()
    assert curated["included_files"] == ["code/run.py"]
    digest = curated["bundle_sha256"]

    status, published = ari_json("ear", "publish", checkpoint)
    assert status == 0
    assert {"backend", "ref", "bundle_sha256", "visibility", "timestamp", "dry_run", "extra"} <= published.keys()
    assert {"promoted_at", "promote_failed_at"} <= published.keys()
    assert published["bundle_sha256"] == digest

    # The printed command runs in an empty environment, from another folder.
    command = shlex.split(published["clone_command"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {"PATH": str(Path(ARI).parent)}
    done = subprocess.run([*command, "--json"], cwd=elsewhere, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "bundle" / "code" / "run.py").read_text() == "print(1)\n"

    status, cloned = ari_json("clone", published["ref"], tmp_path / "copy")
    assert status == 0
    assert cloned == {
        "ref": published["ref"],
        "dest": str(tmp_path / "copy"),
        "bundle_sha256": digest,
        "archive_sha256": published["archive_sha256"],
        "file_count": 1,
        "total_size": 9,
        "extracted": True,
        "anchored_by": "none",
        "skipped": [],
    }
    status, verified = ari_json("verify", tmp_path / "copy", "--expect-sha256", digest)
    assert (status, verified["ok"], verified["anchored_by"], verified["problems"]) == (0, True, "paper", [])
    (tmp_path / "copy" / "code" / "run.py").write_text("print(2)\n")
    status, verified = ari_json("verify", tmp_path / "copy", "--expect-sha256", digest)
    assert (status, verified["ok"]) == (1, False)
    assert [(p["kind"], p["path"]) for p in verified["problems"]] == [("differs", "code/run.py")]

    status, shown = ari_json("show", published["ref"])
    assert (status, shown["files"][0]["path"], shown["publish"]["visibility"]) == (0, "code/run.py", "staged")
    status, promoted = ari_json("ear", "promote", checkpoint, "--target", "public")
    assert (status, promoted["visibility"], promoted["changed"]) == (0, "public", True)
    status, told = ari_json("ear", "status", checkpoint)
    assert (status, told["published_is_curated"], told["record"]["visibility"]) == (0, True, "public")
    status, gone = ari_json("ear", "delete", checkpoint, "--yes")
    assert (status, gone["ref"]) == (0, "")
    status, listed = ari_json("backends", "list")
    assert status == 0
    assert {"https", "local-tarball"} <= {info["name"] for info in listed["backends"]}


@pytest.mark.parametrize(
    ("arguments", "status", "kind"),
    [
        (["clone"], 2, "usage"),
        (["clone", "x", "--nonsense"], 2, "usage"),
        (["clone", "absent"], 3, "not-found"),
        (["clone", "absent", "--expect-sha256", ""], 2, "digest-spelling"),
        (["clone", "nosuch://x"], 2, "unknown-backend"),
        (["ear", "publish", "absent"], 3, "checkpoint-not-found"),
        (["ear", "publish", "--backend", "local-tarbal", "."], 3, "checkpoint-not-found"),
        (["backends", "show", "local-tarbal"], 2, "unknown-backend"),
        (["backends", "show", "local-tarball", "-o", "out"], 2, "usage"),
        (["verify", "x", "-o", "a=1", "-o", "a=2"], 2, "usage"),
    ],
)
def test_errors_are_one_object_too(tmp_path, arguments, status, kind):
    code, data = ari_json(*arguments, cwd=tmp_path)
    assert (code, data["error"]["kind"]) == (status, kind)
    assert data["error"].keys() == {"kind", "message", "hint"}


def test_warnings_do_not_spoil_the_object(checkpoint):
    (checkpoint / "ear" / "code" / "a b.").write_text("x")
    done = ari("ear", "curate", checkpoint, "--json")
    assert "warning: " in done.stderr
    assert done.stdout.startswith("{")


# -- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "words", "hint"),
    [
        (["clone", "nosuch.tar.gz"], 3, "nosuch.tar.gz", "spelling"),
        (["clone", "b.tar.gz", "--expect-sha256", "0" * 63], 2, "63 digits", "64 lower-case"),
        (["clone", "b.tar.gz", "--expect-sha256", "0" * 64], 1, "expected 000", "check the digest"),
        (["clone", "b.tar.gz", "full"], 2, "already exists", "another destination"),
        (["clone", "b.tar.gz", "no/such/parent"], 2, "there is no folder", "create it"),
        (["clone", "b.tar.gz", "--require-digest"], 2, "no digest", "--expect-sha256"),
        (["clone", "page.tar.gz"], 1, "looks like a web page", ""),
        (["verify", "full/code"], 1, "'full/code': this is a folder without", "give the archive"),
        (["ear", "publish", "bare", "--backend", "https"], 3, "not curated", ""),
        (["clone", "htps://example.org/x"], 2, "htps", "ari backends list"),
        (["verify", "empty.tar.gz"], 1, "", ""),
        (["ear", "curate", "nowhere"], 3, "nowhere", ""),
        (["ear", "publish", "bare"], 3, "not curated", "ari ear curate"),
        (["ear", "promote", "bare"], 3, "nothing is published", "ari ear publish"),
        (["ear", "curate", "badyaml"], 2, "publish.yaml", ""),
        (["clone", "b.tar.gz", "x", "y"], 2, "extra argument", "--help"),
        (["clonee"], 2, "clonee", "--help"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, arguments, status, words, hint):
    make_bundle(tmp_path / "b.tar.gz")
    shutil.rmtree(tmp_path / "b.tar.gz.tree")
    make_tree(tmp_path / "full")
    (tmp_path / "page.tar.gz").write_text("<!DOCTYPE html><html>sign in</html>")
    (tmp_path / "empty.tar.gz").write_text("")
    (tmp_path / "bare" / "ear").mkdir(parents=True)
    (tmp_path / "badyaml" / "ear").mkdir(parents=True)
    (tmp_path / "badyaml" / "ear" / "publish.yaml").write_text("- a\n- b\n")
    before = sorted(os.listdir(tmp_path))
    done = ari(*arguments, cwd=tmp_path)
    assert done.returncode == status
    if arguments == ["verify", "empty.tar.gz"]:
        assert "DOES NOT VERIFY" in done.stdout
    else:
        message, advice = error_of(done)
        assert words in message
        assert hint in advice
    assert sorted(os.listdir(tmp_path)) == before


def test_a_full_disk(tmp_path):
    """A real one: a tiny file system, when we may mount it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting needs root")
    try:
        manifest = make_bundle(tmp_path / "big.tar.gz", {"noise": os.urandom(3_000_000)})
        for how in ([], ["--no-extract"]):
            done = ari("clone", tmp_path / "big.tar.gz", disk / "out", *how)
            assert done.returncode == 5
            message, hint = error_of(done)
            assert "No space left" in message
            assert "free some space" in hint
            assert os.listdir(disk) == []
        make_tree(tmp_path / "run" / "ear_published", {"noise": os.urandom(3_000_000)})
        done = ari("ear", "publish", tmp_path / "run", "-o", f"out={disk}")
        assert done.returncode == 5
        assert os.listdir(disk) == []
        assert manifest.bundle_sha256
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_pipe_that_closes_early_is_no_error(tmp_path):
    make_bundle(tmp_path / "b.tar.gz", {f"{n}-" + "x" * 90: b"" for n in range(1000)})
    script = f"{ARI} show {tmp_path}/b.tar.gz | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_ctrl_c_is_a_line_and_leaves_nothing(tmp_path):
    (tmp_path / "here").mkdir()
    # A stream that never ends: the run is certainly still reading when the signal comes.
    make_bundle(tmp_path / "b.tar.gz", {"zeros": bytes(100_000_000)})
    with subprocess.Popen(
        [ARI, "clone", str(tmp_path / "b.tar.gz"), "out"],
        cwd=tmp_path / "here",
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not os.listdir(tmp_path / "here") and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == 130, errors
    assert "error: interrupted\nhint: run the same command again" in errors
    assert "Traceback" not in errors
    assert os.listdir(tmp_path / "here") == []


# -- people ------------------------------------------------------------------------------------------------------


def test_what_was_compared_is_said_in_words(tmp_path):
    manifest = make_bundle(tmp_path / "b.tar.gz")
    plain = ari("verify", tmp_path / "b.tar.gz")
    assert "self-consistent, NOT compared with a paper" in plain.stdout
    assert "--expect-sha256" in plain.stderr
    anchored = ari("verify", tmp_path / "b.tar.gz", "--expect-sha256", manifest.bundle_sha256)
    assert "compared with the digest you gave" in anchored.stdout
    assert anchored.stderr == ""


def test_nothing_a_stranger_wrote_reaches_the_terminal_raw(tmp_path):
    """`ari()` itself refuses ESC in any output; C1, BEL and forged lines must not come through either."""
    publish = {"li\x1b[31mX": "a\x1b]0;pwn\x07b", "license": "x\nDOES VERIFY", "b": "\x9b31m\u202e"}
    make_bundle(tmp_path / "b.tar.gz", publish=publish)
    plain = ari("show", tmp_path / "b.tar.gz")
    assert not set(plain.stdout) & {"\x07", "\x9b", "\u202e"}
    assert "\nDOES VERIFY" not in plain.stdout
    status, data = ari_json("show", tmp_path / "b.tar.gz")
    assert (status, data["publish"]) == (0, publish)
    raw = ari("show", tmp_path / "b.tar.gz", "--json").stdout
    assert not set(raw) & {"\x07", "\x9b", "\u202e"}


@pytest.mark.parametrize("closed", ["2>&-", ">&-"])
def test_a_closed_stream_is_no_crash(tmp_path, closed):
    make_bundle(tmp_path / "b.tar.gz")
    done = subprocess.run(
        ["bash", "-c", f"{ARI} verify {tmp_path}/b.tar.gz {closed}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_destination_that_the_terminal_cannot_show(tmp_path):
    make_bundle(tmp_path / "b.tar.gz")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    assert ari("clone", tmp_path / "b.tar.gz", tmp_path / "\u00e9\udcff", env=environment).returncode == 0


def test_delete_asks(checkpoint):
    ari("ear", "curate", checkpoint)
    ari("ear", "publish", checkpoint)
    done = ari("ear", "delete", checkpoint)
    assert done.returncode == 2
    assert "--yes" in error_of(done)[1]
    assert (checkpoint / "bundle.tar.gz").exists()


def on_a_terminal(command, answer):
    """Runs a command on a pseudo-terminal and types an answer."""
    leader, follower = pty.openpty()
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, close_fds=True) as process:
        os.close(follower)
        os.write(leader, answer.encode())
        output = b""
        while True:
            try:
                data = os.read(leader, 4096)
            except OSError:
                break
            if not data:
                break
            output += data
    os.close(leader)
    return process.returncode, output.decode()


def test_on_a_terminal_promote_asks_for_the_level(checkpoint):
    ari("ear", "curate", checkpoint)
    ari("ear", "publish", checkpoint)
    status, output = on_a_terminal([ARI, "ear", "promote", str(checkpoint)], "unlisted\n")
    assert status == 0, output
    assert "Visibility is now unlisted" in output


@pytest.mark.parametrize(
    ("level", "answer", "status", "stays"),
    [("staged", "n\n", 2, True), ("unlisted", "n\n", 2, True), ("public", "y\n", 0, False)],
)
def test_on_a_terminal_delete_asks_and_says_what_may_be_cited(checkpoint, level, answer, status, stays):
    ari("ear", "curate", checkpoint)
    ari("ear", "publish", checkpoint)
    if level != "staged":
        ari("ear", "promote", checkpoint, "--target", level)
    code, output = on_a_terminal([ARI, "ear", "delete", str(checkpoint)], answer)
    assert code == status, output
    assert (f"It is {level}: a paper may cite it." in output) == (level != "staged")
    assert (checkpoint / "bundle.tar.gz").exists() == stays


def test_a_bar_is_drawn_on_a_terminal_only(tmp_path):
    make_bundle(tmp_path / "b.tar.gz")
    at_once = (
        "import sys; from ari_core.cli import main, output; output._SHOW_AFTER_SECONDS = 0; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", at_once, "verify", str(tmp_path / "b.tar.gz")]
    status, output = on_a_terminal(command, "")
    assert status == 0
    assert "reading" in output
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count("\n") == 1  # the advice, and no bar


def test_a_token_is_read_from_where_it_is_safe(tmp_path):
    nowhere = "http://127.0.0.1:9/x"
    (tmp_path / "token").write_text("")
    for arguments in (["--token-file", tmp_path / "token"], ["--token", "x", "--token-file", "y"]):
        assert ari("verify", nowhere, *arguments).returncode == 2
    plain = ari("verify", "nosuch://x", "--token", "s3cret-literal")
    assert "process lists" in plain.stderr
    assert "s3cret" not in plain.stderr + plain.stdout
    assert "process lists" not in ari("verify", "nosuch://x", "--token-file", "-", stdin="t\n").stderr
    environment = {**os.environ, "MY_TOKEN": "t"}
    assert "process lists" not in ari("verify", "nosuch://x", "--token", "MY_TOKEN", env=environment).stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(("words", "found"), [("ari ear pub", "publish"), ("ari clone --exp", "--expect-sha256")])
def test_shell_completion(shell, words, found):
    typed = {
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1 if shell != "fish" else words.split()[-1]),
    }
    environment = {**os.environ, "_ARI_COMPLETE": f"{shell}_complete", **typed}
    done = subprocess.run([ARI], env=environment, capture_output=True, text=True, check=False)
    assert found in done.stdout
    source = {**os.environ, "_ARI_COMPLETE": f"{shell}_source"}
    script = subprocess.run([ARI], env=source, capture_output=True, text=True, check=False).stdout
    assert "_ARI_COMPLETE" in script


def test_version():
    assert ari("--version").stdout.startswith("ari-registry ")


def test_publish_has_its_alias(checkpoint):
    ari("ear", "curate", checkpoint)
    assert ari("publish", checkpoint).returncode == 0
