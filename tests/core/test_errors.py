"""The tree of errors and the one table that says what each means outside."""

import errno

import pytest

from ari_core import errors
from ari_core.errors import TABLE, AriError, BackendError, from_os_error

# The contract with scripts that call us (design, section 6).
EXIT_CODES = {
    "VerificationError": 1,
    "ArchiveRefusedError": 1,
    "ContentMismatchError": 1,
    "DigestMismatchError": 1,
    "CurationError": 1,
    "ChangedSinceCurationError": 1,
    "IntegrityError": 1,
    "UsageError": 2,
    "DigestSpellingError": 2,
    "ConfigurationError": 2,
    "DestinationExistsError": 2,
    "NotAnchoredError": 2,
    "UnknownBackend": 2,
    "Unsupported": 2,
    "AlreadyExists": 2,
    "InvalidConfiguration": 2,
    "NotFound": 3,
    "CheckpointNotFoundError": 3,
    "AccessDenied": 4,
    "ReadOnly": 4,
    "LocalPermissionError": 4,
    "Unavailable": 5,
    "RateLimited": 5,
    "DiskFullError": 5,
    "DiskError": 5,
    "QuotaExceeded": 5,
    "PartlyDoneError": 6,
    "BackendBug": 70,
    "InterruptedByUserError": 130,
}


def all_errors(base=AriError):
    yield base
    for cls in base.__subclasses__():
        yield from all_errors(cls)


def test_every_error_has_a_row_in_the_table():
    assert {cls for cls in all_errors() if cls.__module__ == "ari_core.errors"} == set(TABLE)


def test_kinds_are_unique():
    assert len({case.kind for case in TABLE.values()}) == len(TABLE)


@pytest.mark.parametrize(("name", "code"), EXIT_CODES.items())
def test_exit_codes_are_the_documented_ones(name, code):
    assert TABLE[getattr(errors, name)].exit_code == code


def test_only_two_errors_may_be_retried():
    assert {cls.__name__ for cls in TABLE if cls.retryable} == {"RateLimited", "Unavailable"}


def test_a_stores_own_credentials_never_look_like_the_clients():
    statuses = {TABLE[cls].http_status for cls in all_errors(BackendError) if cls in TABLE}
    assert not statuses & {401, 403}


def test_a_subclass_of_a_plugin_takes_its_bases_row():
    class Throttled(errors.RateLimited):
        pass

    assert Throttled("slow down").exit_code == 5


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, errors.DiskFullError),
        (errno.EDQUOT, errors.DiskFullError),
        (errno.EACCES, errors.LocalPermissionError),
        (errno.EROFS, errors.LocalPermissionError),
        (errno.ENOENT, errors.CheckpointNotFoundError),
        (errno.EIO, errors.DiskError),
        (errno.ENAMETOOLONG, errors.UsageError),
    ],
)
def test_system_errors_name_what_was_done(code, expected):
    error = from_os_error(OSError(code, "reason", "/x/\x1by"), "writing things")
    assert type(error) is expected
    assert "writing things" in error.message
    assert "\x1b" not in error.message


def test_foreign_text_cannot_reach_the_terminal_raw():
    shown = errors.escape("a\x1b[31m\n\u202eb\udcff")
    assert shown.isprintable()
    assert shown.startswith("a\\x1b[31m\\n\\u202eb")
