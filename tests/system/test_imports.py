"""What a command may import: start-up time is what every user pays, every time."""

import subprocess
import sys

import pytest
from support.bundles import make_bundle

# Nothing that works on local files may load these.
HEAVY = {"boto3", "botocore", "fastapi", "fsspec", "httpcore2", "httpx2", "requests", "s3fs", "sqlalchemy"}
# A reader's commands on a local file need none of these either.
NOT_FOR_READERS = HEAVY | {"detect_secrets", "pluggy", "pydantic", "rich", "yaml"}

SCRIPT = """
import sys
from ari_core.cli import main
status = main(sys.argv[1:])
loaded = {name.partition(".")[0] for name in sys.modules}
print("LOADED", *sorted(loaded), file=sys.stderr)
sys.exit(status)
"""


def loaded_by(*arguments):
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 0, done.stderr
    assert last.startswith("LOADED ")
    return set(last.split()[1:])


def test_help_loads_nothing_heavy():
    assert not loaded_by("--help") & (HEAVY | {"detect_secrets", "pydantic", "rich", "yaml"})


@pytest.mark.parametrize("command", ["verify", "show", "clone"])
def test_a_reader_loads_only_what_reading_needs(tmp_path, command):
    make_bundle(tmp_path / "b.tar.gz")
    more = [str(tmp_path / "out")] if command == "clone" else []
    assert not loaded_by(command, str(tmp_path / "b.tar.gz"), *more) & NOT_FOR_READERS


def test_an_author_loads_nothing_heavy(tmp_path):
    (tmp_path / "ear" / "code").mkdir(parents=True)
    (tmp_path / "ear" / "code" / "a.py").write_text("x")
    assert not loaded_by("ear", "curate", str(tmp_path), "--no-scan-secrets") & HEAVY
    assert not loaded_by("ear", "publish", str(tmp_path)) & HEAVY
    assert not loaded_by("ear", "promote", str(tmp_path), "--target", "public") & HEAVY
    assert not loaded_by("ear", "status", str(tmp_path)) & HEAVY


def test_listing_backends_loads_none_of_them():
    assert "ari_backends.https" not in loaded_by("backends", "list")
    assert not loaded_by("backends", "list") & HEAVY


def test_the_public_interface_is_what_it_says():
    """``__all__`` is a promise: adding or losing a name is a decision."""
    script = "import ari_core; print(*sorted(ari_core.__all__)); [getattr(ari_core, n) for n in ari_core.__all__]"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "AriError",
        "CloneResult",
        "Copy",
        "CurateResult",
        "DeleteResult",
        "Deleted",
        "Limits",
        "MirrorResult",
        "Problem",
        "Progress",
        "PromoteResult",
        "Promoted",
        "PublishResult",
        "Record",
        "ShareResult",
        "ShowResult",
        "StatusResult",
        "VerifyResult",
        "clone",
        "curate",
        "delete",
        "mirror",
        "promote",
        "publish",
        "share",
        "show",
        "status",
        "verify",
    ]


def test_importing_the_package_imports_nothing_else_of_ours():
    script = "import sys, ari_core; print(*[n for n in sys.modules if n.startswith('ari_core.')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
