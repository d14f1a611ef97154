"""Get a copy, check everything, and only then let it appear; where one copy fails, another may do."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ari_core.digests import is_sha256
from ari_core.errors import (
    TABLE,
    AriError,
    BackendError,
    CheckpointNotFoundError,
    DestinationExistsError,
    DiskError,
    LocalPermissionError,
    PluginError,
    UsageError,
    VerificationError,
    from_os_error,
)
from ari_core.fs import Staging, is_empty_folder
from ari_core.limits import Limits
from ari_core.names import quoted
from ari_core.streams import Progress
from ari_core.verification import Report, check_archive, check_tree
from ari_core.workflows.refs import (
    Expected,
    Opened,
    expectation,
    find_record,
    name_of,
    open_ref,
    pinned_id,
    without_secrets,
)
from ari_core.workflows.spool import SPOOL, Spool, new_tree

if TYPE_CHECKING:
    from ari_core.record import Record

_TREE: Final = "tree"
_ENDINGS: Final = {"tar.gz": ".tar.gz", "tar": ".tar"}
_FOR_ALL: Final = ("max_download",)  # what the user wants of every copy, whichever backend has it
_MOST_COPIES: Final = 32  # of a record, which may be a stranger's
_ID_DIGITS: Final = 16  # with so many, every store of ours finds an artifact
_FAULTS: Final = (BackendError, VerificationError, PluginError)
_LOCAL_FAULTS: Final = (LocalPermissionError, DiskError, CheckpointNotFoundError)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A copy that could not be used.

    Attributes:
        ref: Where it is, without what may be a secret.
        error: Why, in one line.
        exit_code: Exit status that this alone would have been.
    """

    ref: str
    error: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class CloneResult:
    """A copy that verified and is now at its destination.

    Attributes:
        ref: Where it came from.
        dest: Where it is: a folder, or the archive when it was not unpacked.
        bundle_sha256: The bundle digest.
        archive_sha256: SHA-256 of the archive; None when it came from an unpacked folder.
        file_count: Files, the manifest not counted.
        total_size: Their bytes.
        extracted: Whether it was unpacked.
        anchored_by: What it was compared with: ``paper``, ``record``, ``archive-id`` or ``none``.
        beside: The folder that was named, when it is not what was read: its other files were not checked.
        skipped: Copies that were tried before, in this order.
    """

    ref: str
    dest: Path
    bundle_sha256: str
    archive_sha256: str | None
    file_count: int
    total_size: int
    extracted: bool
    anchored_by: str
    beside: Path | None = None
    skipped: tuple[Skipped, ...] = ()


def clone(
    ref: str,
    dest: str | os.PathLike[str] | None = None,
    *,
    mirrors: Sequence[str] = (),
    expect_sha256: str | None = None,
    require_digest: bool = False,
    extract: bool = True,
    options: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda _line: None,
) -> CloneResult:
    """Verifies a copy and unpacks it, or leaves nothing.

    Where a bundle digest is known, from `expect_sha256` or a record, a copy that cannot be had or does not verify
    is skipped for the next: `mirrors`, then the copies that the record names, then the mirrors of the
    configuration file.

    Args:
        ref: A path, ``file:///``, ``https://`` or any ref that an installed backend knows.
        dest: Where to put it; absent or an empty folder. Default: a name derived from the ref, here.
        mirrors: Refs of other copies.
        expect_sha256: The bundle digest printed in the paper.
        require_digest: Makes it an error when there is no digest to compare with.
        extract: False stores the verified archive itself.
        options: Settings of the backend of `ref`; only ``max_download`` is for all copies.
        limits: Default: `Limits.from_environment`.
        progress: Told how far it is with the copy that is being tried.
        warn: Told at once what a backend has to say and which copy is skipped, one line each.

    Raises:
        DestinationExistsError: Something is at `dest`.
        UsageError: There are `mirrors`, and no digest to know the right bundle by.
        VerificationError: It is not what it should be.
        AriError: Anything else; see `ari_core.errors`. Where several copies failed, the error of one that does not
            verify, else the first, with all of them in its message, and ``skipped`` among its `facts`.
    """
    limits = limits or Limits.from_environment()
    target = None if dest is None else _free(Path(dest))
    published = _published(ref, limits)
    record = published[1] if published else None
    expected = expectation(expect_sha256, record)
    if mirrors and expected.bundle_sha256 is None:
        raise UsageError(
            "without a digest nobody knows which bundle a mirror should have",
            hint="give --expect-sha256 with the digest printed in the paper",
        )
    options = dict(options or {})
    run = _Run(
        target, name_of(record.ref if record else ref), expected, require_digest, extract, limits, progress, warn
    )
    copies = [_Copy(ref, options, is_first=True)]
    failures: list[tuple[_Copy, AriError]] = []
    for copy in copies:  # more are added where the first fails
        try:
            done = run.get(copy)
        except AriError as error:
            if not run.blamed:
                raise
            if not failures:
                copies += _others(ref, record, mirrors, options, expected, warn)
            if len(copies) == 1:
                raise
            failures.append((copy, error))
            if copy is not copies[-1]:
                warn(f"skipped {copy.told(error)}")
        else:
            beside = done.beside or (published[0] if published else None)
            return replace(done, beside=beside, skipped=tuple(c.skipped(e) for c, e in failures))
    raise _all_in_one(failures)


