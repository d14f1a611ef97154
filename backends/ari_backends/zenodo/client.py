"""What is used of the HTTP API of InvenioRDM, which Zenodo runs (docs/decisions/0011).

Nothing here is tried again. Who calls `create` or `publish` looks first: both can succeed without an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import httpx2

from ari_backends._http import Answer, Fetcher, parse_url, retry_after, shown
from ari_backends.zenodo.note import Note, read
from ari_core.errors import (
    AccessDenied,
    BackendError,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    QuotaExceeded,
    RangeError,
    RateLimited,
    Unavailable,
    Unsupported,
    escape,
)
from ari_core.limits import most_values
from ari_core.names import BUNDLE_NAME

ID: Final = re.compile(r"[0-9a-z-]{1,40}")
"""Of a version; a number on Zenodo."""
PATIENCE: Final = 300.0
"""Seconds to wait for the answer to what is slow on Zenodo: publishing, a new version, the end of an upload."""

# On Zenodo plain JSON means the deposit API's; and the endpoints of published files know nothing else.
_ACCEPT: Final = "application/vnd.inveniordm.v1+json, application/json;q=0.9"
_LONGEST_ANSWER: Final = 8 * 1024 * 1024
_MOST_VALUES: Final = 200_000
_LARGEST_FILE: Final = 2**63 - 1
_LONGEST_REASON: Final = 64 * 1024
_LONGEST_SHOWN: Final = 300
_SLOW_DISK: Final = 10e6
"""Bytes a second."""
_PAGE: Final = 25
_BUSY: Final = ": somebody else changes this draft, too"
_ABSENT: Final = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
_NO_FILES: Final = "files.enabled"
_MD5: Final = re.compile(r"(?:md5:)?([0-9a-f]{32})")
_ARCHIVE: Final = re.compile(r".*\.(tar\.gz|tgz|tar)", re.IGNORECASE | re.DOTALL)
_HALF: Final = re.compile("[\ud800-\udfff]")
_QUOTA: Final = re.compile(r"quota|maximum file size|max amount|capacity limit", re.IGNORECASE)
_CUT: Final = re.compile(r"(smaller|bigger) than expected", re.IGNORECASE)
_RACE: Final = re.compile(r"already exists", re.IGNORECASE)
_CSRF: Final = re.compile(r"CSRF|Referer checking", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class File:
    """A file of a record or draft.

    Attributes:
        name: Its key.
        size: Bytes, if known.
        md5: Hex digits; None while it is being sent.
    """

    name: str
    size: int | None
    md5: str | None


@dataclass(frozen=True)
class Version:
    """One version of a record as the repository describes it: a draft, or published.

    Attributes:
        base: Address of the repository.
        id: The version's own, never its concept's.
        says: All of it, in InvenioRDM's JSON.
        files: By name.
    """

    base: str
    id: str
    says: Mapping[str, Any]
    files: Mapping[str, File]

    @property
    def published(self) -> bool:
        """Whether everybody can see the record, if not its files."""
        return self.says.get("is_published") is True

    @property
    def url(self) -> str:
        """Where people look at it."""
        return f"{self.base}/{'records' if self.published else 'uploads'}/{self.id}"

    @property
    def api(self) -> str:
        """Where programs do."""
        return f"{self.base}/api/records/{self.id}{'' if self.published else '/draft'}"

    @property
    def doi(self) -> str | None:
        """The DOI, reserved or registered."""
        found = _at(self.says, "pids", "doi", "identifier")
        return found if isinstance(found, str) and found else None

    @property
    def dois(self) -> tuple[str, ...]:
        """Its own, and that of all versions."""
        concept = _at(self.says, "parent", "pids", "doi", "identifier")
        return tuple(doi for doi in (self.doi, concept) if isinstance(doi, str))

    @property
    def audience(self) -> str:
        """Who sees the record, if not its files: ``public`` or ``restricted``."""
        return str(_at(self.says, "access", "record") or "public")

    @property
    def is_restricted(self) -> bool:
        """Whether the files are for the owner only, perhaps until a day."""
        return bool(_at(self.says, "access", "files") == "restricted")

    @property
    def embargo(self) -> date | None:
        """The day on which the files open."""
        if _at(self.says, "access", "embargo", "active") is True:
            with suppress(TypeError, ValueError):
                return date.fromisoformat(_at(self.says, "access", "embargo", "until"))
        return None

    @property
    def is_closed(self) -> bool:
        """Whether its owner restricted the files, and not until a day."""
        return self.is_restricted and self.embargo is None

    @property
    def problems(self) -> list[str]:
        """What the repository would not publish, apart from files that are missing yet."""
        return [f"{field}: {text}" for field, text in _errors(self.says) if field != _NO_FILES]

    @cached_property
    def note(self) -> Note | None:
        """What our note in its description says."""
        found = _at(self.says, "metadata", "additional_descriptions")
        items = found if isinstance(found, list) else []
        texts = (item.get("description") for item in items if isinstance(item, dict))
        return read(text for text in texts if isinstance(text, str))

    @property
    def bundle(self) -> File | None:
        """The file that is the bundle: ours, else the only archive; None if there is none, or one on its way.

        Raises:
            Unsupported: There are several archives.
        """
        if BUNDLE_NAME in self.files:
            found = self.files[BUNDLE_NAME]
            return found if found.md5 else None
        archives = [name for name in self.files if _ARCHIVE.fullmatch(name)]
        if len(archives) > 1:
            names = ", ".join(f"'{escape(name)}'" for name in sorted(archives)[:5])
            raise Unsupported(
                f"{self.url}: there are several archives: {names}",
                hint="download the right one, then `ari verify FILE` or `ari clone FILE`",
            )
        return self.files[archives[0]] if archives else None

    @property
    def digests(self) -> Note | None:
        """The digests of the bundle that is here, as far as our note speaks of this very file."""
        here, note = self.bundle, self.note
        return note if here and note and note.bundle_sha256 and here.md5 == note.md5 else None


class Repository:
    """One repository, by its address."""

    def __init__(self, fetcher: Fetcher, base: str) -> None:
        self._fetcher, self.base = fetcher, base

    # -- looking -------------------------------------------------------------------------------------------------

    def look(self, number: str) -> Version:
        """Returns a version, published or draft; a concept's number gives its latest.

        Raises:
            NotFound: There certainly is neither.
            AccessDenied: There is a draft, perhaps, and it is not ours.
        """
        for ask in (self.record, self.draft):
            with suppress(NotFound):
                found = ask(number)
                # What is open behind a published version is a change of its description, and no version.
                if ask == self.record or not found.published:
                    return found
        return self.record(number)  # unless it was published between the two

    def record(self, number: str) -> Version:
        """Returns a published version; a concept's number gives its latest."""
        return self._version(self._ask("GET", f"records/{number}"))

    def draft(self, number: str) -> Version:
        """Returns a draft as it stands."""
        return self._version(self._ask("GET", f"records/{number}/draft"))

    def mine(self, *texts: str, most: int = _PAGE) -> list[str]:
        """Returns the ids of own records and drafts that mention one of `texts`, as far as the index knows."""
        wanted = " OR ".join(f'"{text}"' for text in texts)
        query = f"q={quote(wanted)}&" if texts else ""
        found = self._ask("GET", f"user/records?{query}size={most}&allversions=true")
        hits = _at(found, "hits", "hits")
        if not isinstance(hits, list):
            raise self._strange()
        return [str(hit["id"]) for hit in hits if isinstance(hit, dict) and "id" in hit]

    def has_community(self, slug: str) -> bool:
        """Says whether there is such a community, perhaps one that is not for us."""
        try:
            self._ask("GET", f"communities/{quote(slug, safe='')}")
        except NotFound:
            return False
        except AccessDenied:
            pass
        return True

    # -- changing ------------------------------------------------------------------------------------------------

    def create(self, description: Mapping[str, Any]) -> Version:
        """Makes a new draft of a new concept; to be called again only after a look."""
        return self._version(self._ask("POST", "records", description, wait=PATIENCE))

    def new_version(self, number: str) -> Version:
        """Returns the open draft of a record's next version; makes one if there is none."""
        return self._version(self._ask("POST", f"records/{number}/versions", wait=PATIENCE))

    def describe(self, version: Version, description: Mapping[str, Any]) -> Version:
        """Replaces the description of a draft, unless it changed since it was seen.

        Raises:
            Unavailable: It did: somebody else writes into it.
        """
        pids = version.says.get("pids")
        content = {**description, "pids": pids} if pids else description
        revision = version.says.get("revision_id")
        fence = {"If-Match": str(revision)} if type(revision) is int else {}
        return self._version(self._ask("PUT", f"records/{version.id}/draft", content, fence))

    def reserve_doi(self, version: Version) -> Version:
        """Returns a draft with a DOI, which is registered on publishing."""
        if version.doi:
            return version
        return self._version(self._ask("POST", f"records/{version.id}/draft/pids/doi"))

    def publish(self, number: str) -> None:
        """Publishes a draft; to be called again only after a look."""
        self._ask("POST", f"records/{number}/draft/actions/publish", wait=PATIENCE)

    def discard(self, number: str) -> None:
        """Deletes a draft; absent is fine."""
        self._delete(f"records/{number}/draft")

    def submit(self, number: str, slug: str) -> tuple[bool, str]:
        """Submits a record to a community; returns whether it is in it, and what is the matter if not."""
        says = self._ask("POST", f"records/{number}/communities", {"communities": [{"id": slug}]})
        if said := _said(says):
            return False, said
        processed = says.get("processed")
        open_ = any(_at(item, "request", "is_open") is True for item in processed or [] if isinstance(item, dict))
        return not open_, "its curators have to accept it" if open_ else ""

    # -- files ---------------------------------------------------------------------------------------------------

    def files(self, number: str) -> dict[str, File]:
        """Returns the files of a draft, also those on their way."""
        return _files(self._ask("GET", f"records/{number}/draft/files").get("entries"))

    def drop(self, number: str, name: str) -> None:
        """Deletes a file of a draft; absent is fine."""
        self._delete(f"records/{number}/draft/files/{quote(name, safe='')}")

    def send(self, number: str, name: str, content: Iterable[bytes], size: int) -> File:
        """Sends a file that is not there yet, and returns what arrived."""
        place = f"records/{number}/draft/files"
        self._ask("POST", place, [{"key": name}])
        place += f"/{quote(name, safe='')}"
        self._check(self._ask("PUT", f"{place}/content", content, {"Content-Length": str(size)}, size), name)
        says = self._ask("POST", f"{place}/commit", wait=PATIENCE + size / _SLOW_DISK)
        self._check(says, name)
        return _file(name, says)

    def _check(self, says: Mapping[str, Any], name: str) -> None:
        """Raises what an answer of 200 says went wrong with a file."""
        if problem := _said(says):
            raise Unavailable(f"{shown(self._url(''))}: '{name}' did not arrive: {problem}")

    # -- HTTP ----------------------------------------------------------------------------------------------------

    def _url(self, place: str) -> httpx2.URL:
        return parse_url(f"{self.base}/api/{place}")

    def _ask(
        self,
        method: str,
        place: str,
        content: Any = None,
        headers: Mapping[str, str] | None = None,
        size: int | None = None,
        wait: float = 0.0,
    ) -> dict[str, Any]:
        """Sends a request and returns the object that the answer is; `size` is that of a file's bytes."""
        extra = {"Accept": _ACCEPT, **(headers or {})}
        if size is not None:
            extra["Content-Type"] = "application/octet-stream"
            wait = PATIENCE + size / _SLOW_DISK
        elif content is not None:
            extra["Content-Type"] = "application/json"  # exactly: with a charset it would be 415
            content = json.dumps(content).encode()
        with self._fetcher.answer(method, self._url(place), lambda _place: extra, content, wait=wait) as answer:
            answer.require({HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.ACCEPTED})
            raw = answer.body(_LONGEST_ANSWER)
            try:
                found = json.loads(raw) if most_values(raw) <= _MOST_VALUES else None
            except (ValueError, RecursionError):
                found = None
        if not isinstance(found, dict):
            raise self._strange()
        return found

    def _delete(self, place: str) -> None:
        with suppress(NotFound), self._fetcher.answer("DELETE", self._url(place), _accept) as answer:
            answer.require({HTTPStatus.OK, HTTPStatus.NO_CONTENT})

    def _version(self, says: dict[str, Any]) -> Version:
        number = says.get("id")
        if not (isinstance(number, str) and ID.fullmatch(number) and isinstance(says.get("metadata"), dict)):
            raise self._strange()
        return Version(self.base, number, says, _files(_at(says, "files", "entries")))

    def _strange(self) -> IntegrityError:
        return IntegrityError(
            f"{self.base}: this is not how a repository with InvenioRDM answers",
            hint="check the address: base_url",
        )


