"""Errors as ``application/problem+json`` (RFC 9457): whatever goes wrong inside, this is all a client sees of it.

What is the client's doing keeps its message. What is the server's own trouble (its disk, its database, its store)
could name paths and internals: the client gets one general sentence, and the log the whole story.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ari_core.errors import (
    AriError,
    BackendError,
    CheckpointNotFoundError,
    DiskError,
    InvalidConfiguration,
    LocalPermissionError,
    QuotaExceeded,
    RateLimited,
    VerificationError,
    case_of,
    escape,
)
from ari_server.database import DatabaseUnavailable

_log: Final = logging.getLogger(__name__)
_LONGEST_DETAIL: Final = 1000
_RETRY_SECONDS: Final = 10
_CHALLENGE: Final = 'Bearer realm="ari-registry"'
_BUG: Final = 70  # the exit code of what is nobody's fault but a program's
_KINDS: Final = {
    400: "usage",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    408: "timeout",
    409: "already-exists",
    410: "gone",
    411: "length-required",
    413: "too-large",
    415: "media-type",
    416: "range",
    422: "unprocessable",
    429: "rate-limited",
    503: "unavailable",
    507: "quota-exceeded",
}
_GENERAL: Final = {
    502: "the registry's store does not give what it holds; tell the registry's operator",
    507: "the registry has no room left; tell the registry's operator",
}
_AWAY: Final[tuple[tuple[type[AriError], str], ...]] = (
    (DatabaseUnavailable, "database"),
    (BackendError, "store"),
    (AriError, "disk"),
)
_FAILED: Final = (
    "the registry failed; its operator finds the reason in the log, under the X-Request-ID of this answer"
)


class Problem(Exception):  # noqa: N818 - RFC 9457's word
    """Answers the request with an error of its own: ``raise Problem(403, "this token may only read")``.

    Attributes:
        status: HTTP status.
        detail: One sentence for the client.
        kind: Stable machine-readable name; by default one that goes with the status.
        headers: More headers of the answer.
    """

    def __init__(self, status: int, detail: str, kind: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.kind = kind or _KINDS.get(status, "error")
        self.headers = dict(headers or {})


class ProblemResponse(JSONResponse):
    """A problem as an answer; the log and the metrics find its kind in the scope's state."""

    media_type = "application/problem+json"

    def __init__(self, problem: Problem) -> None:
        headers = dict(problem.headers)
        names = {name.lower() for name in headers}
        if problem.status == HTTPStatus.UNAUTHORIZED and "www-authenticate" not in names:
            headers["WWW-Authenticate"] = _CHALLENGE
        if problem.status == HTTPStatus.SERVICE_UNAVAILABLE and "retry-after" not in names:
            headers["Retry-After"] = str(_RETRY_SECONDS)
        self.kind = problem.kind
        body = {
            "type": "about:blank",
            "title": HTTPStatus(problem.status).phrase,
            "status": problem.status,
            "detail": escape(problem.detail)[:_LONGEST_DETAIL],
            "kind": problem.kind,
        }
        super().__init__(body, problem.status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        scope.setdefault("state", {})["problem"] = self.kind
        await super().__call__(scope, receive, send)


def respond(error: Exception) -> Response:
    """Returns the answer for any exception, and logs what is the server's own trouble."""
    return ProblemResponse(_problem(error))


def install(app: FastAPI) -> None:
    """Makes a problem of every error of `app`, also of an unexpected one. Call it before adding middleware."""
    for cls in (Problem, AriError, HTTPException, RequestValidationError):
        app.add_exception_handler(cls, _handle)
    app.add_middleware(_Unexpected)


async def _handle(_request: Request, error: Exception) -> Response:
    return respond(error)


def _problem(error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case AriError():
            return _of_ours(error)
        case HTTPException():
            return Problem(error.status_code, str(error.detail), headers=error.headers)
        case RequestValidationError():
            return Problem(422, _unfit(error.errors()), "validation")
    _log.error("unexpected %s", type(error).__name__, exc_info=error)
    return Problem(500, _FAILED)


def _of_ours(error: AriError) -> Problem:
    kind, exit_code, status, _ = case_of(error)
    if isinstance(error, QuotaExceeded) and error.backend is None:  # not the store's: this user's
        return Problem(status, error.message, kind)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR and not _is_own_trouble(error):
        return Problem(status, error.message, kind)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        kind, status = "error", 500
    if isinstance(error, DiskError | LocalPermissionError | InvalidConfiguration):
        status = HTTPStatus.SERVICE_UNAVAILABLE  # mended without a restart; much else goes on meanwhile
    # A bug's traceback is worth having; anything else says it all in one line.
    _log.error("%s: %s", error.kind, error.message, exc_info=error if exit_code == _BUG else None)
    headers = {}
    if isinstance(error, RateLimited) and error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        what = next(what for cls, what in _AWAY if isinstance(error, cls))
        return Problem(status, f"the registry's {what} cannot be used now; try again later", kind, headers)
    return Problem(status, _GENERAL.get(status, _FAILED), kind, headers)


def _is_own_trouble(error: AriError) -> bool:
    """Says whether an error that looks like the client's came from the server's own files."""
    if isinstance(error, BackendError | VerificationError):
        return False
    return isinstance(error, CheckpointNotFoundError) or isinstance(error.__cause__ or error.__context__, OSError)


def _unfit(errors: Any) -> str:
    """Says what does not fit, without repeating what was sent: it could be a secret in the wrong place."""
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in errors)


class _Unexpected:
    """The innermost middleware: no exception gets past it, so neither starlette nor uvicorn prints it again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, noting)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - the last resort
            if isinstance(error, RuntimeError) and isinstance(error.__cause__, AriError | Problem | HTTPException):
                error = error.__cause__  # starlette: "Caught handled exception, but response already started."
            response = respond(error)
            if not started:
                await response(scope, receive, send)
            # Else the answer stays incomplete, and the server cuts the connection: it can not look whole.
