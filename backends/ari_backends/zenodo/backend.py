"""Zenodo, or any repository that runs InvenioRDM: a draft while staged, a version with its DOI when public.

A locator is ``BASE/ID``: the repository's address and the id of one version, known as soon as its draft exists and
never used again. What a draft holds is told by the note in its description; a put's last step is to write it.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import re
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from http import HTTPStatus
from typing import Any, ClassVar, Final
from urllib.parse import quote, urlsplit

import httpx2

from ari_backends._claims import ZENODO_DOI, doi_of, zenodo_record
from ari_backends._http import Answer, Credentials, HttpReader, Seen, parse_url, pieces, shown
from ari_backends.zenodo.client import ID, File, Repository, Version, refusal
from ari_backends.zenodo.metadata import missing, record_metadata
from ari_backends.zenodo.note import Note
from ari_backends.zenodo.settings import SANDBOX, SLUG, ZENODO, ZenodoSettings
from ari_core.citation import MAX_CITATION_BYTES, describe_file
from ari_core.contract import (
    Artifact,
    Capabilities,
    Locator,
    NewArtifact,
    OpenContext,
    ReadStream,
    Source,
    Visibility,
)
from ari_core.errors import (
    AccessDenied,
    AlreadyExists,
    BackendBug,
    BackendError,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    QuotaExceeded,
    Unavailable,
    Unsupported,
    escape,
    from_os_error,
)
from ari_core.limits import Limits
from ari_core.names import BUNDLE_NAME, MANIFEST_NAME, quoted

DOI_ORG: Final = "https://doi.org"
VERIFIER_NAME: Final = "verify_bundle.py"

_OURS: Final = {BUNDLE_NAME, MANIFEST_NAME, VERIFIER_NAME}
_OF_ONE_VERSION: Final = {"publication_date", "version"}
"""What InvenioRDM does not take over into the draft of the next version."""
_BASES: Final = {"5281": ZENODO, "5072": SANDBOX}
_PREFIXES: Final = {base: f"10.{prefix}" for prefix, base in _BASES.items()}
_LOCATOR: Final = re.compile(r"(?P<base>https?://[^?#\s]+)/(?P<id>[0-9a-z-]{1,40})")
_LANDING: Final = re.compile(r"(?P<base>https?://[^?#\s]+?)/records/(?P<id>[0-9a-z-]{1,40})/?")
_LOOKS: Final = (2.0, 4.0, 8.0)
"""Seconds between looks for a draft that may have been made: the index lags."""


class Zenodo(HttpReader):
    """A draft is its owner's alone, so levels are enforced. Writers who know nothing of each other make two."""

    name = "zenodo"
    capabilities = Capabilities(
        put=True,
        delete="unpublished",
        ranges=True,
        visibility="enforced",
        levels=frozenset({Visibility.STAGED, Visibility.PUBLIC}),
        atomic_updates=True,  # there is one change, publishing, and it goes one way
        embargo=True,
    )
    Settings = ZenodoSettings
    settings: ZenodoSettings
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "token": ("ZENODO_TOKEN",),
        "sandbox": ("ZENODO_SANDBOX",),
    }
    trust_settings = ("base_url", "ca_file", "proxy")
    describes = True

    def __init__(self, settings: ZenodoSettings, context: OpenContext | None = None) -> None:
        super().__init__(settings, context)
        self._turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._made: dict[str, str] = {}  # drafts of this process, by archive digest: the index lags behind them
        self._looked_up: set[str] = set()  # communities
        self._unclear: set[str] = set()  # archives whose draft was ordered, and no answer came

    # -- where ---------------------------------------------------------------------------------------------------

    def _credentials(self, url: httpx2.URL) -> Credentials:
        base = self.settings.base
        if not str(url).startswith(f"{base}/"):
            return Credentials(
                None, f"the token is for {shown(parse_url(base))}; elsewhere only what is public is read"
            )
        hint = f"set ZENODO_TOKEN; a token is made at {base}/account/settings/applications/tokens/new/"
        return Credentials(self.settings.token, f"check the token, or {hint}" if self.settings.token else hint)

    def _refusal(self, answer: Answer) -> BackendError:
        return refusal(answer)

    def _repository(self, base: str) -> Repository:
        return Repository(self._fetcher, base)

    def _look(self, locator: Locator) -> Version:
        base, number = _parts(locator)
        return self._repository(base).look(number)

    def _require_token(self) -> None:
        credentials = self._credentials(parse_url(f"{self.settings.base}/api"))
        if credentials.token is None:
            raise AccessDenied(f"{self.settings.base}: this needs a token", hint=credentials.hint)

    def _probe(self) -> Capabilities:
        self._require_token()
        self._repository(self.settings.base).mine(most=1)
        return self.capabilities

    # -- reading -------------------------------------------------------------------------------------------------

    def _resolve(self, ref: str) -> Locator:
        base, number = zenodo_record(ref) or self._place_of(ref)
        repository = self._repository(str(parse_url(base)).rstrip("/"))
        return _locator(repository.look(number))  # a concept's id is not the version's

    def _place_of(self, ref: str) -> tuple[str, str]:
        doi = doi_of(ref)
        if doi is None:
            raise Unsupported(
                f"{quoted(ref[:100])} is no ref of Zenodo",
                hint="it is doi:10.5281/zenodo.NUMBER, or a record's URL",
            )
        if known := ZENODO_DOI.fullmatch(doi):
            return self.settings.base_url or _BASES[known["prefix"]], known["id"]
        return self._follow(doi)

    def _follow(self, doi: str) -> tuple[str, str]:
        """Asks where a DOI of some other repository leads."""
        resolver = f"{self.settings.base_url}/doi" if self.settings.base_url else DOI_ORG
        url = parse_url(f"{resolver}/{quote(doi, safe='/')}")
        with self._fetcher.answer("GET", url, credentials=Credentials(None, "check the DOI")) as answer:
            if found := _LANDING.fullmatch(answer.place):
                return found["base"], found["id"]
            if answer.status == HTTPStatus.NOT_FOUND:
                raise NotFound(
                    f"{shown(url)}: no such DOI",
                    hint="one that was just registered can take hours to lead somewhere",
                )
            if answer.status >= HTTPStatus.BAD_REQUEST:
                raise refusal(answer)
            raise Unsupported(
                f"{quoted(doi[:100])} leads to {escape(answer.place[:200])}, where no InvenioRDM is",
                hint="download the archive there, then `ari clone FILE`",
            )

    def _ref(self, locator: Locator) -> str:
        base, number = _parts(locator)
        if base in _PREFIXES:
            return f"doi:{_PREFIXES[base]}/zenodo.{number}"
        return f"zenodo+{base}/records/{number}"

    def is_own(self, ref: str) -> bool:
        """Says whether a ref is of the repository that this is set to publish to."""
        base = self.settings.base
        number = re.split(r"[./]", ref)[-1]
        return ID.fullmatch(number) is not None and ref == self._ref(Locator(f"{base}/{number}"))

    def _stat(self, locator: Locator) -> Artifact:
        return _artifact(self._look(locator))

    def _open(self, locator: Locator, offset: int) -> AbstractContextManager[ReadStream]:
        version = self._look(locator)
        artifact = _artifact(version)
        url = _content(version, str(version.bundle and version.bundle.name))
        return self._download(url, offset, Seen(artifact, "", None, self._clock()))

    def manifest(self, locator: Locator) -> bytes:
        """Returns the copy of the manifest that lies beside the bundle, where we put one.

        Raises:
            NotFound: There is no such artifact.
            Unsupported: There is none beside it.
        """
        version = self._look(locator)
        _artifact(version)
        if version.digests is None or MANIFEST_NAME not in version.files:
            raise Unsupported(f"{version.url}: there is no {MANIFEST_NAME} beside the bundle")
        with self._fetcher.answer("GET", _content(version, MANIFEST_NAME)) as answer:
            answer.require({HTTPStatus.OK})
            return answer.body(Limits.from_environment().manifest_bytes)

    def provider_checksum(self, locator: Locator) -> tuple[str, str]:
        """Returns the repository's MD5."""
        version = self._look(locator)
        _artifact(version)
        if version.bundle is None or version.bundle.md5 is None:
            raise Unsupported(f"{version.url}: the repository tells no checksum")
        return "md5", version.bundle.md5

    # -- storing -------------------------------------------------------------------------------------------------

    def _put(
        self, source: Source, new: NewArtifact, resume: Locator | None, on_reserved: Callable[[Locator], None]
    ) -> tuple[Artifact, bool]:
        self._require_token()
        job = _Job(self._repository(self.settings.base), new, self.settings, source)
        self._look_up(job.communities)
        with self._lock:
            turn = self._turns[source.archive_sha256]
        with turn:
            found = self._place(job, resume)
            if found and job.is_in(found):
                with _still_there(found):
                    return _artifact(self._closed(job, found)), False
            version = found or self._create(job)
            with _still_there(version):
                return self._fill(job, version, on_reserved, fresh=found is None), True

    def rehearse(self, new: NewArtifact, bundle_sha256: str, size: int | None) -> None:
        """Raises what a put would before it sends anything; a `size` of None is not known."""
        self._require_token()
        plan = _Plan(self._repository(self.settings.base), new, self.settings, bundle_sha256, size)
        self._look_up(plan.communities)
        self._known(plan, None)

    def _look_up(self, slugs: Iterable[str]) -> None:
        """Looks once for each community: what is mistyped would show after publishing only, which is for good."""
        repository = self._repository(self.settings.base)
        for slug in slugs:
            if slug in self._looked_up or repository.has_community(slug):
                continue
            if slug == self.settings.community:
                raise InvalidConfiguration(
                    f"{repository.base}: there is no community '{slug}'",
                    hint="it is named as in its address, …/communities/NAME",
                )
            # The bundle of somebody else may say so, who cannot be asked to correct it.
            self.context.warn(f"{repository.base}: there is no community '{slug}': -o community=NAME adds one")
        self._looked_up.update(slugs)

    def _closed(self, job: _Job, version: Version) -> Version:
        """Gives what is stored already the embargo that is wished for by now."""
        until, here = job.until(version), _ahead(version.embargo)
        if until == here:
            return version
        if not version.published:
            version = job.repository.describe(version, _as_it_is(version, until))
            job.require_valid(version)
            return version
        now = f"its files open on {here}" if here else "its files are open"
        wish = f"an embargo until {until}" if until else "another day"
        self.context.warn(f"{version.url} is published already, and {now}; {wish} can only be set on that page")
        return version

    def _place(self, job: _Job, resume: Locator | None) -> Version | None:
        """Returns the version that has this very bundle, or else the draft to fill, if there is one."""
        known = self._known(job, resume)
        if known and job.is_in(known):
            return known
        whole, begun = self._search(job, patiently=known is None)
        # A draft keeps its DOI, whatever lies elsewhere unpublished; but nothing is to be published twice.
        chosen = next((version for version in whole if known is None or version.published), None)
        chosen = chosen or known or (begun[0] if begun else None)
        for other in (*whole, *begun):
            if chosen and other.id != chosen.id and not other.published:
                self.context.warn(f"another draft of this bundle can be deleted: {other.url}")
        if chosen is not known or known is None or not known.published:
            return chosen
        # The record that led here may be a stranger's: say whose work gets a successor.
        title = escape(str(known.says["metadata"].get("title"))[:100])
        self.context.warn(f"this becomes a new version of {escape(known.doi or known.url)} ('{title}')")
        draft = job.repository.new_version(known.id)
        if not job.is_in(draft):
            job.require_way(draft, of=known)
        return draft

    def _known(self, job: _Plan, resume: Locator | None) -> Version | None:
        """Returns the version that this checkpoint, or this process, led to before."""
        previous = job.new.previous
        made = next((self._made[digest] for digest in job.digests() if digest in self._made), None)
        ours = Locator(f"{job.repository.base}/{made}") if made else None
        for locator in (resume, previous.locator if previous else None, ours):
            base, number = _parts(locator) if locator else ("", "")
            found = job.seek(number) if base == job.repository.base else None
            if found:
                if not job.is_in(found):
                    job.require_way(found)
                return found
        return None

    def _search(self, job: _Job, *, patiently: bool) -> tuple[list[Version], list[Version]]:
        """Searches for this bundle, whole or on its way: what an earlier run left and nobody noted."""
        digest = job.source.archive_sha256
        for pause in (*(_LOOKS if patiently and digest in self._unclear else ()), 0.0):
            numbers = job.repository.mine(*job.digests())
            found = [version for number in numbers if (version := job.seek(number))]
            whole = [version for version in found if job.is_in(version)]
            begun = [v for v in found if _is_begun(v) and v not in whole]
            if whole or begun:
                return whole, begun
            if pause:
                self._sleep(pause)
        return [], []

    def _create(self, job: _Job) -> Version:
        digest = job.source.archive_sha256
        try:
            version = job.repository.create(job.description(job.unfinished()))
        except (httpx2.TransportError, Unavailable):
            self._unclear.add(digest)
            raise
        self._unclear.discard(digest)
        self._made[digest] = version.id
        return version

    def _fill(
        self, job: _Job, version: Version, on_reserved: Callable[[Locator], None], *, fresh: bool
    ) -> Artifact:
        """Makes a draft hold the bundle; its note changes first, so that nothing half-done looks whole."""
        repository, source = job.repository, job.source
        begun = bool(version.note and version.note.archive_sha256 == source.archive_sha256)
        if not fresh:
            if before := version.digests:
                self.context.warn(
                    f"this takes the place of the bundle {before.bundle_sha256} in the draft {version.url}: "
                    "a paper that prints that digest has to print the new one"
                )
            version = repository.describe(version, job.description(job.unfinished(), version))
        on_reserved(_locator(version))
        job.require_valid(version)
        if job.stays_closed(version):
            self.context.warn(f"the files of {version.url} were restricted by hand, and stay so")
        version = self._reserved(repository, version)
        there = repository.files(version.id)
        for name in there.keys() - _OURS:  # none, or --replace
            repository.drop(version.id, name)
        bundle = _send_bundle(job, version, there.get(BUNDLE_NAME), begun=begun)
        files = {BUNDLE_NAME: bundle}
        for name, content in ((MANIFEST_NAME, source.manifest), (VERIFIER_NAME, _verifier())):
            files[name] = _send_small(job, version, there.get(name), name, content)
        version = repository.draft(version.id)
        if version.note is None or version.note.run != job.run:
            raise Unavailable(f"{version.url}: somebody else writes into this draft, too")
        if repository.files(version.id) != files:
            raise Unavailable(f"{version.url}: the files of the draft changed while they were sent")
        note = replace(job.unfinished(), run=None, bundle_sha256=source.bundle_sha256, md5=bundle.md5)
        version = repository.describe(version, job.description(note, version))
        job.require_valid(version)
        if version.doi and version.base not in _PREFIXES:
            self.context.warn(f"the DOI reserved for it is {escape(version.doi)}")  # the ref does not tell
        return _artifact(version)

    def _reserved(self, repository: Repository, version: Version) -> Version:
        """Returns a draft with the DOI that its ref promises, for the paper."""
        if version.base not in _PREFIXES:
            try:
                return repository.reserve_doi(version)
            except (InvalidConfiguration, NotFound, Unsupported) as error:
                self.context.warn(f"this repository reserves no DOI: {error.message}")
                return version
        version = repository.reserve_doi(version)
        expected = f"{_PREFIXES[version.base]}/zenodo.{version.id}"
        if version.doi != expected:
            raise IntegrityError(
                f"{version.url}: the reserved DOI is {escape(str(version.doi))}, not {expected}",
                hint="look at the draft: a DOI of your own does not go with this program's refs",
            )
        return version

    # -- changing ------------------------------------------------------------------------------------------------

    def _raise_visibility(self, locator: Locator, target: Visibility) -> Visibility:
        repository, version = self._repository(_parts(locator)[0]), self._look(locator)
        _artifact(version)
        if target is Visibility.STAGED and not version.published:
            return target
        if version.is_closed:
            raise Unsupported(
                f"the files of {version.url} are restricted, and not until a day: they would not be '{target}'",
                hint="open them on that page, then run this again",
            )
        if not version.published:
            self._publish(repository, version)
        slugs = [self.settings.community, *(version.note.communities if version.note else ())]
        for slug in dict.fromkeys(slug for slug in slugs if slug):
            self._submit(repository, version, slug)
        return Visibility.PUBLIC

    def _publish(self, repository: Repository, version: Version) -> None:
        if version.digests is None:
            raise IntegrityError(
                f"{version.url}: {BUNDLE_NAME} in the draft is not the one that was stored; nothing was published",
                hint="look at the draft; `ari ear publish --replace` stores it again",
            )
        if version.embargo and not _ahead(version.embargo):
            version = repository.describe(version, _as_it_is(version, None))  # the day came first
        if problems := version.problems:
            raise _invalid(version, problems)
        try:
            repository.publish(version.id)
        except (BackendError, httpx2.TransportError) as error:
            now = repository.look(version.id)
            if not now.published:
                if isinstance(error, NotFound):
                    raise Unavailable(f"{version.url}: it was not published: {error.message}") from error
                raise
        else:
            now = repository.look(version.id)
        if now.digests != version.digests:
            raise IntegrityError(
                f"{now.url}: published, but {BUNDLE_NAME} is not the one that was there a moment before",
                hint="somebody else changed the draft meanwhile; what is published stays: look at it there",
            )

    def _submit(self, repository: Repository, version: Version, slug: str) -> None:
        """Submits a record to a community; that it did not work changes nothing about the record."""
        try:
            included, what = repository.submit(version.id, slug)
        except (BackendError, httpx2.TransportError) as error:
            ours = error if isinstance(error, BackendError) else self._translate(error)
            included, what = False, ours.message if ours else ""
        if not included and "already" not in what:
            self.context.warn(f"community '{slug}': {what}; the record is at {version.base}/records/{version.id}")

    def _delete(self, locator: Locator) -> None:
        base, number = _parts(locator)
        with suppress(NotFound):
            version = self._look(locator)
            if version.published:
                raise Unsupported(
                    f"{version.url} is published, and stays",
                    hint="its owner can ask the repository to withdraw it, for some days on the record's own page",
                )
            if not (_is_begun(version) or version.digests) or _foreign(version):
                others = f" ({_names(_foreign(version))})" if _foreign(version) else ""
                raise Unsupported(
                    f"{version.url} is no draft of this program's making alone{others}; it was not touched",
                    hint="delete it in the browser",
                )
            self._repository(base).discard(number)


