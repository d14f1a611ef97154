"""What requests and answers look like, for the OpenAPI document. Handlers build plain dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

WISH_HEADER: Final = "X-ARI-Visibility"
METADATA_HEADER: Final = "X-ARI-Metadata"
PAGE: Final = 50
LARGEST_PAGE: Final = 200
LONGEST_NOTE: Final = 200

_ID: Final = "bfd6d4fa389a32f6"
_ARCHIVE: Final = _ID + "5e2d0c3b1a49f8e7d6c5b4a3928170f6e5d4c3b2a1908f7e"
_BUNDLE: Final = "3d837f52c9aabac49b31d49120e62e31e18a2a2df60452e9943684f480ef146d"
_WHEN: Final = "2026-11-22T09:30:00Z"
_REF: Final = "#/components/schemas/{model}"

Level = Literal["staged", "private-token", "unlisted", "public"]


class _Answer(BaseModel):
    example: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, **_: Any) -> None:
        super().__init_subclass__()
        cls.model_config = ConfigDict(json_schema_extra={"example": cls.example})


class Health(_Answer):
    """The process answers."""

    example = {"ok": True}
    ok: bool


class Version(_Answer):
    """What runs here, and how it takes bundles."""

    example = {"version": "0.1.0", "service": "ari-registry", "uploads": ["raw", "multipart"]}
    version: str
    service: str
    uploads: list[str]


class Ready(_Answer):
    """Whether everything needed to serve works; if not, what does not."""

    example = {"ready": True}
    ready: bool


class Uploaded(_Answer):
    """What became of an upload; `visibility` is the uploader's own level."""

    example = {
        "id": _ID,
        "ref": f"ari://{_ID}",
        "visibility": "staged",
        "duplicate": False,
        "bundle_sha256": _BUNDLE,
        "archive_sha256": _ARCHIVE,
        "url": f"https://ari.example.org/artifact/{_ID}",
    }
    id: str
    ref: str
    visibility: Level
    duplicate: bool
    bundle_sha256: str
    archive_sha256: str
    url: str


class Promoted(_Answer):
    """The caller's own level now."""

    example = {"id": _ID, "visibility": "public"}
    id: str
    visibility: Level


class Deleted(_Answer):
    """What was deleted."""

    example = {"deleted": _ID}
    deleted: str


class OwnerFacts(_Answer):
    """One of an artifact's owners, shown to owners only."""

    example = {"user": "alice", "visibility": "public", "created_at": _WHEN}
    user: str
    visibility: Level
    created_at: str


class Meta(_Answer):
    """Metadata of an artifact; `visibility` is the effective level, the highest of its owners'."""

    example = {
        "id": _ID,
        "archive_sha256": _ARCHIVE,
        "bundle_sha256": _BUNDLE,
        "size": 565,
        "file_count": 3,
        "total_bytes": 1024,
        "visibility": "public",
        "created_at": _WHEN,
        "license": "CC-BY-4.0",
        "title": None,
        "url": f"https://ari.example.org/artifact/{_ID}",
    }
    id: str
    archive_sha256: str
    bundle_sha256: str | None
    size: int
    file_count: int | None
    total_bytes: int | None
    visibility: Level
    created_at: str
    license: str | None
    title: str | None
    url: str
    owners: list[OwnerFacts] = Field(default=[])


class Listed(Meta):
    """An artifact in a listing; `cursor` goes into ``after`` for what is behind it."""

    example = {**Meta.example, "cursor": "MTc2Mzg2NDAwMCAwMTIzNDU2Nzg5YWJjZGVm"}
    cursor: str


class Listing(_Answer):
    """A page of artifacts, newest first; `next` goes into ``after`` for the page behind it.

    With ``mine``, `user` is whose they are, and `scope` that of the token.
    """

    example = {"artifacts": [Listed.example], "next": None}
    artifacts: list[Listed]
    next: str | None
    user: str = ""
    scope: str = ""


class NewFetchToken(_Answer):
    """A token that opens one artifact. Its text is shown this once."""

    example = {"id": "0123456789abcdef", "token": "arif_…", "artifact": _ID, "expires_at": _WHEN}
    id: str
    token: str
    artifact: str
    expires_at: str | None


class FetchToken(_Answer):
    """A fetch token that still works, without its text."""

    example = {
        "id": "0123456789abcdef",
        "note": "for reviewer 2",
        "created_at": _WHEN,
        "expires_at": None,
        "last_used_at": None,
    }
    id: str
    note: str
    created_at: str | None
    expires_at: str | None
    last_used_at: str | None


class FetchTokens(_Answer):
    """The caller's own fetch tokens of one artifact."""

    example = {"tokens": [FetchToken.example]}
    tokens: list[FetchToken]


class ProblemDetails(_Answer):
    """An error (RFC 9457); `kind` is a stable name for programs."""

    example = {
        "type": "about:blank",
        "title": "Forbidden",
        "status": 403,
        "detail": "this token may not do that",
        "kind": "forbidden",
    }
    type: str
    title: str
    status: int
    detail: str
    kind: str


ANSWERS: Final[tuple[type[_Answer], ...]] = (
    Health,
    Version,
    Ready,
    Uploaded,
    Promoted,
    Deleted,
    Meta,
    Listing,
    NewFetchToken,
    FetchTokens,
    ProblemDetails,
)

