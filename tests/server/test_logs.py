"""What a client is told when something goes wrong, and what the log is told about every request."""

import json
import logging
import logging.config
import re
import socket
import subprocess
import sys

import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from support.asgi import Serving

from ari_core import errors
from ari_core.errors import AriError, from_os_error
from ari_server import problems
from ari_server.logs import RequestLog, SecurityHeaders
from ari_server.problems import Problem
from ari_server.tokens import Caller

TOKEN = "ari_Q2FuYXJ5LXRva2VuLWluLWV2ZXJ5LXBsYWNl-_cG9zc2li"  # noqa: S105 - nobody's
FETCH = TOKEN.replace("ari_", "arif_")
SECRET = TOKEN.removeprefix("ari_")
INSIDE = "/srv/registry/artifacts/secret"
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR) \[([0-9a-f]{16}|-)\] (.*)", re.DOTALL
)


class Form(BaseModel):
    count: int


def _os_error(number):
    return from_os_error(OSError(number, "as it is", INSIDE), f"reading {INSIDE}")


def _raised_from(error, cause):
    try:
        raise error from cause
    except AriError as raised:
        return raised


FAILURES = {
    "canary": lambda: ValueError(f"what is {TOKEN}\x1b[31m\nnext line"),
    "problem": lambda: Problem(403, "this is not \x1b[31myours", "not-yours", {"X-More": "1"}),
    "http": lambda: HTTPException(418, "a teapot"),
    "unauthorized": lambda: Problem(401, "who are you?"),
    "refused": lambda: errors.ArchiveRefusedError("'../x\n' leads out of the archive"),
    "not-found": lambda: errors.NotFound("there is no artifact 0123"),
    "exists": lambda: errors.AlreadyExists("another archive has the id"),
    "quota": lambda: errors.QuotaExceeded("5 of your 7 bytes are used"),
    "store": lambda: errors.Unavailable(f"{INSIDE}: no route"),
    "busy": lambda: errors.RateLimited(f"{INSIDE}: slowly", retry_after=41.6),
    "denied": lambda: errors.AccessDenied(f"{INSIDE}: these credentials"),
    "full": lambda: errors.DiskFullError(f"{INSIDE}: no space"),
    "bug": lambda: errors.BackendBug(f"{INSIDE}: a bug"),
    "absent": lambda: errors.CheckpointNotFoundError(f"there is no {INSIDE}"),
    "absent-file": lambda: _raised_from(_os_error(2), OSError(2, "absent")),
    "bad-name": lambda: _raised_from(_os_error(36), OSError(36, "too long")),
    "forbidden-file": lambda: _raised_from(_os_error(13), OSError(13, "forbidden")),
}


def make_app():  # noqa: C901 - many small routes
    app = FastAPI(openapi_url=None)
    problems.install(app)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(RequestLog)

    @app.get("/fail/{how}")
    def _fail(how: str):
        failure = FAILURES[how]()
        raise failure

    @app.api_route("/artifact/{digits}", methods=["GET", "HEAD"])
    def _artifact(digits: str, request: Request):
        if request.headers.get("authorization") == f"Bearer {TOKEN}":
            request.state.caller = Caller('al "ice"', "publish", "0123456789abcdef")
        if request.headers.get("authorization") == f"Bearer {FETCH}":
            request.state.caller = Caller(None, "fetch", "fedcba9876543210")
        return {"digits": len(digits)}

    @app.get("/count")
    def _count(count: int):
        return count

    @app.post("/form")
    def _form(form: Form):
        return form

    @app.post("/upload")
    async def _upload(request: Request):
        form = await request.form()
        return list(form)

    @app.get("/stream/{error}")
    def _stream(error: str):
        def pieces():
            yield b"x" * 10
            failure = FAILURES[error]()
            raise failure

        return StreamingResponse(pieces(), headers={"Content-Length": "20"})

    @app.post("/wait")
    async def _wait(request: Request):
        async for _ in request.stream():
            pass

    return app


@pytest.fixture(scope="module")
def running():
    with Serving(make_app()) as serving:
        yield serving


@pytest.fixture
def server(running):
    running.lines.clear()
    return running


def _fields(line):
    rest = LINE.fullmatch(line)[3]
    return {name: json.loads(value) if value[0] == '"' else value for name, value in _pairs(rest)}


def _pairs(text):
    return re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', text)


# -- one line per request ----------------------------------------------------------------------------------------


def test_a_request_is_one_line_that_says_who_did_what_and_what_came_of_it(server):
    _, headers, body = server.get("/artifact/0123456789abcdef?x=1", ("Authorization", f"Bearer {TOKEN}"))
    line = server.logged("path=")
    assert len(server.lines) == 1
    assert LINE.fullmatch(line)[2] == headers["x-request-id"]
    fields = _fields(line)
    assert float(fields.pop("seconds")) >= 0
    assert fields == {
        "client": "127.0.0.1",
        "method": "GET",
        "path": "/artifact/0123456789abcdef",
        "status": "200",
        "bytes": str(len(body)),
        "user": 'al "ice"',
        "scope": "publish",
        "token": "0123456789abcdef",
    }


