"""Remove what interrupted runs left in a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from ari_core.contract import Leftover, OpenContext, SupportsSweep
from ari_core.errors import AriError, Unsupported, UsageError
from ari_core.settings import open_backend
from ari_core.workflows.publish import is_dry_run

YOUNGEST: Final = timedelta(hours=1)
"""Nothing younger is ever swept: an upload that is under way cannot be told from one that was interrupted."""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What was swept, in numbers: the leftovers themselves may be too many to keep.

    Attributes:
        backend: Its name.
        dry_run: Nothing was removed; the numbers are of what would be.
        count: How many leftovers.
        size: Their bytes, as far as the store tells.
        kinds: How many of each kind.
    """

    backend: str
    dry_run: bool
    count: int
    size: int
    kinds: Mapping[str, int]


def sweep(
    name_or_profile: str,
    options: Mapping[str, str] | None = None,
    *,
    older_than: timedelta = timedelta(days=1),
    dry_run: bool = False,
    tell: Callable[[Leftover], None] = lambda _leftover: None,
    warn: Callable[[str], None] = lambda _line: None,
) -> SweepResult:
    """Removes what interrupted runs left in a store, which no reader ever sees.

    Args:
        name_or_profile: Of a backend, or of a profile in the configuration file.
        options: From ``-o``.
        older_than: What is younger stays; more than the longest upload takes, and `YOUNGEST` at least.
        dry_run: Remove nothing; ``$ARI_PUBLISH_DRYRUN`` does the same.
        tell: Told at once of each leftover that is removed, or would be.
        warn: Told at once what a backend has to say, one line each.

    Raises:
        UsageError: `older_than` is too short.
        Unsupported: The store has no such thing.
        AriError: As the backend says; what was told of until then is removed.
    """
    if older_than < YOUNGEST:
        raise UsageError("what is younger than an hour may be an upload that is still under way")
    dry_run = dry_run or is_dry_run()
    count, size, kinds = 0, 0, dict[str, int]()
    with open_backend(name_or_profile, options, OpenContext(warn=warn)) as store:
        sweeping = store.optional(SupportsSweep)
        if sweeping is None:
            raise Unsupported(
                f"the backend '{store.name}' has no leftovers that could be swept", hint="nothing has to be done"
            )
        try:
            for leftover in sweeping.sweep(older_than, dry_run=dry_run):
                tell(leftover)
                count += 1
                size += leftover.size or 0
                kinds[leftover.what] = kinds.get(leftover.what, 0) + 1
        except AriError as error:
            if not dry_run:
                error.enclose(behind=f"; {count} were removed before")
            raise
        return SweepResult(store.name, dry_run, count, size, kinds)
