"""Pack what was curated, store it, and write down where it is."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ari_core.bundle.writer import ENCODER, Written, write_bundle
from ari_core.contract import (
    Artifact,
    Backend,
    Locator,
    NewArtifact,
    OpenContext,
    Source,
    SupportsWorkdir,
    Visibility,
)
from ari_core.errors import (
    ChangedSinceCurationError,
    CheckpointNotFoundError,
    ConfigurationError,
    CurationError,
    IntegrityError,
    NotFound,
    Unsupported,
    VerificationError,
    from_os_error,
)
from ari_core.fs import Staging, recover_tree
from ari_core.limits import Limits
from ari_core.manifest import Manifest, parse_manifest
from ari_core.names import BUNDLE_NAME, MANIFEST_NAME, quoted
from ari_core.plugins import LoadedPlugins, load_plugins
from ari_core.record import Record, check_record_writable, now, read_record, write_record
from ari_core.settings import is_secret, open_backend, reader_options
from ari_core.streams import Progress, ReadStream
from ari_core.verification import check_tree, read_tree_manifest, unlisted
from ari_core.wish import check_wish, embargo_end
from ari_core.workflows.checkpoint import PUBLISHED, find_checkpoint
from ari_core.wrappers import patient

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


@dataclass(slots=True)
class _Job:
    """A publication under way."""

    checkpoint: Path
    manifest: Manifest
    limits: Limits
    progress: Progress | None
    warnings: list[str] = field(default_factory=list)
    profile: str | None = None
    settings: dict[str, str] = field(default_factory=dict)
    tell: Callable[[str], None] = lambda _line: None

    def warn(self, line: str) -> None:
        self.warnings.append(line)
        self.tell(line)

    @property
    def tree(self) -> Path:
        return self.checkpoint / PUBLISHED


def publish(
    checkpoint: str | Path | None = None,
    *,
    backend: str | None = None,
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
        options: Settings of the backend.
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
    wish = check_wish(visibility or str(job.manifest.publish.get("visibility") or Visibility.STAGED))
    plugins = load_plugins()
    name, reason = _choose(backend, job, plugins)
    before = read_record(job.checkpoint)
    context = OpenContext(checkpoint=job.checkpoint, warn=job.warn)
    with patient(open_backend(name, options, context, plugins)) as store:
        able = store.probe()
        if not able.put:
            raise Unsupported(
                f"'{store.name}' stores nothing here: it only reads",
                hint="choose a backend that stores, such as local-tarball",
            )
        if able.visibility != "enforced":
            job.warn(f"'{store.name}' keeps nobody from reading: whoever reaches the place can read the bundle")
        if dry_run:
            _check_unchanged(job)
            record = Record(
                backend=store.name,
                bundle_sha256=job.manifest.bundle_sha256,
                wish=wish,
                timestamp=now(),
                dry_run=True,
                encoder=ENCODER,
            )
            return _result(job, record, reason, created=False)
        check_record_writable(job.checkpoint)  # a copy that nobody knows of helps nobody
        job.profile = None if name == store.name else name
        job.settings = _kept_settings(store, options or {})
        record, created = _put(job, store, before, wish, replace=replace)
    write_record(job.checkpoint, record)
    return _result(job, record, reason, created=created)


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


def _put(job: _Job, store: Backend, before: Record | None, wish: str, *, replace: bool) -> tuple[Record, bool]:
    workdir = store.optional(SupportsWorkdir)
    folder = workdir.workdir() if workdir else job.checkpoint
    with Staging(folder) as staging:
        written = _pack(job, staging)
        source = PackedFile(staging.path / BUNDLE_NAME, written, job.manifest, job.progress)
        artifact, created = store.put(
            source,
            NewArtifact(
                created=datetime.now(UTC),
                wish=Visibility(wish) if wish in set(Visibility) else Visibility.PUBLIC,
                embargo=embargo_end(wish),
                description=_description(job.manifest),
                previous=_previous(store, before),
                replace=replace,
            ),
            resume=_resume(before, store),
            on_reserved=_note_pending(job, before, store),
        )
    record = _recorded(job, store, read_record(job.checkpoint), artifact, written, wish, created=created)
    return record, created


def _kept_settings(store: Backend, options: Mapping[str, str]) -> dict[str, str]:
    """Returns what of ``-o`` goes into the record: no secret, and paths that hold from any folder.

    Of what decides about trust only what readers need; who has credentials is asked again.
    """
    kept = {}
    left_out = set(store.trust_settings).difference(store.reader_settings)
    for key, value in options.items():
        if not is_secret(store.Settings, key) and key not in left_out:
            typed = getattr(store.settings, key, None)
            kept[key] = str(typed.absolute()) if isinstance(typed, Path) else value
    return kept


def _pack(job: _Job, staging: Staging) -> Written:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(BUNDLE_NAME, flags, 0o644, dir_fd=staging.fd)
    except OSError as error:
        raise from_os_error(error, f"creating a file in {quoted(str(staging.folder))}") from error
    try:
        return write_bundle(job.tree, job.manifest, fd, progress=job.progress)
    finally:
        os.close(fd)


class PackedFile(Source):
    """An archive that was just written into a private folder of core's or of a server's."""

    def __init__(self, path: Path, written: Written, manifest: Manifest, progress: Progress | None = None) -> None:
        self._path, self._manifest, self._progress = path, manifest, progress
        self.size = written.size
        self.archive_sha256 = written.archive_sha256
        self.bundle_sha256 = manifest.bundle_sha256

    @contextmanager
    def open(self) -> Iterator[ReadStream]:
        """Starts reading from the beginning."""
        try:
            file = self._path.open("rb", buffering=0)
        except OSError as error:
            raise from_os_error(error, f"reading {quoted(str(self._path))}") from error
        with file:
            yield _CheckedFile(file, self.archive_sha256, self.size, self._progress)

    @property
    def manifest(self) -> bytes:
        """The manifest's bytes."""
        return self._manifest.raw

    @property
    def local_path(self) -> Path | None:
        """The file itself."""
        return self._path


