"""Client of the HTTP server: one registry, or those in ``registries.yaml``.

A locator is ``URL/artifact/ID#DIGEST``: the id as it was given or issued, and the whole archive digest, if the
server told it. A token goes only to the registry it is configured for: each request's is looked up by its URL.
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, ClassVar, Final
from urllib.parse import quote

import httpx2
from pydantic import Field, field_validator

from ari_backends._http import (
    TOKEN,
    Answer,
    Credentials,
    HttpReader,
    HttpSettings,
    parse_url,
    pieces,
    refusal,
    shown,
)
from ari_backends.ari_registry import origins
from ari_backends.ari_registry.places import URL_VARIABLE
from ari_backends.ari_registry.registries import (
    TOKEN_VARIABLE,
    Registries,
    Registry,
    base_url,
    find_registries,
    is_below,
)
from ari_core.contract import (
    Artifact,
    Capabilities,
    Locator,
    NewArtifact,
    OpenContext,
    ReadStream,
    Share,
    Source,
    Visibility,
)
from ari_core.digests import is_sha256
from ari_core.errors import (
    AccessDenied,
    AlreadyExists,
    AriError,
    BackendBug,
    BackendError,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    QuotaExceeded,
    Unavailable,
    Unsupported,
    escape,
)
from ari_core.limits import Limits
from ari_core.names import quoted

_REF: Final = re.compile(r"ari://(?:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})/)?(?P<id>[0-9a-f]{16,64})/?")
_ARTIFACT: Final = re.compile(r"(?P<base>https?://[^?#]+)/artifact/(?P<id>[0-9a-f]{16,64})/?")
_ID: Final = re.compile(r"[0-9a-f]{16,64}")
_ID_DIGITS: Final = 16
_ABSENT: Final = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
_LONGEST_ANSWER: Final = 4 * 1024 * 1024
_LONGEST_METADATA: Final = 4096
_PAGE: Final = 100
_SLOW_DISK: Final = 10e6
"""Bytes a second."""
_CHECK: Final = "`ari config check` tests it"


class AriRegistrySettings(HttpSettings):
    """Settings of `AriRegistry`; by default, registries.yaml says the rest."""

    prefix: ClassVar[str] = "ARI_ARI_REGISTRY_"

    url: str | None = Field(None, description="address of the registry, instead of those in registries.yaml")
    registry: str | None = Field(None, description="a registry of registries.yaml, by its name")

    @field_validator("url", "registry")
    @classmethod
    def _is_given(cls, value: str | None) -> str | None:
        if value == "":  # as in `--registry "$UNSET"`: it must not be another registry then
            raise ValueError("is empty")
        return value

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        try:
            return base_url(url) if url else None
        except InvalidConfiguration as error:
            raise ValueError(error.message) from None


@dataclass(frozen=True, slots=True)
class About:
    """What a server says about itself.

    Attributes:
        is_registry: It answers as a registry does.
        is_ours: It has what we added: raw uploads, listing, metadata, fetch tokens.
        version: Its version, or "".
    """

    is_registry: bool
    is_ours: bool
    version: str


@dataclass(frozen=True, slots=True)
class TokenCheck:
    """What a server makes of our token.

    Attributes:
        state: ``none``, ``accepted``, or ``not-checked`` by a server that offers no way.
        user: Whose it is, as far as the server tells.
        scope: What it may do, as far as the server tells.
    """

    state: str
    user: str | None = None
    scope: str | None = None


class AriRegistry(HttpReader):
    """Everything is the server's doing: levels are enforced, ids unique, owners kept."""

    name = "ari-registry"
    capabilities = Capabilities(
        put=True,
        delete="yes",
        list="immediate",
        ranges=True,
        exclusive_create=True,
        visibility="enforced",
        levels=frozenset(Visibility),
        stores_meta=False,  # the owner is whose token it is
        atomic_updates=True,
    )
    Settings = AriRegistrySettings
    settings: AriRegistrySettings
    trust_settings = ("url", "ca_file", "proxy")
    # What is set for reading any https URL holds for those that look like a registry's, too; but not its token.
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {
        key: (f"{HttpSettings.prefix}{key.upper()}",) for key in HttpSettings.model_fields if key != "token"
    }
    fresh = 0.0  # levels and tokens change under us, and a wrong answer from memory would be believed

    def __init__(self, settings: AriRegistrySettings, context: OpenContext | None = None) -> None:
        super().__init__(settings, context)
        self._mutex = threading.RLock()
        self._found: Registries | None = None
        self._about: dict[str, About] = {}
        self._announced: set[str] = set()
        self._unclear: set[Locator] = set()  # to be deleted, and no answer came

    # -- which registry, and with which token --------------------------------------------------------------------

    @property
    def registries(self) -> Registries:
        """The registries that are configured.

        Raises:
            AriError: The configuration cannot be used.
        """
        with self._mutex:
            if self._found is None:
                if self.settings.url:
                    token = None
                    if self.settings.token and not self._is_anothers(self.settings.url):
                        token = self.settings.token.get_secret_value()
                    only = Registry(
                        self.settings.registry or "",
                        self.settings.url,
                        "the setting 'url'",
                        None,
                        token,
                        "the setting 'token'",
                    )
                    self._found = Registries((only,))
                else:
                    self._found = find_registries(self.context.checkpoint)
                    for note in self._found.notes:
                        self.context.warn(note)
            return self._found

    def candidates(self, name: str | None = None) -> tuple[Registry, ...]:
        """Returns the registries to ask, in order; the first is where to store.

        Raises:
            InvalidConfiguration: There is none, or none of that name.
        """
        if self.settings.url:
            return self.registries.entries
        return self.registries.candidates(name or self.settings.registry)

    def _credentials(self, url: httpx2.URL) -> Credentials:
        with self._mutex:
            if self._takes_given_token(url):
                self._announce_given(url)
                return Credentials(self.settings.token, f"check the token that was given; {_CHECK}")
            registry = None if self.context.anonymous else self._registry_at(url)
            token = registry.token() if registry else None
            if registry is None or token is None:
                if registry and registry.where == URL_VARIABLE:
                    where = f"{TOKEN_VARIABLE} is not set"
                else:
                    where = f"{registry.where} has no token" if registry else "no token goes with this address"
                return Credentials(None, f"{where}: give --token-file FILE, or see `ari config check`")
            if registry.untrusted:
                self._announce(registry, registry.token_from)
            return Credentials(token, f"check the token: it comes from {registry.token_from}; {_CHECK}")

    def _takes_given_token(self, url: httpx2.URL) -> bool:
        """Says whether the token in the settings is for `url`."""
        if self.settings.token is None:
            return False
        if self.settings.url:
            return is_below(url, self.settings.url) and not self._is_anothers(self.settings.url)
        from_environment = self._is_from_environment()
        if not from_environment and (self.context.checkpoint is None or not self.registries.entries):
            return True  # given for this very call, and so for what it is about
        # A record in the checkpoint may name another place, and be a stranger's.
        # And what the environment holds is for the registry that it means, not for one picked for this call.
        name = os.environ.get(f"{self.settings.prefix}REGISTRY") if from_environment else self.settings.registry
        return bool(self.registries.entries) and is_below(url, self.registries.candidates(name)[0].url)

    def _is_from_environment(self) -> bool:
        given = self.settings.token
        return given is not None and os.environ.get(f"{self.settings.prefix}TOKEN") == given.get_secret_value()

    def _is_anothers(self, url: str) -> bool:
        """Says whether the environment holds the token together with the address of another registry."""
        own = os.environ.get(f"{self.settings.prefix}URL")
        return bool(own) and self._is_from_environment() and base_url(str(own)) != url

    def _announce_given(self, url: httpx2.URL) -> None:
        """Names the place, if it is a stranger's file that says where the given token goes."""
        for entry in self._found.entries if self._found else ():
            if entry.untrusted and is_below(url, entry.url):
                self._announce(entry, "the one that was given")

    def _registry_at(self, url: httpx2.URL) -> Registry | None:
        """Returns the registry that `url` is of: the one that was picked, else the closest."""
        fitting = [entry for entry in self.registries.entries if is_below(url, entry.url)]
        if not fitting:
            return None
        longest = max(len(entry.url) for entry in fitting)
        fitting = [entry for entry in fitting if len(entry.url) == longest]
        picked = {entry.name for entry in self.candidates()}
        return next((entry for entry in fitting if entry.name in picked), fitting[0])

    def _announce(self, registry: Registry, token_from: str | None) -> None:
        """Names a file that may be a stranger's, and the place it sends a token to, before that happens first."""
        url = httpx2.URL(registry.url)
        origin = f"{url.scheme}://{url.netloc.decode('ascii')}"
        if origin in self._announced:
            return
        self._announced.add(origin)
        if origins.is_known(origin):
            return
        self.context.warn(
            f"{quoted(str(registry.untrusted))} sends a token ({token_from}) to {escape(origin)}, where "
            "none was sent before: if that is not your registry, revoke the token"
        )
        try:
            origins.remember(origin)
        except (AriError, OSError, RuntimeError) as error:
            self.context.warn(f"that {escape(origin)} is known now could not be noted: {escape(str(error))}")

    # -- reading -------------------------------------------------------------------------------------------------

    def _resolve(self, ref: str) -> Locator:
        if ref[:4].lower() == "ari:":
            match = _REF.fullmatch(ref)
            if match is None:
                raise Unsupported(
                    f"{quoted(ref[:100])} is no ref of a registry",
                    hint="it is ari://ID or ari://REGISTRY/ID, ID being 16 to 64 lower-case hex digits",
                )
            return self._anywhere(match["name"], match["id"])
        return self._pinned(str(parse_url(ref)))

    def _anywhere(self, name: str | None, digits: str) -> Locator:
        """Asks each registry in order.

        Raises:
            NotFound: All say that they do not have it.
            BackendError: None has it, and some could not be asked.
        """
        candidates = self.candidates(name)
        if len(candidates) > 1 and self.settings.token and not self.settings.url:
            raise InvalidConfiguration(
                f"a token is given, and there are {len(candidates)} registries it could be for",
                hint="pick one: --registry NAME, or ari://NAME/ID",
            )
        failures: list[BackendError] = []
        for registry in candidates:
            try:
                return self._pinned(f"{registry.url}/artifact/{digits}")
            except NotFound:
                if len(candidates) == 1:
                    raise  # it may say more, as that it was deleted
            except (BackendError, httpx2.TransportError) as error:
                ours = error if isinstance(error, BackendError) else self._translate(error)
                if ours is None or len(candidates) == 1:
                    raise
                failures.append(ours)
        names = ", ".join(registry.label for registry in candidates)
        if not failures:
            raise NotFound(f"no artifact {digits} in {names}")
        said = "; ".join(error.message for error in failures)
        lasting = next((error for error in failures if not error.retryable), None)
        kind = type(lasting) if lasting else Unavailable
        raise kind(
            f"no artifact {digits} in those of {names} that could be asked; the others: {said}",
            hint=lasting.hint if lasting else None,
        )

    def _pinned(self, url: str) -> Locator:
        base, digits = _parts(Locator(url))
        url = f"{base}/artifact/{digits}"
        digest = super()._stat(Locator(url)).archive_sha256
        if digest is None:
            return Locator(url)
        return _locator(base, digits, digest)

    def _ref(self, locator: Locator) -> str:
        return _url(locator)

    def _stat(self, locator: Locator) -> Artifact:
        _parts(locator)
        artifact = super()._stat(locator)
        digest = locator.partition("#")[2]
        if digest and artifact.archive_sha256 != digest:
            raise NotFound(f"{_url(locator)}: another archive has this id now")
        return artifact

    def manifest(self, locator: Locator) -> bytes:
        """Returns the manifest: from a server of ours as it is, else from the bundle.

        An existing server has one that was written again, and shows it to everybody.

        Raises:
            NotFound: There is no such artifact.
            VerificationError: The bundle is damaged.
            AriError: As the server says.
        """
        limits = Limits.from_environment()
        if self.about(_parts(locator)[0]).is_ours:
            with self._fetcher.answer("GET", parse_url(f"{_url(locator)}/manifest.lock")) as answer:
                answer.require({HTTPStatus.OK})
                return answer.body(limits.manifest_bytes)
        from ari_core.verification import read_manifest  # noqa: PLC0415 - few need it

        return read_manifest(_Archive(self, locator), limits)

    # -- what the server is --------------------------------------------------------------------------------------

    def about(self, base: str) -> About:
        """Asks a server what it is, once.

        Raises:
            AriError: It cannot be reached.
        """
        with self._mutex:
            found = self._about.get(base)
        if found is None:
            url = parse_url(f"{base}/version")
            with self._fetcher.answer("GET", url, credentials=Credentials(None, "")) as answer:
                if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                    answer.require({HTTPStatus.OK})
                says = _parsed(answer) if answer.status == HTTPStatus.OK and answer.is_json else {}
            uploads = says.get("uploads")
            found = About(
                is_registry=isinstance(says.get("version"), str),
                is_ours=isinstance(uploads, list) and "raw" in uploads,
                version=escape(str(says.get("version", ""))[:100]),
            )
            with self._mutex:
                self._about[base] = found
        return found

    def check_token(self, base: str) -> TokenCheck:
        """Asks a server whether it takes our token.

        Raises:
            AccessDenied: It does not.
            AriError: It cannot be reached, or the token is badly configured.
        """
        if self._credentials(parse_url(f"{base}/artifacts")).token is None:
            return TokenCheck("none")
        if not self.about(base).is_ours:
            return TokenCheck("not-checked")
        told = self._ask("GET", f"{base}/artifacts?mine=1&limit=1")
        user, scope = (
            escape(value[:100]) if isinstance(value := told.get(key), str) else None for key in ("user", "scope")
        )
        return TokenCheck("accepted", user, scope)

    def _probe(self) -> Capabilities:
        base = self.candidates()[0].url
        about = self.about(base)
        if not about.is_registry:
            raise InvalidConfiguration(
                f"{shown(parse_url(base))}: no registry answers at this address",
                hint="check the address of the registry, and the part behind the host, if there should be one",
            )
        self._require_token(base)
        self.check_token(base)
        return self.capabilities if about.is_ours else replace(self.capabilities, list="no")

    def _require_token(self, base: str) -> None:
        """Refuses to send what needs a token without one."""
        credentials = self._credentials(parse_url(f"{base}/artifact"))
        if credentials.token is None:
            raise AccessDenied(f"{shown(parse_url(base))}: this needs a token", hint=credentials.hint)

    # -- storing -------------------------------------------------------------------------------------------------

    def _put(
        self,
        source: Source,
        new: NewArtifact,
        resume: Locator | None,  # noqa: ARG002 - there is nothing to reserve: the digest is the name
        on_reserved: Callable[[Locator], None],  # noqa: ARG002
    ) -> tuple[Artifact, bool]:
        base = self.candidates()[0].url
        self._require_token(base)
        is_ours = self.about(base).is_ours
        known = self._mine(base, source) if is_ours else None
        if known:
            return known, False
        if not is_ours:
            self._check_id_is_free(base, source)
        # All bytes go, also of what another user stored: sending them is what makes one an owner.
        says = self._upload(base, source, new) if is_ours else self._upload_form(base, source, new)
        digits, digest = says.get("id"), says.get("archive_sha256", source.archive_sha256)
        if not _is_id_of(digits, source.archive_sha256) or digest != source.archive_sha256:
            raise IntegrityError(f"{shown(parse_url(base))}: the registry stored it as another archive")
        artifact = Artifact(
            _locator(base, str(digits), source.archive_sha256),
            source.size,
            source.archive_sha256,
            source.bundle_sha256,
            _level(says.get("visibility")),
        )
        return artifact, not says.get("duplicate")

    def _mine(self, base: str, source: Source) -> Artifact | None:
        """Returns the artifact if we own it already: how a put begins that may be a second try."""
        url = parse_url(f"{base}/artifact/{source.archive_sha256}/meta")
        with self._fetcher.answer("GET", url) as answer:
            if answer.status == HTTPStatus.FORBIDDEN or (answer.status in _ABSENT and answer.is_json):
                return None
            answer.require({HTTPStatus.OK})
            says = _parsed(answer)
        if not says.get("owners"):  # which only owners see
            return None
        if says.get("archive_sha256") != source.archive_sha256:
            raise IntegrityError(f"{shown(url)}: the registry answers with another archive")
        return _artifact(base, says)

    def _check_id_is_free(self, base: str, source: Source) -> None:
        """Asks an existing server before everything is sent in vain; whose it is only sending tells there."""
        url = f"{base}/artifact/{source.archive_sha256[:_ID_DIGITS]}"
        try:
            there = super()._stat(Locator(url)).archive_sha256
        except NotFound:
            return
        if there not in {None, source.archive_sha256}:
            raise AlreadyExists(f"{url}: another archive has this id; nothing was sent")

    def _upload(self, base: str, source: Source, new: NewArtifact) -> dict[str, Any]:
        digest = base64.b64encode(bytes.fromhex(source.archive_sha256)).decode("ascii")
        headers = {"Content-Type": "application/gzip", "Repr-Digest": f"sha-256=:{digest}:"}
        if new.wish:
            headers["X-ARI-Visibility"] = new.wish
        description = json.dumps(dict(new.description))
        if new.description and len(description) <= _LONGEST_METADATA:
            headers["X-ARI-Metadata"] = description
        return self._send(base, headers, source, b"", b"")

    def _upload_form(self, base: str, source: Source, new: NewArtifact) -> dict[str, Any]:
        """Uploads as the existing client does."""
        try:
            manifest = source.manifest
        except BackendBug:
            raise Unsupported(
                f"{shown(parse_url(base))}: this server needs the manifest before the bundle",
                hint="clone the bundle, and publish it from there",
            ) from None
        fields = {
            "visibility": str(Visibility.STAGED),  # such a server might take a wish for an order
            "manifest": manifest.decode("utf-8"),
            "metadata": json.dumps(dict(new.description)),
        }
        form = httpx2.Request(
            "POST", f"{base}/artifact", data=fields, files={"bundle": ("bundle.tar.gz", b"", "application/gzip")}
        )
        body = form.read()
        end = body.rindex(b"\r\n--")  # the bundle goes before it
        return self._send(base, {"Content-Type": form.headers["content-type"]}, source, body[:end], body[end:])

    def _send(
        self, base: str, headers: Mapping[str, str], source: Source, before: bytes, behind: bytes
    ) -> dict[str, Any]:
        length = {"Content-Length": str(len(before) + source.size + len(behind))}
        with closing(pieces(source, before, behind)) as content:
            url = parse_url(f"{base}/artifact")
            # Behind the last byte the server still forces all of it to its disk; to give up is to send it again.
            wait = source.size / _SLOW_DISK
            with self._fetcher.answer(
                "POST", url, lambda _place: {**headers, **length}, content, wait=wait
            ) as answer:
                if answer.status == HTTPStatus.CONFLICT:
                    raise AlreadyExists(f"{answer.where}: another archive has this id{answer.reason()}")
                answer.require({HTTPStatus.OK, HTTPStatus.CREATED})
                return _parsed(answer)

    # -- changing ------------------------------------------------------------------------------------------------

    def _raise_visibility(self, locator: Locator, target: Visibility) -> Visibility:
        base, _ = _parts(locator)
        self._require_token(base)
        url = parse_url(f"{_url(locator)}/promote")
        content = json.dumps({"target": target}).encode()
        with self._fetcher.answer("POST", url, _as_json, content) as answer:
            if answer.status != HTTPStatus.BAD_REQUEST:
                answer.require({HTTPStatus.OK})
                level = _level(_parsed(answer).get("visibility"))
                if level is None or level.rank < target.rank:
                    raise IntegrityError(f"{answer.where}: the registry does not say that it is {target} now")
                return level
            refused = self._refusal(answer)
        level = self._stat(locator).visibility
        if level is None or level.rank < target.rank:
            raise refused
        return level  # it only ever moves up, which the server calls an error and the contract does not

    def _delete(self, locator: Locator) -> None:
        base, digits = _parts(locator)
        self._require_token(base)
        try:
            self._remove_claim(locator, digits)
        except httpx2.TransportError:
            self._unclear.add(locator)
            raise

    def _remove_claim(self, locator: Locator, digits: str) -> None:
        with self._fetcher.answer("DELETE", parse_url(_url(locator))) as answer:
            gone = answer.status in _ABSENT and answer.is_json
            # A first try may have done it, and its answer got lost: what is there is others' now.
            theirs = answer.status == HTTPStatus.FORBIDDEN and locator in self._unclear
            if not (gone or theirs):
                answer.require({HTTPStatus.OK, HTTPStatus.NO_CONTENT})
                # Believing a page for people, a record would lose what is still there.
                if answer.status == HTTPStatus.OK:
                    self._unclear.add(locator)  # until all of the answer is here
                    said = _parsed(answer).get("deleted")
                    if not (_is_id_of(said, digits) or _is_id_of(digits, str(said))):
                        raise IntegrityError(f"{answer.where}: the registry does not say that it deleted this")

    def _list(self, after: str | None) -> Iterator[tuple[Artifact, str]]:
        base = self.candidates()[0].url
        self._require_token(base)
        if not self.about(base).is_ours:
            raise Unsupported(f"{shown(parse_url(base))}: this server lists nothing")
        while True:
            place = f"&after={quote(after, safe='')}" if after is not None else ""
            page = self._ask("GET", f"{base}/artifacts?mine=1&limit={_PAGE}{place}")
            items = page.get("artifacts")
            if not isinstance(items, list):
                raise IntegrityError(f"{shown(parse_url(base))}: the registry's listing is not one")
            for item in items:
                cursor = item.get("cursor") if isinstance(item, dict) else None
                if not isinstance(cursor, str):
                    raise IntegrityError(f"{shown(parse_url(base))}: the registry's listing has no cursors")
                yield _artifact(base, item), cursor
            if not items or page.get("next") is None:
                return
            if after == cursor:
                raise IntegrityError(f"{shown(parse_url(base))}: the registry's listing goes in a circle")
            after = cursor

    def share(self, locator: Locator, expires: timedelta | None) -> Share:
        """Makes a fetch token.

        Raises:
            Unsupported: The server has none.
            NotFound: There is no such artifact.
            AccessDenied: It is not ours.
        """
        base, _ = _parts(locator)
        self._require_token(base)
        if not self.about(base).is_ours:
            raise Unsupported(f"{shown(parse_url(base))}: this server has no fetch tokens")
        seconds = None if expires is None else int(expires.total_seconds())
        content = json.dumps({"expires_in": seconds}).encode()
        says = self._ask("POST", f"{_url(locator)}/tokens", _as_json, content)
        token = says.get("token")
        if not (isinstance(token, str) and TOKEN.fullmatch(token)):
            raise IntegrityError(f"{shown(parse_url(base))}: the registry made no token")
        return Share(_url(locator), token, str(says.get("id", "")), _time(says.get("expires_at")))

    # -- HTTP ----------------------------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        url: str,
        extra: Callable[[str], Mapping[str, str]] = lambda _place: {},
        content: bytes | Iterable[bytes] | None = None,
    ) -> dict[str, Any]:
        with self._fetcher.answer(method, parse_url(url), extra, content) as answer:
            answer.require({HTTPStatus.OK, HTTPStatus.CREATED})
            return _parsed(answer)

    def _refusal(self, answer: Answer) -> BackendError:
        where = answer.where
        if answer.elsewhere and answer.status in _ABSENT:
            return IntegrityError(
                f"{where}: the registry's store does not have what the registry lists",
                hint="tell the registry's operator; any other copy of the same bundle will do",
            )
        if answer.elsewhere:
            return refusal(answer)
        match answer.status:
            case HTTPStatus.NOT_FOUND | HTTPStatus.GONE if not answer.is_json and self._should_be_registry(answer):
                # Believing a proxy's page, a record would lose what is still there.
                return Unsupported(
                    f"{where}: something answers {answer.status} there, but not a registry",
                    hint="check the address of the registry, and the part behind the host, if there should be one",
                )
            case HTTPStatus.FORBIDDEN if answer.is_json and answer.credentials.token:
                return AccessDenied(
                    f"{where}: the server answers 403 (Forbidden){answer.reason()}",
                    hint="the token is valid, but not for this: it can only read, or this is somebody else's",
                )
            case HTTPStatus.CONFLICT:
                return Unsupported(
                    f"{where}: the registry is not sure which artifact is meant{answer.reason()}",
                    hint="give more digits of the id",
                )
            case HTTPStatus.REQUEST_ENTITY_TOO_LARGE | HTTPStatus.INSUFFICIENT_STORAGE:
                why = answer.reason() + answer.request_id
                return QuotaExceeded(f"{where}: the registry has no room for this{why}")
            case HTTPStatus.UNPROCESSABLE_ENTITY:
                return IntegrityError(
                    f"{where}: the registry refuses the archive{answer.reason()}",
                    hint="run `ari ear curate` again, then publish",
                )
            case status if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
                return InvalidConfiguration(
                    f"{where}: the registry is at another address: it answers {status} to what changes something",
                    hint="write the address that it redirects to into registries.yaml",
                )
        return refusal(answer)

    def _should_be_registry(self, answer: Answer) -> bool:
        """Says whether a registry was asked, and not just any place that somebody's ref names."""
        if self.context.checkpoint is not None or self.settings.url or answer.method not in {"GET", "HEAD"}:
            return True
        with self._mutex:
            return self._found is not None and any(is_below(answer.start, e.url) for e in self._found.entries)


