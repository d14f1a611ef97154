"""Pack what was curated, store it, and write down where it is."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ari_core.bundle.writer import ENCODER
from ari_core.contract import (
    Artifact,
    NewArtifact,
    OpenContext,
    Source,
    SupportsWorkdir,
    Visibility,
)
from ari_core.errors import (
    AriError,
    ChangedSinceCurationError,
    CheckpointNotFoundError,
    ConfigurationError,
    CurationError,
    VerificationError,
)
from ari_core.fs import Staging, recover_tree
from ari_core.limits import Limits
from ari_core.manifest import Manifest, parse_manifest
from ari_core.names import MANIFEST_NAME, quoted
from ari_core.plugins import LoadedPlugins, load_plugins
from ari_core.record import Record, change_record, check_record_writable, now, read_record
from ari_core.settings import reader_options
from ari_core.streams import Progress
from ari_core.verification import check_tree, read_tree_manifest, unlisted
from ari_core.wish import check_wish, embargo_end, require_ahead, why_over
from ari_core.workflows.checkpoint import PUBLISHED, find_checkpoint
from ari_core.workflows.copies import (
    PUBLISHING,
    Copy,
    Target,
    Terms,
    kept_settings,
    make_copy,
    open_targets,
    partly_done,
    previous_place,
    rehearse,
    split_options,
    store_noting,
    wished_level,
)
from ari_core.workflows.describing import description, published_files
from ari_core.workflows.spool import pack

DRY_RUN_VARIABLE: Final = "ARI_PUBLISH_DRYRUN"
DEFAULT_BACKEND: Final = "local-tarball"


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What was published, or would be.

    Attributes:
        record: The record as it stands now; for a dry run, as it would stand.
        checkpoint: The checkpoint.
        backend_reason: Why this backend was chosen.
        created: False when the same bundle was there already.
        dry_run: Nothing was written.
        file_count: Files in the bundle.
        warnings: What the author should know.
        latex: The line for the paper.
        clone_command: What a reader runs; works in an empty environment.
        copies: What became of each copy elsewhere, in the order they were asked for.
        error: Why some of them were not made, or None; what was published stands all the same.
    """

    record: Record
    checkpoint: Path
    backend_reason: str
    created: bool
    dry_run: bool
    file_count: int
    warnings: tuple[str, ...]
    latex: str
    clone_command: str
    copies: tuple[Copy, ...] = ()
    error: AriError | None = None


@dataclass(slots=True)
class _Job:
    """A publication under way."""

    checkpoint: Path
    manifest: Manifest
    limits: Limits
    progress: Progress | None
    wish: str = Visibility.STAGED
    files: Mapping[str, bytes] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    tell: Callable[[str], None] = lambda _line: None

    def warn(self, line: str) -> None:
        self.warnings.append(line)
        self.tell(line)

    @property
    def tree(self) -> Path:
        return self.checkpoint / PUBLISHED

    def described_for(self, target: Target) -> dict[str, Any]:
        return description(self.manifest, self.files, self.checkpoint, full=target.store.describes)


