"""Every error this project raises on purpose, and the one table that says what each means outside.

::

    AriError
    ├── UsageError                    wrong spelling, wrong combination
    │   ├── DigestSpellingError
    │   ├── ConfigurationError        publish.yaml, config.yaml, -o, environment
    │   ├── DestinationExistsError
    │   └── NoTargetError             promote, but to which level?
    ├── VerificationError             it is not what it should be
    │   ├── ArchiveRefusedError       breaks a rule of the format
    │   ├── ContentMismatchError      files differ from the manifest
    │   └── DigestMismatchError       another bundle than the one asked for
    ├── NotAnchoredError              a digest was required and there was none
    ├── CurationError                 refused before anything was written
    ├── ChangedSinceCurationError
    ├── CheckpointNotFoundError       no checkpoint, no ear/, nothing published
    ├── LocalPermissionError
    ├── DiskFullError
    ├── DiskError                     the disk or file system fails
    ├── PartlyDoneError
    ├── InterruptedByUserError
    ├── BackendError
    │   ├── NotFound  AlreadyExists  RangeError  IntegrityError  Unsupported  ReadOnly
    │   ├── AccessDenied  QuotaExceeded  InvalidConfiguration  BackendBug
    │   └── RateLimited  Unavailable          the only two that may be retried
    └── PluginError
        └── PluginLoadError  UnknownBackend  DuplicateBackend  ApiMismatch
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple


class AriError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        message: One line: what and where.
        hint: The next step for the reader, or None.
        facts: What programs are told besides, as JSON values.
    """

    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self._hint = hint
        self.facts: dict[str, Any] = {}

    def enclose(self, before: str = "", behind: str = "") -> None:
        """Adds to the message what only a caller knows, such as where it happened."""
        self.message = f"{before}{self.message}{behind}"
        self.args = (self.message,)

    @property
    def hint(self) -> str | None:
        """The next step: given where the error was raised, else the table's advice."""
        return self._hint or case_of(self).advice

    @property
    def kind(self) -> str:
        """Stable machine-readable name, as in ``{"error": {"kind": …}}``."""
        return case_of(self).kind

    @property
    def exit_code(self) -> int:
        """Exit status of the command that meets this error."""
        return case_of(self).exit_code


class UsageError(AriError):
    """The command line or a call asks for something that does not make sense."""


class DigestSpellingError(UsageError):
    """A digest that is not 64 lower-case hexadecimal digits."""


class ConfigurationError(UsageError):
    """A setting or configuration file with an unknown key or a bad value."""


class DestinationExistsError(UsageError):
    """The destination is already there; it was not touched."""


class NoTargetError(UsageError):
    """Promoting was asked for without a level, and none was wished for."""


class VerificationError(AriError):
    """What was read is not what it should be."""


class ArchiveRefusedError(VerificationError):
    """An archive, name or manifest breaks a rule of the format (docs/format.md)."""


class ContentMismatchError(VerificationError):
    """Files differ from the manifest, are missing, or are extra."""