class _Plan:
    """What the repository will be told of a bundle, and what may give way to it.

    Attributes:
        repository: Where.
        new: What was given with the bundle.
        communities: Where it is to be submitted.
    """

    def __init__(
        self,
        repository: Repository,
        new: NewArtifact,
        settings: ZenodoSettings,
        bundle_sha256: str = "",
        size: int | None = None,
    ) -> None:
        """Checks all that can be checked before anything is sent.

        Raises:
            Unsupported: The wish is no level of Zenodo's.
            QuotaExceeded: The bundle is too large.
            InvalidConfiguration: The description is not one that could be published.
            ConfigurationError: It is not one at all.
        """
        self.repository, self.new, self._bundle_sha256 = repository, new, bundle_sha256
        if new.wish in {Visibility.UNLISTED, Visibility.PRIVATE_TOKEN}:
            raise Unsupported(
                f"Zenodo has no level '{new.wish}': a published record is in its catalogue for ever",
                hint="wish for staged, public or embargoed-until:YYYY-MM-DD (docs/zenodo.md)",
            )
        if size is not None and size > settings.max_size:
            raise QuotaExceeded(
                f"the bundle has {size} bytes; a record holds {int(settings.max_size)}",
                hint="ask the repository for more, then raise max_size; or publish elsewhere",
            )
        self._facts = {**new.description, **_from_file(settings)}
        if lacking := missing(self._facts):
            raise InvalidConfiguration(
                f"{urlsplit(settings.base).hostname} would not publish this: it lacks {'; and '.join(lacking)}",
                hint="write it into `zenodo:` of publish.yaml, or into a CITATION.cff that `include` asks for; "
                "for a bundle as it is, give -o metadata=FILE (docs/zenodo.md)",
            )
        slugs = [settings.community, *self._facts.get("communities", ())]
        self.communities = tuple(dict.fromkeys(slug for slug in slugs if slug))
        if wrong := next((slug for slug in self.communities if not SLUG.fullmatch(slug)), None):
            raise InvalidConfiguration(
                f"{quoted(wrong[:100])} is no community", hint="it is named as in its address, …/communities/NAME"
            )
        self.description(Note("0" * 64))

    def description(self, note: Note, version: Version | None = None) -> dict[str, Any]:
        """Returns what the repository is told of the record; `version` has DOIs of its own.

        Raises:
            ConfigurationError: Something cannot be told.
        """
        own = version.dois if version else ()
        metadata = record_metadata(self._facts, notes=str(note), today=_today(), own=own)
        record = version.audience if version else "public"
        access = _access(self.until(version), record, closed=self.stays_closed(version))
        return {"access": access, "files": {"enabled": True}, "metadata": metadata}

    def stays_closed(self, version: Version | None) -> bool:
        """Says whether files restricted in the browser stay so: only a day that is wished for opens them."""
        return version is not None and version.is_closed and _ahead(self.new.embargo) is None

    def until(self, version: Version | None) -> date | None:
        """Returns until when the files are to be closed: as wished for, else as they are by now."""
        if version is None or self.new.embargo or self.new.wish is Visibility.PUBLIC:
            return _ahead(self.new.embargo)
        return _ahead(version.embargo)

    def seek(self, number: str) -> Version | None:
        """Returns a version if it is there.

        Raises:
            AccessDenied: It is not ours, or the repository blocks us: to start afresh could publish it twice.
        """
        with suppress(NotFound):
            return self.repository.look(number)
        return None

    def digests(self) -> list[str]:
        """Returns the digests by which a version that holds it can be known."""
        return [self._bundle_sha256]

    def is_in(self, version: Version) -> bool:
        """Says whether a version holds this very bundle, perhaps in another packing."""
        there = version.digests
        return bool(there and {there.archive_sha256, there.bundle_sha256}.intersection(self.digests()))

    def require_way(self, version: Version, *, of: Version | None = None) -> None:
        """Sees to it that only what this checkpoint stored itself gives way, or has a successor.

        That a record names a place is no proof: records come with downloads. What is there has to say that it is
        an unfinished upload, or the very archive that the record tells of. The digest of a draft's bundle may be
        printed already; that of its archive is not.

        Args:
            version: What would give way.
            of: The published version of which this is the next, if it was opened as that.

        Raises:
            AlreadyExists: Something else is there.
        """
        if self.new.replace:
            return
        previous, note = self.new.previous, version.note
        if _foreign(version) and not version.published:
            gives_way = False
        elif of is not None:
            gives_way = _is_begun(version) or _is_untouched(version, of)
        else:
            there = note if version.digests or not (version.published or version.bundle) else None
            known = previous and there and previous.archive_sha256 == there.archive_sha256
            gives_way = _is_begun(version) or bool(known)
        if not gives_way:
            what = f" ({_names(_foreign(version))})" if _foreign(version) else ""
            raise AlreadyExists(
                f"{version.url} holds something else than what was published from here{what}; it was not touched",
                hint="look at it; --replace lets this take its place",
            )


