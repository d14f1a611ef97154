"""From what a user typed to something that can be read: a path, a checkpoint, a record, or a backend's ref.

A path is opened by core itself, so that checking a file on a USB stick needs no plugin. Backends are asked about
everything with a scheme, and about folders that one of them claims as exactly its own.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from ari_core.contract import Artifact, Backend, Locator, OpenContext
from ari_core.digests import is_sha256, parse_sha256
from ari_core.errors import (
    AccessDenied,
    ArchiveRefusedError,
    AriError,
    CheckpointNotFoundError,
    IntegrityError,
    NotAnchoredError,
    NotFound,
    UsageError,
    escape,
    from_os_error,
)
from ari_core.filerefs import file_ref, path_of
from ari_core.fs import NotRegularError, open_regular, was_interrupted
from ari_core.limits import Limits
from ari_core.manifest import FileEntry, parse_manifest
from ari_core.names import BUNDLE_NAME, MANIFEST_NAME, META_NAME, RECORD_NAME, quoted, unsafe_reason
from ari_core.streams import CHUNK, ByteSource, ReadStream
from ari_core.verification import OS_FILES, Report, read_tree_manifest
from ari_core.workflows.checkpoint import EAR, PUBLISHED

if TYPE_CHECKING:
    from ari_core.record import Record

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_PINNED: Final = re.compile(r"(?:/artifacts?/|^ari://(?:[^/]+/)?)([0-9a-f]{16,64})/?$")
_STORED: Final = re.compile(r"bundle(-[0-9a-f]{16})?\.tar\.gz|manifest\.lock|meta\.json|\.ari-staging-.*")
_DOI: Final = re.compile(r"(?:doi)?[: ]*(?:(?:dx\.|www\.)?doi\.org/)?(10\.[0-9]{4,9}/\S+)", re.IGNORECASE)
_ARCHIVE_ENDINGS: Final = (".tar.gz", ".tgz", ".tar")


@dataclass(frozen=True, slots=True)
class Expected:
    """What a bundle is compared with.

    Attributes:
        bundle_sha256: The bundle digest from the paper or a record, or None.
        anchored_by: ``paper``, ``record``, ``archive-id`` or ``none``.
        archive_prefix: Leading digits of the archive digest that the ref itself names, or "".
        archive_claim: The archive digest that the store claims, or None.
    """

    bundle_sha256: str | None
    anchored_by: str
    archive_prefix: str = ""
    archive_claim: str | None = None

    def check(self, report: Report) -> None:
        """Compares everything there is to compare with.

        Raises:
            DigestMismatchError: It is another bundle.
            IntegrityError: The archive is not the one that the ref or the store names.
        """
        report.require_clean()
        if self.bundle_sha256:
            hint = (
                None
                if self.anchored_by == "paper"
                else "the record is of another bundle: what is there was replaced"
            )
            report.require_digest(self.bundle_sha256, hint=hint)
        if report.archive_sha256 is None:
            return
        if not report.archive_sha256.startswith(self.archive_prefix):
            raise IntegrityError(
                f"the ref names the archive {self.archive_prefix}, but what came has {report.archive_sha256}"
            )
        if self.archive_claim and self.archive_claim != report.archive_sha256:
            raise IntegrityError(
                f"the store says the archive is {self.archive_claim}, but what came has {report.archive_sha256}"
            )


@dataclass(frozen=True, slots=True)
class Opened:
    """A ref that was resolved.

    Attributes:
        ref: Where the copy really is.
        name: Short name, for a default destination.
        expected: What it is to be compared with.
        source: The archive, or None when it is an unpacked folder.
        folder: The unpacked folder, or None.
        is_local: Reading it twice costs nothing.
        beside: The folder that the user named, when it is not what was read: its other files were not checked.
        artifact: What the store says of it: claims. None for a path.
    """

    ref: str
    name: str
    expected: Expected
    source: ByteSource | None
    folder: Path | None
    is_local: bool
    beside: Path | None = None
    artifact: Artifact | None = None


def expectation(expect_sha256: str | None, record: Record | None = None) -> Expected:
    """Returns what the caller wants compared, else what a record says, before anything is opened.

    Raises:
        DigestSpellingError: The caller's digest is misspelt.
    """
    if expect_sha256 is not None:
        return Expected(parse_sha256(expect_sha256), "paper")
    if record and is_sha256(record.bundle_sha256):
        return Expected(record.bundle_sha256, "record")
    return Expected(None, "none")


@contextmanager
def open_ref(
    ref: str,
    *,
    expect_sha256: str | Expected | None = None,
    require_digest: bool = False,
    options: Mapping[str, str] | None = None,
    wishes: Mapping[str, str] | None = None,
    recorded: Mapping[str, str] | None = None,
    limits: Limits,
    warn: Callable[[str], None] = lambda _line: None,
    spool: Path | None = None,
) -> Iterator[Opened]:
    """Resolves a ref for reading.

    Args:
        ref: The ref.
        expect_sha256: The bundle digest printed in the paper, or what `expectation` made of one.
        require_digest: Makes it an error when there is no digest to compare with.
        options: Settings of the backend.
        wishes: More of them, for backends that know such a setting.
        recorded: Options that stand beside the ref in a record. It may be a stranger's, so with them (though there
            are none) the ref is opened without the user's credentials. None: the user named the ref.
        limits: Upper bounds.
        warn: Told at once what a backend has to say.
        spool: See `OpenContext`.

    Raises:
        DigestSpellingError: `expect_sha256` is misspelt; nothing was opened.
        NotAnchoredError: `require_digest` and neither the caller nor a record gave a digest.
        NotFound: There is nothing.
        UnknownBackend: No backend knows the scheme.
        AriError: As backends say.
    """
    expected = expect_sha256 if isinstance(expect_sha256, Expected) else expectation(expect_sha256)
    with ExitStack() as stack:
        try:
            opening = _Opening(options or {}, wishes or {}, limits, stack, OpenContext(warn=warn, spool=spool))
            opened = opening.open(ref, expected) if recorded is None else opening.copy(ref, recorded, expected)
            if require_digest and opened.expected.bundle_sha256 is None:
                raise NotAnchoredError(f"there is no digest to compare {quoted(ref)} with")
            yield opened
        except ArchiveRefusedError as error:
            error.enclose(before=f"{quoted(without_secrets(ref))}: ")
            raise


def find_record(ref: str, limits: Limits) -> tuple[Path, Record] | None:
    """Returns the checkpoint that a ref means, and its record, or None when it means something else.

    Where the published copy was deleted, it is the record as seen from the first of its copies.

    Raises:
        UsageError: It cannot be told what it means.
        CheckpointNotFoundError: The record names no copy.
        AriError: The record cannot be read.
    """
    path = local_path(ref)
    checkpoint = None if path is None else _checkpoint(path, limits)
    if checkpoint is None:
        return None
    from ari_core.record import read_record  # noqa: PLC0415 - pydantic, which nothing else here needs

    record = read_record(checkpoint)
    if record is not None and not record.ref and record.copies:
        first = record.model_copy(update={"copies": record.copies[:1]}).places()[0]
        record = first.model_copy(update={"copies": record.copies[1:]})
    if record is None or not record.ref:
        what = quoted(str(checkpoint / RECORD_NAME))
        raise CheckpointNotFoundError(f"{what} names no published copy", hint="publish first")
    return checkpoint, record


def _checkpoint(path: Path, limits: Limits) -> Path | None:
    """Returns the folder with the record that a path means, or None when it means something else."""
    if path.name == RECORD_NAME and path.is_file():
        return path.parent
    if not path.is_dir() or not (path / RECORD_NAME).is_file() or _is_stored_artifact(path, limits):
        return None
    if os.path.lexists(path / MANIFEST_NAME):
        if not ((path / PUBLISHED).is_dir() or (path / EAR).is_dir()):
            return None
        if _may_be_unpacked_bundle(path, limits):
            # Guessing could check one thing while the user looks at the other.
            raise UsageError(
                f"{quoted(str(path))} is a checkpoint and an unpacked bundle at once",
                hint=f"name what you mean: {BUNDLE_NAME}, {PUBLISHED}/, {RECORD_NAME} or, for the folder as it "
                f"lies there, {MANIFEST_NAME} in it",
            )
    return path


class _Opening:
    """One ref on its way to something readable."""

    def __init__(
        self,
        options: Mapping[str, str],
        wishes: Mapping[str, str],
        limits: Limits,
        stack: ExitStack,
        context: OpenContext,
    ) -> None:
        self._options, self._wishes, self._limits, self._stack = options, wishes, limits, stack
        self._given = options  # until a record leads elsewhere
        self._context = context
        self._recorded: Mapping[str, str] = {}

    def open(self, ref: str, expected: Expected) -> Opened:
        path = local_path(ref)
        if path is None:
            return self._remote(ref, expected)
        if found := find_record(ref, self._limits):
            return self._published(*found, expected)
        if self._given:
            raise UsageError(
                f"a path takes no settings, but '{escape(next(iter(self._given)))}' is given",
                hint="settings are for refs with a scheme, such as https://",
            )
        if path.name == MANIFEST_NAME and path.is_file():
            return self._unpacked(path.parent, expected)
        if path.is_dir():
            if _is_stored_artifact(path, self._limits):
                opened = self._remote(file_ref(path.absolute()) + "/", expected)
                return replace(opened, beside=path) if _not_stores(path) else opened
            return self._folder(path, expected)
        if not path.exists() and not path.is_symlink():
            if path.parent.is_dir() and _claimed_exactly(path):  # more, or fewer, digits of an id than are stored
                return self._remote(file_ref(path.absolute()) + "/", expected)
            doi = _DOI.fullmatch(ref)
            raise NotFound(
                f"there is no file or folder {quoted(str(path))}",
                hint=f"a DOI is written doi:{escape(doi[1])}" if doi else "check the spelling of the path",
            )
        return Opened(file_ref(path.absolute()), _stem(path.name), expected, LocalFile(path), None, is_local=True)

    def _folder(self, path: Path, expected: Expected) -> Opened:
        is_stores = _holds_only_stored_files(path, self._limits)
        if os.path.lexists(path / MANIFEST_NAME) and not is_stores:
            return self._unpacked(path, expected)
        name = path.resolve().name
        inner = path / PUBLISHED
        if (inner / MANIFEST_NAME).is_file():
            return Opened(file_ref(inner.absolute()), name, expected, None, inner, is_local=True, beside=path)
        bundle = path / BUNDLE_NAME
        if bundle.is_file():
            beside = None if is_stores else path
            ref = file_ref(bundle.absolute())
            return Opened(ref, name, expected, LocalFile(bundle), None, is_local=True, beside=beside)
        if was_interrupted(path, PUBLISHED):
            raise NotFound(
                f"{quoted(str(path))} is a checkpoint whose curation was interrupted",
                hint="run `ari ear curate` again",
            )
        raise ArchiveRefusedError(
            f"this is a folder without {MANIFEST_NAME}, {BUNDLE_NAME} or {RECORD_NAME}",
            hint="give the archive, the folder it was unpacked to, or the checkpoint it was published from",
        )

    def _unpacked(self, path: Path, expected: Expected) -> Opened:
        return Opened(file_ref(path.absolute()), path.resolve().name, expected, None, path, is_local=True)

    def _published(self, checkpoint: Path, record: Record, expected: Expected) -> Opened:
        if expected.bundle_sha256 is None:
            expected = expectation(None, record)
        try:
            return replace(self.copy(record.ref, record.options, expected), beside=checkpoint)
        except NotFound as error:
            raise NotFound(
                f"{quoted(str(checkpoint / RECORD_NAME))} names {quoted(record.ref)}, which is not there",
                hint="is its disk plugged in? else give another copy",
            ) from error

    def copy(self, ref: str, recorded: Mapping[str, str], expected: Expected) -> Opened:
        """Opens a ref that stands in a record, with the options beside it."""
        target = local_path(ref)
        if target is not None and (target.name == RECORD_NAME or (target / RECORD_NAME).exists()):
            raise UsageError(f"the record names a checkpoint, {quoted(ref)}, and not a published copy")
        # The record may be a stranger's: their choice of a host must not get the reader's tokens.
        self._context = replace(self._context, anonymous=True)
        self._recorded = recorded
        self._given = {}
        with _advising(ref):
            opened = self.open(ref, expected)
        if opened.source is None or opened.artifact is None:
            return opened
        return replace(opened, source=_OfRecord(opened.source, ref))

    def _remote(self, ref: str, expected: Expected) -> Opened:
        from ari_core.plugins import load_plugins  # noqa: PLC0415 - a local file needs no plugin
        from ari_core.settings import fields_of, open_for_ref  # noqa: PLC0415
        from ari_core.wrappers import patient  # noqa: PLC0415

        plugins = load_plugins()
        options = self._options
        if self._wishes:
            known = fields_of(plugins.load_class(plugins.select(ref)).Settings)
            options = {**{key: value for key, value in self._wishes.items() if key in known}, **options}
        backend = patient(open_for_ref(ref, options, self._context, plugins, recorded=self._recorded))
        self._stack.callback(backend.close)
        locator = backend.resolve(ref)
        artifact = backend.stat(locator)
        prefix = pinned_id(ref)
        expected = Expected(
            expected.bundle_sha256,
            "archive-id" if prefix and expected.bundle_sha256 is None else expected.anchored_by,
            prefix,
            artifact.archive_sha256,
        )
        source = BackendSource(backend, locator, artifact.size)
        return Opened(
            backend.ref(locator), name_of(ref), expected, source, None, is_local=False, artifact=artifact
        )


@contextmanager
def _advising(ref: str) -> Iterator[None]:
    """Says what to do where a record leads to what only its author may read."""
    try:
        yield
    except AccessDenied as error:
        hint = f"a record is followed without your credentials; to use them, name the copy itself: {escape(ref)}"
        raise AccessDenied(error.message, hint=hint) from error


class _OfRecord:
    """A source that a record leads to."""

    def __init__(self, source: ByteSource, ref: str) -> None:
        self._source, self._ref = source, ref
        self.name, self.size = source.name, source.size

    @contextmanager
    def open(self) -> Iterator[ReadStream]:
        with ExitStack() as stack:
            with _advising(self._ref):
                stream = stack.enter_context(self._source.open())
            yield stream


def _is_stored_artifact(path: Path, limits: Limits) -> bool:
    """Says whether a folder is an artifact of a store: it holds what no other folder of ours does."""
    if not (path / META_NAME).exists() or not _claimed_exactly(path):
        return False
    if not os.path.lexists(path / MANIFEST_NAME):
        return True
    # Where there is more beside a manifest, it may be an unpacked bundle that somebody put a store's files into.
    if not _not_stores(path) <= OS_FILES:
        return False
    entry = _entry(path, META_NAME, limits)
    # A store's own tells the digest of an archive: no bundle in that archive lists it.
    return entry is None or ((path / BUNDLE_NAME).exists() and not _is_listed(path, entry))


def _holds_only_stored_files(path: Path, limits: Limits) -> bool:
    """Says whether a folder is a store's: an archive and what stores put beside it, and nothing of a bundle.

    Raises:
        UsageError: It cannot be told, since the bundle has such a file itself.
    """
    if not (path / BUNDLE_NAME).is_file() or _not_stores(path):
        return False
    entry = _entry(path, BUNDLE_NAME, limits)
    if entry is None:
        return True
    if (path / BUNDLE_NAME).stat().st_size == entry.size:
        return False
    # Guessing could check one thing while the user looks at the other.
    raise UsageError(
        f"{quoted(str(path))} may be a stored bundle or a damaged unpacked one: its {MANIFEST_NAME} lists another "
        f"{quoted(BUNDLE_NAME)} than lies there",
        hint=f"name what you mean: {BUNDLE_NAME} or, for the folder as it lies there, {MANIFEST_NAME} in it",
    )


def _not_stores(path: Path) -> set[str]:
    """Returns the names in a folder that no store gives to what it puts there."""
    try:
        found = list(path.iterdir())
    except OSError as error:
        raise from_os_error(error, f"reading {quoted(str(path))}") from error
    return {
        entry.name
        for entry in found
        if not _STORED.fullmatch(entry.name) or (entry.name == MANIFEST_NAME and entry.is_dir())
    }


def _is_listed(path: Path, entry: FileEntry) -> bool:
    """Says whether a file in a folder is the one that a manifest lists."""
    with LocalFile(path / entry.path).open() as stream:
        digest, left = hashlib.sha256(), entry.size
        while left >= 0 and (data := stream.read(CHUNK)):
            digest.update(data)
            left -= len(data)
    return left == 0 and digest.hexdigest() == entry.sha256


def _may_be_unpacked_bundle(path: Path, limits: Limits) -> bool:
    """Says whether files that a manifest lists lie beside it, or whether that cannot be told."""
    listed = _listed(path, limits)
    return listed is None or any(os.path.lexists(path / entry.path) for entry in listed)


def _entry(path: Path, name: str, limits: Limits) -> FileEntry | None:
    """Returns what the manifest in a folder says of a file; None if nothing."""
    return next((entry for entry in _listed(path, limits) or () if entry.path == name), None)


def _listed(path: Path, limits: Limits) -> tuple[FileEntry, ...] | None:
    """Returns the files that the manifest in a folder lists; None if there is none to be read."""
    try:
        return parse_manifest(read_tree_manifest(path / MANIFEST_NAME, limits), limits).files
    except AriError:
        return None


def _claimed_exactly(path: Path) -> bool:
    from ari_core.contract import Claim  # noqa: PLC0415
    from ari_core.plugins import load_plugins  # noqa: PLC0415

    plugins = load_plugins()
    return any(
        plugins.claim(spec, file_ref(path.absolute()) + "/") == Claim.EXACT for spec in plugins.backends.values()
    )


class LocalFile:
    """A local archive; anything but a regular file is refused without waiting on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.size: int | None = None

    @contextmanager
    def open(self) -> Iterator[ReadStream]:
        """Starts reading from the beginning.

        Raises:
            NotFound: It is gone.
            LocalPermissionError: It cannot be read.
            ArchiveRefusedError: It is a FIFO, a device or the like.
        """
        doing = f"reading {quoted(self.name)}"
        try:
            fd = open_regular(self.path)
        except NotRegularError:
            raise ArchiveRefusedError(f"{quoted(self.name)} is not a regular file") from None
        except FileNotFoundError:
            raise NotFound(
                f"there is no file {quoted(self.name)}", hint="check the spelling of the path"
            ) from None
        except OSError as error:
            raise from_os_error(error, doing) from error
        try:
            self.size = os.fstat(fd).st_size
            yield _LocalStream(fd, doing)
        finally:
            os.close(fd)


