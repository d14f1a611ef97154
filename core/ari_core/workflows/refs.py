"""From what a user typed to something that can be read: a path, a checkpoint, a record, or a backend's ref.

A path is opened by core itself, so that checking a file on a USB stick needs no plugin. Backends are asked about
everything with a scheme, and about folders that one of them claims as exactly its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ari_core.contract import Backend, Locator, OpenContext
from ari_core.digests import is_sha256, parse_sha256
from ari_core.errors import (
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
from ari_core.manifest import parse_manifest
from ari_core.names import BUNDLE_NAME, MANIFEST_NAME, RECORD_NAME, quoted, unsafe_reason
from ari_core.streams import ByteSource, ReadStream
from ari_core.verification import Report, read_tree_manifest
from ari_core.workflows.checkpoint import EAR, PUBLISHED

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_PINNED: Final = re.compile(r"(?:/artifacts?/|^ari://(?:[^/]+/)?)([0-9a-f]{16,64})/?$")
_STORED: Final = re.compile(r"bundle(-[0-9a-f]{16})?\.tar\.gz|manifest\.lock|meta\.json|\.ari-staging-.*")
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
    """

    ref: str
    name: str
    expected: Expected
    source: ByteSource | None
    folder: Path | None
    is_local: bool
    beside: Path | None = None


def expectation(expect_sha256: str | None) -> Expected:
    """Returns what the caller wants compared, before anything is opened.

    Raises:
        DigestSpellingError: The digest is misspelt.
    """
    if expect_sha256 is None:
        return Expected(None, "none")
    return Expected(parse_sha256(expect_sha256), "paper")


@contextmanager
def open_ref(
    ref: str,
    *,
    expect_sha256: str | None = None,
    require_digest: bool = False,
    options: Mapping[str, str] | None = None,
    limits: Limits,
    warn: Callable[[str], None] = lambda _line: None,
) -> Iterator[Opened]:
    """Resolves a ref for reading; `warn` is told at once what a backend has to say.

    Raises:
        DigestSpellingError: `expect_sha256` is misspelt; nothing was opened.
        NotAnchoredError: `require_digest` and neither the caller nor a record gave a digest.
        NotFound: There is nothing.
        UnknownBackend: No backend knows the scheme.
        AriError: As backends say.
    """
    expected = expectation(expect_sha256)
    with ExitStack() as stack:
        try:
            opened = _Opening(options or {}, limits, stack, warn).open(ref, expected)
            if require_digest and opened.expected.bundle_sha256 is None:
                raise NotAnchoredError(f"there is no digest to compare {quoted(ref)} with")
            yield opened
        except ArchiveRefusedError as error:
            error.enclose(before=f"{quoted(_without_secrets(ref))}: ")
            raise