class DigestMismatchError(VerificationError):
    """The bundle is consistent but is not the one whose digest was given."""

    def __init__(self, message: str, *, expected: str, got: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.expected = expected
        self.got = got


class NotAnchoredError(AriError):
    """``--require-digest`` was given and there was no digest to compare with."""


class CurationError(AriError):
    """``ear/`` cannot be curated as it is; nothing was changed."""


class ChangedSinceCurationError(AriError):
    """A file in ``ear_published/`` is not the one its manifest describes."""


class CheckpointNotFoundError(AriError):
    """No checkpoint there, or no ``ear/`` in it, or nothing published from it yet."""


class LocalPermissionError(AriError):
    """The operating system refused access to a local file or folder."""


class DiskFullError(AriError):
    """No space left, or over the quota, on a local disk."""


class DiskError(AriError):
    """The disk or file system fails to read or write."""


class PartlyDoneError(AriError):
    """Some of several destinations succeeded."""


class InterruptedByUserError(AriError):
    """Ctrl-C; staging was removed."""


class BackendError(AriError):
    """Something about a store.

    Attributes:
        backend: Name of the backend, once known.
    """

    backend: str | None = None


class NotFound(BackendError):  # noqa: N818 - the contract's published name
    """Certainly absent. Never raised for "could not tell"."""


class AlreadyExists(BackendError):  # noqa: N818 - the contract's published name
    """Something else is stored where this should go; it was not touched."""


class RangeError(BackendError):
    """An offset past the end."""


class IntegrityError(BackendError):
    """Stored bytes are not what the store said they are."""


class Unsupported(BackendError):  # noqa: N818 - the contract's published name
    """The store cannot do this; nothing was changed."""


class ReadOnly(BackendError):  # noqa: N818 - the contract's published name
    """The store takes no writes."""


class AccessDenied(BackendError):  # noqa: N818 - the contract's published name
    """The store refused these credentials (or their absence). Never raised for "absent"."""


class QuotaExceeded(BackendError):  # noqa: N818 - the contract's published name
    """No room in the store for this; trying again will not help."""


class InvalidConfiguration(BackendError):  # noqa: N818 - the contract's published name
    """The backend's settings cannot work."""


class BackendBug(BackendError):  # noqa: N818 - the contract's published name
    """The backend broke its contract or let a foreign exception out; the cause is kept."""


class RateLimited(BackendError):  # noqa: N818 - the contract's published name
    """The store asks for patience.

    Attributes:
        retry_after: Seconds to wait, when the store said so.
    """

    retryable = True

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class Unavailable(BackendError):  # noqa: N818 - the contract's published name
    """The store cannot be reached or is failing now."""

    retryable = True


class PluginError(AriError):
    """Something about a plugin, not about a store."""


class PluginLoadError(PluginError):
    """The plugin that should provide this could not be loaded."""


class UnknownBackend(PluginError):  # noqa: N818 - the contract's published name
    """No backend of that name or for that scheme."""


class DuplicateBackend(PluginError):  # noqa: N818 - the contract's published name
    """Two plugins claim one name or one ref."""


class ApiMismatch(PluginError):  # noqa: N818 - the contract's published name
    """The plugin was written for another API number."""


class Case(NamedTuple):
    """What one kind of error means outside the program."""

    kind: str
    exit_code: int
    http_status: int
    advice: str | None


# The one table. A backend's own credential failure is the operator's problem: 502, never the client's 401.
TABLE: dict[type[AriError], Case] = {
    AriError: Case("error", 70, 500, None),
    UsageError: Case("usage", 2, 400, None),
    DigestSpellingError: Case(
        "digest-spelling", 2, 400, "a digest is 64 lower-case hexadecimal digits and nothing else"
    ),
    ConfigurationError: Case("configuration", 2, 500, None),
    DestinationExistsError: Case("destination-exists", 2, 409, "choose another destination"),
    NoTargetError: Case("no-target", 2, 400, None),
    VerificationError: Case("does-not-verify", 1, 422, None),
    ArchiveRefusedError: Case(
        "refused", 1, 422, "this copy is damaged, altered or packed in an unsafe way; try another copy"
    ),
    ContentMismatchError: Case(
        "content-mismatch", 1, 422, "this copy is damaged or altered; try another copy of the same bundle"
    ),
    DigestMismatchError: Case(
        "digest-mismatch",
        1,
        422,
        "check the digest against the paper; if it is right, this is not the paper's bundle",
    ),
    NotAnchoredError: Case("no-digest", 2, 400, "give --expect-sha256 with the digest printed in the paper"),
    CurationError: Case("curation-refused", 1, 422, None),
    ChangedSinceCurationError: Case(
        "changed-since-curation", 1, 422, "run `ari ear curate` again, look at what changed, then publish"
    ),
    CheckpointNotFoundError: Case("checkpoint-not-found", 3, 404, None),
    LocalPermissionError: Case("permission", 4, 500, "check who owns the file or folder and its mode"),
    DiskFullError: Case("disk-full", 5, 507, "free some space first: trying again without that will not help"),
    DiskError: Case("disk-error", 5, 500, "look at the disk: the system log says more"),
    PartlyDoneError: Case("partly-done", 6, 500, "run the same command again for what is left"),
    InterruptedByUserError: Case("interrupted", 130, 499, None),
    BackendError: Case("backend", 70, 500, None),
    NotFound: Case("not-found", 3, 404, "check the spelling of the ref"),
    AlreadyExists: Case("already-exists", 2, 409, None),
    RangeError: Case("range", 70, 416, None),
    IntegrityError: Case("integrity", 1, 502, "try another copy of the same bundle"),
    Unsupported: Case("unsupported", 2, 400, None),
    ReadOnly: Case("read-only", 4, 503, "publish to a store that takes writes"),
    AccessDenied: Case("access-denied", 4, 502, "check the credentials for this store"),
    QuotaExceeded: Case("quota-exceeded", 5, 507, "trying again will not help: make room or ask for more"),
    InvalidConfiguration: Case("invalid-configuration", 2, 500, None),
    BackendBug: Case(
        "backend-bug", 70, 500, "report this to the backend's author; ARI_DEBUG=1 shows the traceback"
    ),
    RateLimited: Case("rate-limited", 5, 503, "wait and run the same command again"),
    Unavailable: Case("unavailable", 5, 503, "run the same command again later"),
    PluginError: Case("plugin", 2, 500, None),
    PluginLoadError: Case("plugin-load", 2, 500, None),
    UnknownBackend: Case("unknown-backend", 2, 400, "`ari backends list` shows what is installed"),
    DuplicateBackend: Case("duplicate-backend", 2, 500, None),
    ApiMismatch: Case("api-mismatch", 2, 500, None),
}


def case_of(error: AriError) -> Case:
    """Returns the row of `TABLE` for an error: its own class's, else its nearest base's."""
    for cls in type(error).__mro__:
        if issubclass(cls, AriError) and cls in TABLE:
            return TABLE[cls]
    return TABLE[AriError]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that does not verify.

    Attributes:
        kind: ``differs``, ``missing``, ``extra``, ``refused`` or ``digest``.
        path: The file it is about (escaped for printing), or None for the bundle as a whole.
        detail: One sentence.
    """

    kind: str
    path: str | None
    detail: str


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NAMES = {errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EILSEQ}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


def from_os_error(error: OSError, doing: str) -> AriError:
    """Turns an `OSError` on the user's own disk into the project's error.

    Args:
        error: What the operating system said.
        doing: What was being done, starting with a verb: ``"writing /x/y"``.
    """
    reason = error.strerror or str(error)
    where = f" ({escape(str(error.filename))})" if error.filename and str(error.filename) not in doing else ""
    message = f"{doing}{where}: {reason}"
    if error.errno in _FULL:
        return DiskFullError(message)
    if error.errno in _REFUSED:
        return LocalPermissionError(message)
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return CheckpointNotFoundError(message)
    if error.errno in _NAMES:
        return UsageError(message)
    return DiskError(message)


def escape(text: str) -> str:
    """Makes foreign text safe for a terminal or log line: nothing unprintable gets through raw."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