def publish(
    checkpoint: str | Path | None = None,
    *,
    backend: str | None = None,
    also: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
    visibility: str | None = None,
    dry_run: bool = False,
    replace: bool = False,
    allow_empty: bool = False,
    limits: Limits | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda _line: None,
) -> PublishResult:
    """Packs ``ear_published/``, checking it against its manifest in the same pass, and stores it, staged.

    Args:
        checkpoint: The checkpoint; default ``$ARI_CHECKPOINT_DIR``, else the current directory.
        backend: A backend or profile; default: what ``publish.yaml`` says, else the one that is set up (a registry
            in ``registries.yaml``), else ``local-tarball``.
        also: Backends or profiles to copy the bundle to once it is published.
        options: Settings: ``key`` for the backend, ``NAME.key`` for one of `also`.
        visibility: The level wished for in the end; default: what ``publish.yaml`` says.
        dry_run: Check everything and write nothing; ``$ARI_PUBLISH_DRYRUN`` does the same.
        replace: Let the new bundle take the place of another one that is in the way.
        allow_empty: Publish a bundle without any file.
        limits: Default: `Limits.from_environment`.
        progress: Told how far it is.
        warn: Told at once of what is also in `PublishResult.warnings` in the end.

    Raises:
        CheckpointNotFoundError: There is no checkpoint, or it was not curated.
        ChangedSinceCurationError: ``ear_published/`` is not what was curated.
        AlreadyExists: Another bundle is in the way.
        AriError: Anything else; nothing half-done is left, and running it again is safe.
    """
    dry_run = dry_run or is_dry_run()
    job = _start(find_checkpoint(checkpoint), limits or Limits.from_environment(), progress, dry_run=dry_run)
    job.tell = warn
    if not job.manifest.files and not allow_empty:
        raise CurationError(
            "the bundle has no files: nothing in ear/ matches what publish.yaml includes",
            hint="correct `include`, or publish the empty bundle with --allow-empty",
        )
    job.wish = check_wish(visibility or str(job.manifest.publish.get("visibility") or Visibility.STAGED))
    require_ahead(visibility)
    if over := why_over(job.wish):
        job.warn(over)
    plugins = load_plugins()
    name, reason = _choose(backend, job, plugins)
    before = read_record(job.checkpoint)
    context = OpenContext(checkpoint=job.checkpoint, warn=job.warn)
    with ExitStack() as stack:
        given = split_options(options or {}, [name, *also], name)
        primary, *others = open_targets([name, *also], given, context, stack, plugins)
        primary.ready(None, job.warn)
        if any(target.store.describes for target in (primary, *others)):
            job.files = published_files(job.checkpoint, job.manifest)
        new = NewArtifact(
            created=datetime.now(UTC),
            wish=wished_level(job.wish),
            embargo=embargo_end(job.wish),
            description=job.described_for(primary),
            previous=previous_place(primary.store, before, *PUBLISHING),
            replace=replace,
        )
        rehearse(primary, new, job.manifest.bundle_sha256)  # packing may take long
        if dry_run:
            _check_unchanged(job)
            copies = [_copied(job, target, None) for target in others]
            record = Record(
                backend=primary.store.name,
                bundle_sha256=job.manifest.bundle_sha256,
                wish=job.wish,
                timestamp=now(),
                dry_run=True,
                encoder=ENCODER,
            )
            return _result(job, record, reason, created=False, copies=copies)
        check_record_writable(job.checkpoint)  # a copy that nobody knows of helps nobody
        created, copies = _store(job, primary, others, new)
    record = read_record(job.checkpoint) or Record()
    return _result(job, record, reason, created=created, copies=copies)


def _start(checkpoint: Path, limits: Limits, progress: Progress | None, *, dry_run: bool) -> _Job:
    if not dry_run:
        recover_tree(checkpoint, PUBLISHED)
    tree = checkpoint / PUBLISHED
    if not tree.is_dir():
        raise CheckpointNotFoundError(
            f"{quoted(str(checkpoint))} has no {PUBLISHED}/: it was not curated", hint="run `ari ear curate` first"
        )
    manifest = parse_manifest(read_tree_manifest(tree / MANIFEST_NAME, limits), limits)
    for problem in unlisted(tree, manifest, limits):
        raise ChangedSinceCurationError(f"{PUBLISHED}/{problem.path} {problem.detail}")
    return _Job(checkpoint, manifest, limits, progress)


def _check_unchanged(job: _Job) -> None:
    try:
        check_tree(job.tree, limits=job.limits, progress=job.progress)
    except VerificationError as error:
        raise ChangedSinceCurationError(f"{PUBLISHED}/ is not what was curated: {error.message}") from error


def _choose(backend: str | None, job: _Job, plugins: LoadedPlugins) -> tuple[str, str]:
    if backend is not None:
        return backend, f"asked for by --backend {backend}"
    stated = job.manifest.publish.get("backend")
    if isinstance(stated, str) and stated:
        return stated, "named in publish.yaml"
    found = plugins.configured(job.checkpoint)
    if len(found) > 1:
        names = " and ".join(f"'{spec.name}' ({where})" for spec, where in found)
        raise ConfigurationError(f"both {names} are set up here", hint="choose with --backend")
    for spec, where in found:
        return spec.name, where
    return DEFAULT_BACKEND, "nothing else is configured"


