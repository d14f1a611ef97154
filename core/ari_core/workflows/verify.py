"""Read everything of a copy, write nothing, and say what does not agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ari_core.errors import AriError, Problem, VerificationError
from ari_core.limits import Limits
from ari_core.manifest import Manifest
from ari_core.streams import Progress
from ari_core.verification import Report, check_archive, check_tree
from ari_core.workflows.refs import Opened, open_ref


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What was found.

    Attributes:
        ok: Nothing disagrees. Without an anchor that only means self-consistent.
        ref: Where the copy is.
        form: ``tar.gz``, ``tar``, ``directory``, or "" when it is none of these.
        bundle_sha256: The bundle digest, or None when there is no readable manifest.
        archive_sha256: SHA-256 of the archive, or None for a folder.
        file_count: Files the manifest lists.
        total_size: Their bytes.
        anchored_by: What it was compared with: ``paper``, ``record``, ``archive-id`` or ``none``.
        beside: The folder that was named, when it is not what was read: its other files were not checked.
        problems: What disagrees.
        error: The first problem as the error that a clone would have raised.
    """

    ok: bool
    ref: str
    form: str
    bundle_sha256: str | None
    archive_sha256: str | None
    file_count: int
    total_size: int
    anchored_by: str
    problems: tuple[Problem, ...]
    error: AriError | None = None
    beside: Path | None = None


@dataclass(frozen=True, slots=True)
class ShowResult:
    """A copy that is self-consistent, described.

    Attributes:
        ref: Where it is.
        form: ``tar.gz``, ``tar`` or ``directory``.
        manifest: The whole manifest.
        archive_sha256: SHA-256 of the archive, or None for a folder.
        archive_size: Its bytes, or None.
    """

    ref: str
    form: str
    manifest: Manifest
    archive_sha256: str | None
    archive_size: int | None


def verify(
    ref: str,
    *,
    expect_sha256: str | None = None,
    require_digest: bool = False,
    ignore_os_files: bool = False,
    options: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda _line: None,
) -> VerifyResult:
    """Reads a whole copy and compares it with its manifest and, if there is one, with a digest.

    Args:
        ref: As for `clone`.
        expect_sha256: The bundle digest printed in the paper.
        require_digest: Makes it an error when there is no digest to compare with.
        ignore_os_files: For a folder: overlooks what operating systems leave (``.DS_Store``, ``__pycache__``, …).
        options: Settings of the backend.
        limits: Default: `Limits.from_environment`.
        progress: Told how far it is.
        warn: Told at once what a backend has to say, one line each.

    Returns:
        The findings; a copy that does not verify is a result, not an exception.

    Raises:
        AriError: It could not be read at all.
    """
    limits = limits or Limits.from_environment()
    with open_ref(
        ref, expect_sha256=expect_sha256, require_digest=require_digest, options=options, limits=limits, warn=warn
    ) as opened:
        try:
            report = _read(opened, limits, ignore_os_files=ignore_os_files, collect=True, progress=progress)
        except VerificationError as error:
            refused = Problem("refused", None, error.message)
            return VerifyResult(
                ok=False,
                ref=opened.ref,
                form="",
                bundle_sha256=None,
                archive_sha256=None,
                file_count=0,
                total_size=0,
                anchored_by=opened.expected.anchored_by,
                problems=(refused,),
                error=error,
                beside=opened.beside,
            )
        problems = list(report.problems)
        found: AriError | None = None
        try:
            opened.expected.check(report)
        except AriError as error:
            found = error
            if not report.problems:
                problems.append(Problem("digest", None, error.message))
    return VerifyResult(
        ok=not problems,
        ref=opened.ref,
        form=report.form,
        bundle_sha256=report.bundle_sha256,
        archive_sha256=report.archive_sha256,
        file_count=len(report.manifest.files),
        total_size=report.manifest.total_size,
        anchored_by=opened.expected.anchored_by,
        problems=tuple(problems),
        error=found,
        beside=opened.beside,
    )


def show(
    ref: str,
    *,
    options: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda _line: None,
) -> ShowResult:
    """Describes a copy without unpacking it; everything shown was checked against the contents.

    Raises:
        VerificationError: It is not self-consistent.
        AriError: It could not be read.
    """
    limits = limits or Limits.from_environment()
    with open_ref(ref, options=options, limits=limits, warn=warn) as opened:
        report = _read(opened, limits, ignore_os_files=False, collect=False, progress=progress)
        opened.expected.check(report)
    return ShowResult(opened.ref, report.form, report.manifest, report.archive_sha256, report.archive_size)


def _read(
    opened: Opened, limits: Limits, *, ignore_os_files: bool, collect: bool, progress: Progress | None
) -> Report:
    if opened.source is not None:
        return check_archive(opened.source, limits=limits, collect=collect, progress=progress)
    assert opened.folder is not None  # noqa: S101 - one of the two is set
    return check_tree(
        opened.folder, limits=limits, collect=collect, ignore_os_files=ignore_os_files, progress=progress
    )
