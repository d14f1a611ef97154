"""What is in the simulated Zenodo: concepts, their versions, drafts, files; and what may be done to them."""

import datetime as dt
import hashlib
import re
import threading
import uuid
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

from support.zenodo_rules import Refusal, check_vocabularies, clean, clean_access, error, merged

BLOCK = 1 << 16
GONE = "The persistent identifier does not exist."
UNREGISTERED = "The persistent identifier is not registered."
UPLOAD_FAILED = "File upload transfer failed."


@dataclass
class Limits:
    """What Zenodo allows: bytes of a record, bytes of a file, files of a record, whether parts can be read."""

    record: int = 50 * 10**9
    file: int = 50 * 10**9
    files: int = 100
    ranges: bool = True


@dataclass
class File:
    """One file of a draft or record; `path` is where its bytes are, once there are any."""

    key: str
    created: dt.datetime
    updated: dt.datetime
    path: Path | None = None
    size: int = 0
    md5: str = ""
    completed: bool = False
    metadata: dict | None = None
    uuids: dict[str, str] = field(
        default_factory=lambda: {name: str(uuid.uuid4()) for name in ("file_id", "version_id", "bucket_id")}
    )


@dataclass
class Content:
    """What a draft or a published record says and holds."""

    metadata: dict = field(default_factory=dict)
    access: dict = field(default_factory=dict)
    pids: dict = field(default_factory=dict)
    custom_fields: dict = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)


@dataclass
class Concept:
    """What all versions have in common."""

    id: str
    owner: str
    versions: list["Record"] = field(default_factory=list)
    next: "Record | None" = None
    communities: list[str] = field(default_factory=list)

    @property
    def latest(self):
        """The newest published version that was not deleted; if all were, the newest."""
        alive = [record for record in self.versions if not record.tombstone]
        return (alive or self.versions or [None])[-1]


@dataclass
class Record:
    """One version: a draft, a published record, or a record with a draft of other metadata."""

    id: str
    concept: Concept
    created: dt.datetime
    updated: dt.datetime
    index: int
    published: Content | None = None
    draft: Content | None = None
    revision: int = 1
    tombstone: dict | None = None

    @property
    def is_next(self):
        return self.concept.next is self


@dataclass(frozen=True)
class State:
    """What is there; files are digests (MD5) by name, None while pending.

    Attributes:
        records: Files of the published records, by id.
        drafts: Files of the drafts that were never published, by id: whatever nobody goes on with is an orphan.
        edits: Ids of published records with an open draft of other metadata.
        versions: Published versions by concept id, oldest first; deleted ones too.
        dois: Ids by registered DOI (those of concepts: the latest version's).
        deleted: Ids of the records with a tombstone.
        communities: Communities by concept id.
    """

    records: dict[str, dict[str, str]]
    drafts: dict[str, dict[str, str | None]]
    edits: frozenset[str]
    versions: dict[str, tuple[str, ...]]
    dois: dict[str, str]
    deleted: frozenset[str]
    communities: dict[str, tuple[str, ...]]


@dataclass
class Community:
    """`members` include what they like; what others submit waits for a review. Nobody else may if it is closed."""

    slug: str
    members: frozenset[str] = frozenset()
    closed: bool = False
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