class _Opening:
    """One ref on its way to something readable."""

    def __init__(
        self, options: Mapping[str, str], limits: Limits, stack: ExitStack, warn: Callable[[str], None]
    ) -> None:
        self._options, self._limits, self._stack = options, limits, stack
        self._given = options  # until a record leads elsewhere
        self._context = OpenContext(warn=warn)
        self._recorded: Mapping[str, str] = {}

    def open(self, ref: str, expected: Expected) -> Opened:
        path = local_path(ref)
        if path is None:
            return self._remote(ref, expected)
        if self._given:
            raise UsageError(
                f"a path takes no settings, but '{escape(next(iter(self._given)))}' is given",
                hint="settings are for refs with a scheme, such as https://",
            )
        if path.is_dir():
            # What no folder of ours but a stored artifact's has.
            if (path / "meta.json").exists() and _claimed_exactly(path):
                return self._remote(file_ref(path.absolute()) + "/", expected)
            return self._folder(path, expected)
        if path.name == RECORD_NAME and path.is_file():
            return self._record(path, expected)
        if not path.exists() and not path.is_symlink():
            if path.parent.is_dir() and _claimed_exactly(path):  # more, or fewer, digits of an id than are stored
                return self._remote(file_ref(path.absolute()) + "/", expected)
            raise NotFound(
                f"there is no file or folder {quoted(str(path))}", hint="check the spelling of the path"
            )
        return Opened(file_ref(path.absolute()), _stem(path.name), expected, LocalFile(path), None, is_local=True)

    def _folder(self, path: Path, expected: Expected) -> Opened:
        name = path.resolve().name
        has_record = (path / RECORD_NAME).is_file()
        if os.path.lexists(path / MANIFEST_NAME) and not _holds_only_stored_files(path):
            is_checkpoint = has_record and ((path / PUBLISHED).is_dir() or (path / EAR).is_dir())
            if not is_checkpoint:
                return Opened(file_ref(path.absolute()), name, expected, None, path, is_local=True)
            if _may_be_unpacked_bundle(path, self._limits):
                # Guessing could check one thing while the user looks at the other.
                raise UsageError(
                    f"{quoted(str(path))} is a checkpoint and an unpacked bundle at once",
                    hint=f"name what you mean: {BUNDLE_NAME}, {PUBLISHED}/ or {RECORD_NAME} in it",
                )
        if has_record:
            return self._record(path / RECORD_NAME, expected)
        inner = path / PUBLISHED
        if (inner / MANIFEST_NAME).is_file():
            return Opened(file_ref(inner.absolute()), name, expected, None, inner, is_local=True, beside=path)
        bundle = path / BUNDLE_NAME
        if bundle.is_file():
            beside = None if _holds_only_stored_files(path) else path
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

    def _record(self, path: Path, expected: Expected) -> Opened:
        from ari_core.record import read_record  # noqa: PLC0415 - pydantic, which nothing else here needs

        record = read_record(path.parent)
        if record is None or not record.ref:
            raise CheckpointNotFoundError(f"{quoted(str(path))} names no published copy", hint="publish first")
        if expected.bundle_sha256 is None and is_sha256(record.bundle_sha256):
            expected = Expected(record.bundle_sha256, "record")
        target = local_path(record.ref)
        if target is not None and (target.name == RECORD_NAME or (target / RECORD_NAME).exists()):
            raise UsageError(f"{quoted(str(path))} names a checkpoint, not a published copy")
        # The folder may be a stranger's: their choice of a host must not get the reader's tokens.
        self._context = replace(self._context, anonymous=True)
        self._recorded = record.options
        self._given = {}
        try:
            return replace(self.open(record.ref, expected), beside=path.parent)
        except NotFound as error:
            raise NotFound(
                f"{quoted(str(path))} names {quoted(record.ref)}, which is not there",
                hint="is its disk plugged in? else give another copy",
            ) from error

    def _remote(self, ref: str, expected: Expected) -> Opened:
        from ari_core.plugins import load_plugins  # noqa: PLC0415 - a local file needs no plugin
        from ari_core.settings import open_for_ref  # noqa: PLC0415
        from ari_core.wrappers import patient  # noqa: PLC0415

        backend = patient(open_for_ref(ref, self._options, self._context, load_plugins(), recorded=self._recorded))
        self._stack.callback(backend.close)
        locator = backend.resolve(ref)
        artifact = backend.stat(locator)
        pinned = _PINNED.search(urlsplit(ref)._replace(query="", fragment="").geturl())
        prefix = pinned[1] if pinned else ""
        expected = Expected(
            expected.bundle_sha256,
            "archive-id" if prefix and expected.bundle_sha256 is None else expected.anchored_by,
            prefix,
            artifact.archive_sha256,
        )
        name = _stem(Path(urlsplit(ref).path).name)
        source = BackendSource(backend, locator, artifact.size)
        return Opened(backend.ref(locator), name, expected, source, None, is_local=False)


def _holds_only_stored_files(path: Path) -> bool:
    """Says whether a folder is a store's: an archive and what stores put beside it, and nothing of a bundle."""
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError:
        return False
    return BUNDLE_NAME in names and all(_STORED.fullmatch(name) for name in names)


def _may_be_unpacked_bundle(path: Path, limits: Limits) -> bool:
    """Says whether files that a manifest lists lie beside it, or whether that cannot be told."""
    try:
        raw = read_tree_manifest(path / MANIFEST_NAME, limits)
        listed = parse_manifest(raw, limits).files
    except AriError:
        return True
    return any(os.path.lexists(path / entry.path) for entry in listed)


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


def _without_secrets(ref: str) -> str:
    """Returns a ref for a message: without a URL's query, which may be a key, and without user and password."""
    if "://" not in ref:
        return ref
    parts = urlsplit(ref)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _stem(name: str) -> str:
    """Returns a default destination: a plain name, whatever a stranger called the archive (``.git.tar.gz``)."""
    for ending in _ARCHIVE_ENDINGS:
        if name.endswith(ending):
            name = name[: -len(ending)]
            break
    return "bundle" if name[:1] in {"", ".", "-", "~"} or unsafe_reason(name, Limits()) else name
