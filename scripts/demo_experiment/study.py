"""Period doubling in the logistic map x -> r x (1 - x), with the standard library alone.

    python study.py FOLDER

writes a complete experiment into FOLDER: code/ (this program), results/ (two CSV files and a plot),
environment.json and README.md.
"""

import csv
import json
import math
import platform
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import png

FEIGENBAUM = 4.669201609102990  # the known limit of the ratios estimated here


def superstable(period: int, guess: float) -> float:
    """Finds the r near `guess` where x = 1/2 returns to itself after `period` steps (Newton's method)."""
    r = guess
    for _ in range(20):
        x, slope = 0.5, 0.0
        for _ in range(period):
            x, slope = r * x * (1 - x), x * (1 - x) + r * (1 - 2 * x) * slope
        r -= (x - 0.5) / slope
    return r


def period_doubling(doublings: int) -> list[tuple[int, float, float | None]]:
    """Returns (period, r, estimate of Feigenbaum's constant or None) for each doubling."""
    found: list[tuple[int, float, float | None]] = [(1, 2.0, None), (2, 1 + math.sqrt(5), None)]
    ratio = FEIGENBAUM
    for n in range(2, doublings + 1):
        before, last = found[-2][1], found[-1][1]
        r = superstable(2**n, last + (last - before) / ratio)
        ratio = (last - before) / (r - last)
        found.append((2**n, r, ratio))
    return found


def lyapunov(r: float, steps: int = 800) -> float:
    """Returns how fast neighbouring orbits part at r: above 0 the map is chaotic."""
    x, total = 0.3, 0.0
    for _ in range(200):
        x = r * x * (1 - x)
    for _ in range(steps):
        total += math.log(max(abs(r * (1 - 2 * x)), 1e-12))
        x = r * x * (1 - x)
    return total / steps


def bifurcation(width: int = 720, height: int = 480) -> list[bytes]:
    """Returns the classic picture: r from 2.8 to 4 across, upwards where orbits settle, darker is oftener."""
    image = [bytearray(b"\xff" * width) for _ in range(height)]
    for column in range(width):
        r, x = 2.8 + 1.2 * column / (width - 1), 0.5
        for _ in range(200):
            x = r * x * (1 - x)
        for _ in range(500):
            x = r * x * (1 - x)
            row = image[height - 1 - int(x * (height - 1))]
            row[column] = max(0, row[column] - 48)
    return [bytes(row) for row in image]


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Writes one table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def main(folder: Path) -> None:
    """Runs the study."""
    code, results = folder / "code", folder / "results"
    for made in (code, results):
        made.mkdir(parents=True)
    for source in (Path(__file__), Path(png.__file__)):
        shutil.copy(source, code)

    doublings = period_doubling(9)
    write_csv(results / "period_doubling.csv", ["period", "r_superstable", "ratio"], doublings)
    exponents = [(r / 1000, lyapunov(r / 1000)) for r in range(2800, 4001, 2)]
    write_csv(results / "lyapunov.csv", ["r", "exponent"], [(f"{r:.3f}", f"{e:.6f}") for r, e in exponents])
    png.write(results / "bifurcation.png", bifurcation())

    environment = {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "machine": platform.machine(),
    }
    (folder / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")

    estimate = doublings[-1][2]
    chaotic = next(r for r, exponent in exponents if exponent > 0)
    (folder / "README.md").write_text(
        "# Period doubling in the logistic map\n\n"
        f"Feigenbaum's constant from {len(doublings) - 1} doublings: {estimate:.6f} (known: {FEIGENBAUM:.6f}).\n"
        f"First chaos on our grid: r = {chaotic:.3f}.\n\n"
        "Run again: `python code/study.py NEW_FOLDER`; needs Python 3.11 or newer and nothing else.\n",
        encoding="utf-8",
    )
    print(f"Feigenbaum's constant: {estimate:.6f} (known: {FEIGENBAUM:.6f}); chaos from r = {chaotic:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
