"""What Prometheus is told: by route and never by path, and the sum of all workers."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from prometheus_client.parser import text_string_to_metric_families
from support.asgi import Serving
from support.registry import eventually

from ari_server import metrics, problems
from ari_server.problems import Problem

REGISTRY = SimpleNamespace(index=SimpleNamespace(count=lambda: 3))


def make_app():
    app = FastAPI(openapi_url=None)
    problems.install(app)
    app.add_middleware(metrics.Metrics)

    @app.api_route("/artifact/{digits}", methods=["GET", "HEAD"])
    async def _artifact(digits: str):
        return {"id": digits}

    @app.post("/artifact")
    async def _upload(request: Request, refuse: int = 0):
        with metrics.UPLOADS.track_inprogress():
            await request.body()
        if refuse:
            raise Problem(refuse, "no", "too-large")

    @app.get("/cut")
    def _cut():
        def pieces():
            yield b"x" * 10
            raise Problem(500, "too late")

        return StreamingResponse(pieces(), headers={"Content-Length": "20"})

    @app.get("/metrics")
    def _metrics():
        return metrics.route(REGISTRY)

    return app


@pytest.fixture(scope="module")
def server():
    with Serving(make_app()) as serving:
        yield serving


class _Told(dict):
    """Samples by name and labels; what is not there is 0."""

    def __missing__(self, key):
        return 0.0


def told(text):
    return _Told(
        ((sample.name, frozenset(sample.labels.values())), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    )


@pytest.fixture
def change(server):
    """Returns by how much a number has changed since the beginning of the test."""
    before = told(server.get("/metrics")[2].decode())

    def since(name, *labels):
        key = (name, frozenset(labels))
        return told(server.get("/metrics")[2].decode())[key] - before[key]

    return since


def test_requests_are_counted_by_route(server, change):
    for digits in ("0123", "4567", "89ab"):
        server.get(f"/artifact/{digits}")
    server.request("HEAD", "/artifact/0123")
    assert change("ari_requests_total", "/artifact/{digits}", "2xx", "GET") == 3
    assert change("ari_requests_total", "/artifact/{digits}", "2xx", "HEAD") == 1
    assert change("ari_request_seconds_count", "/artifact/{digits}", "GET") == 3


def test_no_client_can_make_new_numbers(server, change):
    for number in range(50):
        server.get(f"/nowhere/{number}")
        server.request("GET", f"/artifact/{number}/x?{number}")
    server.request("PROPFIND", "/nowhere")
    assert change("ari_requests_total", "none", "4xx", "GET") == 100
    assert change("ari_requests_total", "none", "4xx", "other") == 1
    text = server.get("/metrics")[2].decode()
    assert "nowhere" not in text
    assert "PROPFIND" not in text
    assert len(text.splitlines()) < 300


def test_bytes_are_counted_both_ways(server, change):
    _, _, body = server.get("/artifact/0123")
    server.request("POST", "/artifact", [("Content-Length", "1000")], b"x" * 1000)
    assert change("ari_received_bytes_total") == 1000
    assert change("ari_sent_bytes_total") >= len(body)


def test_refused_uploads_are_counted_by_what_was_wrong(server, change):
    server.request("POST", "/artifact?refuse=413", [("Content-Length", "1")], b"x")
    server.request("POST", "/artifact", [("Content-Length", "1")], b"x")
    server.get("/nowhere")
    assert change("ari_uploads_refused_total", "too-large") == 1
    assert change("ari_uploads_refused_total", "not-found") == 0
    assert told(server.get("/metrics")[2].decode())["ari_uploads_in_progress", frozenset()] == 0


def test_an_answer_that_was_cut_is_not_a_success(server, change):
    with server.raw(b"GET /cut HTTP/1.1\r\nHost: x\r\n\r\n") as sock, sock.makefile("rb") as stream:
        stream.read()
    assert change("ari_requests_total", "/cut", "aborted", "GET") == 1


def test_artifacts_are_counted_when_somebody_asks(server):
    status, headers, body = server.get("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert told(body.decode())["ari_artifacts", frozenset()] == 3


WORKER = """
import asyncio, os, sys
from ari_server import metrics
from types import SimpleNamespace

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"xyz"})

async def send(_message):
    pass

for _ in range(int(sys.argv[1])):
    scope = {"type": "http", "method": "GET", "path": "/", "route": SimpleNamespace(path="/a")}
    asyncio.run(metrics.Metrics(app)(scope, None, send))
metrics.UPLOADS.inc()
print("ready", flush=True)
sys.stdin.read()
print(metrics.route(SimpleNamespace(index=SimpleNamespace(count=lambda: 3))).body.decode())
"""


def test_any_worker_tells_the_sum_of_all_also_of_those_that_died(tmp_path):
    environment = {**os.environ, metrics.FOLDER_VARIABLE: str(tmp_path)}

    def start(requests):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(requests)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert worker.stdout.readline() == "ready\n"
        return worker

    with start(2) as killed, start(3) as alive, start(5) as asked:
        killed.send_signal(signal.SIGKILL)
        killed.wait(60)
        text, _ = asked.communicate(timeout=60)
        alive.communicate(timeout=60)
    numbers = told(text)
    assert numbers["ari_requests_total", frozenset({"/a", "2xx", "GET"})] == 10
    assert numbers["ari_sent_bytes_total", frozenset()] == 30
    assert numbers["ari_uploads_in_progress", frozenset()] == 2
    assert numbers["ari_artifacts", frozenset()] == 3


def test_every_worker_of_a_real_server_tells_the_sum_of_all(pair):
    def asked():
        return told(pair.get("/metrics").text)["ari_requests_total", frozenset({"/version", "2xx", "GET"})]

    before = asked()
    for worker in pair.worker_pids:
        with pair.only(worker):
            assert [pair.get("/version").status_code for _ in range(3)] == [200] * 3
    assert eventually(lambda: asked() == before + 6, 15)  # a request is counted behind its answer
    for worker in pair.worker_pids:
        with pair.only(worker):
            assert asked() == before + 6