def refusal(answer: Answer) -> BackendError:
    """Says what an unwelcome answer of a repository means."""
    status = answer.status
    where = f"{answer.where}: the repository answers {status}"
    said = _reason(answer)
    if said is None:
        return _page(answer, where)
    where += (f": {said}" if said else "") + answer.request_id
    hint = answer.credentials.hint
    match status:
        case HTTPStatus.NOT_FOUND:
            return NotFound(where)
        case HTTPStatus.GONE:
            return NotFound(where, hint="it was withdrawn: look for another copy of the same bundle")
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return AccessDenied(where, hint=hint)
        case HTTPStatus.BAD_REQUEST | HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return _bad_request(where, said, hint)
        case HTTPStatus.PRECONDITION_FAILED | HTTPStatus.CONFLICT:
            return Unavailable(where + _BUSY)
        case HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return RangeError(where)
    return _passing(answer, where) or Unsupported(where)


def _bad_request(where: str, said: str, hint: str) -> BackendError:
    """Tells apart what the repository answers with one and the same status."""
    if _CSRF.search(said):  # what it says to a request that came without a valid token
        return AccessDenied(f"{where}: the token is not accepted", hint=hint)
    if _CUT.search(said):
        return Unavailable(where)
    if _RACE.search(said):  # it was not there when we looked
        return Unavailable(where + _BUSY)
    return QuotaExceeded(where) if _QUOTA.search(said) else InvalidConfiguration(where)


