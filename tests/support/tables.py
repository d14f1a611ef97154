"""Reads tables of a Markdown document."""

import re


def table(document, *header):
    """Returns the rows of the one table with this header."""
    wanted = "\n| " + " | ".join(header) + " |\n"
    assert document.count(wanted) == 1, f"one table should have the header {wanted}"
    _, *lines = document.partition(wanted)[2].split("\n\n", maxsplit=1)[0].splitlines()
    rows = [[cell.strip() for cell in line.removeprefix("|").removesuffix("|").split(" |")] for line in lines]
    assert all(len(row) == len(header) for row in rows)
    return rows


def code(cell):
    """Returns all that a cell has in backquotes."""
    return re.findall(r"`([^`]*)`", cell)
