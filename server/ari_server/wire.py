"""uvicorn's protocol, with a bound on what stands before a body: by itself it keeps whatever comes."""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD_BYTES: Final = 64 * 1024
"""Of the request line and headers, besides what comes in one piece with their begin or end."""
MOST_HEADERS: Final = 200
"""Trailers included. A header of a few bytes takes twenty times as much memory."""


class BoundedHead(HttpToolsProtocol):
    """Refuses a request whose head is longer than any real one, before it fills memory and stalls the others."""

    _requests = 0
    _head = _headers = 0
    _in_head = False

    def data_received(self, data: bytes) -> None:
        """Handles what came."""
        if self._in_head and self._head > MOST_HEAD_BYTES:
            msg = "The request's head is too long."
            self.logger.warning(msg)
            self.send_400_response(msg)
            return
        inside, request = self._in_head, self._requests
        super().data_received(data)
        if inside and self._in_head and request == self._requests:
            self._head += len(data)

    def on_message_begin(self) -> None:
        """Begins another request of this connection."""
        super().on_message_begin()
        self._requests += 1
        self._head = self._headers = 0
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header or trailer."""
        self._headers += 1
        if self._headers > MOST_HEADERS:
            raise ValueError("too many headers")  # answered with 400 by the caller of the parser
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Ends the head."""
        self._in_head = False
        super().on_headers_complete()
