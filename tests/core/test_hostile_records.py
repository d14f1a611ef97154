"""What somebody else wrote - a record, a description, a folder - costs little and is refused in one line."""

import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from support.bundles import make_bundle

from ari_core import mirror
from ari_core.errors import ConfigurationError
from ari_core.record import Record, write_record
from ari_core.workflows.mirror import _GzipOnly
from ari_core.yamlfile import parse_yaml

MEASURED = """
import re, resource, sys
from pathlib import Path
from ari_core.citation import describe_file
from ari_core.errors import ConfigurationError
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
name, unit, end, count = sys.argv[1:]
try:
    describe_file(name, (end.partition("|")[0] + unit * int(count) + end.partition("|")[2]).encode())
except ConfigurationError as error:
    print(error)
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""
BOMBS = {
    "authors": ("CITATION.cff", "{},", "authors: [|{}]"),
    "lists": ("CITATION.cff", "[],", "x: [|[]]"),
    "lines": ("CITATION.cff", "- a\n", "x:\n|- b"),
    "keys": ("about.yaml", "? \n", "|"),
    "keywords": (".zenodo.json", "1,", '{"keywords": [|1]}'),
    "objects": ("codemeta.json", "{},", '{"@context": [|{}]}'),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_description_cannot_take_much_memory(bomb):
    name, unit, end = BOMBS[bomb]
    count = 1_000_000 // len(unit)
    command = [sys.executable, "-c", MEASURED, name, unit, end, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    told, peak = done.stdout.splitlines()
    assert told.startswith(name)
    assert int(peak) < 200 * 1024


def test_a_description_of_thousands_of_people_is_fine():
    people = "".join(f"- {{family-names: F{n}, given-names: G, affiliation: A}}\n" for n in range(3000))
    from ari_core.citation import describe_file

    raw = f"cff-version: 1.2.0\ntitle: Slopes\nauthors:\n{people}".encode()
    assert len(describe_file("CITATION.cff", raw)["creators"]) == 3000


def test_too_many_values_are_refused_where_they_stand(tmp_path):
    with pytest.raises(ConfigurationError, match="line 3: holds too much"):
        parse_yaml(tmp_path / "x.yaml", b"a: 1\nb: 2\nc: 3\n", most=5)
    assert parse_yaml(tmp_path / "x.yaml", b"a: 1\nb: 2\nc: 3\n", most=7).data == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("copy", [{"ref": []}, {"ref": {}}, {"ref": 3}, {"ref": "x" * 10_000, "options": 3}])
def test_a_record_with_odd_copies_is_an_error_in_one_line(tmp_path, copy):
    make_bundle(tmp_path / "b.tar.gz")
    (tmp_path / "study").mkdir()
    write_record(tmp_path / "study", Record(ref="file:///nowhere", copies=[copy]))
    with pytest.raises(ConfigurationError, match="has no proper") as caught:
        mirror(str(tmp_path / "b.tar.gz"), "local-tarball", checkpoint=tmp_path / "study")
    assert len(str(caught.value)) < 500


def test_a_read_that_waits_ends_when_nobody_has_use_for_it():
    ended = threading.Event()

    class Waiting:
        name, size = "waiting", None

        @contextmanager
        def open(self):
            yield self

        def read(self, _size):
            assert ended.wait(60)
            return b""

        def interrupt(self):
            ended.set()

    with _GzipOnly(Waiting()).open() as stream:
        reading = threading.Thread(target=stream.read, args=(1,))
        reading.start()
        stream.interrupt()
        reading.join(60)
    assert ended.is_set()
