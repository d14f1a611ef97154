"""The sets of files that are measured: made anew for each run, the same bytes each time on the same Python."""

import itertools
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

MIB = 1024 * 1024
PIECE = 4 * MIB
CSV_FILE = 32 * MIB
SEED = 20261122

POLICY = "include: ['**']\nmax_file_mb: 1000000\nlicense: MIT\nbackend: local-tarball\n"


def _numbers() -> random.Random:
    return random.Random(SEED)  # noqa: S311  repeatable is what is wanted


def _csv_block() -> bytes:
    """Makes about 8 MB of measurements as a program prints them: gzip takes it to somewhat less than half."""
    rng = _numbers()
    level = 20.0
    lines = []
    for number in range(150_000):
        level += rng.gauss(0, 0.3)
        lines.append(
            f"{number},{1.75e9 + number * 0.25:.2f},{level:.4f},{rng.gauss(0, 1):.6f},{rng.random():.6f},ok\n"
        )
    return "".join(lines).encode()


def write_large(ear: Path, size: int) -> None:
    """Writes `size` bytes: half CSV text in files of 32 MiB, half random bytes in one file, as weights are."""
    (ear / "tables").mkdir(parents=True)
    (ear / "publish.yaml").write_text(POLICY, encoding="utf-8")
    # Repeating a block of 8 MB changes nothing for gzip, which looks back 32 KiB.
    text = itertools.cycle(_pieces(_csv_block()))
    left = size // 2
    for number in itertools.count():
        if left <= 0:
            break
        share = min(left, CSV_FILE)
        left -= share
        with (ear / "tables" / f"run_{number:03}.csv").open("wb") as file:
            while share > 0:
                share -= file.write(next(text)[:share])
    rng = _numbers()
    with (ear / "weights.bin").open("wb") as file:
        for start in range(0, size // 2, PIECE):
            file.write(rng.randbytes(min(PIECE, size // 2 - start)))


def _pieces(block: bytes) -> list[bytes]:
    # Of a length that is no divisor of the file size, so that no two files are alike.
    step = 777_777
    return [block[start : start + step] for start in range(0, len(block), step)]


def _source_text() -> Iterator[bytes]:
    """Yields the lines of Python's own library for ever: source text as people write it."""
    folder = Path(sysconfig.get_path("stdlib"))
    sources = sorted(path for path in folder.rglob("*.py") if "site-packages" not in path.parts)
    while True:
        for path in sources:
            yield from path.read_bytes().splitlines(keepends=True)


def write_small(ear: Path, files: int, smallest: int = 1_000, largest: int = 8_000) -> None:
    """Writes `files` source files of `smallest` to `largest` bytes, fifty to a folder."""
    ear.mkdir(parents=True)
    (ear / "publish.yaml").write_text(POLICY, encoding="utf-8")
    rng = _numbers()
    text = _source_text()
    for number in range(files):
        folder = ear / f"package_{number // 50:04}"
        folder.mkdir(exist_ok=True)
        wanted = rng.randint(smallest, largest)
        content = bytearray()
        while len(content) < wanted:
            content += next(text)
        (folder / f"module_{number % 50:02}.py").write_bytes(content[:largest])