class _LocalStream:
    def __init__(self, fd: int, doing: str) -> None:
        self._fd, self._doing = fd, doing

    def read(self, size: int, /) -> bytes:
        try:
            return os.read(self._fd, size)
        except OSError as error:
            raise from_os_error(error, self._doing) from error


class BackendSource:
    """One artifact of a backend as something to read."""

    def __init__(self, backend: Backend, locator: Locator, size: int | None) -> None:
        self._backend, self._locator = backend, locator
        self.name = locator
        self.size = size

    def open(self) -> AbstractContextManager[ReadStream]:
        """Starts reading from the beginning."""
        return self._backend.open(self._locator)


def local_path(ref: str) -> Path | None:
    """Returns the path that a ref names on this machine, or None if it has another scheme.

    Raises:
        UsageError: The ref is empty.
        Unsupported: It is a ``file:`` ref of another machine, or none at all.
    """
    if not ref or "\0" in ref:
        raise UsageError("the ref is empty" if not ref else "the ref has a NUL in it")
    if ref[:5].lower() == "file:":
        return path_of(ref)
    if _SCHEME.match(ref) and ("://" in ref or not os.path.lexists(ref)):
        return None
    try:
        return Path(ref).expanduser()
    except RuntimeError:  # ~nobody-of-that-name
        return Path(ref)


def pinned_id(ref: str) -> str:
    """Returns the leading digits of the archive digest that a ref names, or ""."""
    parts = _split(ref)
    pinned = parts and _PINNED.search(parts._replace(query="", fragment="").geturl())
    return pinned[1] if pinned else ""


def name_of(ref: str) -> str:
    """Returns a default destination for what a ref names."""
    parts = _split(ref)
    return _stem(Path(parts.path).name if parts else "")


def without_secrets(ref: str) -> str:
    """Returns a ref for a message: without a URL's query, which may be a key, and without user and password."""
    scheme, separator, _ = ref.partition("://")
    if not separator:
        return ref
    parts = _split(ref)
    if parts is None:
        return f"{scheme}://…"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _split(ref: str) -> SplitResult | None:
    try:
        return urlsplit(ref)
    except ValueError:
        return None


def _stem(name: str) -> str:
    """Returns a default destination: a plain name, whatever a stranger called the archive (``.git.tar.gz``)."""
    for ending in _ARCHIVE_ENDINGS:
        if name.endswith(ending):
            name = name[: -len(ending)]
            break
    return "bundle" if name[:1] in {"", ".", "-", "~"} or unsafe_reason(name, Limits()) else name
