"""Reads tests/server/matrix.yaml: which status each caller gets."""

from pathlib import Path

import yaml
from support.registry import LEVELS

MATRIX = yaml.safe_load(Path(__file__).parents[1].joinpath("server/matrix.yaml").read_text())["routes"]
BAD = ("garbage", "revoked", "expired")
CALLERS = ("nobody", *BAD, "reader", "other", "fetch", "fetch-other", "owner-reader", "owner")


def expected(path, method, caller, level):
    """The status that the matrix says."""
    row = MATRIX[path].get(method, 405)
    if isinstance(row, dict):
        row = row.get("bad" if caller in BAD else caller, row.get("rest"))
    return row[LEVELS.index(level)] if isinstance(row, list) else row