class Store:
    """All of it. Users are names; None is anybody. Everything that may not be is a `Refusal`."""

    def __init__(self, folder, prefix, first=1_000_001):
        self.folder, self.prefix = Path(folder), prefix
        self.folder.mkdir(parents=True, exist_ok=True)
        self.limits = Limits()
        self.today = None
        self.lock = threading.RLock()
        self.concepts: dict[str, Concept] = {}
        self.all: dict[str, Record] = {}
        self.communities: dict[str, Community] = {}
        self.requests: dict[tuple[str, str], str] = {}
        self.last_change = 0
        self.changes: dict[str, int] = {}
        self._next = first

    # Looking

    def doi(self, number):
        return f"{self.prefix}/zenodo.{number}"

    def date(self):
        return self.today or dt.datetime.now(dt.UTC).date()

    def published(self, number):
        """Returns a published record. Raises `Refusal`: unknown, a draft, deleted."""
        record = self.all.get(number)
        if record is None:
            raise Refusal(404, GONE)
        if record.published is None:
            raise Refusal(404, UNREGISTERED)
        if record.tombstone:
            if not record.tombstone["is_visible"]:
                raise Refusal(404, "Record not found")
            raise Refusal(410, "Record deleted", tombstone=record.tombstone)
        return record

    def draft(self, number, user):
        """Returns a record with an open draft of this user. Raises `Refusal`: there is none, somebody else's."""
        record = self.all.get(number)
        if record is None or record.draft is None:
            raise Refusal(404, GONE)
        self.owned(record, user)
        return record

    def owned(self, record, user):
        if user != record.concept.owner:
            raise Refusal(403, "Permission denied.")
        return record

    def status(self, content):
        """Says how open the files are: open, restricted, embargoed."""
        access = content.access
        if access.get("files", "public") == "public":
            return "open"
        embargo = access.get("embargo") or {}
        if not embargo.get("active"):
            return "restricted"
        return "embargoed" if dt.date.fromisoformat(embargo["until"]) > self.date() else "open"

    def sees_files(self, record, content, user):
        return user == record.concept.owner or self.status(content) == "open"

    def readable(self, number, user):
        """Returns the files of a published record that this user may read."""
        record = self.published(number)
        if not self.sees_files(record, record.published, user):
            raise Refusal(403, "Permission denied.")
        return record.published.files

    def resolve(self, doi):
        """Returns the record a registered DOI leads to, or None."""
        number = re.fullmatch(rf"{re.escape(self.prefix)}/zenodo\.([0-9]+)", doi)
        if number is None:
            return None
        concept = self.concepts.get(number[1])
        if concept and concept.versions:
            return concept.latest
        record = self.all.get(number[1])
        return record if record and record.published else None

    def state(self):
        with self.lock:
            dois, records = {}, {record.id: record for record in self.all.values() if record.published}
            for record in records.values():
                dois[record.published.pids["doi"]["identifier"]] = record.id
                dois[self.doi(record.concept.id)] = record.concept.latest.id
            drafts = {record.id: record.draft for record in self.all.values() if record.draft}
            return State(
                records={
                    number: _digests(record.published)
                    for number, record in records.items()
                    if not record.tombstone
                },
                drafts={number: _digests(draft) for number, draft in drafts.items() if number not in records},
                edits=frozenset(drafts.keys() & records.keys()),
                versions={
                    concept.id: tuple(record.id for record in concept.versions)
                    for concept in self.concepts.values()
                    if concept.versions
                },
                dois=dois,
                deleted=frozenset(number for number, record in records.items() if record.tombstone),
                communities={
                    concept.id: tuple(concept.communities)
                    for concept in self.concepts.values()
                    if concept.communities
                },
            )

    # Drafts

    def create(self, user, data):
        """Makes a new draft of a new concept; returns it and the errors."""
        concept = Concept(self._number(), user)
        record = self._record(concept, 1)
        record.draft = Content()
        errors = self._save(record, data, new=True)
        self.concepts[concept.id] = concept
        concept.next = self.all[record.id] = record
        return record, errors

    def update(self, record, data):
        """Replaces what a draft says; returns the errors."""
        errors = self._save(record, data, new=False)
        record.revision += 1
        self.touch(record)
        return errors

    def errors(self, record):
        """Returns what would keep this draft's metadata from being published, as far as it is shown before."""
        return merged(clean(record.draft.metadata)[1])

    def edit(self, record):
        """Opens a draft of a published record; files cannot be changed in it."""
        if record.draft is None:
            record.draft = deepcopy(record.published)
            self.touch(record)
        return record

    def drop(self, record):
        """Deletes the draft; what was never published is gone without a trace."""
        draft, record.draft = record.draft, None
        if record.published is None:
            del self.all[record.id]
            for file in draft.files.values():
                self._forget(file)
            record.concept.next = None
            if not record.concept.versions:
                del self.concepts[record.concept.id]
        self.changes.pop(record.id, None)
        if record.published:
            self.touch(record)

    def new_version(self, record):
        """Returns the open draft of a next version, or makes one, without files."""
        concept = record.concept
        if concept.next is None:
            concept.next = draft = self._record(concept, len(concept.versions) + 1)
            told = deepcopy(record.published)
            metadata = {key: value for key, value in told.metadata.items() if key != "version"}
            metadata["publication_date"] = self.date().isoformat()
            draft.draft = replace(told, metadata=metadata, pids={}, files={})
            self.all[draft.id] = draft
        return concept.next

    def reserve(self, record):
        if "doi" in record.draft.pids:
            raise Refusal.invalid([error("pids.doi", "A PID already exists for type doi")])
        record.draft.pids["doi"] = self._pid(record)
        record.revision += 1
        self.touch(record)

    def discard_doi(self, record):
        if record.published or "doi" not in record.draft.pids:
            raise Refusal.invalid([error("pids.doi", "No PID found for type doi")])
        del record.draft.pids["doi"]
        record.revision += 1
        self.touch(record)

    def publish(self, record):
        draft, concept = record.draft, record.concept
        errors = [*clean(draft.metadata)[1], *clean_access(draft.access, self.date())[1]]
        if not draft.metadata.get("publisher") and draft.pids.get("doi", {}).get("provider") != "external":
            errors.append(error("metadata.publisher", "Missing publisher field required for DOI registration."))
        if not draft.files:
            errors.append(error("files.enabled", "Missing uploaded files."))
        if any(not file.completed for file in draft.files.values()):
            message = "One or more files have not completed their transfer, please wait."
            errors.append(error("files", message))
        if errors:
            raise Refusal.invalid(merged(errors))
        draft.pids.setdefault("doi", self._pid(record))
        draft.pids["oai"] = {"identifier": f"oai:zenodo.org:{record.id}", "provider": "oai"}
        record.published, record.draft = draft, None
        record.revision += 1
        if record.is_next:
            concept.next = None
            concept.versions.append(record)
        self.touch(record)

    def delete(self, record, reason, *, visible=True):
        """Leaves a tombstone in place of a published record."""
        record.tombstone = {
            "removal_reason": {"id": reason},
            "note": "",
            "removed_by": {"user": record.concept.owner},
            "removal_date": dt.datetime.now(dt.UTC).isoformat(),
            "citation_text": record.published.metadata["title"],
            "is_visible": visible,
            "deletion_policy": {"id": "grace-period-v1"},
        }
        self.touch(record)

    # Files of drafts

    def init_files(self, record, entries):
        if record.published:
            raise Refusal(403, "Bucket is locked for modifications.")
        if not entries:
            raise Refusal(400, "No files to upload.")
        files = record.draft.files
        for number, entry in enumerate(entries):
            _check_entry(number, entry)
        if len(files) + len(entries) > self.limits.files:
            message = "Uploading selected files will result in exceeding the max amount per record."
            raise Refusal(400, message)
        keys = [entry["key"] for entry in entries]
        for number, key in enumerate(keys):
            if key in files or key in keys[:number]:
                raise Refusal(400, f"File with key {key} already exists.")
        now = dt.datetime.now(dt.UTC)
        for entry in entries:
            files[entry["key"]] = File(entry["key"], now, now, metadata=entry.get("metadata"))
        self.touch(record)

    def file(self, record, key):
        if key not in record.draft.files:
            raise Refusal(404, f"Record '{record.id}' has no file '{key}'.")
        return record.draft.files[key]

    def receive(self, record, key, blocks, length):
        """Takes the bytes of a file; holds the lock only before and after them.

        Returns:
            Whether they were taken. If not, the entry is gone, although the answer is a success.
        """
        with self.lock:
            if record.published:
                raise Refusal(403, "Bucket is locked for modifications.")
            file = self.file(record, key)
            if length is None:  # chunked: their uWSGI sees an empty body
                raise Refusal(400, "File is smaller than expected.")
            others = sum(other.size for other in record.draft.files.values() if other is not file)
            if length > self.limits.file:
                raise Refusal(400, "Maximum file size exceeded.")
            if others + length > self.limits.record:
                raise Refusal(400, "Bucket quota exceeded.")
            if file.completed:
                self.remove(record, key)
                return False
        path, size, md5 = self.folder / str(uuid.uuid4()), 0, hashlib.md5(usedforsecurity=False)
        try:
            with path.open("wb") as stream:
                for block in blocks:
                    md5.update(block)
                    stream.write(block)
                    size += len(block)
        except BaseException:
            path.unlink()
            raise
        with self.lock:
            if record.draft is None or record.draft.files.get(key) is not file:
                path.unlink()
                return False
            self._forget(file)
            file.path, file.size, file.md5, file.updated = path, size, md5.hexdigest(), dt.datetime.now(dt.UTC)
        return True

    def commit(self, record, key):
        file = self.file(record, key)
        if file.path is None or file.completed:
            raise RuntimeError("nothing to commit: the service has no answer to that")
        if not file.size:
            raise Refusal(400, "Empty files are not accepted.")
        file.completed, file.updated = True, dt.datetime.now(dt.UTC)
        self.touch(record)
        return file

    def remove(self, record, key):
        file = self.file(record, key)
        if record.published:
            raise Refusal(403, "Bucket is locked for modifications.")
        self._forget(file)
        del record.draft.files[key]
        self.touch(record)

    def import_files(self, record):
        """Links the files of the version before into a draft."""
        if record.draft.files:
            raise Refusal.invalid([error("files.enabled", "Please remove all files first.")])
        if not record.is_next or not record.concept.versions:
            raise Refusal.invalid([error("files.enabled", "The record has no files.")])
        record.draft.files = deepcopy(record.concept.versions[-1].published.files)
        self.touch(record)

    # Communities

    def include(self, record, slug, user):
        """Submits a record to a community; returns the community, the request's id, whether it was accepted."""
        community = next((c for c in self.communities.values() if slug in {c.slug, c.id}), None)
        if community is None:
            raise Refusal(400, "Community not found.")
        if community.closed and user not in community.members:
            raise Refusal(400, "The record cannot be submitted to this community: submissions are closed.")
        asked = (record.concept.id, community.slug)
        if community.slug in record.concept.communities:
            raise Refusal(400, "The record is already included in this community.")
        if asked in self.requests:
            raise Refusal(400, "There is already an open inclusion request for this community.")
        request = str(uuid.uuid4())
        accepted = user in community.members
        if accepted:
            record.concept.communities.append(community.slug)
        else:
            self.requests[asked] = request
        self.touch(record)
        return community, request, accepted

    # Within

    def touch(self, record):
        """Notes a change, which a search may not know of yet."""
        record.updated = dt.datetime.now(dt.UTC)
        self.last_change += 1
        self.changes[record.id] = self.last_change

    def _number(self):
        number, self._next = self._next, self._next + 1
        return str(number)

    def _record(self, concept, index):
        now = dt.datetime.now(dt.UTC)
        record = Record(self._number(), concept, now, now, index)
        self.touch(record)
        return record

    def _pid(self, record):
        return {"identifier": self.doi(record.id), "provider": "datacite", "client": "datacite"}

    def _save(self, record, data, *, new):
        if not isinstance(data, dict):
            raise Refusal(400, "Unable to decode JSON data in request body.")
        draft = record.draft
        metadata, errors = clean(data.get("metadata") or {})
        check_vocabularies(metadata)
        access, more = clean_access(data.get("access"), self.date())
        errors += more
        pids = data.get("pids", draft.pids)
        doi = pids.get("doi") or {}
        if doi.get("provider") == "external":
            if doi.get("identifier", "").startswith(f"{self.prefix}/"):
                message = f"The prefix '{self.prefix}' is managed by Zenodo. Please supply an external DOI."
                errors.append(error("pids.doi", message))
        elif doi:
            if doi.get("identifier") != self.doi(record.id):
                found = doi.get("identifier", "").partition("/")[0]
                message = (
                    f"Wrong DOI {found} prefix provided, it should be {self.prefix} as defined in the rest client"
                )
                errors.append(error("pids.doi", message))
            if not metadata.get("publisher"):
                errors.append(
                    error("metadata.publisher", "Missing publisher field required for DOI registration.")
                )
        if (data.get("files") or {}).get("enabled", True) is False:
            errors.append(error("files.enabled", "You don't have permissions to manage files options."))
        elif not new and not draft.files:
            errors.append(error("files.enabled", "Missing uploaded files."))
        draft.metadata, draft.access, draft.pids = metadata, access, pids
        draft.custom_fields = data.get("custom_fields") or {}
        return merged(errors)

    def _forget(self, file):
        """Deletes the bytes of a file that nobody else holds."""
        contents = [c for r in self.all.values() for c in (r.draft, r.published) if c]
        held = {other.path for c in contents for other in c.files.values() if other is not file}
        if file.path and file.path not in held:
            file.path.unlink(missing_ok=True)


def _check_entry(number, entry):
    """Refuses what is no description of a file that is to come."""
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), str) or not entry["key"]:
        raise Refusal.invalid([error(f"{number}.key", "Missing data for required field.")])
    allowed = {"key", "size", "checksum", "storage_class", "metadata", "access", "transfer"}
    if unknown := entry.keys() - allowed:
        raise Refusal.invalid([error(f"{number}.{key}", "Unknown field.") for key in sorted(unknown)])
    if len(entry["key"]) > 255:
        raise Refusal(400, "Key is too long.")


def _digests(content):
    return {key: file.md5 if file.completed else None for key, file in content.files.items()}