def _page(answer: Answer, where: str) -> BackendError:
    """Says what a page for people means where the answer of a program should be."""
    where += f" with a page for people{answer.request_id}"
    if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return AccessDenied(
            f"{where}: it blocks this network or program, whatever the token",
            hint="stop for a while; if it lasts, write to the repository's support with this message",
        )
    return _passing(answer, where) or Unsupported(
        f"{where}: something answers there, but no repository with InvenioRDM", hint="check the address: base_url"
    )


def _passing(answer: Answer, where: str) -> BackendError | None:
    """Says what a status means that will be another one later; None if it will not."""
    status = answer.status
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        # Zenodo sends Retry-After with every answer: it means something with these two only.
        return RateLimited(where, retry_after=retry_after(answer.header("retry-after")))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY}:
        return Unavailable(where)
    return None


def _reason(answer: Answer) -> str | None:
    """Returns the repository's own sentence; None if it is not what the repository itself would answer."""
    try:
        says = json.loads(answer.body(_LONGEST_REASON))
    except (ValueError, RecursionError, IntegrityError):
        return None
    # Gateways answer in JSON, too; believing theirs, a record would lose what is still there.
    if not isinstance(says, dict) or (answer.status in _ABSENT and says.get("status") != answer.status):
        return None
    said = _said(says)
    token = answer.credentials.token
    return said.replace(token.get_secret_value(), "***") if token else said


def _said(says: Mapping[str, Any]) -> str:
    """Returns what an answer says is wrong, as one line."""
    lines = [f"{field}: {text}" if field else text for field, text in _errors(says)]
    message = says.get("message")
    if isinstance(message, str) and (not lines or "validation" not in message):
        lines.insert(0, message)
    text = escape("; ".join(lines))
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


def _errors(says: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns fields and what is wrong with them; a file's errors are one text."""
    found = says.get("errors")
    if isinstance(found, str):
        return [("", found)]
    errors = []
    for item in found if isinstance(found, list) else []:
        if isinstance(item, dict):
            messages = item.get("messages") or [item.get("message")]
            text = " ".join(str(m) for m in messages if m) if isinstance(messages, list) else str(messages)
            errors.append((str(item.get("field") or ""), text))
    return errors


def _files(entries: object) -> dict[str, File]:
    if isinstance(entries, dict):
        told = list(entries.items())
    else:
        listed = entries if isinstance(entries, list) else []
        told = [(str(e["key"]), e) for e in listed if isinstance(e, dict) and "key" in e]
    # What no address can hold cannot be asked for.
    return {name: _file(name, e) for name, e in told if isinstance(e, dict) and not _HALF.search(name)}


def _file(name: str, says: Mapping[str, Any]) -> File:
    size, checksum = says.get("size"), says.get("checksum")
    md5 = _MD5.fullmatch(checksum) if isinstance(checksum, str) else None
    done = says.get("status", "completed") == "completed"
    known = size if type(size) is int and 0 <= size <= _LARGEST_FILE else None
    return File(name, known, md5[1] if md5 and done else None)


def _accept(_place: str) -> Mapping[str, str]:
    return {"Accept": _ACCEPT}


def _at(says: object, *keys: str) -> Any:
    for key in keys:
        says = says.get(key) if isinstance(says, dict) else None
    return says