class _Job(_Plan):
    """What one put is about.

    Attributes:
        source: The archive.
        run: Names this put in the draft, so that two that fill the same draft notice each other.
    """

    def __init__(self, repository: Repository, new: NewArtifact, settings: ZenodoSettings, source: Source) -> None:
        """Checks as `_Plan` does."""
        super().__init__(repository, new, settings, size=source.size)
        self.source = source
        self.run = uuid.uuid4().hex

    def digests(self) -> list[str]:
        """Returns the digests by which a version that holds it can be known."""
        with suppress(BackendBug):  # a source that learns it at its end
            return [self.source.archive_sha256, self.source.bundle_sha256]
        return [self.source.archive_sha256]

    def unfinished(self) -> Note:
        """What the draft says while its files are being sent."""
        return Note(self.source.archive_sha256, run=self.run, communities=self.communities)

    def require_valid(self, version: Version) -> None:
        """Raises what the repository says of the description, before anything large is sent."""
        if problems := version.problems:
            raise _invalid(version, problems)


# -- sending -----------------------------------------------------------------------------------------------------


def _send_bundle(job: _Job, version: Version, there: File | None, *, begun: bool) -> File:
    """Sends the archive, unless it is there already."""
    md5 = hashlib.md5(usedforsecurity=False)
    repository, size = job.repository, job.source.size
    with closing(pieces(job.source)) as parts:
        if there and begun and there.md5 and there.size == size:
            for part in parts:
                md5.update(part)
            arrived = there
        else:
            if there:
                repository.drop(version.id, BUNDLE_NAME)
            arrived = repository.send(version.id, BUNDLE_NAME, _hashing(parts, md5), size)
    if (arrived.size, arrived.md5) != (size, md5.hexdigest()):
        repository.drop(version.id, BUNDLE_NAME)
        raise Unavailable(f"{version.url}: other bytes arrived than were sent; they were removed")
    return arrived


def _hashing(parts: Iterable[bytes], md5: hashlib._Hash) -> Generator[bytes]:
    for part in parts:
        md5.update(part)
        yield part


def _send_small(job: _Job, version: Version, there: File | None, name: str, content: bytes) -> File:
    """Sends a small file, unless it is there already."""
    expected = File(name, len(content), hashlib.md5(content, usedforsecurity=False).hexdigest())
    if there == expected:
        return there
    if there:
        job.repository.drop(version.id, name)
    if job.repository.send(version.id, name, [content], len(content)) != expected:
        raise Unavailable(f"{version.url}: of '{name}' other bytes arrived than were sent")
    return expected


def _verifier() -> bytes:
    """The program that verifies the bundle without us."""
    return importlib.resources.files("ari_core").joinpath("standalone", VERIFIER_NAME).read_bytes()


@contextmanager
def _still_there(version: Version) -> Iterator[None]:
    """Tells a draft that vanished under a put from one that never was."""
    try:
        yield
    except NotFound as error:
        raise Unavailable(f"{version.url}: somebody else changed this draft meanwhile: {error.message}") from error


# -- spelling ----------------------------------------------------------------------------------------------------


def _parts(locator: Locator) -> tuple[str, str]:
    found = _LOCATOR.fullmatch(locator)
    if found is None:
        raise Unsupported(f"{quoted(locator[:100])} is no record of Zenodo")
    return found["base"], found["id"]


def _locator(version: Version) -> Locator:
    return Locator(f"{version.base}/{version.id}")


def _content(version: Version, name: str) -> httpx2.URL:
    return parse_url(f"{version.api}/files/{quote(name, safe='')}/content")


def _artifact(version: Version) -> Artifact:
    """Returns what a version holds.

    Raises:
        NotFound: It is a draft that holds nothing yet.
        AccessDenied: The files are not for us.
        Unsupported: It holds no bundle.
    """
    bundle, note = version.bundle, version.note
    if not version.published and not (bundle and note and note.bundle_sha256):
        raise NotFound(f"{version.url}: this draft holds no bundle yet", hint="publish again to go on with it")
    if bundle is None and version.is_restricted:
        until = f" until {version.embargo}" if version.embargo else ""
        raise AccessDenied(
            f"{version.url}: its files are restricted{until}", hint="its owner can read it with a token"
        )
    if bundle is None:
        raise Unsupported(f"{version.url}: there is no archive in this record")
    digests = version.digests
    level = Visibility.PUBLIC if version.published else Visibility.STAGED
    closed = version.published and version.is_closed
    return Artifact(
        _locator(version),
        bundle.size,
        digests.archive_sha256 if digests else None,
        digests.bundle_sha256 if digests else None,
        None if closed else level,
        embargo=version.embargo,
        doi=version.doi,
    )


def _access(until: date | None, record: str = "public", *, closed: bool = False) -> dict[str, Any]:
    """Returns who may see what; without a day, the files are open, or closed for good."""
    if until is None:
        return {"record": record, "files": "restricted" if closed else "public"}
    return {"record": record, "files": "restricted", "embargo": {"active": True, "until": until.isoformat()}}


def _ahead(day: date | None) -> date | None:
    """Returns the day of an embargo that has not ended."""
    return day if day and day > _today() else None


def _invalid(version: Version, problems: Iterable[str]) -> InvalidConfiguration:
    return InvalidConfiguration(
        f"{version.url}: the repository would not publish this: {escape('; '.join(problems))}",
        hint="correct the description (docs/zenodo.md), then publish again: the draft is kept",
    )


def _as_it_is(version: Version, until: date | None) -> dict[str, Any]:
    """Returns a draft's description as it is, with another embargo or none."""
    return {
        "access": _access(until, record=version.audience),
        "files": {"enabled": True},
        "custom_fields": version.says.get("custom_fields") or {},
        "metadata": _as_input(version.says["metadata"]),
    }


def _as_input(value: Any) -> Any:
    # An entry of a vocabulary comes with its titles, and goes without.
    if isinstance(value, dict):
        return {"id": value["id"]} if "id" in value else {key: _as_input(item) for key, item in value.items()}
    return [_as_input(item) for item in value] if isinstance(value, list) else value