def test_a_reader_with_a_fetch_token_is_not_taken_for_its_maker(server):
    server.get("/artifact/01", ("Authorization", f"Bearer {FETCH}"))
    fields = _fields(server.logged("path="))
    assert (fields["user"], fields["scope"], fields["token"]) == ("-", "fetch", "fedcba9876543210")


def test_head_sends_no_bytes(server):
    server.request("HEAD", "/artifact/0123456789abcdef")
    assert _fields(server.logged("method=HEAD"))["bytes"] == "0"


@pytest.mark.parametrize("path", ["/artifact/" + "0" * 64, "/artifact/" + "a" * 16 + "/manifest.lock"])
def test_ids_of_every_length_are_readable_in_the_log(server, path):
    server.get(path)
    assert _fields(server.logged("path="))["path"] == path


def test_a_path_that_goes_on_and_on_does_not_fill_the_log(server):
    server.get("/" + "/".join(["abc"] * 5000))
    assert len(server.logged("path=")) < 500


def test_a_client_that_leaves_in_the_middle_is_one_line_and_no_error(server):
    sock = server.raw(b"POST /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
    sock.close()
    line = server.logged("path=/wait")
    assert _fields(line)["end"] == "aborted"
    assert len(server.lines) == 1


def test_what_would_obey_a_terminal_or_forge_a_line_does_not_get_in(server):
    server.get("/artifact/%1b%5b31m%0a%0dforged%20status=200")
    fields = _fields(server.logged("path="))
    assert fields["path"].startswith("/artifact/%1b%5b")
    assert fields["status"] == "200"
    # Another server may hand on what this one's parser refuses.
    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger("ari_server.access").addHandler(handler)
    try:
        _call(RequestLog(_nothing), {"raw_path": b'/a\x1b[31m\n b="c\x9b', "client": ("\x1b[2J", 1)})
    finally:
        logging.getLogger("ari_server.access").removeHandler(handler)
    assert logged[0].isprintable()
    assert '"/a\\u001b[31m\\n b=\\"c' in logged[0]


async def _nothing(_scope, _receive, _send):
    pass


def _call(app, changes):
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": None, **changes}
    running = app(scope, None, None)
    with pytest.raises(StopIteration):
        running.send(None)


# -- no secrets --------------------------------------------------------------------------------------------------

HEAD = b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


def _sent(kind, body):
    return HEAD + b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(body)) + body


PLACES = {
    "header": b"GET /artifact/01" + HEAD + b"Authorization: Bearer @@\r\nX-Other: @@\r\n\r\n",
    "bad scheme": b"GET /fail/unauthorized" + HEAD + b"Authorization: Basic @@\r\n\r\n",
    "bad bytes": b"GET /fail/unauthorized" + HEAD + b"Authorization: Bearer \xff\xfe@@\r\n\r\n",
    "bad header": b"GET /" + HEAD + b"Author ization: Bearer @@\r\n\r\n",
    "query": b"GET /artifact/01?token=@@" + HEAD + b"\r\n",
    "query of nothing": b"GET /nowhere?token=@@" + HEAD + b"\r\n",
    "query that fails": b"GET /fail/canary?token=@@" + HEAD + b"\r\n",
    "parameter": b"GET /count?count=@@" + HEAD + b"\r\n",
    "path": b"GET /artifact/@@" + HEAD + b"\r\n",
    "path of nothing": b"GET /nowhere/@@/x" + HEAD + b"\r\n",
    "escaped path": b"GET /artifact/%61ri%5F##" + HEAD + b"\r\n",
    "fragment": b"GET /artifact/01#@@" + HEAD + b"\r\n",
    "whole URL": b"GET http://@@@x/artifact/01?@@" + HEAD + b"\r\n",
    "method": b"@@ /artifact/01" + HEAD + b"\r\n",
    "version": b"GET /artifact/01 @@\r\n\r\n",
    "JSON": b"POST /form" + _sent(b"application/json", b'{"count": "@@"}'),
    "no JSON": b"POST /form" + _sent(b"application/json", b"{@@"),
    "multipart": b"POST /upload"
    + _sent(
        b"multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="@@"\r\n\r\n--b\0@@'
    ),
    "upgrade": b"GET /artifact/01?@@ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: @@\r\n\r\n",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("token", [TOKEN, FETCH])
def test_a_token_is_in_no_line_and_no_answer_wherever_it_is_sent(server, place, token):
    head, _, body = (
        PLACES[place].replace(b"@@", token.encode()).replace(b"##", SECRET.encode()).partition(b"\r\n\r\n")
    )
    head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head)
    with server.raw(head + b"\r\n\r\n" + body) as sock:
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as stream:
            answer = stream.read()
    server.get("/artifact/ffff")
    server.logged("/artifact/ffff")
    assert SECRET[8:20] not in "\n".join(server.lines)
    assert SECRET[8:20] not in answer.decode("latin-1")