def is_dry_run() -> bool:
    """Says whether ``$ARI_PUBLISH_DRYRUN`` forces dry runs.

    Raises:
        ConfigurationError: Its name is misspelt: then what was to be a rehearsal would be real.
    """
    for name in os.environ:
        if name != DRY_RUN_VARIABLE and name.replace("_", "") == DRY_RUN_VARIABLE.replace("_", ""):
            raise ConfigurationError(f"there is no variable {name}; did you mean {DRY_RUN_VARIABLE}?")
    return os.environ.get(DRY_RUN_VARIABLE, "").lower() not in {"", "0", "false", "no", "off"}


# -- storing -----------------------------------------------------------------------------------------------------


def _store(job: _Job, primary: Target, others: Sequence[Target], new: NewArtifact) -> tuple[bool, list[Copy]]:
    workdir = primary.store.optional(SupportsWorkdir)
    folder = workdir.workdir() if workdir else job.checkpoint
    with Staging(folder) as staging:
        source = pack(job.tree, job.manifest, staging, job.progress)
        artifact, created = store_noting(primary, source, new, job.checkpoint, is_copy=False)
        change_record(
            job.checkpoint,
            lambda record: _recorded(job, primary, record, artifact, source.archive_sha256, created=created),
        )
        copies = [_copied(job, target, source.to_be_read()) for target in others]
    return created, copies


def _copied(job: _Job, target: Target, source: Source | None) -> Copy:
    """Makes a copy; without a source finds out whether it could be made."""
    terms = Terms(job.limits, job.checkpoint, progress=job.progress)
    try:
        target.ready(None, job.warn)
        return make_copy(
            target,
            source,
            terms,
            bundle_sha256=job.manifest.bundle_sha256,
            wish=job.wish,
            description=job.described_for(target),
        )
    except AriError as error:
        return target.failed(error)


def _recorded(
    job: _Job,
    target: Target,
    before: Record,
    artifact: Artifact,
    archive_sha256: str,
    *,
    created: bool,
) -> Record:
    store = target.store
    before = before.without_pending(target.place(artifact.locator))
    ref = store.ref(artifact.locator)
    archive_sha256 = artifact.archive_sha256 or archive_sha256
    same_bundle = before.bundle_sha256 == job.manifest.bundle_sha256
    known = {place.ref: place for place in before.places()} if same_bundle else {}
    level = known[ref].visibility if ref in known else Visibility.STAGED
    facts = {
        "backend": store.name,
        "ref": ref,
        "bundle_sha256": job.manifest.bundle_sha256,
        "archive_sha256": archive_sha256,
        "visibility": str(artifact.visibility or level),
    }
    extra = {"tarball_sha256": archive_sha256, "dryrun": False, "noop": not created}
    if artifact.doi:
        extra["doi"] = artifact.doi
    rest = {
        "timestamp": now(),
        "dry_run": False,
        "extra": extra,
        "wish": job.wish,
        "encoder": ENCODER if created else before.encoder,
        "options": reader_options(store),
        "settings": kept_settings(store, target.options),
        "profile": target.profile,
        "pending": None,
        "pending_copies": before.unfinished(),
    }
    if same_bundle and before.ref == ref:
        return before.with_event("published again", **facts, **rest)
    # The places where this very bundle is already, the last one included; those of other bundles are history.
    others = sorted(known.values(), key=lambda place: place.ref == before.ref)
    copies = [place.as_copy() for place in others if place.ref != ref]
    return before.with_event("published", **facts, **rest, promoted_at=None, promote_failed_at=None, copies=copies)


# -- telling -----------------------------------------------------------------------------------------------------


def clone_command(record: Record) -> str:
    """Returns the command by which a reader gets this bundle, with everything it needs."""
    words = ["ari", "clone", record.ref, "--expect-sha256", record.bundle_sha256]
    for key, value in record.options.items():
        words += ["-o", f"{key}={value}"]
    return shlex.join(words)


def _result(
    job: _Job, record: Record, reason: str, *, created: bool, copies: Sequence[Copy] = ()
) -> PublishResult:
    return PublishResult(
        record=record,
        checkpoint=job.checkpoint,
        backend_reason=reason,
        created=created,
        dry_run=record.dry_run,
        file_count=len(job.manifest.files),
        warnings=tuple(job.warnings),
        latex=rf"\codedigest{{{record.bundle_sha256}}}",
        clone_command=clone_command(record),
        copies=tuple(copies),
        error=partly_done("places", [(record.backend, None), *((copy.to, copy.error) for copy in copies)]),
    )
