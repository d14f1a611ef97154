"""The stored layout ``artifacts/<id>/{bundle.tar.gz, manifest.lock, meta.json}``, over a handful of operations.

Whoever can do what `Blobs` asks for gets a whole backend from `StoredLayout`: names, levels, owners, and the
order of writes that makes a crash harmless. ``meta.json`` comes last and goes first: without it there is nothing.
An id is the leading digits of the archive digest; folders of other tools may have more or fewer of them.

Where a place has locks (`Blobs.guard`), writers of one artifact take turns. Where it has none, ``meta.json`` is
compared and swapped, the bytes of one id are always the same (give such a place ids of all 64 digits), and when a
delete and a put cross, the put finds that it has to be done again.

``meta.json`` has the fields of the existing server (``id, visibility, owner, created_at, sha256, length``) and
ours (docs/format.md, "Stored layout"). What we do not know is kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from ari_core.contract import Artifact, Backend, Locator, NewArtifact, Owner, ReadStream, Source, Visibility
from ari_core.digests import is_sha256
from ari_core.errors import AlreadyExists, IntegrityError, NotFound, Unavailable, Unsupported
from ari_core.limits import Limits
from ari_core.manifest import parse_manifest
from ari_core.names import BUNDLE_NAME, MANIFEST_NAME, META_NAME, quoted

ARTIFACTS: Final = "artifacts"
ID_DIGITS: Final = 16
"""Digits of an id, unless a store is set to more."""
MOST_DIGITS: Final = 64
META_MAX_BYTES: Final = 4 * 1024 * 1024

_ID: Final = re.compile(r"[0-9a-f]{1,64}")
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_TRIES: Final = 1000


class Blob(NamedTuple):
    """A small object and what tells one version of it from the next (an ETag, or the bytes themselves)."""

    data: bytes
    version: Any
    modified: datetime


class Blobs(ABC):
    """What a place must be able to do. Keys are ``artifacts/<id>/<name>``; nothing else is ever touched."""

    @abstractmethod
    def read(self, key: str, most: int = META_MAX_BYTES) -> Blob | None:
        """Reads a small object; None only when it is certainly absent.

        Raises:
            IntegrityError: It has more than `most` bytes, or is nothing that can be read.
        """

    @abstractmethod
    def write(self, key: str, data: bytes, *, replacing: Any) -> bool:
        """Writes a small object, whole and durable or not at all.

        Args:
            key: Where.
            data: What.
            replacing: The version that must still be there; None: nothing must be there.

        Returns:
            False when that is not so; nothing was changed. Also when it was written after all, by a first attempt
            whose answer got lost: everybody looks again then.
        """

    @abstractmethod
    def remove(self, key: str, *, version: Any = None) -> bool:
        """Removes a small object, durably; absent is fine.

        Where no condition can go with a removal, write a note in its place that `read` takes for nothing, and over
        which nobody writes until `clear`, which always follows, has taken it away: so the bytes of a put cannot go
        with an artifact that was deleted before.

        Returns:
            False when it is not `version` any more; nothing was changed. None stands for any version.
        """

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Returns the bytes of a large object; None when it is absent."""

    @abstractmethod
    def open(self, key: str, offset: int) -> AbstractContextManager[ReadStream]:
        """Reads a large object from `offset` to its end.

        Raises:
            NotFound: It is absent.
        """

    @abstractmethod
    def receive(self, artifact: str, source: Source) -> AbstractContextManager[Callable[[], None]]:
        """Reads the source to its clean end, invisibly.

        Yields what puts the archive and its manifest in their places, durably, over what a crash left there. If
        it is not called, leaving the context takes everything away again.
        """

    @abstractmethod
    def clear(self, artifact: str) -> None:
        """Removes all of an artifact whose metadata is gone; absent is fine."""

    @abstractmethod
    def ids(self, digits: str = "", after: str = "") -> Iterator[str]:
        """Yields the ids behind `after` that start with `digits`, in order, also such without metadata."""

    def held(self, sha256: str) -> Iterator[str]:
        """Yields the ids of `ID_DIGITS` and more that `sha256` starts with."""
        return (artifact for artifact in self.ids(sha256[:ID_DIGITS]) if sha256.startswith(artifact))

    def guard(self, artifact: str, *, new: bool = False) -> AbstractContextManager[None]:  # noqa: ARG002
        """Keeps other programs from changing this artifact, where the place has locks; else does nothing.

        Args:
            artifact: Its id.
            new: It is about to be stored; what an exception leaves half-done is taken away.

        Raises:
            NotFound: There is nothing to lock, and it is not `new`.
        """
        return nullcontext()