def test_the_configuration_for_uvicorn_makes_such_lines_of_everything():
    program = f"""
import logging, logging.config
from ari_server.logs import LOG_CONFIG
logging.config.dictConfig(LOG_CONFIG)
logging.getLogger("uvicorn.error").info("hello\\x1b[31m {TOKEN}")
logging.getLogger("ari_server.service").warning("%s", "two\\nlines")
logging.getLogger("sqlalchemy").info("not wanted")
try:
    raise ValueError("{TOKEN}\\x1b[31m")
except ValueError:
    logging.getLogger("somebody").exception("oh")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    lines = done.stderr.splitlines()
    assert LINE.fullmatch(lines[0])[3] == "hello\\x1b[31m ari_…"
    assert LINE.fullmatch(lines[1])[3] == "two\\nlines"
    assert LINE.fullmatch(lines[2])[3] == "oh"
    assert lines[-1] == "ValueError: ari_…\\x1b[31m"


# -- what a client is told ---------------------------------------------------------------------------------------


def _problem(server, path):
    status, headers, body = server.get(path)
    assert headers["content-type"] == "application/problem+json"
    told = json.loads(body)
    assert told["status"] == status
    assert set(told) == {"type", "title", "status", "detail", "kind"}
    return status, headers, told


@pytest.mark.parametrize(
    ("how", "status", "kind", "detail"),
    [
        ("problem", 403, "not-yours", "this is not \\x1b[31myours"),
        ("http", 418, "error", "a teapot"),
        ("refused", 422, "refused", "'../x\\n' leads out of the archive"),
        ("not-found", 404, "not-found", "there is no artifact 0123"),
        ("exists", 409, "already-exists", "another archive has the id"),
        ("quota", 507, "quota-exceeded", "5 of your 7 bytes are used"),
    ],
)
def test_what_is_the_clients_doing_is_said_as_it_is(server, how, status, kind, detail):
    got, _, told = _problem(server, f"/fail/{how}")
    assert (got, told["kind"], told["detail"]) == (status, kind, detail)
    assert _fields(server.logged("path="))["problem"] == kind
    assert len(server.lines) == 1


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("store", 503),
        ("busy", 503),
        ("denied", 502),
        ("full", 507),
        ("bug", 500),
        ("absent", 500),
        ("absent-file", 500),
        ("bad-name", 500),
        ("forbidden-file", 503),
    ],
)
def test_the_servers_own_trouble_is_told_to_the_log_alone(server, how, status):
    got, headers, told = _problem(server, f"/fail/{how}")
    assert got == status
    assert INSIDE not in json.dumps(told)
    assert INSIDE in server.logged("ERROR")
    assert f"[{headers['x-request-id']}]" in server.logged("ERROR")


@pytest.mark.parametrize("how", ["canary", "bug"])
def test_what_nobody_expected_is_one_record_with_its_traceback_and_nothing_for_the_client(server, how):
    got, _, told = _problem(server, f"/fail/{how}")
    assert got == 500
    assert "Traceback" not in json.dumps(told)
    assert "what is" not in json.dumps(told)
    server.logged("path=")
    tracebacks = [line for line in server.lines if "Traceback" in line]
    assert len(tracebacks) == 1
    assert "\x1b" not in tracebacks[0]
    assert len(server.lines) == 2


@pytest.mark.parametrize("how", ["canary", "store", "problem"])
def test_an_error_in_the_middle_of_an_answer_cuts_it(server, how):
    with server.raw(f"GET /stream/{how}".encode() + HEAD + b"\r\n") as sock, sock.makefile("rb") as stream:
        head, _, body = stream.read().partition(b"\r\n\r\n")
    assert b"Content-Length: 20".lower() in head.lower()
    assert body == b"x" * 10
    fields = _fields(server.logged("path="))
    assert fields["end"] == "aborted"
    assert len([line for line in server.lines if "Traceback" in line]) == (1 if how == "canary" else 0)


def test_who_should_say_who_they_are_is_told_how(server):
    _, headers, _ = _problem(server, "/fail/unauthorized")
    assert headers["www-authenticate"] == 'Bearer realm="ari-registry"'


def test_who_should_come_back_is_told_when(server):
    assert _problem(server, "/fail/busy")[1]["retry-after"] == "42"
    assert int(_problem(server, "/fail/store")[1]["retry-after"]) > 0


def test_an_unknown_path_is_a_problem(server):
    assert _problem(server, "/nowhere")[0] == 404


def test_another_method_is_a_problem_that_names_the_right_ones(server):
    status, headers, body = server.request("DELETE", "/count")
    assert (status, headers["allow"], json.loads(body)["kind"]) == (405, "GET", "method-not-allowed")


def test_a_parameter_that_does_not_fit_is_named_but_not_repeated(server):
    _, _, told = _problem(server, f"/count?count={TOKEN}")
    assert told["detail"].startswith("query.count: ")
    assert TOKEN not in told["detail"]


def test_every_answer_forbids_to_guess_to_run_and_to_keep(server):
    for path in ("/artifact/01", "/nowhere", "/fail/canary", "/fail/problem"):
        _, headers, _ = server.get(path)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers
