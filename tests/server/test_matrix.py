"""Every route by method, caller and visibility has the status that matrix.yaml says; every route stands there."""

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from support.matrix import CALLERS, MATRIX, expected
from support.registry import LEVELS, Sample

METHODS = ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS")
CASES = [(path, method) for path in MATRIX for method in METHODS]


@pytest.fixture(scope="module")
def world(pair):
    """One artifact of each level, and every caller's token, on two workers."""
    return World(pair)


class World:
    def __init__(self, registry):
        self.registry = registry
        self.owner = registry.token("matrix-owner")
        other, revoked = registry.token("matrix-other"), registry.token("matrix-owner")
        registry.revoke(revoked)
        self.samples = {level: registry.store(Sample.new(), self.owner, level) for level in LEVELS}
        self.elsewhere = registry.store(Sample.new(), self.owner, "private-token")
        self.tokens = {
            "nobody": None,
            "garbage": "ari_" + "A" * 43,
            "revoked": revoked,
            "expired": registry.expired_token("matrix-owner"),
            "reader": registry.token("matrix-other", scope="read"),
            "other": other,
            "fetch-other": registry.fetch_token(self.elsewhere, self.owner),
            "owner-reader": registry.token("matrix-owner", scope="read"),
            "owner": self.owner,
        }
        self.fetch = {level: registry.fetch_token(sample, self.owner) for level, sample in self.samples.items()}
        self.posted = Sample.new()

    def request(self, path, method, caller, level):
        """Sends what would be all right if it came from the owner."""
        token = self.fetch[level] if caller == "fetch" else self.tokens[caller]
        sample = self.samples[level]
        changes = expected(path, method, caller, level) == 200 and method == "DELETE"
        token_id = self.fetch[level].id
        if changes and "token_id" in path:
            token_id = self.registry.fetch_token(sample, self.owner).id
        elif changes:
            sample = self.registry.store(Sample.new(), self.owner, level)
        more = {}
        if path.endswith("/promote"):
            more = {"params": {"target": level}}  # where it is already: changes nothing
        elif path == "/artifact" and method == "POST":
            more = {"content": self.posted.data, "headers": {"Content-Type": "application/gzip"}}
        return self.registry.request(method, path.format(id=sample.id, token_id=token_id), token, **more)


@pytest.mark.parametrize(("path", "method"), CASES, ids=lambda value: value)
def test_each_caller_gets_the_status_of_the_matrix(path, method, world):
    wrong = []
    for level in LEVELS if "{id}" in path else LEVELS[:1]:
        for caller in CALLERS:
            answer = world.request(path, method, caller, level)
            wanted = expected(path, method, caller, level)
            if answer.status_code != wanted:
                wrong.append(f"{caller} at {level}: {answer.status_code}, not {wanted}: {answer.text[:200]}")
            elif wanted >= 400:
                assert answer.headers["content-type"].startswith("application/problem+json")
                assert method == "HEAD" or answer.json()["detail"]
    assert not wrong, "\n".join(wrong)


def test_refused_requests_changed_nothing(world):
    """The same requests again, by those who may not: afterwards every artifact is what it was."""
    registry = world.registry
    before = [registry.get(f"{sample.path}/meta", world.owner).json() for sample in world.samples.values()]
    assert [one["visibility"] for one in before] == list(LEVELS)
    for caller in CALLERS[:-1]:
        for level, sample in world.samples.items():
            token = world.fetch[level] if caller == "fetch" else world.tokens[caller]
            assert registry.promote(sample, token, "public").status_code in {401, 403}
            assert registry.delete(sample.path, token).status_code in {401, 403}
            assert registry.post(f"{sample.path}/tokens", token).status_code in {401, 403}
            for token_id in (world.fetch[level].id, world.tokens["fetch-other"].id):
                assert registry.delete(f"{sample.path}/tokens/{token_id}", token).status_code in {401, 403}
    assert [registry.get(f"{sample.path}/meta", world.owner).json() for sample in world.samples.values()] == before
    for level, sample in world.samples.items():
        assert registry.get(sample.path, world.owner).content == sample.data
        if level == "private-token":
            assert registry.get(sample.path, world.fetch[level]).content == sample.data


# -- a route without rows ----------------------------------------------------------------------------------------


def routes_of(app):
    """Every path and method that an application answers."""
    return {
        (context.path, method)
        for context in iter_route_contexts(app.routes)
        for method in context.methods or {"ANY"}
    }


def without_rows(app):
    return {(path, method) for path, method in routes_of(app) if method not in MATRIX.get(path, {})}


@pytest.fixture
def app(tmp_path):
    from ari_server.app import create
    from ari_server.config import load_config

    return create(load_config({}, data=tmp_path))


def test_every_route_of_the_server_has_rows_and_no_row_lacks_its_route(app):
    assert without_rows(app) == set()
    rows = {(path, method) for path, methods in MATRIX.items() for method in methods}
    assert rows == routes_of(app)


def test_a_new_route_without_rows_is_noticed():
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_api_route("/artifact/{id}/secrets", lambda: None, methods=["GET"])
    app.add_api_route("/artifact/{id}", lambda: None, methods=["PUT"])
    app.add_api_route("/healthz", lambda: None, methods=["GET"])
    assert without_rows(app) == {("/artifact/{id}/secrets", "GET"), ("/artifact/{id}", "PUT")}


def test_what_the_document_shows_is_what_is_served(registry, app):
    """Nothing is hidden from the OpenAPI document but itself and HEAD of what GET shows."""
    shown = registry.get("/openapi.json").json()["paths"]
    documented = {(path, method.upper()) for path, methods in shown.items() for method in methods}
    assert documented >= {(path, method) for path, method in routes_of(app) if path != "/openapi.json"}