# -- meta.json ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Meta:
    """``meta.json``, read.

    The artifact's own level and its owners' stand apart; the effective one is written beside them for the existing
    server. Were it the only one, it could not sink when an owner goes.

    Attributes:
        sha256: Archive digest.
        length: Size of the archive in bytes.
        created: When it was stored.
        own: The artifact's own level, which `Backend.raise_visibility` raises.
        owners: Each with a level of their own.
        bundle_sha256: Bundle digest; None in what the existing server wrote.
        manifest_sha256: Digest of ``manifest.lock``, if that is byte for byte the one in the bundle.
        fields: Everything that stands there, as it stands there.
    """

    sha256: str
    length: int
    created: datetime
    own: Visibility
    owners: tuple[Owner, ...]
    bundle_sha256: str | None = None
    manifest_sha256: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def new(cls, artifact: str, source: Source, new: NewArtifact) -> Meta:
        """Describes an artifact that is about to be stored: staged, whatever the author wishes for."""
        created = _seconds(new.created)
        manifest = parse_manifest(source.manifest, Limits.from_environment())
        fields = {
            "id": artifact,
            "wish": new.wish,
            "embargo": new.embargo.isoformat() if new.embargo else None,
            "description": dict(new.description),
            "file_count": len(manifest.files),
            "total_bytes": sum(entry.size for entry in manifest.files),
        }
        return cls(
            sha256=source.archive_sha256,
            length=source.size,
            created=created,
            own=Visibility.STAGED,
            owners=(Owner(new.owner, created=created),) if new.owner else (),
            bundle_sha256=source.bundle_sha256,
            manifest_sha256=hashlib.sha256(source.manifest).hexdigest(),
            fields=fields,
        )

    @classmethod
    def parse(cls, artifact: str, blob: Blob) -> Meta:
        """Reads ``meta.json`` of any age: the oldest have neither id nor time.

        Raises:
            IntegrityError: It is damaged, or of another artifact.
        """
        try:
            fields = _object(blob.data)
            level = Visibility(fields["visibility"])
            created = _time(fields["created_at"]) if "created_at" in fields else _seconds(blob.modified)
            meta = cls(
                sha256=fields["sha256"],
                length=fields["length"],
                created=created,
                own=Visibility(fields.get("own_visibility", Visibility.STAGED)),
                owners=_owners(fields, level, created),
                bundle_sha256=fields.get("bundle_sha256"),
                manifest_sha256=fields.get("manifest_sha256"),
                fields=fields,
            )
            _check(artifact, meta)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise IntegrityError(
                f"{META_NAME} of the artifact {quoted(artifact)} is damaged ({type(error).__name__})",
                hint="restore it from a backup, or delete the artifact and store it again",
            ) from error
        # The existing server raises the level and knows nothing of ours.
        return meta if level.rank <= meta.visibility.rank else meta._with_level(level)

    def _with_level(self, level: Visibility) -> Meta:
        if not self.owners:
            return self._but(own=level)
        first, *others = self.owners
        return self._but(owners=(Owner(first.user, level, first.created), *others))

    @property
    def visibility(self) -> Visibility:
        """The effective level: the highest there is."""
        return max((self.own, *(owner.visibility for owner in self.owners)), key=lambda level: level.rank)

    def encode(self) -> bytes:
        """Returns the file's contents.

        Raises:
            Unsupported: They would be too long to be read back.
        """
        ours = {
            "visibility": self.visibility,
            "owner": self.owners[0].user if self.owners else None,
            "created_at": self.created.strftime(_TIME),
            "sha256": self.sha256,
            "length": self.length,
            "bundle_sha256": self.bundle_sha256,
            "manifest_sha256": self.manifest_sha256,
            "own_visibility": self.own,
            "owners": [
                {
                    "user": owner.user,
                    "visibility": owner.visibility,
                    "created_at": (owner.created or self.created).strftime(_TIME),
                }
                for owner in self.owners
            ],
        }
        # ASCII, so that a name which is not Unicode does no harm.
        data = (json.dumps({**self.fields, **ours}, indent=2) + "\n").encode()
        if len(data) > META_MAX_BYTES:
            raise Unsupported(f"{META_NAME} would have {len(data)} bytes, over the limit of {META_MAX_BYTES}")
        return data

    def artifact(self, locator: Locator) -> Artifact:
        """Describes it as the contract does."""
        description = self.fields.get("description")
        return Artifact(
            locator,
            size=self.length,
            archive_sha256=self.sha256,
            bundle_sha256=self.bundle_sha256,
            visibility=self.visibility,
            owners=self.owners,
            created=self.created,
            description=description if isinstance(description, dict) else None,
        )

    def raised(self, target: Visibility) -> Meta:
        """Returns it with the artifact's own level at least at `target`."""
        return self._but(own=max(self.own, target, key=lambda level: level.rank))

    def own_raised(self, user: str, target: Visibility) -> Meta:
        """Returns it with the level of one owner at least at `target`.

        Raises:
            NotFound: `user` is no owner.
        """
        if user not in {owner.user for owner in self.owners}:
            raise NotFound(f"{quoted(user)} is no owner of it")
        return self._but(
            owners=tuple(
                Owner(o.user, max(o.visibility, target, key=lambda level: level.rank), o.created)
                if o.user == user
                else o
                for o in self.owners
            )
        )

    def claimed(self, user: str, when: datetime) -> Meta:
        """Returns it with `user` among the owners."""
        if user in {owner.user for owner in self.owners}:
            return self
        return self._but(owners=(*self.owners, Owner(user, created=_seconds(when))))

    def disclaimed(self, user: str) -> Meta | None:
        """Returns it without `user` among the owners; None when that was the last one."""
        left = tuple(owner for owner in self.owners if owner.user != user)
        if left == self.owners:
            return self
        return self._but(owners=left) if left else None

    def _but(self, *, own: Visibility | None = None, owners: tuple[Owner, ...] | None = None) -> Meta:
        return Meta(
            sha256=self.sha256,
            length=self.length,
            created=self.created,
            own=self.own if own is None else own,
            owners=self.owners if owners is None else owners,
            bundle_sha256=self.bundle_sha256,
            manifest_sha256=self.manifest_sha256,
            fields=self.fields,
        )


