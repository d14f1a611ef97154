"""The child process of `ari_core.workflows.backends`: one request on stdin, one answer on stdout, both JSON.

A backend's own code runs here: it may print, hang or end the process without harm to the program the user runs.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import secrets
import signal
import sys
import tarfile
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pydantic
from pydantic_core import PydanticUndefined

from ari_core import settings
from ari_core.contract import (
    CHUNK,
    Backend,
    Capabilities,
    Locator,
    NewArtifact,
    OpenContext,
    ReadStream,
    Source,
    SupportsTrial,
    Visibility,
)
from ari_core.errors import (
    AlreadyExists,
    AriError,
    BackendBug,
    ConfigurationError,
    IntegrityError,
    NotFound,
    Unsupported,
    escape,
)
from ari_core.manifest import FileEntry, bundle_digest, render_manifest
from ari_core.names import MANIFEST_NAME
from ari_core.plugins import load_plugins
from ari_core.workflows.backends import LACKS, ONLY_A_TRIAL_SHOWS, BackendDetails, CheckResult, SettingInfo

_TEST_FILE: Final = "ari-backends-check.txt"
_DESCRIPTION: Final = {
    "title": "Test bundle of `ari backends check`",
    "creators": [{"name": "ari backends check", "organization": True}],
}
_TYPES: Final = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    pydantic.SecretStr: "secret",
    pydantic.SecretBytes: "secret",
    pydantic.ByteSize: "bytes, or a size such as '500MB'",
    types.NoneType: "nothing",
}


def main() -> None:
    """Answers one request."""
    # Whatever a backend prints must not reach the user or the answer.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    request = json.load(sys.stdin)
    try:
        tasks: dict[str, Callable[..., BackendDetails | CheckResult]] = {"show": show, "check": check}
        do = tasks[request.pop("do")]
        reply: dict[str, Any] = {"result": asdict(do(**request))}
    except AriError as error:
        reply = _as_reply(type(error).__name__, error.message, error.hint)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a backend's own code; this is where it stops
        reply = _as_reply("BackendBug", f"{type(error).__name__}: {error}", None)
    json.dump(reply, answer)
    answer.flush()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # threads and processes that a backend left must not outlive the answer


def _as_reply(kind: str, message: str, hint: str | None) -> dict[str, Any]:
    return {"error": {"kind": kind, "message": escape(message), "hint": hint and escape(hint)}}


# -- show --------------------------------------------------------------------------------------------------------


def show(backend: str, options: Mapping[str, str]) -> BackendDetails:
    """Describes a backend; see `ari_core.workflows.backends.show_backend`."""
    plugins = load_plugins()
    spec, profile = settings.find_backend(backend, plugins)
    cls = plugins.load_class(spec)
    sourced = settings.collect_settings(cls, options, profile, others=settings.names_of(plugins))
    problem = None
    try:
        settings.check_settings(cls, sourced)
    except ConfigurationError as error:
        problem = error.message
    return BackendDetails(
        name=spec.name,
        profile=profile.name if profile else None,
        help=spec.help,
        schemes=plugins.schemes(spec),
        capabilities=_plain(cls.capabilities),
        settings=tuple(
            _setting(cls, key, info, sourced) for key, info in settings.fields_of(cls.Settings).items()
        ),
        problem=problem,
    )


def _setting(
    cls: type[Backend], key: str, info: pydantic.fields.FieldInfo, sourced: settings.Sourced
) -> SettingInfo:
    secret = settings.is_secret(cls.Settings, key)
    value = sourced.values.get(key)
    return SettingInfo(
        key=key,
        type=_in_words(info.annotation),
        required=info.is_required(),
        default=None if secret or info.default in {None, PydanticUndefined} else escape(str(info.default)),
        help=info.description,
        value=None if value is None else settings.MASK if secret else escape(str(value)),
        source=sourced.sources.get(key),
        variables=settings.variables_of(cls, key),
        secret=secret,
    )


def _in_words(annotation: Any) -> str:
    if annotation in _TYPES:
        return _TYPES[annotation]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(repr(arg) for arg in args)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(_in_words(arg) for arg in args if arg is not types.NoneType)
    if origin is typing.Annotated:
        return _in_words(args[0])
    return getattr(annotation, "__name__", str(annotation)) if not args else str(annotation)


def _plain(can: Capabilities) -> dict[str, Any]:
    return {**asdict(can), "levels": [level.value for level in Visibility if level in can.levels]}


# -- check -------------------------------------------------------------------------------------------------------


def check(
    backend: str,
    options: Mapping[str, str],
    write: bool,  # noqa: FBT001 - as in JSON
    trial: bool,  # noqa: FBT001
    checkpoint: str | None,
) -> CheckResult:
    """Checks a store; see `ari_core.workflows.backends.check_backend`."""
    warnings: list[str] = []
    context = OpenContext(
        checkpoint=None if checkpoint is None else Path(checkpoint),
        warn=lambda line: warnings.append(escape(line)),
    )
    with settings.open_backend(backend, options, context) as store:
        can = store.probe()
        steps = ["opened and probed the store"]
        if trial:
            _let_writers_race(store)
            steps.append("let writers race")
        left_behind = _write_and_read_back(store, can, steps) if write else None
        can = store.probe() if trial or write else can  # which may know more by now
        lacks = store.capabilities.beyond(can)
        unknown = () if trial or store.optional(SupportsTrial) is None else ONLY_A_TRIAL_SHOWS
    return CheckResult(
        name=store.name,
        capabilities=_plain(can),
        lacks={name: LACKS[name] for name in lacks if name not in unknown},
        untried=tuple(name for name in lacks if name in unknown),
        steps=tuple(steps),
        left_behind=left_behind,
        warnings=tuple(warnings),
    )


def _let_writers_race(store: Backend) -> None:
    """Has a store find out what it keeps: its probe says so from then on."""
    racing = store.optional(SupportsTrial)
    if racing is None:
        raise Unsupported(
            f"the backend '{store.name}' promises nothing that a trial would show", hint="check it without --trial"
        )
    racing.trial()


def _write_and_read_back(store: Backend, can: Capabilities, steps: list[str]) -> str | None:
    """Stores a test bundle, reads it back and deletes it; returns its ref if it had to stay.

    A store that says it takes nothing here is tried all the same: it was asked for, and only then it says why.
    """
    if not store.capabilities.put:
        raise Unsupported(f"the backend '{store.name}' takes no artifacts", hint="check it without --write")
    source = _TestBundle()
    new = NewArtifact(created=datetime.now(UTC), description=_DESCRIPTION if store.describes else {})
    made: list[Locator] = []
    try:
        artifact, created = store.put(source, new, on_reserved=made.append)
        made.append(artifact.locator)
        steps.append(f"stored a test bundle of {source.size} bytes")
        _read_back(store, artifact.locator, source, created=created)
        steps.append("read it back: the same bytes")
        if can.delete == "no":
            return store.ref(artifact.locator)
        _delete(store, artifact.locator)
        steps.append("deleted it")
    except AriError as error:
        if made and not _cleaned_up(store, made):
            error.message += f"; the test bundle may still be at {store.ref(made[-1])}"
        if isinstance(error, AlreadyExists):  # whose own hint is for those who publish
            raise AlreadyExists(error.message, hint=_empty_place(store)) from error
        raise
    return None


def _empty_place(store: Backend) -> str:
    keys = [key for key in settings.fields_of(store.Settings) if settings.is_path(store.Settings, key)]
    if keys:
        return f"give the check an empty place, for example -o {keys[0]}=NEW_FOLDER"
    return f"give the check an empty place; `ari backends show {store.name}` lists the settings"


def _cleaned_up(store: Backend, made: list[Locator]) -> bool:
    try:
        for locator in made:
            store.delete(locator)
    except AriError:
        return False
    return True


def _read_back(store: Backend, locator: Locator, source: _TestBundle, *, created: bool) -> None:
    if not created:
        raise BackendBug(f"the backend '{store.name}' says that a bundle made a moment ago was there before")
    digest = hashlib.sha256()
    with store.open(locator) as stream:
        while data := stream.read(CHUNK):
            digest.update(data)
    if digest.hexdigest() != source.archive_sha256:
        raise IntegrityError(f"the backend '{store.name}' gave back other bytes than were stored")


def _delete(store: Backend, locator: Locator) -> None:
    store.delete(locator)
    try:
        store.stat(locator)
    except NotFound:
        return
    raise BackendBug(f"the backend '{store.name}' still has what it says it deleted")


class _TestBundle(Source):
    """A small real bundle that says what it is; new each time, so that no store can have it already."""

    def __init__(self) -> None:
        text = f"Test bundle of `ari backends check`; may be deleted. {secrets.token_hex(16)}\n".encode()
        entry = FileEntry(_TEST_FILE, len(text), hashlib.sha256(text).hexdigest())
        self._manifest = render_manifest([entry], {}, 0)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, contents in ((MANIFEST_NAME, self._manifest), (_TEST_FILE, text)):
                info = tarfile.TarInfo(name)
                info.size = len(contents)
                tar.addfile(info, io.BytesIO(contents))
        self._archive = gzip.compress(packed.getvalue(), mtime=0)
        self.size = len(self._archive)
        self.archive_sha256 = hashlib.sha256(self._archive).hexdigest()
        self.bundle_sha256 = bundle_digest([entry])

    @contextmanager
    def open(self) -> Iterator[ReadStream]:
        yield io.BytesIO(self._archive)

    @property
    def manifest(self) -> bytes:
        return self._manifest


if __name__ == "__main__":
    main()
