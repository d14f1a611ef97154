"""The server's OpenAPI document is true: schemathesis finds no answer that it does not describe, and no 5xx.

Left out, because OpenAPI cannot say it:

- phase *stateful*: links between operations are not described; the races and the matrix test what follows what;
- checks on *data*, that every input the document allows is accepted and every other refused: any bytes are a valid
  upload to OpenAPI, only a bundle that verifies is to us; ids that no artifact has are valid too;
- check *unsupported_method*, *ignored_auth*: the matrix has every method and caller.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.registry import PATIENCE, Sample

SCHEMATHESIS = str(Path(sys.executable).with_name("schemathesis"))
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance",
          "response_schema_conformance", "response_headers_conformance")  # fmt: skip


@pytest.fixture(scope="module")
def document(registry):
    return registry.get("/openapi.json").json()


def operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def run(registry, folder, *options, parameters=()):
    """Runs schemathesis against the server; returns how it ended and what it printed."""
    config = folder / "schemathesis.toml"
    lines = [f'"{name}" = "{value}"' for name, value in dict(parameters).items()]
    config.write_text("\n".join(["[parameters]", *lines, ""]))
    command = [
        SCHEMATHESIS, "--config-file", config, "run", f"{registry.url}/openapi.json",
        "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--seed", "3",
        "--max-examples", "8", "--generation-deterministic",
        "--continue-on-failure", "--warnings", "off", "--no-color", "--output-truncate", "false", *options,
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith("SCHEMATHESIS")}
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * PATIENCE,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.in_ci
def test_the_document_describes_a_stranger_s_requests(registry, tmp_path):
    code, output = run(registry, tmp_path)
    assert code == 0, output


@pytest.mark.in_ci
def test_the_document_describes_an_owner_s_requests(registry, tmp_path):
    owner = registry.token("oa-owner")
    sample = registry.store(Sample.new(), owner, "private-token")
    code, output = run(
        registry,
        tmp_path,
        *("--header", f"Authorization: Bearer {owner}", "--exclude-method", "DELETE"),
        parameters={"path.id": sample.id},
    )
    assert code == 0, output
    assert registry.get(sample.path, owner).content == sample.data


@pytest.mark.in_ci
def test_the_document_describes_what_an_owner_deletes(registry, tmp_path):
    """By itself: the other operations need what it takes away."""
    owner = registry.token("oa-owner")
    sample = registry.store(Sample.new(), owner, "public")
    code, output = run(
        registry,
        tmp_path,
        *("--header", f"Authorization: Bearer {owner}", "--include-method", "DELETE"),
        parameters={"path.id": sample.id},
    )
    assert code == 0, output
    assert registry.get(sample.path, owner).status_code == 410


def test_every_operation_has_words_and_an_example(document):
    lacking = []
    for name, operation in operations(document):
        content = operation["responses"]["200"].get("content", {})
        json_answer = content.get("application/json", {})
        if not operation.get("summary") or not operation.get("description"):
            lacking.append(f"{name}: no words")
        if json_answer and not _has_example(json_answer, document):
            lacking.append(f"{name}: no example of its answer")
    assert lacking == []


def _has_example(content, document):
    schema = content.get("schema", {})
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return any(key in where for where in (content, schema) for key in ("example", "examples"))


def test_every_error_is_described_as_a_problem(document):
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            if status >= "400" and not name.startswith("HEAD"):
                assert set(response["content"]) == {"application/problem+json"}, (name, status)