def _object(data: bytes) -> dict[str, Any]:
    fields = json.loads(data)
    if not isinstance(fields, dict):
        raise TypeError("not an object")
    return fields


def _owners(fields: Mapping[str, Any], level: Visibility, created: datetime) -> tuple[Owner, ...]:
    if "owners" in fields:
        return tuple(
            Owner(
                _name(one["user"]),
                Visibility(one["visibility"]),
                _time(one["created_at"]) if "created_at" in one else created,
            )
            for one in fields["owners"]
        )
    owner = fields.get("owner")
    return () if owner in {None, ""} else (Owner(_name(owner), level, created),)


def _name(user: Any) -> str:
    if not isinstance(user, str):
        raise TypeError("not a name")
    return user


def _time(text: str) -> datetime:
    when = datetime.fromisoformat(text)
    return _seconds(when if when.tzinfo else when.replace(tzinfo=UTC))


def _seconds(when: datetime) -> datetime:
    return when.astimezone(UTC).replace(microsecond=0)


def _check(artifact: str, meta: Meta) -> None:
    digests = (meta.bundle_sha256, meta.manifest_sha256)
    if not is_sha256(meta.sha256) or not meta.sha256.startswith(artifact):
        raise ValueError("of another artifact")
    if type(meta.length) is not int or meta.length < 0 or any(not (d is None or is_sha256(d)) for d in digests):
        raise ValueError("not what should stand there")


# -- the backend -------------------------------------------------------------------------------------------------


class _Stored(NamedTuple):
    artifact: str
    meta: Meta