def _published(ref: str, limits: Limits) -> tuple[Path, Record] | None:
    with contextlib.suppress(AriError):  # opening the ref meets it again
        return find_record(ref, limits)
    return None


@dataclass(frozen=True, slots=True)
class _Copy:
    """Where a copy may be, and how to open it; see `open_ref`."""

    ref: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    wishes: Mapping[str, str] = field(default_factory=dict)
    recorded: Mapping[str, str] | None = None
    is_first: bool = False

    def told(self, error: AriError) -> str:
        """Says what is wrong with it."""
        return f"{quoted(without_secrets(self.ref))}: {self.reason(error)}"

    def reason(self, error: AriError) -> str:
        """Returns the error's message without the ref that it may begin with."""
        return error.message.removeprefix(f"{quoted(without_secrets(self.ref))}: ")

    def skipped(self, error: AriError) -> Skipped:
        """Returns what is told in the result."""
        return Skipped(without_secrets(self.ref), self.reason(error), error.exit_code)


def _others(
    ref: str,
    record: Record | None,
    mirrors: Sequence[str],
    options: Mapping[str, str],
    expected: Expected,
    warn: Callable[[str], None],
) -> list[_Copy]:
    """Returns where else to look for the bundle, in order; nowhere without a digest to know it by."""
    if expected.bundle_sha256 is None:
        return []
    wishes = {key: options[key] for key in _FOR_ALL if key in options}
    copies = [_Copy(mirror, wishes=wishes) for mirror in mirrors]
    archive_id = pinned_id(record.ref if record else ref)
    if record:
        copies += [_Copy(place.ref, wishes=wishes, recorded=place.options) for place in _recorded(record, warn)]
        if not archive_id and record.archive_sha256 and is_sha256(record.archive_sha256):
            archive_id = record.archive_sha256[:_ID_DIGITS]
    known = {"id": archive_id, "bundle_sha256": expected.bundle_sha256}
    copies += [_Copy(mirror, wishes=wishes) for mirror in _configured(known, warn)]
    # The same ref is worth a second try only with other settings, or with the user's credentials for once.
    seen = {(record.ref, False)} if record else set()
    if options == wishes:
        seen.add((ref, True))
    others = []
    for copy in copies:
        place = (copy.ref, copy.recorded is None)
        if place not in seen:
            seen.add(place)
            others.append(copy)
    return others


def _recorded(record: Record, warn: Callable[[str], None]) -> list[Record]:
    try:
        return record.model_copy(update={"copies": record.copies[:_MOST_COPIES]}).places()[1:]
    except AriError as error:
        warn(f"the copies in the record are not used: {error.message}")
        return []


def _configured(known: Mapping[str, str], warn: Callable[[str], None]) -> list[str]:
    from ari_core.settings import load_config  # noqa: PLC0415 - a copy that verifies needs no configuration

    try:
        return load_config().mirrors_of(known)
    except AriError as error:
        warn(f"the mirrors of the configuration file are not used: {error.message}")
        return []


def _all_in_one(failures: Sequence[tuple[_Copy, AriError]]) -> AriError:
    """Returns the error that weighs most, with all the others in its message."""
    wrong = TABLE[VerificationError].exit_code
    codes = [error.exit_code for _, error in failures]
    worst = codes.index(wrong) if wrong in codes else 0
    told = [copy.told(error) for copy, error in failures]
    error = failures[worst][1]
    skipped = [asdict(copy.skipped(each)) for copy, each in failures]
    before = "; ".join([*told[:worst], told[worst].removesuffix(error.message)])
    error.enclose(
        before=f"none of {len(told)} copies could be used: {before}",
        behind="".join(f"; {line}" for line in told[worst + 1 :]),
    )
    error.facts["skipped"] = skipped
    return error


