"""Who may do what: the one place that decides, and it decides from its arguments alone (docs/http-api.md)."""

from __future__ import annotations

import enum

from ari_core.contract import Owner, Visibility
from ari_server.rows import Row
from ari_server.tokens import Caller


class Permission(enum.Enum):
    """What a route asks of its caller; each pair of method and path has exactly one."""

    OPEN = "anybody, and a token is not looked at"
    ANYBODY = "anybody, but a bad token is refused"
    READER = "whoever may read the artifact"
    PUBLISHER = "any user with a token for publishing"
    OWNER = "an owner of the artifact, with a token for publishing"

    @property
    def needs_token(self) -> bool:
        """Whether nobody is allowed without one, whatever the artifact."""
        return self in {Permission.PUBLISHER, Permission.OWNER}


class Verdict(enum.Enum):
    """What comes of a request."""

    ALLOWED = enum.auto()
    WHO_ARE_YOU = enum.auto()
    """401: with a token it might be allowed."""
    NO = enum.auto()
    """403: this token does not do."""


def decide(permission: Permission, caller: Caller | None, row: Row | None) -> Verdict:
    """Says whether `caller` may do what asks for `permission`.

    Args:
        permission: What the route asks for.
        caller: Whose token it is; None without one. Bad tokens do not get here.
        row: The artifact that it is about, if it is about one.
    """
    match permission:
        case Permission.OPEN | Permission.ANYBODY:
            allowed = True
        case Permission.READER:
            allowed = row is not None and may_read(row, caller)
        case Permission.PUBLISHER:
            allowed = _may_publish(caller)
        case Permission.OWNER:
            allowed = row is not None and _may_publish(caller) and owner_of(row, caller) is not None
    if allowed:
        return Verdict.ALLOWED
    return Verdict.WHO_ARE_YOU if caller is None else Verdict.NO


def may_read(row: Row, caller: Caller | None) -> bool:
    """Says whether `caller` may see what shows contents or file names: bundle, manifest, metadata."""
    if row.visibility.rank >= Visibility.UNLISTED.rank:
        return True
    if caller is None:
        return False
    if caller.scope == "fetch":
        return row.visibility is Visibility.PRIVATE_TOKEN and caller.archive_sha256 == row.archive_sha256
    return owner_of(row, caller) is not None


def owner_of(row: Row, caller: Caller | None) -> Owner | None:
    """Returns `caller` as an owner of the artifact; None for one who is none, and for fetch tokens."""
    if caller is None or caller.scope == "fetch":
        return None
    return row.owner(caller.user)


def is_user(caller: Caller | None) -> bool:
    """Says whether a user asks, not nobody and not a reader with a fetch token."""
    return caller is not None and caller.scope in {"publish", "read"}


def _may_publish(caller: Caller | None) -> bool:
    return caller is not None and caller.scope == "publish"
