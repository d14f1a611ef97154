"""The HTTP application: routes, each with one permission, and who is asking (docs/http-api.md).

A request is judged in this order, and nothing of its body is asked for before: the id's spelling (404), the token
(401), the artifact (404, 410), the permission (401, 403), then what the route itself says about size and type.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from typing import Any, Final, TypeVar

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ari_core.contract import Visibility
from ari_core.errors import NotFound
from ari_core.layout import ID_DIGITS, MOST_DIGITS
from ari_server import download, logs, metrics, problems, schemas, upload
from ari_server.access import Permission, Verdict, decide, is_user, owner_of
from ari_server.config import ServerConfig, load_config
from ari_server.index import cursor_behind
from ari_server.problems import Problem
from ari_server.rows import Row
from ari_server.schemas import LARGEST_PAGE, LONGEST_NOTE, PAGE, json_answer
from ari_server.service import Registry
from ari_server.tokens import Caller

SERVICE: Final = "ari-registry"
_LONGEST_TOKEN: Final = 256
_LONGEST_CURSOR: Final = 500
_LONGEST_SHARE: Final = timedelta(days=10 * 366)
_NUMBER: Final = re.compile(r"[0-9]{1,4}", re.ASCII)
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?", re.ASCII)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Call:
    """A request that may be done.

    Attributes:
        request: The request; of its body nothing was read.
        registry: What does it.
        caller: Who asks; None for nobody.
        row: The artifact that it is about, if it is about one.
    """

    request: Request
    registry: Registry
    caller: Caller | None
    row: Row | None

    @property
    def by(self) -> Caller:
        """The caller, on routes that need a token."""
        return _given(self.caller)

    @property
    def user(self) -> str:
        """The caller's name, on routes for users."""
        return _given(self.by.user)

    @property
    def artifact(self) -> Row:
        """The artifact, on routes about one."""
        return _given(self.row)

    async def do(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Calls what blocks in a thread."""
        return await self.registry.in_thread(call, *arguments)


Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """A method and path, who may use it, what answers, and its part of the OpenAPI document."""

    method: str
    path: str
    permission: Permission
    handler: Handler
    summary: str
    description: str
    success: Mapping[str, Any]
    problems: tuple[int, ...] = ()
    extra: Mapping[str, Any] | None = None
    others: Mapping[int | str, dict[str, Any]] | None = None


def create(config: ServerConfig | None = None, *, least: int = ID_DIGITS) -> FastAPI:
    """Makes the application; the store and the databases are opened when it starts.

    Args:
        config: Default: from the environment.
        least: Only for tests, see `Registry`.

    Raises:
        ConfigurationError: The configuration is wrong.
    """
    config = config or load_config()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.registry = registry = Registry(config, least=least)
        try:
            await registry.in_thread(registry.mend)
            yield
        finally:  # uvicorn ends the process right after this, whatever its threads are doing
            await registry.in_thread(registry.wait_for_uploads)
            registry.close()

    app = FastAPI(
        title=SERVICE,
        version=version(SERVICE),
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = _Route
    # Routes are tried in turn, so what is asked for most comes first: HEAD and GET of bundles.
    for route in sorted(ROUTES, key=lambda route: (not route.path.startswith(_ARTIFACT), route.method != "HEAD")):
        _add(app, route)
    app.openapi = partial(_document, app)  # type: ignore[method-assign]
    problems.install(app)
    app.add_middleware(upload.CloseUnread)
    app.add_middleware(metrics.Metrics)
    app.add_middleware(logs.SecurityHeaders)
    app.add_middleware(logs.RequestLog)
    return app


class _Route(APIRoute):
    """Answers to a wrong method with all methods of the path, not only with those of one route."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()):
            allowed = sorted(route.method for route in ROUTES if route.path == self.path)
            raise Problem(
                405, f"{self.path} knows {', '.join(allowed)} only", headers={"Allow": ", ".join(allowed)}
            )
        await super().handle(scope, receive, send)


def _add(app: FastAPI, route: Route) -> None:
    async def endpoint(request: Request) -> Response:
        registry: Registry = request.app.state.registry
        if route.permission is Permission.OPEN:
            return await route.handler(Call(request, registry, None, None))
        return await route.handler(await registry.look_up(_judge, request, registry, route.permission))

    head = route.method == "HEAD"
    app.add_api_route(
        route.path,
        endpoint,
        methods=[route.method],
        operation_id=route.handler.__name__.strip("_"),
        summary=route.summary,
        description=route.description,
        response_class=Response,
        response_model=None,
        responses={
            200: dict(route.success),
            **(route.others or {}),
            **schemas.problems(*_statuses(route), empty=head),
        },
        openapi_extra=_openapi_extra(route),
        include_in_schema=route.path != "/openapi.json",
    )


# -- judging -----------------------------------------------------------------------------------------------------


def _judge(request: Request, registry: Registry, permission: Permission) -> Call:
    """Says who asks about what, if they may."""
    registry.require_data()
    digits = request.path_params.get("id")
    if digits is not None and not _is_id(digits, registry.least):
        raise NotFound(f"no artifact has such an id: it is {ID_DIGITS} to {MOST_DIGITS} digits of 0-9 and a-f")
    caller = request.state.caller = authenticate(request, registry)
    if permission.needs_token and caller is None:
        raise _who_are_you()
    row = registry.find(digits) if digits is not None else None
    match decide(permission, caller, row):
        case Verdict.WHO_ARE_YOU:
            raise _who_are_you()
        case Verdict.NO:
            raise Problem(403, "this token may not do that")
    return Call(request, registry, caller, row)


def authenticate(request: Request, registry: Registry) -> Caller | None:
    """Returns who asks, by the Authorization header alone; None when there is none.

    Raises:
        Problem: There is one, and it is no valid token; whatever is wrong with it, the answer is the same (401).
    """
    given = request.headers.getlist("authorization")
    if not given:
        return None
    scheme, _, token = given[0].partition(" ")
    if len(given) == 1 and scheme.lower() == "bearer" and 0 < len(token) <= _LONGEST_TOKEN and token.isascii():
        caller = registry.tokens.check(token)
        if caller is not None:
            return caller
    raise Problem(401, "this token is not valid: it is misspelt, expired or revoked")


def _who_are_you() -> Problem:
    return Problem(401, "a token is needed: send it as Authorization: Bearer TOKEN")


def _is_id(text: str, least: int) -> bool:
    return least <= len(text) <= MOST_DIGITS and not text.strip("0123456789abcdef")


def _given(value: _T | None) -> _T:
    if value is None:
        raise TypeError("the permission of this route does not promise that")
    return value


# -- answers -----------------------------------------------------------------------------------------------------


def _url(call: Call, row: Row) -> str:
    """Returns the artifact's URL, for people to copy: as configured, else as this request got here."""
    base = call.registry.config.base_url
    if base is None:
        host = call.request.headers.get("host", "")
        base = f"{call.request.scope['scheme']}://{host}" if _HOST.fullmatch(host) else ""
    return f"{base}/artifact/{row.id}"


def _time(when: datetime | None) -> str | None:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if when else None


def _meta(call: Call, row: Row) -> dict[str, Any]:
    """Returns what may be told about an artifact to whoever may read it, and more to its owners."""
    facts: dict[str, Any] = {
        "id": row.id,
        "archive_sha256": row.archive_sha256,
        "bundle_sha256": row.bundle_sha256,
        "size": row.size,
        "file_count": row.file_count,
        "total_bytes": row.total_bytes,
        "visibility": row.visibility,
        "created_at": _time(row.created),
        "license": row.license,
        "title": row.title,
        "url": _url(call, row),
    }
    if owner_of(row, call.caller):
        facts["owners"] = [
            {"user": owner.user, "visibility": owner.visibility, "created_at": _time(owner.created or row.created)}
            for owner in row.owners
        ]
    return facts


# -- handlers ----------------------------------------------------------------------------------------------------


async def _get_health(_call: Call) -> Response:
    return JSONResponse({"ok": True})


async def _get_version(_call: Call) -> Response:
    return JSONResponse({"version": version(SERVICE), "service": SERVICE, "uploads": upload.FORMS})


async def _get_readiness(call: Call) -> Response:
    if failing := await call.do(call.registry.not_ready):
        raise Problem(503, f"not ready: {', '.join(failing)}", "not-ready")
    return JSONResponse({"ready": True})


async def _get_metrics(call: Call) -> Response:
    match call.registry.config.metrics:
        case "off":
            raise NotFound("this server shows no metrics")
        case "token":
            caller = await call.registry.look_up(authenticate, call.request, call.registry)
            if not is_user(caller):
                raise Problem(403, "this token may not do that") if caller else _who_are_you()
    return await call.do(metrics.route, call.registry)


async def _get_openapi_document(call: Call) -> Response:
    return JSONResponse(call.request.app.openapi())


async def _upload_bundle(call: Call) -> Response:
    stored = await upload.receive(call.request, call.registry, call.user)
    row = stored.row
    return JSONResponse(
        {
            "id": row.id,
            "ref": f"ari://{row.id}",
            "visibility": stored.own.visibility,
            "duplicate": stored.duplicate,
            "bundle_sha256": row.bundle_sha256,
            "archive_sha256": row.archive_sha256,
            "url": _url(call, row),
        }
    )


async def _get_bundle(call: Call) -> Response:
    return await download.bundle(call.request, call.artifact, call.registry)


async def _head_bundle(call: Call) -> Response:
    return await download.bundle(call.request, call.artifact, call.registry, head=True)


async def _get_manifest(call: Call) -> Response:
    return await download.manifest(call.request, call.artifact, call.registry)


async def _get_meta(call: Call) -> Response:
    return JSONResponse(_meta(call, call.artifact))


async def _delete_artifact(call: Call) -> Response:
    await call.do(call.registry.delete, call.artifact, call.by)
    return JSONResponse({"deleted": call.artifact.id})


async def _promote_artifact(call: Call) -> Response:
    body = await upload.read_json(call.request, call.registry.config.body_timeout)
    asked = {*call.request.query_params.getlist("target")}
    if body:  # a misspelt key must not mean public
        asked.add(body["target"] if isinstance(body.get("target"), str) else "")
    if len(asked) > 1:
        raise Problem(400, "the query and the body name different targets")
    target = asked.pop() if asked else Visibility.PUBLIC
    if target not in set(Visibility):
        raise Problem(400, f"the target is one of: {', '.join(Visibility)}")
    level = await call.do(call.registry.promote, call.artifact, call.by, Visibility(target))
    return JSONResponse({"id": call.artifact.id, "visibility": level})


async def _list_artifacts(call: Call) -> Response:
    query = call.request.query_params
    mine = query.get("mine", "0")
    if mine not in {"0", "1", "true", "false"}:
        raise Problem(400, "mine is 0 or 1")
    if mine in {"1", "true"} and not is_user(call.caller):
        raise Problem(403, "a fetch token has no artifacts of its own") if call.caller else _who_are_you()
    limit = query.get("limit", str(PAGE))
    if not (_NUMBER.fullmatch(limit) and 0 < int(limit) <= LARGEST_PAGE):
        raise Problem(400, f"limit is a number from 1 to {LARGEST_PAGE}")
    words, after = query.get("q"), query.get("after")
    if len(after or "") > _LONGEST_CURSOR:
        raise Problem(400, "after is too long")
    user = call.user if mine in {"1", "true"} else None
    page = partial(call.registry.index.page, user=user, after=after, limit=int(limit), query=words)
    rows, cursor = await call.registry.listing(page)
    page_of = {"user": user, "scope": call.by.scope} if user else {}
    items = [{**_meta(call, row), "cursor": cursor_behind(row)} for row in rows]
    return JSONResponse({"artifacts": items, "next": cursor, **page_of})


async def _create_fetch_token(call: Call) -> Response:
    body = await upload.read_json(call.request, call.registry.config.body_timeout)
    seconds, note = body.get("expires_in"), body.get("note", "")
    if seconds is not None and not (type(seconds) is int and 0 < seconds <= _LONGEST_SHARE.total_seconds()):
        raise Problem(400, "expires_in is a number of seconds, ten years at most, or null for never")
    if not isinstance(note, str) or len(note) > LONGEST_NOTE:
        raise Problem(400, f"note is text of at most {LONGEST_NOTE} characters")
    expires = None if seconds is None else timedelta(seconds=seconds)
    issued = await call.do(call.registry.share, call.artifact, call.by, expires, note)
    return JSONResponse(
        {
            "id": issued.id,
            "token": issued.token,
            "artifact": call.artifact.id,
            "expires_at": _time(issued.expires),
        }
    )


async def _list_fetch_tokens(call: Call) -> Response:
    found = await call.do(call.registry.tokens.list_fetch, call.artifact.archive_sha256, call.user)
    return JSONResponse(
        {
            "tokens": [
                {
                    "id": token.id,
                    "note": token.note,
                    "created_at": _time(token.created),
                    "expires_at": _time(token.expires),
                    "last_used_at": _time(token.last_used),
                }
                for token in found
                if token.revoked is None
            ]
        }
    )


async def _delete_fetch_token(call: Call) -> Response:
    token = call.request.path_params["token_id"]
    if not await call.do(call.registry.tokens.revoke_fetch, token, call.artifact.archive_sha256, call.user):
        raise NotFound("there is no such token of yours")
    return JSONResponse({"deleted": token})


# -- the table ---------------------------------------------------------------------------------------------------

_ARTIFACT: Final = "/artifact/{id}"
_OPEN, _ANYBODY, _READER = Permission.OPEN, Permission.ANYBODY, Permission.READER
_PUBLISHER, _OWNER = Permission.PUBLISHER, Permission.OWNER

ROUTES: Final = (
    Route(
        "GET",
        "/healthz",
        _OPEN,
        _get_health,
        "Liveness",
        "Says that the process answers; looks at nothing else.",
        json_answer(schemas.Health, "It does."),
    ),
    Route(
        "GET",
        "/version",
        _OPEN,
        _get_version,
        "Version",
        "Says what runs here and how bundles can be sent.",
        json_answer(schemas.Version, "The version."),
    ),
    Route(
        "GET",
        "/readyz",
        _OPEN,
        _get_readiness,
        "Readiness",
        "Says whether databases, store and spool work now.",
        json_answer(schemas.Ready, "They do."),
        (503,),
    ),
    Route(
        "GET",
        "/metrics",
        _OPEN,
        _get_metrics,
        "Metrics",
        "Numbers for Prometheus, of all workers. Whether a token is needed is configured.",
        {"description": "The numbers.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        (401, 403, 404),
    ),
    Route(
        "GET",
        "/openapi.json",
        _OPEN,
        _get_openapi_document,
        "This document",
        "The OpenAPI document.",
        {"description": "The document."},
    ),
    Route(
        "POST",
        "/artifact",
        _PUBLISHER,
        _upload_bundle,
        "Upload a bundle",
        "Receives, verifies and stores a bundle, always staged. What is stored already gets another owner.",
        json_answer(schemas.Uploaded, "It is stored and yours."),
        (400, 408, 409, 413, 415, 422, 507),
        schemas.UPLOAD,
    ),
    Route(
        "GET",
        "/artifacts",
        _ANYBODY,
        _list_artifacts,
        "List artifacts",
        "Public artifacts, newest first; with `mine` the caller's own.",
        json_answer(schemas.Listing, "A page of them."),
        (400, 403),
        schemas.LISTING,
    ),
    Route(
        "GET",
        _ARTIFACT,
        _READER,
        _get_bundle,
        "Download a bundle",
        "The archive, or where it is; single ranges and conditional requests work.",
        schemas.BUNDLE,
        (416,),
        others={307: schemas.ELSEWHERE},
    ),
    Route(
        "HEAD",
        _ARTIFACT,
        _ANYBODY,
        _head_bundle,
        "Confirm a digest",
        "The headers of a download, for whoever holds the id.",
        {**schemas.BUNDLE, "content": {}},
    ),
    Route(
        "DELETE",
        _ARTIFACT,
        _OWNER,
        _delete_artifact,
        "Delete",
        "Removes the caller's claim; the bytes go with the last owner.",
        json_answer(schemas.Deleted, "The claim is gone."),
    ),
    Route(
        "GET",
        _ARTIFACT + "/manifest.lock",
        _READER,
        _get_manifest,
        "Read the manifest",
        "`manifest.lock`, byte for byte as in the bundle.",
        {
            "description": "The manifest.",
            "content": {"application/json": {"schema": {}, "example": {"version": 1}}},
        },
    ),
    Route(
        "GET",
        _ARTIFACT + "/meta",
        _READER,
        _get_meta,
        "Read metadata",
        "Digests, size and level; owners only to owners.",
        json_answer(schemas.Meta, "The metadata."),
    ),
    Route(
        "POST",
        _ARTIFACT + "/promote",
        _OWNER,
        _promote_artifact,
        "Raise the level",
        "Raises the caller's own level; without a target to public. Downwards is refused.",
        json_answer(schemas.Promoted, "The level now."),
        (400, 408, 413, 415),
        schemas.PROMOTION,
    ),
    Route(
        "POST",
        _ARTIFACT + "/tokens",
        _OWNER,
        _create_fetch_token,
        "Share",
        "Makes a fetch token, with which anybody can read this artifact from private-token on.",
        json_answer(schemas.NewFetchToken, "The token, shown once."),
        (400, 408, 413, 415),
        schemas.SHARING,
    ),
    Route(
        "GET",
        _ARTIFACT + "/tokens",
        _OWNER,
        _list_fetch_tokens,
        "List fetch tokens",
        "The caller's own fetch tokens of this artifact, without their texts.",
        json_answer(schemas.FetchTokens, "The tokens."),
    ),
    Route(
        "DELETE",
        _ARTIFACT + "/tokens/{token_id}",
        _OWNER,
        _delete_fetch_token,
        "Revoke a fetch token",
        "From the next request on it opens nothing.",
        json_answer(schemas.Deleted, "It is revoked."),
    ),
)


# -- the OpenAPI document ----------------------------------------------------------------------------------------


def _statuses(route: Route) -> set[int]:
    """Returns the errors of a route: its own and what follows from its permission and path."""
    found = {*route.problems}
    if route.permission is not Permission.OPEN:
        found |= {401, 503}
    if route.permission not in {Permission.OPEN, Permission.ANYBODY}:
        found.add(403)
    if "{id}" in route.path:
        found |= {404, 409, 410}
    return found


def _openapi_extra(route: Route) -> dict[str, Any]:
    extra = dict(route.extra or {})
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": words,
            "schema": {"type": "string", "pattern": pattern},
            "example": example,
        }
        for name, words, pattern, example in (
            ("id", "Id, or more digits of the archive digest.", "^[0-9a-f]{16,64}$", "bfd6d4fa389a32f6"),
            ("token_id", "Id of a fetch token.", "^[0-9a-f]{16}$", "0123456789abcdef"),
        )
        if f"{{{name}}}" in route.path
    ]
    extra["parameters"] = [*parameters, *extra.get("parameters", ())]
    if route.permission.needs_token:
        extra["security"] = [{"bearer": []}]
    elif route.permission is not Permission.OPEN:
        extra["security"] = [{}, {"bearer": []}]
    return extra


def _document(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        app.openapi_schema = {**document, "components": schemas.components()}
    return app.openapi_schema
