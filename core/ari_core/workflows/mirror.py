"""Copy a bundle from wherever it is to other stores, verifying all that is read and looking what arrived.

What goes to a single store is verified while it is passed on, where it is known beforehand what should come.
Otherwise it is read once into a private folder, verified, and stored from there.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ari_core.bundle.writer import Written
from ari_core.contract import OpenContext, SupportsWorkdir, Visibility
from ari_core.digests import is_sha256
from ari_core.errors import (
    AriError,
    ChangedSinceCurationError,
    CheckpointNotFoundError,
    ContentMismatchError,
    NotAnchoredError,
    UsageError,
    VerificationError,
)
from ari_core.fs import Staging
from ari_core.limits import Limits
from ari_core.manifest import Manifest, parse_manifest
from ari_core.names import MANIFEST_NAME, quoted
from ari_core.record import Record, check_record_writable, read_record
from ari_core.streams import ByteSource, Interruptible, Progress, ReadStream
from ari_core.verification import Report, check_archive, check_tree, read_tree_manifest
from ari_core.verifying import VerifyingSource
from ari_core.wish import check_wish, why_not
from ari_core.workflows.checkpoint import PUBLISHED, find_checkpoint
from ari_core.workflows.copies import (
    COPIED,
    Copy,
    Target,
    Terms,
    make_copy,
    open_targets,
    partly_done,
    previous_place,
    require_no_embargo,
    split_options,
)
from ari_core.workflows.describing import CitationFiles, description, published_files
from ari_core.workflows.publish import is_dry_run
from ari_core.workflows.refs import LocalFile, Opened, find_record, open_ref
from ari_core.workflows.spool import SPOOL, PackedFile, Spool, new_tree, pack

_GZIP: Final = b"\x1f"  # no name in a tar archive starts so
_TREE: Final = "tree"


@dataclass(frozen=True, slots=True)
class MirrorResult:
    """What became of a mirroring.

    Attributes:
        ref: Where the bundle was read.
        bundle_sha256: The bundle digest.
        archive_sha256: Digest of the archive that was sent.
        file_count: Files, the manifest not counted.
        total_size: Their bytes.
        anchored_by: What it was compared with: ``paper``, ``record``, ``archive-id`` or ``none``.
        repacked: It was no gzip archive, so that a new one was made of it: the same bundle, another archive.
        copies: What became of each copy, in the order they were asked for.
        checkpoint: The checkpoint whose record tells of them, or None.
        dry_run: Nothing was stored.
        error: Why some of several copies were not made, or None.
    """

    ref: str
    bundle_sha256: str
    archive_sha256: str | None
    file_count: int
    total_size: int
    anchored_by: str
    repacked: bool
    copies: tuple[Copy, ...]
    checkpoint: Path | None
    dry_run: bool
    error: AriError | None = None


def mirror(
    ref: str,
    to: str | Sequence[str],
    *,
    options: Mapping[str, str] | None = None,
    source_options: Mapping[str, str] | None = None,
    checkpoint: str | Path | None = None,
    visibility: str | None = None,
    expect_sha256: str | None = None,
    require_digest: bool = False,
    reread: bool = False,
    replace: bool = False,
    dry_run: bool = False,
    limits: Limits | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda _line: None,
) -> MirrorResult:
    """Copies a bundle that verifies to other stores, staged; what does not verify is stored nowhere.

    Doing it again is safe: what is there already is left as it is.

    Args:
        ref: As for `clone`.
        to: Backends or profiles.
        options: Their settings: ``key`` for a single one, ``NAME.key`` where there are several.
        source_options: Settings of the backend that `ref` belongs to.
        checkpoint: Whose record the copies are noted in; default: `ref` if it is one, else
            ``$ARI_CHECKPOINT_DIR``, else the current directory; in any case only if it is of the same bundle.
        visibility: Level to raise the copies to; default: they stay staged.
        expect_sha256: The bundle digest printed in the paper.
        require_digest: Makes it an error when there is no digest to compare with.
        reread: Reads every copy back and verifies it.
        replace: Lets them take the place of another bundle that is in the way.
        dry_run: Verifies, checks the stores, and stores nothing; ``$ARI_PUBLISH_DRYRUN`` does the same.
        limits: Default: `Limits.from_environment`.
        progress: Told how far it is.
        warn: Told at once what a user should know, one line each.

    Returns:
        What was done. Where only some of several copies were made, that is a result, with its ``error``.

    Raises:
        VerificationError: What was read is not what it should be.
        UsageError: The call makes no sense.
        AriError: Anything else that kept all copies from being made.
    """
    names = [to] if isinstance(to, str) else list(to)
    if not names:
        raise UsageError("mirror to which store?", hint="name a backend or profile")
    given = split_options(options or {}, names, names[0] if len(names) == 1 else None)
    limits = limits or Limits.from_environment()
    places = _Checkpoints(ref, checkpoint, limits)
    terms = Terms(
        limits=limits,
        visibility=_level(visibility),
        reread=reread,
        replace=replace,
        progress=progress,
    )
    with ExitStack() as stack:
        spool = Path(tempfile.gettempdir())  # reading and storing at once must not take the memory of both
        context = OpenContext(checkpoint=places.first, warn=warn, spool=spool)
        targets = open_targets(names, given, context, stack)
        opened = stack.enter_context(
            open_ref(
                ref, expect_sha256=expect_sha256, options=source_options, limits=limits, warn=warn, spool=spool
            )
        )
        opened = places.anchored(opened, require_digest=require_digest)
        return _Mirroring(opened, targets, places, terms, warn).run(dry_run=dry_run or is_dry_run())


def _level(visibility: str | None) -> Visibility | None:
    if visibility is None:
        return None
    if check_wish(visibility) not in set(Visibility):
        raise UsageError(
            f"a copy cannot be raised to {quoted(visibility)}", hint=f"one of: {', '.join(Visibility)}"
        )
    return Visibility(visibility)


class _Checkpoints:
    """The checkpoints that a mirroring may belong to, the likeliest first.

    Attributes:
        first: The likeliest, or None.
    """

    def __init__(self, ref: str, given: str | Path | None, limits: Limits) -> None:
        found = find_record(ref, limits)
        folders = [find_checkpoint(given)] if given is not None else []
        if given is None:
            if found:
                folders.append(found[0].absolute())
            with suppress(CheckpointNotFoundError):
                folders.append(find_checkpoint())
        self.first = folders[0] if folders else None
        self._records = {folder: record for folder in folders if (record := read_record(folder))}

    def of(self, bundle_sha256: str) -> tuple[Path | None, Record | None]:
        """Returns the checkpoint from which a bundle was published, and its record."""
        for folder, record in self._records.items():
            if record.bundle_sha256 == bundle_sha256:
                return folder, record
        return None, None

    def anchored(self, opened: Opened, *, require_digest: bool) -> Opened:
        """Compares with the record, too, if that names this very place.

        Raises:
            NotAnchoredError: A digest is required, and there is none.
        """
        if opened.expected.bundle_sha256 is None:
            for record in self._records.values():
                if opened.ref in {place.ref for place in record.places()} and is_sha256(record.bundle_sha256):
                    expected = dataclasses.replace(
                        opened.expected, bundle_sha256=record.bundle_sha256, anchored_by="record"
                    )
                    return dataclasses.replace(opened, expected=expected)
            if require_digest:
                raise NotAnchoredError(f"there is no digest to compare {quoted(opened.ref)} with")
        return opened


@dataclass(frozen=True, slots=True)
class _Sent:
    """What was read, and in which archive it was sent."""

    manifest: Manifest
    archive_sha256: str | None
    repacked: bool = False


class _Mirroring:
    """One source on its way to several targets."""

    def __init__(
        self,
        opened: Opened,
        targets: Sequence[Target],
        places: _Checkpoints,
        terms: Terms,
        warn: Callable[[str], None],
    ) -> None:
        self._opened, self._targets, self._places, self._terms = opened, targets, places, terms
        self._warn = warn
        self._copies: dict[str, Copy] = {}

    def run(self, *, dry_run: bool) -> MirrorResult:
        ready = [target for target in self._targets if self._is_ready(target)]
        if not ready and (error := self._error()):
            raise error
        sent = self._rehearsed(ready) if dry_run else self._streamed(ready) or self._from_file(ready)
        error = self._error()
        if error and all(copy.error for copy in self._copies.values()):
            raise error
        checkpoint, _ = self._places.of(sent.manifest.bundle_sha256)
        return MirrorResult(
            ref=self._opened.ref,
            bundle_sha256=sent.manifest.bundle_sha256,
            archive_sha256=sent.archive_sha256,
            file_count=len(sent.manifest.files),
            total_size=sent.manifest.total_size,
            anchored_by=self._opened.expected.anchored_by,
            repacked=sent.repacked,
            copies=tuple(self._copies[target.name] for target in self._targets),
            checkpoint=None if dry_run else checkpoint,
            dry_run=dry_run,
            error=error,
        )

    def _is_ready(self, target: Target) -> bool:
        try:
            target.ready(self._terms.visibility, self._warn)
        except AriError as error:
            self._copies[target.name] = target.failed(error)
            return False
        return True

    def _error(self) -> AriError | None:
        return partly_done("copies", [(name, copy.error) for name, copy in self._copies.items()])

    def _rehearsed(self, ready: Sequence[Target]) -> _Sent:
        """Verifies, and finds out which copies could be made."""
        opened, terms = self._opened, self._terms
        with Staging(Path(tempfile.gettempdir())) as staging:
            cited = _citation_files(ready, staging)
            if opened.source is None:
                report = self._checked_tree(cited)
            else:
                report = check_archive(opened.source, limits=terms.limits, sink=cited, progress=terms.progress)
                opened.expected.check(report)
            files = cited.read() if cited else {}
        repacked = report.form != "tar.gz"
        size = None if repacked else report.archive_size
        self._to_each([(target, None) for target in ready], report.manifest, files, size)
        return _Sent(report.manifest, report.archive_sha256, repacked=repacked)

    # -- verifying while passing on ------------------------------------------------------------------------------

    def _streamed(self, ready: Sequence[Target]) -> _Sent | None:
        """Passes the archive on to a single target; None if that is not possible."""
        opened, claim = self._opened, self._opened.artifact
        if len(self._targets) > 1 or opened.source is None or claim is None or claim.size is None:
            return None
        archive = claim.archive_sha256 or opened.expected.archive_prefix
        bundle = opened.expected.bundle_sha256 or claim.bundle_sha256
        if not (is_sha256(archive) and bundle and is_sha256(bundle)):
            return None
        (target,) = ready
        checkpoint, record = self._places.of(bundle)
        if self._terms.replace or _displaces(target, record, bundle):
            return None  # nothing gives way to what turns out not to verify
        told: dict[str, Any] = {}
        wish = record.wish if record else None
        if target.store.describes or target.able.embargo or self._terms.visibility:
            manifest = _curated(checkpoint, bundle, self._terms.limits)
            if manifest is None or record is None or checkpoint is None:
                return None  # what it says of itself is not known before it was read
            files = published_files(checkpoint, manifest) if target.store.describes else {}
            told = description(manifest, files, checkpoint, full=target.store.describes)
            wish = wish or _stated_wish(manifest)
        source = VerifyingSource(
            _GzipOnly(opened.source),
            size=claim.size,
            archive_sha256=archive,
            limits=self._terms.limits,
            progress=self._terms.progress,
            bundle_sha256=bundle,
            accept=opened.expected.check,
        )
        try:
            self._copies[target.name] = self._copy(target, source, bundle, checkpoint, wish, told)
        except _NotGzipError:
            return None
        return _Sent(source.report.manifest, source.archive_sha256)

    # -- from a file ---------------------------------------------------------------------------------------------

    def _from_file(self, ready: Sequence[Target]) -> _Sent:
        with self._at_hand(ready) as (source, files, manifest, repacked):
            sources = itertools.chain([source], itertools.repeat(source.to_be_read()))
            self._to_each(list(zip(ready, sources, strict=False)), manifest, files)
        return _Sent(manifest, source.archive_sha256, repacked=repacked)

    def _to_each(
        self,
        copies: Sequence[tuple[Target, PackedFile | None]],
        manifest: Manifest,
        files: Mapping[str, bytes],
        size: int | None = None,
    ) -> None:
        checkpoint, record = self._places.of(manifest.bundle_sha256)
        # No digest covers what a manifest says of licence and visibility: the author's own copy of it counts.
        own = _curated(checkpoint, manifest.bundle_sha256, self._terms.limits)
        if own is None:
            self._tell_what_no_digest_covers([target for target, _ in copies], manifest, record)
        manifest = own or manifest
        wish = (record.wish if record else None) or _stated_wish(manifest)  # the existing tool records none
        for target, source in copies:
            try:
                told = description(manifest, files, checkpoint, full=target.store.describes)
                self._copies[target.name] = self._copy(
                    target, source, manifest.bundle_sha256, checkpoint, wish, told, size
                )
            except AriError as error:
                self._copies[target.name] = target.failed(error)

    def _copy(
        self,
        target: Target,
        source: VerifyingSource | PackedFile | None,
        bundle_sha256: str,
        checkpoint: Path | None,
        wish: str | None,
        told: Mapping[str, Any],
        size: int | None = None,
    ) -> Copy:
        if self._terms.visibility and self._terms.visibility.rank:
            require_no_embargo(wish, target.able, hint="leave out --visibility: the copy then stays staged")
        if checkpoint is not None and source is not None:
            check_record_writable(checkpoint)  # before a copy is made that nobody knows of
        terms = dataclasses.replace(self._terms, checkpoint=checkpoint)
        return make_copy(
            target, source, terms, bundle_sha256=bundle_sha256, wish=wish, description=told, size=size
        )

    def _tell_what_no_digest_covers(
        self, targets: Sequence[Target], manifest: Manifest, record: Record | None
    ) -> None:
        shown = any(target.store.describes for target in targets)
        acted_on = shown or self._terms.visibility or any(target.able.embargo for target in targets)
        said = {"license": shown, "visibility": acted_on and not (record and record.wish)}
        stated = {key: manifest.publish.get(key) for key in said if said[key]}
        if told := [f"{key} {quoted(str(value)[:100])}" for key, value in stated.items() if value]:
            self._warn(
                f"that the bundle has {' and '.join(told)} stands in its {MANIFEST_NAME}, and in no digest: "
                "look whether the author says so"
            )

    @contextmanager
    def _at_hand(
        self, ready: Sequence[Target]
    ) -> Iterator[tuple[PackedFile, Mapping[str, bytes], Manifest, bool]]:
        """Gives the verified archive as a file, packed anew if it is none; and its citation files, if needed."""
        opened, terms = self._opened, self._terms
        with Staging(self._workfolder(ready)) as staging:
            cited = _citation_files(ready, staging)
            if opened.source is None:
                assert opened.folder is not None  # noqa: S101 - one of the two is set
                report = self._checked_tree(cited)
                packed = self._packed(opened.folder, report.manifest, staging)
            else:
                archive = opened.source if isinstance(opened.source, LocalFile) else Spool(opened.source, staging)
                report = check_archive(
                    archive,
                    limits=terms.limits,
                    sink=cited,
                    expected=opened.expected.bundle_sha256,
                    progress=terms.progress,
                )
                opened.expected.check(report)
                packed = self._ready_made(archive, report, staging)
            files = cited.read() if cited else {}
            yield packed, files, report.manifest, report.form != "tar.gz"

    def _checked_tree(self, sink: CitationFiles | None) -> Report:
        opened, terms = self._opened, self._terms
        assert opened.folder is not None  # noqa: S101 - the caller has looked
        report = check_tree(opened.folder, limits=terms.limits, sink=sink, progress=terms.progress)
        opened.expected.check(report)
        return report

    def _ready_made(self, archive: LocalFile | Spool, report: Report, staging: Staging) -> PackedFile:
        if report.form == "tar.gz":
            own = isinstance(archive, Spool)  # which a store may link; a file of the user's it may not
            path = archive.path if isinstance(archive, LocalFile) else staging.path / SPOOL
            written = Written(report.archive_size or 0, report.archive_sha256 or "")
            return PackedFile(path, written, report.manifest, self._terms.progress, linkable=own)
        with new_tree(_TREE, staging) as sink:
            check_archive(
                archive,
                limits=self._terms.limits,
                sink=sink,
                expected=report.bundle_sha256,
                progress=self._terms.progress,
            )
        (staging.path / SPOOL).unlink(missing_ok=True)  # there may not be room for three of it
        return self._packed(staging.path / _TREE, report.manifest, staging)

    def _packed(self, tree: Path, manifest: Manifest, staging: Staging) -> PackedFile:
        try:
            return pack(tree, manifest, staging, self._terms.progress)
        except ChangedSinceCurationError:
            raise ContentMismatchError(f"{quoted(str(tree))} changed while it was being read") from None

    def _workfolder(self, ready: Sequence[Target]) -> Path:
        """Returns where an archive is best kept meanwhile: where the first store can simply link it."""
        builder = ready[0].store.optional(SupportsWorkdir)
        if builder is not None:
            with suppress(AriError):  # said again by the put
                return builder.workdir()
        return self._places.first or Path(tempfile.gettempdir())


def _citation_files(ready: Sequence[Target], staging: Staging) -> CitationFiles | None:
    return CitationFiles(staging) if any(target.store.describes for target in ready) else None


def _displaces(target: Target, record: Record | None, bundle_sha256: str) -> bool:
    """Says whether a copy would take the place of another bundle that was stored from this checkpoint."""
    previous = previous_place(target.store, record, COPIED)
    return previous is not None and previous.bundle_sha256 != bundle_sha256


def _curated(checkpoint: Path | None, bundle_sha256: str, limits: Limits) -> Manifest | None:
    """Returns the manifest of ``ear_published/``, if that is the very bundle."""
    if checkpoint is None:
        return None
    try:
        manifest = parse_manifest(read_tree_manifest(checkpoint / PUBLISHED / MANIFEST_NAME, limits), limits)
    except VerificationError:
        return None
    return manifest if manifest.bundle_sha256 == bundle_sha256 else None


def _stated_wish(manifest: Manifest) -> str | None:
    wish = manifest.publish.get("visibility")
    return wish if isinstance(wish, str) and not why_not(wish) else None


class _NotGzipError(Exception):
    """The archive has to be packed anew; nothing was stored."""


class _GzipOnly:
    """A source that turns out at its first byte not to be a gzip archive."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self.name, self.size = source.name, source.size

    @contextmanager
    def open(self) -> Iterator[ReadStream]:
        with self._source.open() as stream:
            yield _GzipStream(stream)


class _GzipStream:
    def __init__(self, stream: ReadStream) -> None:
        self._stream, self._is_first = stream, True

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        if self._is_first and data and data[:1] != _GZIP:
            raise _NotGzipError
        self._is_first = False
        return data

    def interrupt(self) -> None:
        if isinstance(self._stream, Interruptible):
            self._stream.interrupt()