class StoredLayout(Backend):
    """A backend for any place that can do what `Blobs` asks for.

    Attributes:
        id_digits: Digits of the ids of new artifacts.
    """

    id_digits: int = ID_DIGITS

    # -- for authors: which place, and how a locator names an artifact in it --

    @abstractmethod
    def _here(self) -> Blobs:
        """Returns the place that the settings name, which new artifacts go to.

        Raises:
            InvalidConfiguration: They name none.
        """

    @abstractmethod
    def _at(self, locator: Locator) -> tuple[Blobs, str]:
        """Returns place and id of a locator.

        Raises:
            NotFound: It is no locator.
        """

    def _to_change(self, locator: Locator) -> tuple[Blobs, str]:
        """Returns place and id of a locator of something that is to be changed.

        Raises:
            Unsupported: It is not in the place that the settings name.
        """
        return self._at(locator)

    @abstractmethod
    def _locator(self, artifact: str) -> Locator:
        """Returns the locator of an id `_here`."""

    # -- the contract --

    def _stat(self, locator: Locator) -> Artifact:
        place, artifact = self._at(locator)
        return self._meta(place, artifact)[0].artifact(locator)

    @contextmanager
    def _open(self, locator: Locator, offset: int) -> Iterator[ReadStream]:
        place, artifact = self._at(locator)
        with ExitStack() as stack:
            try:
                stream = stack.enter_context(place.open(key_of(artifact, BUNDLE_NAME), offset))
            except NotFound as error:
                self._meta(place, artifact)  # deleted since
                raise IntegrityError(f"the artifact {artifact} has lost its {BUNDLE_NAME}") from error
            yield stream

    def _put(
        self,
        source: Source,
        new: NewArtifact,
        resume: Locator | None,  # noqa: ARG002 - the digest is the name, so nothing is ever reserved
        on_reserved: Callable[[Locator], None],  # noqa: ARG002
    ) -> tuple[Artifact, bool]:
        place = self._here()
        found = self._stored(place, source)
        artifact = found.artifact if found else source.archive_sha256[: self.id_digits]
        key, bundle = key_of(artifact, META_NAME), key_of(artifact, BUNDLE_NAME)
        created = False
        # If its bytes are not there, this puts them there again.
        if not found or place.size(bundle) != source.size:
            with place.receive(artifact, source) as commit:
                meta = Meta.new(artifact, source, new).encode()
                with place.guard(artifact, new=True):
                    if place.read(key) is None or (found and place.size(bundle) != source.size):
                        commit()
                    # The commit point. Create-only: of several writers one creates.
                    created = place.write(key, meta, replacing=None)
                    if created and (size := place.size(bundle)) != source.size:
                        if size is None:  # the next put sends them again; somebody else may have done so by now
                            raise Unavailable(f"the artifact {artifact} was being deleted meanwhile")
                        place.remove(key)
                        self._clear(place, artifact)
                        raise Unavailable(f"the archive of {artifact} did not arrive as it was sent")
                    found = self._stored(place, source)
            if not found:
                raise Unavailable(f"the artifact {artifact} was deleted as soon as it was stored")
        # Owners stay as they are: a server calls claim() next.
        return found.meta.artifact(self._locator(found.artifact)), created

    def _stored(self, place: Blobs, source: Source) -> _Stored | None:
        """Finds an archive under an id of any length.

        Raises:
            AlreadyExists: The id it would get is another archive's.
        """
        mine = source.archive_sha256[: self.id_digits]
        for artifact in self._candidates(place, source.archive_sha256):
            blob = place.read(key_of(artifact, META_NAME))
            if blob is None:
                continue
            meta = Meta.parse(artifact, blob)
            if meta.sha256 == source.archive_sha256:
                return _Stored(artifact, meta)
            if artifact == mine:
                raise AlreadyExists(
                    f"another archive has the id {artifact} already; nothing was overwritten",
                    hint="let the store issue longer ids (id_digits)",
                )
        return None

    def _candidates(self, place: Blobs, sha256: str) -> Iterator[str]:
        # As a rule the first one is it, and the others would take a request.
        yield (mine := sha256[: self.id_digits])
        yield from (artifact for artifact in place.held(sha256) if artifact != mine)

    def find(self, digits: str) -> Locator:
        """Returns the artifact `_here` whose id or archive digest starts with `digits`, or that has it as its id.

        Raises:
            NotFound: There is none.
            AlreadyExists: There are several.
        """
        with self._errors():
            return self._locator(self._find(self._here(), digits))

    def _find(self, place: Blobs, digits: str) -> str:
        if not is_id(digits):
            raise NotFound(f"{quoted(digits[:80])} is no artifact id")
        if place.read(key_of(digits, META_NAME)) is not None:
            return digits  # an id that was printed stays good, whatever came later
        found: dict[str, str] = {}
        if len(digits) >= (least := min(ID_DIGITS, self.id_digits)):
            for name in place.ids(digits[:least]):
                if digits.startswith(name) or name.startswith(digits):
                    blob = place.read(key_of(name, META_NAME))
                    if blob is not None and (sha256 := Meta.parse(name, blob).sha256).startswith(digits):
                        found.setdefault(sha256, name)
        if len(found) > 1:
            raise AlreadyExists(f"{digits} are the first digits of several artifacts", hint="give more of them")
        if not found:
            short = f"an id has {ID_DIGITS} to {MOST_DIGITS} digits" if len(digits) < ID_DIGITS else None
            raise NotFound(f"there is no artifact {digits}", hint=short)
        return found.popitem()[1]

    def _raise_visibility(self, locator: Locator, target: Visibility) -> Visibility:
        return self._change(locator, lambda meta: meta.raised(target))

    def _delete(self, locator: Locator) -> None:
        place, artifact = self._to_change(locator)
        with suppress(NotFound), place.guard(artifact):
            place.remove(key_of(artifact, META_NAME))
            self._clear(place, artifact)

    def _clear(self, place: Blobs, artifact: str) -> None:
        # Without locks somebody may have stored it again since.
        if place.read(key_of(artifact, META_NAME)) is None:
            place.clear(artifact)

    def _list(self, after: str | None) -> Iterator[tuple[Artifact, str]]:
        # The cursor is the id, in order of ids: what comes or goes meanwhile shifts nothing. Where each `read` is
        # a request, write a listing of your own.
        place = self._here()
        for artifact in place.ids(after=after or ""):
            try:
                blob = place.read(key_of(artifact, META_NAME))
                meta = Meta.parse(artifact, blob) if blob else None
            except IntegrityError as error:  # one damaged artifact must not hide all the others
                self.context.warn(f"left out of the list: {error.message}")
                continue
            if meta:
                yield meta.artifact(self._locator(artifact)), artifact

    # -- optional protocols --

    def manifest(self, locator: Locator) -> bytes:
        """Returns ``manifest.lock``, if it is byte for byte the one in the bundle.

        Raises:
            NotFound: There is no such artifact.
            Unsupported: It is not known to be that one; read it from the bundle.
        """
        with self._errors():
            place, artifact = self._at(locator)
            meta, _ = self._meta(place, artifact)
            if meta.manifest_sha256 is not None:
                blob = place.read(key_of(artifact, MANIFEST_NAME), Limits.from_environment().manifest_bytes)
                if blob is not None and hashlib.sha256(blob.data).hexdigest() == meta.manifest_sha256:
                    return blob.data
            raise Unsupported(f"the stored {MANIFEST_NAME} of {artifact} is not the bundle's own")

    def claim(self, locator: Locator, user: str) -> None:
        """Adds an owner; see `ari_core.contract.SupportsOwners`."""
        with self._errors():
            self._change(locator, lambda meta: meta.claimed(user, datetime.now(UTC)))

    def raise_own(self, locator: Locator, user: str, target: Visibility) -> Visibility:
        """Raises one owner's level; see `ari_core.contract.SupportsOwners`."""
        with self._errors():
            return self._change(locator, lambda meta: meta.own_raised(user, target))

    def disclaim(self, locator: Locator, user: str) -> None:
        """Removes an owner, and with the last one everything; see `ari_core.contract.SupportsOwners`."""
        with self._errors():
            place, artifact = self._to_change(locator)
            key = key_of(artifact, META_NAME)
            with suppress(NotFound), place.guard(artifact):
                for _ in range(_TRIES):
                    meta, blob = self._meta(place, artifact)
                    after = meta.disclaimed(user)
                    if after is meta:
                        return
                    if after is not None and place.write(key, after.encode(), replacing=blob.version):
                        return
                    if after is None and place.remove(key, version=blob.version):
                        self._clear(place, artifact)
                        return
                raise _busy(artifact)

    # -- inside --

    def _meta(self, place: Blobs, artifact: str) -> tuple[Meta, Blob]:
        blob = place.read(key_of(artifact, META_NAME))
        if blob is None:
            raise NotFound(f"there is no artifact {artifact}")
        return Meta.parse(artifact, blob), blob

    def _change(self, locator: Locator, change: Callable[[Meta], Meta]) -> Visibility:
        """Compares and swaps until nobody was faster: racing changes lose nothing."""
        place, artifact = self._to_change(locator)
        with place.guard(artifact):
            for _ in range(_TRIES):
                meta, blob = self._meta(place, artifact)
                after = change(meta)
                if after == meta or place.write(
                    key_of(artifact, META_NAME), after.encode(), replacing=blob.version
                ):
                    return after.visibility
        raise _busy(artifact)


def key_of(artifact: str, name: str) -> str:
    """Returns the key of one object of an artifact."""
    return f"{ARTIFACTS}/{artifact}/{name}"


def is_id(text: str) -> bool:
    """Says whether `text` can be an id: lower-case hex digits, 64 at most."""
    return _ID.fullmatch(text) is not None


def _busy(artifact: str) -> AlreadyExists:
    return AlreadyExists(f"the artifact {artifact} is being changed all the time", hint="try again")