def _free(dest: Path) -> Path:
    """Returns `dest` if a clone may appear there.

    Raises:
        DestinationExistsError: It is anything but absent or an empty folder.
    """
    if dest.name in {"", ".."}:
        dest = dest.resolve()
    try:
        if os.path.lexists(dest) and not is_empty_folder(dest):
            raise DestinationExistsError(f"{quoted(str(dest))} already exists; it was not touched")
    except OSError as error:
        raise from_os_error(error, f"looking at {quoted(str(dest))}") from error
    return dest


@dataclass(slots=True)
class _Run:
    """One clone: all that is the same for every copy that is tried.

    Attributes:
        target: Where to put it, or None: `name` in the current folder.
        name: Default destination.
        blamed: What went wrong with the last copy is that copy's fault, so that another may do better.
    """

    target: Path | None
    name: str
    expected: Expected
    require_digest: bool
    extract: bool
    limits: Limits
    progress: Progress | None
    warn: Callable[[str], None]
    blamed: bool = False

    def get(self, copy: _Copy) -> CloneResult:
        self.blamed = False
        with ExitStack() as stack:
            # With what the user typed for REF, a mistake is theirs to mend; other refs come from elsewhere.
            with self._blaming(*_FAULTS, *_LOCAL_FAULTS) if copy.is_first else self._blaming(AriError):
                opened = stack.enter_context(self._opened(copy))
            if copy.is_first:
                self.name = opened.name or "bundle"
            target = self.target or (_free(Path(self.name)) if self.extract else None)
            staging = stack.enter_context(Staging((target or Path(self.name)).absolute().parent))
            with self._blaming(*_FAULTS, *(_LOCAL_FAULTS if opened.is_local else ())):
                report = self._unpack(opened, staging) if self.extract else self._keep(opened, staging)
            target = target or _free(Path(self.name + _ENDINGS[report.form]))
            if self.extract:
                with contextlib.suppress(OSError):  # an empty folder, whose mode is somebody's choice
                    os.chmod(_TREE, stat.S_IMODE(target.lstat().st_mode) & 0o777, dir_fd=staging.fd)
                staging.commit_tree(_TREE, target.name)
            elif target.is_dir():  # an empty folder is good enough for a tree, not for a file
                raise DestinationExistsError(f"{quoted(str(target))} is a folder; it was not touched")
            else:
                staging.commit_file(SPOOL, target.name)
        return CloneResult(
            ref=opened.ref,
            dest=target.absolute(),
            bundle_sha256=report.bundle_sha256,
            archive_sha256=report.archive_sha256,
            file_count=len(report.manifest.files),
            total_size=report.manifest.total_size,
            extracted=self.extract,
            anchored_by=opened.expected.anchored_by,
            beside=opened.beside,
        )

    @contextmanager
    def _blaming(self, *kinds: type[AriError]) -> Iterator[None]:
        try:
            yield
        except kinds:
            self.blamed = True
            raise

    @contextmanager
    def _opened(self, copy: _Copy) -> Iterator[Opened]:
        with open_ref(
            copy.ref,
            expect_sha256=self.expected,
            require_digest=self.require_digest,
            options=copy.options,
            wishes=copy.wishes,
            recorded=copy.recorded,
            limits=self.limits,
            warn=self.warn,
        ) as opened:
            if opened.source is None and not self.extract:
                raise UsageError(
                    f"{quoted(copy.ref)} is an unpacked folder: there is no archive to store",
                    hint="leave out --no-extract",
                )
            yield opened

    def _unpack(self, opened: Opened, staging: Staging) -> Report:
        limits, progress, expected = self.limits, self.progress, opened.expected.bundle_sha256
        with new_tree(_TREE, staging) as sink:
            if opened.source is None:
                assert opened.folder is not None  # noqa: S101 - one of the two is set
                report = check_tree(opened.folder, limits=limits, sink=sink, expected=expected, progress=progress)
            elif opened.is_local:
                report = check_archive(
                    opened.source, limits=limits, sink=sink, expected=expected, progress=progress
                )
            else:
                spool = Spool(opened.source, staging)
                report = check_archive(
                    spool,
                    limits=limits,
                    sink=sink,
                    expected=expected,
                    on_manifest_first=spool.stop,
                    progress=progress,
                )
        opened.expected.check(report)
        return report

    def _keep(self, opened: Opened, staging: Staging) -> Report:
        """Checks an archive while copying it."""
        assert opened.source is not None  # noqa: S101 - `_opened` refused folders
        report = check_archive(Spool(opened.source, staging), limits=self.limits, progress=self.progress)
        opened.expected.check(report)
        return report
