"""Limits and their variables, and what a small archive can make a reader keep."""

import subprocess
import sys

import pytest
from support.archives import END, gzip, pax_member
from support.bundles import make_bundle

from ari_core.errors import ArchiveRefusedError, ConfigurationError
from ari_core.limits import Limits
from ari_core.manifest import FileEntry, parse_manifest, render_manifest
from ari_core.names import file_as_directory, implied_folders


def test_variables_override():
    assert Limits.from_environment({"ARI_LIMIT_FILES": "7"}).files == 7
    assert Limits.from_environment({"ARI_OTHER": "7"}) == Limits()


@pytest.mark.parametrize("value", ["", "0", "-1", "1e3", "\u0661", "9" * 5000, " 5", "5.0"])
def test_bad_values_are_said(value):
    with pytest.raises(ConfigurationError, match="ARI_LIMIT_DEPTH"):
        Limits.from_environment({"ARI_LIMIT_DEPTH": value})


def test_a_misspelt_variable_is_not_ignored():
    with pytest.raises(ConfigurationError, match="ARI_LIMIT_FLIES"):
        Limits.from_environment({"ARI_LIMIT_FLIES": "7"})


@pytest.mark.parametrize(
    ("paths", "clash"),
    [
        (["a", "b"], None),
        (["a", "a/b"], "a"),
        (["a/b", "a"], "a"),
        (["a", "a-b", "a/b"], "a"),
        (["a", "a.b/c", "ab"], None),
        (["x/y/z", "x/y"], "x/y"),
        (["x/y", "x/y\u00e9/z"], None),
    ],
)
def test_a_file_used_as_a_directory(paths, clash):
    assert file_as_directory(paths) == clash


def test_directories_are_counted():
    assert implied_folders(["a", "b/c", "b/d/e", "b/d/f", "g/h/i"]) == 4


def refused(raw, limits=None):
    with pytest.raises(ArchiveRefusedError) as caught:
        parse_manifest(raw, limits or Limits())
    return caught.value.message


def test_a_manifest_with_endless_values():
    assert "more values" in refused(b'{"x":[' + b"{}," * 1_000_000 + b"{}]}")


def test_a_manifest_with_endless_directories():
    files = [FileEntry("/".join([str(n), *"abcdefgh", "f"]), 0, "0" * 64) for n in range(40)]
    assert "directories" in refused(render_manifest(files, {}, 0), Limits(files=50))


def test_just_inside_the_limits_works():
    files = [FileEntry(f"{n:03}/f", 0, "0" * 64) for n in range(50)]
    assert len(parse_manifest(render_manifest(files, {}, 0), Limits(files=50)).files) == 50


def test_memory_of_a_hostile_archive(tmp_path):
    """Long names and no manifest: less than a MB of archive, which once took 370 MB."""
    deep = ("/" + "n" * 200) * 19
    names = b"".join(pax_member(f"{number:06}{deep}") for number in range(18_000))
    (tmp_path / "names.tar.gz").write_bytes(gzip(names + END))
    script = """
import re, sys
from ari_core.cli import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1], file=sys.stderr)
sys.exit(status)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "verify", str(tmp_path / "names.tar.gz")], capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"names take more than" in done.stdout
    assert int(done.stderr.split()[-1]) < 256 * 1024


def test_an_honest_bundle_of_many_folders_is_fine(tmp_path):
    make_bundle(tmp_path / "b.tar.gz", {f"{n}/{n}/f": b"" for n in range(300)})
