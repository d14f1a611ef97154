"""The s3 backend as users meet it: through the real `ari`, and in the memory of a real process."""

import json
import os
import subprocess
import sys

import pytest
from support.run import ari, ari_json, error_of

MOST_MEMORY = 150  # MB, for an archive of any size


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "run"
    (folder / "ear" / "code").mkdir(parents=True)
    (folder / "ear" / "code" / "run.py").write_text("print('hello')\n")
    (folder / "ear" / "publish.yaml").write_text("include: ['**']\nlicense: MIT\n")
    assert ari("ear", "curate", folder).returncode == 0
    return folder


def environment(store):
    """Whose credentials are in the environment, and nothing else of it."""
    keys = {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key}
    return {**os.environ, **keys}


@pytest.mark.in_ci
def test_publish_promote_clone_and_delete_from_the_command_line(s3_store, checkpoint, tmp_path):
    env, endpoint = environment(s3_store), f"endpoint_url={s3_store.endpoint_url}"
    at = ["--backend", "s3", "-o", f"bucket={s3_store.bucket}", "-o", "prefix=my lab", "-o", endpoint]
    done = ari("ear", "publish", checkpoint, *at, env=env)
    assert done.returncode == 0, done.stderr
    record = json.loads((checkpoint / "publish_record.json").read_bytes())
    ref = record["ref"]
    assert ref == f"s3://{s3_store.bucket}/my%20lab/artifacts/{record['archive_sha256']}/"
    (command,) = (line.split() for line in done.stdout.splitlines() if line.strip().startswith("ari clone"))
    assert command[-2:] == ["-o", endpoint]

    # A record may come with a download, so it does not decide where the credentials go.
    for change in ["promote", "--target", "public"], ["delete", "--yes"]:
        refused = ari("ear", change[0], checkpoint, *change[1:], env=env)
        assert refused.returncode == 2
        assert f"-o {endpoint}" in error_of(refused)[1]
    done = ari("ear", "promote", checkpoint, "--target", "public", "-o", endpoint, env=env)
    assert done.returncode == 0, done.stderr

    done = ari(*command[1:], cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    copy = tmp_path / record["archive_sha256"]
    assert (copy / "code" / "run.py").read_text() == "print('hello')\n"
    for wrong, code in ((ref.replace(record["archive_sha256"], "0" * 64), 3), (f"s3://{s3_store.bucket}x/a/b", 2)):
        refused = ari("verify", wrong, "-o", endpoint, env=env)
        assert refused.returncode == code, refused.stderr

    assert ari_json("ear", "publish", checkpoint, *at, env=env)[1]["ref"] == ref
    done = ari("ear", "delete", checkpoint, "--yes", "-o", endpoint, env=env)
    assert done.returncode == 0, done.stderr
    assert ari("clone", ref, tmp_path / "late", "-o", endpoint, env=env).returncode == 3


def test_an_endpoint_from_the_environment_is_told_to_readers(moto, checkpoint):
    env = {**environment(moto), "AWS_ENDPOINT_URL_S3": moto.endpoint_url}
    done = ari("ear", "publish", checkpoint, "--backend", "s3", "-o", f"bucket={moto.bucket}", env=env)
    assert done.returncode == 0, done.stderr
    assert f"-o endpoint_url={moto.endpoint_url}" in done.stdout


def test_wrong_input_is_refused_in_one_line(rgw, checkpoint):
    env, endpoint = environment(rgw), ["-o", f"endpoint_url={rgw.endpoint_url}"]
    right = ["--backend", "s3", "-o", f"bucket={rgw.bucket}", *endpoint]
    cases = {
        2: [["--backend", "s3", *endpoint], [*right, "-o", "part_size=1MB"], [*right, "-o", "prefix=../up"]],
        4: [[*right, "-o", "access_key_id=x", "-o", "secret_access_key=not-to-be-shown"]],
        5: [["--backend", "s3", "-o", "bucket=abc", "-o", "endpoint_url=http://127.0.0.1:9"]],
    }
    for code, calls in cases.items():
        for call in calls:
            done = ari("ear", "publish", checkpoint, *call, env=env)
            assert done.returncode == code, done.stderr
            assert error_of(done)
            assert "not-to-be-shown" not in done.stdout + done.stderr
    assert not (checkpoint / "publish_record.json").exists()


MEASURED = """
import sys
from ari_core.cli import main
try:
    main()
finally:
    print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0], file=sys.stderr)
"""


def peak(*arguments, env):
    """Runs `ari` and returns the most memory it had, in MB."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1]) / 1024


def test_memory_does_not_grow_with_the_archive(rgw, checkpoint, tmp_path):
    env, endpoint = environment(rgw), f"endpoint_url={rgw.endpoint_url}"
    for number in range(4):
        (checkpoint / "ear" / f"{number}.bin").write_bytes(os.urandom(75 << 20))
    assert ari("ear", "curate", checkpoint).returncode == 0
    at = ["--backend", "s3", "-o", f"bucket={rgw.bucket}", "-o", endpoint]
    assert peak("ear", "publish", checkpoint, *at, env=env) < MOST_MEMORY
    ref = json.loads((checkpoint / "publish_record.json").read_bytes())["ref"]
    assert peak("clone", ref, tmp_path / "copy", "-o", endpoint, env=env) < MOST_MEMORY
    assert (tmp_path / "copy" / "3.bin").stat().st_size == 75 << 20
