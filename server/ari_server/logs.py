"""One log line per request, without secrets; and the headers that every answer carries."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ari_core.errors import escape

_access: Final = logging.getLogger("ari_server.access")
_request: Final[ContextVar[str]] = ContextVar("request", default="-")

_LONGEST_PATH: Final = 200
_TOKEN: Final = re.compile(r"(arif?_)[A-Za-z0-9_-]{12,}")
_LONG_SEGMENT: Final = re.compile(r"[^/]{25,}")
_HEX: Final = re.compile(r"[0-9a-f]{,64}")
_SHOWN: Final = 8
_LONGEST_VALUE: Final = 250
_WORD: Final = re.compile(r"[!#-<>-~…]{1,250}")  # ASCII without blank, quote and equals sign

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class LineFormatter(logging.Formatter):
    """``2026-11-22T10:11:12.123Z INFO [request] message``: nothing unprintable, and nothing like a token."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line; only a traceback adds more."""
        return _TOKEN.sub(r"\1…", super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Returns the first line."""
        return f"{self.formatTime(record)} {record.levelname} [{_request.get()}] {escape(record.message)}"

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 - logging's name
        """Returns the traceback, whose last line may hold foreign text."""
        return "\n".join(escape(line) for line in super().formatException(ei).split("\n"))


LOG_CONFIG: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": "ari_server.logs.LineFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {"ari_server": {"level": "INFO"}, "uvicorn": {"level": "INFO"}},
}
"""For ``uvicorn.run(log_config=LOG_CONFIG, access_log=False)``; workers get it, too."""


class Answered:
    """An ASGI ``send`` that counts what it passes on.

    Attributes:
        status: Status of the answer, 0 before it begins.
        sent: Bytes of its body; to HEAD none are.
        whole: All of it went out.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send, self._counts = send, scope["method"] != "HEAD"
        self.status, self.sent, self.whole = 0, 0, False

    async def __call__(self, message: Message) -> None:
        """Passes one message on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
        if message["type"] == "http.response.body":
            self.sent += len(message.get("body", b"")) if self._counts else 0
            self.whole = not message.get("more_body", False)


class RequestLog:
    """ASGI middleware, the outermost: one line for each request, at its end, however it ends.

    Who authenticates the request sets ``request.state.caller``; everybody finds ``request.state.request_id``. That
    also goes to the client (``X-Request-ID``) and into every line that is logged meanwhile.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = scope.setdefault("state", {})["request_id"] = secrets.token_hex(8)
        _request.set(request_id)
        header = (b"x-request-id", request_id.encode())
        answer = Answered(scope, send)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await answer(message)

        try:
            await self._app(scope, receive, named)
        finally:
            seconds = time.perf_counter() - started
            _access.info("%s", _line(scope, answer.status, answer.sent, seconds, whole=answer.whole))


class SecurityHeaders:
    """ASGI middleware: adds what every answer carries, and forbids to keep it unless the route says otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""

        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                present = {name.lower() for name, _ in headers}
                headers += (header for header in _EVERYWHERE if header[0] not in present)
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, adding if scope["type"] == "http" else send)


_EVERYWHERE: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


def _line(scope: Scope, status: int, sent: int, seconds: float, *, whole: bool) -> str:
    state = scope["state"]
    client = (scope.get("client") or "-")[0]
    line = (
        f"client={_value(client)} method={_value(scope['method'])} path={_value(_shown(scope))} "
        f"status={status or '-'} bytes={sent} seconds={seconds:.4f}"
    )
    if caller := state.get("caller"):
        line += f" user={_value(caller.user or '-')} scope={caller.scope} token={caller.token_id}"
    if problem := state.get("problem"):
        line += f" problem={_value(problem)}"
    return line if whole else f"{line} end=aborted"


def _shown(scope: Scope) -> str:
    """Returns the path as it was sent, without query; a long part of it that is no id could be a secret."""
    raw = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
    path = raw.partition(b"?")[0].decode("latin-1")[: _LONGEST_PATH + 1]
    path = _LONG_SEGMENT.sub(lambda part: part[0] if _HEX.fullmatch(part[0]) else part[0][:_SHOWN] + "…", path)
    return path if len(path) <= _LONGEST_PATH else path[:_LONGEST_PATH] + "…"


def _value(text: str) -> str:
    """Returns foreign text as one word, quoted if need be."""
    return text if _WORD.fullmatch(text) else json.dumps(text[:_LONGEST_VALUE])
