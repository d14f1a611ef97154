"""Prometheus metrics of a registry server.

With several workers, `serve` names an empty folder in ``PROMETHEUS_MULTIPROC_DIR`` before they start; each writes
its numbers there, and whichever is asked adds them up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ari_server.logs import Answered

if TYPE_CHECKING:
    from ari_server.service import Registry

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"

UPLOADS: Final = Gauge("ari_uploads_in_progress", "Uploads being received.", multiprocess_mode="livesum")
"""For the upload route: ``with UPLOADS.track_inprogress():``."""

_REQUESTS: Final = Counter("ari_requests", "Requests answered.", ("method", "route", "status"))
_SECONDS: Final = Histogram(
    "ari_request_seconds",
    "Time from the request's head to the end of its answer.",
    ("method", "route"),
    buckets=(0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60, 600),
)
_RECEIVED: Final = Counter("ari_received_bytes", "Bytes of request bodies.")
_SENT: Final = Counter("ari_sent_bytes", "Bytes of answers' bodies.")
_REFUSED: Final = Counter("ari_uploads_refused", "Uploads refused.", ("kind",))

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UPLOAD: Final = ("POST", "/artifact")


class Metrics:
    """ASGI middleware, inside `logs.RequestLog`: counts requests by route, never by path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        answer, received = Answered(scope, send), 0

        async def counting_in() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        try:
            await self._app(scope, counting_in, answer)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path", "none")
            _REQUESTS.labels(method, route, f"{answer.status // 100}xx" if answer.whole else "aborted").inc()
            _SECONDS.labels(method, route).observe(time.perf_counter() - started)
            _RECEIVED.inc(received)
            _SENT.inc(answer.sent)
            if (method, route) == _UPLOAD and not (answer.whole and answer.status < 400):  # noqa: PLR2004 - of HTTP
                _REFUSED.labels(scope.get("state", {}).get("problem", "aborted")).inc()


def route(registry: Registry) -> Response:
    """Returns the metrics of all workers in Prometheus' text form."""
    here = CollectorRegistry()
    here.register(_Facts(registry))
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        _bury(Path(folder))
        MultiProcessCollector(here, folder)  # type: ignore[no-untyped-call]
    else:
        here.register(REGISTRY)
    return Response(generate_latest(here), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Facts(Collector):
    """What can be asked when somebody wants to know."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("ari_artifacts", "Artifacts in the index.", value=self._registry.index.count())


def _bury(folder: Path) -> None:
    """Forgets what workers that are gone were doing; what they have done still counts."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
        except PermissionError:
            continue
