"""docs/http-api.md and docs/registry.md say what the server does: routes, permissions, kinds, headers, limits."""

import ast
import math
import re
from pathlib import Path

from support.matrix import CALLERS, expected
from support.registry import LEVELS, Sample
from support.tables import code, table

from ari_core.errors import TABLE, DigestMismatchError
from ari_core.limits import Limits
from ari_server import app, index, multipart, problems, schemas, serve, tokens, upload, wire
from ari_server.access import Permission
from ari_server.app import ROUTES
from ari_server.config import ServerConfig, load_config
from ari_server.schemas import ANSWERS

ROOT = Path(__file__).parents[2]
API, OPERATION = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("http-api.md", "registry.md"))
REQUESTS = table(API, "method", "path", "permission", "does", "success")


def test_every_route_stands_there_with_its_permission():
    told = [(method, code(path)[0], permission) for method, path, permission, *_ in REQUESTS]
    assert sorted(told) == sorted((route.method, route.path, route.permission.name.lower()) for route in ROUTES)
    assert dict(table(API, "permission", "who")) == {
        one.name.lower(): one.value.replace("for publishing", "of scope `publish`") for one in Permission
    }


def test_what_a_success_answers():
    """The fields told are those of the model that the OpenAPI document names."""
    models = {f"#/components/schemas/{model.__name__}": model for model in ANSWERS}
    routes = {(route.method, route.path): route for route in ROUTES}
    checked = 0
    for method, path, *_, success in REQUESTS:
        assert success.startswith("200")
        content = routes[method, code(path)[0]].success.get("content", {})
        model = models.get(content.get("application/json", {}).get("schema", {}).get("$ref"))
        if model is None or not (fields := re.search(r"`\{(.*)\}`", success)):
            continue
        optional = {name for name, field in model.model_fields.items() if not field.is_required()}
        assert set(re.findall(r'"(\w+)"', fields[1])) == set(model.model_fields) - optional, path
        checked += 1
    assert checked >= 10


def test_who_may_what_is_the_matrix():
    columns = {
        "no token": ["nobody"],
        "bad": ["garbage", "revoked", "expired"],
        "other user, `read`": ["reader"],
        "other user": ["other"],
        "fetch token": ["fetch"],
        "fetch token of another": ["fetch-other"],
        "owner, `read`": ["owner-reader"],
        "owner": ["owner"],
    }
    assert sorted(caller for callers in columns.values() for caller in callers) == sorted(CALLERS)
    told = {}
    for name, *statuses in table(API, "permission", *columns):
        permission, _, level = name.partition(",")
        for one in code(level) or LEVELS:
            told[permission.upper(), one] = dict(zip(columns, map(int, statuses), strict=True))
    for route in ROUTES:
        for level in LEVELS:
            row = told[route.permission.name, level]
            for column, callers in columns.items():
                for caller in callers:
                    wanted = expected(route.path, route.method, caller, level)
                    assert row[column] == wanted, (route.method, route.path, caller, level)


def test_ids_that_collide_by_chance():
    rows = table(API, "digits", "bits", "chance of 1 % at", "chance of 50 % at")
    assert [int(digits) for digits, *_ in rows] == [16, 20, 24, 32, 64]
    for digits, bits, *numbers in rows:
        assert int(bits) == 4 * int(digits)
        for number, chance in zip(numbers, (0.01, 0.5), strict=True):
            artifacts = math.sqrt(2 * 2 ** int(bits) * -math.log1p(-chance))
            assert number == f"{artifacts:.1e}".replace("e+0", "e").replace("e+", "e") + " artifacts"


def own_kinds():
    """Every kind that the server's code gives to a problem of its own, with its status."""
    found = {(kind, status) for status, kind in problems._KINDS.items()}
    for file in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem":
                status, *rest = [arg.value if isinstance(arg, ast.Constant) else "" for arg in node.args]
                if len(rest) > 1 and rest[1] and status:
                    found.add((rest[1], status))
    return found


def test_kinds_of_errors():
    told = {
        (kind, int(status))
        for kinds, status, *_ in table(API, "kind", "status", "meaning", "next")
        for kind in code(kinds)
    }
    ours = own_kinds()
    # Those go with a status for which every problem here has another kind, or which nothing here uses.
    unused = {("length-required", 411), ("unprocessable", 422), ("validation", 422), ("rate-limited", 429)}
    assert unused <= ours
    assert ours - unused <= told
    told_of_core = {kind for kind, _ in told - ours}
    for cls, case in TABLE.items():
        if case.kind in told_of_core:
            more = {"expected": "", "got": ""} if cls is DigestMismatchError else {}
            assert (case.kind, problems.respond(cls("x", **more)).status_code) in told
            told_of_core.remove(case.kind)
    assert not told_of_core
    for field, _ in table(API, "field", "what"):
        assert code(field)[0] in schemas.ProblemDetails.model_fields