class _Archive:
    """An artifact as something to read."""

    def __init__(self, backend: AriRegistry, locator: Locator) -> None:
        self._backend, self._locator = backend, locator
        self.name = _url(locator)
        self.size: int | None = None

    def open(self) -> AbstractContextManager[ReadStream]:
        return self._backend.open(self._locator)


def _as_json(_place: str) -> Mapping[str, str]:
    return {"Content-Type": "application/json"}


def _parsed(answer: Answer) -> dict[str, Any]:
    """Returns the JSON object that an answer is.

    Raises:
        IntegrityError: It is none.
    """
    try:
        data = json.loads(answer.body(_LONGEST_ANSWER))
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise IntegrityError(
            f"{answer.where}: this is not how a registry answers", hint="check the address of the registry"
        )
    return data


def _parts(locator: Locator) -> tuple[str, str]:
    """Splits a locator, or a URL of an artifact, into the registry's address and the id.

    Raises:
        Unsupported: It is none.
    """
    match = _ARTIFACT.fullmatch(locator.partition("#")[0])
    if match is None:
        raise Unsupported(f"{quoted(locator[:100])} is no artifact of a registry")
    return match["base"], match["id"]


def _url(locator: Locator) -> str:
    return locator.partition("#")[0]


def _locator(base: str, digits: str, digest: str) -> Locator:
    if not digest.startswith(digits):
        raise IntegrityError(f"{base}/artifact/{digits}: the registry answers with the archive {digest}")
    return Locator(f"{base}/artifact/{digits}#{digest}")


def _is_id_of(digits: object, digest: str) -> bool:
    return isinstance(digits, str) and _ID.fullmatch(digits) is not None and digest.startswith(digits)


def _artifact(base: str, says: Mapping[str, Any]) -> Artifact:
    """Turns an item of a listing, or ``/meta``, into an artifact, with the facts that a HEAD gives, too.

    Raises:
        IntegrityError: It is none.
    """
    digest, size = str(says.get("archive_sha256")), says.get("size")
    if not is_sha256(digest) or not _is_id_of(says.get("id"), digest):
        raise IntegrityError(f"{shown(parse_url(base))}: the registry describes an artifact without a valid id")
    return Artifact(
        _locator(base, str(says["id"]), digest),
        size if type(size) is int and size > 0 else None,
        digest,
        visibility=_level(says.get("visibility")),
    )


def _level(text: object) -> Visibility | None:
    return Visibility(text) if isinstance(text, str) and text in set(Visibility) else None


def _time(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return found if found is None or found.tzinfo else found.replace(tzinfo=UTC)