def _foreign(version: Version) -> set[str]:
    """Returns the names of files that a put did not store."""
    return version.files.keys() - _OURS


def _is_begun(version: Version) -> bool:
    """Says whether this is an unfinished upload, and nothing besides."""
    return not version.published and bool(version.note and version.note.run) and not _foreign(version)


def _is_untouched(draft: Version, of: Version) -> bool:
    """Says whether the draft of a next version is as the repository makes it: nobody's work is lost with it."""
    now, then = (
        {key: value for key, value in version.says["metadata"].items() if key not in _OF_ONE_VERSION}
        for version in (draft, of)
    )
    return not draft.files and _as_input(now) == _as_input(then)


def _names(files: Iterable[str]) -> str:
    first = sorted(files)[:5]
    return ", ".join(f"'{escape(name)}'" for name in first) + (", …" if len(first) < len(set(files)) else "")


def _from_file(settings: ZenodoSettings) -> dict[str, Any]:
    """Returns what the setting `metadata` describes."""
    if settings.metadata is None:
        return {}
    try:
        with settings.metadata.open("rb") as file:
            raw = file.read(MAX_CITATION_BYTES + 1)
    except OSError as error:
        raise from_os_error(error, f"reading {quoted(str(settings.metadata))}") from error
    return describe_file(str(settings.metadata), raw)


def _today() -> date:
    return datetime.now(UTC).date()