def test_headers_of_a_download(registry):
    told = {name.lower() for cell, _ in table(API, "header", "what") for name in code(cell)}
    sample = registry.store(Sample.new(), registry.token("headers"), "public")
    part = registry.get(sample.path, headers={"Range": "bytes=1-2"})
    assert part.status_code == 206
    assert set(part.headers) == told


def test_headers_and_fields_of_an_upload():
    rows = table(API, "header", "field of a form", "needed", "what")
    fields = {name for _, cell, *_ in rows for name in code(cell)}
    assert fields == {multipart.BUNDLE, "manifest", *upload._FIELDS}
    headers = {name for cell, *_ in rows for name in code(cell)}
    documented = {parameter["name"] for parameter in schemas.UPLOAD["parameters"]}
    assert headers == documented | {"Content-Type", "Content-Length"}
    types = next(what for cell, *_, what in rows if code(cell) == ["Content-Type"])
    assert set(code(types)) == upload.RAW_TYPES | {multipart.CONTENT_TYPE}


def test_query_of_a_listing():
    told = {code(name)[0] for name, _ in table(API, "query", "what")}
    assert told == {parameter["name"] for parameter in schemas.LISTING["parameters"]}
    assert f"1 to {schemas.LARGEST_PAGE}; {schemas.PAGE} without it" in API
    assert f"at most {index._MOST_WORDS}" in API


def test_limits():
    settings = {name: field.default for name, field in ServerConfig.model_fields.items()}
    told = {name: value for name, value, _ in table(API, "limit", "value", "answer")}
    kibibytes = upload.JSON_MAX // 1024
    assert upload._FIELDS["metadata"] == upload.JSON_MAX
    assert told == {
        "upload": f"{settings['max_upload'] // 1024**3} GiB, `--max-upload`; in a form also its other fields",
        "the bundle's own limits": "[format.md](format.md#limits)",
        "owned by one user": "none, `--quota`",
        "field `manifest`": f"{Limits().manifest_bytes // 1024**2} MiB",
        "field `metadata`, JSON bodies": f"{kibibytes} KiB",
        "field `visibility`": f"{upload._FIELDS['visibility']} bytes",
        "next piece of an upload": f"{settings['body_timeout']:g} s, `--body-timeout`",
        "speed of an upload, after that time": f"{upload._SLOWEST:,} bytes a second on the whole",
        "uploads at a time": f"{settings['uploads']} for each worker, `--uploads`",
        "request line and headers": f"{wire.MOST_HEAD_BYTES // 1024} KiB, {wire.MOST_HEADERS} headers",
        "token": f"{app._LONGEST_TOKEN} characters",
        "`note` of a fetch token": f"{schemas.LONGEST_NOTE} characters",
        "`limit`": str(schemas.LARGEST_PAGE),
        "`q`": f"{index._LONGEST_QUERY} characters, {index._MOST_WORDS} words",
    }
    assert settings["quota"] is None
    assert tokens._LONGEST_NOTE == schemas.LONGEST_NOTE


# -- registry.md -------------------------------------------------------------------------------------------------


def test_options_of_serve(tmp_path):
    told = {
        code(option)[0]: default
        for option, default, _ in table(OPERATION, "option", "default", "when to change it")
    }
    config = load_config({}, data=tmp_path)
    defaults = {"--host": serve.HOST, "--port": serve.PORT, "--workers": 1}
    for name in ServerConfig.model_fields.keys() - {"db"}:  # which has a variable only: it may hold a password
        spelling = {"data": "--data-dir", "options": "-o"}.get(name, "--" + name.replace("_", "-"))
        defaults[spelling] = getattr(config, name)
    defaults["--data-dir"] = defaults["-o"] = None
    defaults["--max-upload"] = f"{config.max_upload // 1024**3} GiB"
    defaults["--body-timeout"] = f"{config.body_timeout:g} s"
    assert told == {name: "none" if value is None else str(value) for name, value in defaults.items()}
    assert f"giving what is under way {serve._GRACE_SECONDS} seconds" in OPERATION


def test_metrics(registry):
    told = {code(name)[0]: code(labels) for name, labels, _ in table(OPERATION, "metric", "labels", "what")}
    registry.upload(Sample.new(), "ari_" + "A" * 43)
    shown = registry.get("/metrics").text
    names = set(re.findall(r"^# TYPE (ari_\w+?)(?:_total|_created)? ", shown, re.MULTILINE))
    assert names == set(told)
    for name, labels in told.items():
        found = re.findall(rf"^{name}(?:_total|_count)?(?:{{(.*?)}})? ", shown, re.MULTILINE)
        assert set(re.findall(r"(\w+)=", found[0])) == set(labels), name


def test_levels():
    rows = table(OPERATION, "level", "who can read bundle, manifest and metadata", "in the public listing")
    assert [(code(level)[0], listed) for level, _, listed in rows] == [
        (level, "yes" if level == "public" else "no") for level in LEVELS
    ]