# What a status means is the same on every route.
_PROBLEMS: Final = {
    400: "The request makes no sense.",
    401: "A token is needed, or the one given is not valid.",
    403: "This token may not do that.",
    404: "There is no such artifact, or no such thing of it.",
    405: "This method is not for this path.",
    408: "The body came too slowly.",
    409: "Several artifacts have these first digits, or another archive has this id.",
    410: "It was deleted; `detail` says when.",
    413: "Too large.",
    415: "The body is of a type that is not taken here.",
    416: "The range is outside of the bundle.",
    422: "The bundle does not verify, or is not what was declared.",
    500: "The server failed.",
    502: "The store does not give what it holds.",
    503: "The store or a database cannot be reached; try again.",
    507: "Over quota, or no space left.",
}


def json_answer(model: type[_Answer], words: str) -> dict[str, Any]:
    """Describes a successful JSON answer."""
    return {"description": words, "content": {"application/json": {"schema": {"$ref": _ref(model)}}}}


def problems(*statuses: int, empty: bool = False) -> dict[int | str, dict[str, Any]]:
    """Describes error answers; with `empty` they have no body, as with HEAD."""
    content = {"application/problem+json": {"schema": {"$ref": _ref(ProblemDetails)}}}
    return {
        status: {"description": _PROBLEMS[status], **({} if empty else {"content": content})}
        for status in sorted(statuses)
    }


def components() -> dict[str, Any]:
    """Returns all schemas, and how to authenticate."""
    _, definitions = models_json_schema([(model, "serialization") for model in ANSWERS], ref_template=_REF)
    return {
        "schemas": definitions["$defs"],
        "securitySchemes": {
            "bearer": {
                "type": "http",
                "scheme": "bearer",
                "description": "Of `ari registry token issue`, or a fetch token; only ever in this header.",
            }
        },
    }


def _ref(model: type[_Answer]) -> str:
    return _REF.format(model=model.__name__)


# -- parts of operations ------------------------------------------------------------------------------------------

_GZIP: Final = {"application/gzip": {"schema": {"type": "string", "format": "binary"}}}
BUNDLE: Final[dict[str, Any]] = {
    "description": "The bundle.",
    "content": _GZIP,
    "headers": {
        "X-ARI-Sha256": {"description": "Archive digest.", "schema": {"type": "string"}},
        "X-ARI-Visibility": {"description": "Effective level.", "schema": {"type": "string"}},
    },
}
ELSEWHERE: Final[dict[str, Any]] = {
    "description": "For a while the bundle is at `Location`, where no token is needed; a range goes there, too.",
    "headers": {
        "Location": {"description": "An address that is a secret itself.", "schema": {"type": "string"}},
        **BUNDLE["headers"],
    },
}
_LEVELS: Final = {"type": "string", "enum": list(get_args(Level))}


def _query(name: str, words: str, schema: Mapping[str, Any], example: object) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": words, "schema": dict(schema), "example": example}


def _json_body(properties: Mapping[str, Any], example: Mapping[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties}
    return {"content": {"application/json": {"schema": schema, "example": example}}}


UPLOAD: Final = {
    "requestBody": {
        "required": True,
        "content": {
            **_GZIP,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["bundle"],
                    "properties": {
                        "visibility": {"type": "string", "description": "The level wished for in the end."},
                        "manifest": {"type": "string", "description": "The manifest inside, as JSON text."},
                        "metadata": {"type": "string", "description": "A JSON object, with `title` for one."},
                        "bundle": {"type": "string", "format": "binary"},
                    },
                }
            },
        },
    },
    "parameters": [
        {
            "name": name,
            "in": "header",
            "description": words,
            "schema": {"type": "string"},
            "example": example,
        }
        for name, words, example in (
            (
                "Repr-Digest",
                "Archive digest (RFC 9530).",
                "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
            ),
            (WISH_HEADER, "The level wished for in the end; a form has a field for it.", "public"),
            (METADATA_HEADER, "A JSON object; a form has a field for it.", '{"title": "Figure 3"}'),
        )
    ],
}
LISTING: Final = {
    "parameters": [
        _query("limit", "Artifacts of a page.", {"type": "integer", "minimum": 1, "maximum": LARGEST_PAGE}, PAGE),
        _query("after", "`next` of the page before.", {"type": "string"}, None),
        _query("q", "Words that title, license, names or ids must have.", {"type": "string"}, "figure"),
        _query("mine", "1: the caller's own, at every level.", {"type": "string", "enum": ["0", "1"]}, "0"),
    ]
}
PROMOTION: Final = {
    "parameters": [_query("target", "The level; the body may say it, too.", _LEVELS, "public")],
    "requestBody": _json_body({"target": _LEVELS}, {"target": "public"}),
}
SHARING: Final = {
    "requestBody": _json_body(
        {
            "expires_in": {"type": ["integer", "null"], "description": "Seconds; null: never.", "minimum": 1},
            "note": {"type": "string", "maxLength": LONGEST_NOTE},
        },
        {"expires_in": 2592000, "note": "for reviewer 2"},
    )
}