class _CheckedFile:
    """Raises instead of ending when the bytes are not those that were written."""

    def __init__(self, file: ReadStream, sha256: str, size: int, progress: Progress | None) -> None:
        self._file, self._sha256, self._size, self._progress = file, sha256, size, progress
        self._digest = hashlib.sha256()
        self._count = 0

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        self._count += len(data)
        if self._progress:
            self._progress("sending", self._count, self._size)
        if not data and size and self._digest.hexdigest() != self._sha256:
            raise IntegrityError("the archive changed on the disk while it was being read")
        return data


def _description(manifest: Manifest) -> dict[str, str]:
    license_name = manifest.publish.get("license")
    return {"license": license_name} if isinstance(license_name, str) else {}


def _previous(store: Backend, before: Record | None) -> Artifact | None:
    """What this checkpoint published there last, by place and digest: the place may hold something else by now."""
    if before is None or before.backend != store.name or not before.ref:
        return None
    try:
        locator = store.resolve(before.ref)
    except (NotFound, Unsupported):  # gone, or of another installation of this kind of store
        return None
    return Artifact(locator, archive_sha256=before.archive_sha256, bundle_sha256=before.bundle_sha256)


def _resume(before: Record | None, store: Backend) -> Locator | None:
    pending = before.pending if before else None
    if not pending or pending.get("backend") != store.name:
        return None
    return Locator(str(pending.get("locator")))


def _note_pending(job: _Job, before: Record | None, store: Backend) -> Callable[[Locator], None]:
    """Returns what writes down a reserved name before any bytes are sent, so that a second run can resume."""

    def note(locator: Locator) -> None:
        pending = {
            "backend": store.name,
            "profile": job.profile,
            "locator": locator,
            "bundle_sha256": job.manifest.bundle_sha256,
            "since": now(),
        }
        write_record(job.checkpoint, (before or Record()).model_copy(update={"pending": pending}))

    return note


def _recorded(
    job: _Job,
    store: Backend,
    before: Record | None,
    artifact: Artifact,
    written: Written,
    wish: str,
    *,
    created: bool,
) -> Record:
    ref = store.ref(artifact.locator)
    archive_sha256 = artifact.archive_sha256 or written.archive_sha256
    same_place = before is not None and before.ref == ref and before.bundle_sha256 == job.manifest.bundle_sha256
    facts = {
        "backend": store.name,
        "ref": ref,
        "bundle_sha256": job.manifest.bundle_sha256,
        "archive_sha256": archive_sha256,
        "visibility": str(
            artifact.visibility or (before.visibility if same_place and before else Visibility.STAGED)
        ),
    }
    extra = {"tarball_sha256": archive_sha256, "dryrun": False, "noop": not created}
    rest = {
        "timestamp": now(),
        "dry_run": False,
        "extra": extra,
        "wish": wish,
        "encoder": ENCODER if created else (before.encoder if before else None),
        "options": reader_options(store),
        "settings": job.settings,
        "profile": job.profile,
        "pending": None,
    }
    if before is None:
        return Record().with_event("published", **facts, **rest)
    if same_place:
        return before.with_event("published again", **facts, **rest)
    return before.with_event(
        "published",
        **facts,
        **rest,
        promoted_at=None,
        promote_failed_at=None,
        copies=_copies(before, job.manifest.bundle_sha256),
    )


def _copies(before: Record, bundle_sha256: str) -> list[dict[str, object]]:
    """The places where this very bundle is already, the last one included; copies of other bundles are history."""
    if before.bundle_sha256 != bundle_sha256 or not before.ref:
        return []
    last = {
        "backend": before.backend,
        "ref": before.ref,
        "archive_sha256": before.archive_sha256,
        "timestamp": before.timestamp,
        "options": before.options,
    }
    return [*before.copies, last]


# -- telling -----------------------------------------------------------------------------------------------------


def clone_command(record: Record) -> str:
    """Returns the command by which a reader gets this bundle, with everything it needs."""
    words = ["ari", "clone", record.ref, "--expect-sha256", record.bundle_sha256]
    for key, value in record.options.items():
        words += ["-o", f"{key}={value}"]
    return shlex.join(words)


def _result(job: _Job, record: Record, reason: str, *, created: bool) -> PublishResult:
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
    )
