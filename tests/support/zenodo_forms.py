"""The JSON in which the simulated Zenodo shows what it has: InvenioRDM's, Zenodo's own, and that of deposits."""

from copy import deepcopy
from mimetypes import guess_type
from pathlib import PurePosixPath
from urllib.parse import quote

_RELATIONS = {
    name.lower(): name for name in ("isSupplementTo", "isCitedBy", "isPartOf", "isDerivedFrom", "isDocumentedBy")
}
_OLD_STATUS = {"open": "open", "restricted": "restricted", "embargoed": "embargoed"}


class Forms:
    """Writes records of `store` with links that begin with `url`."""

    def __init__(self, store, url):
        self.store, self.url = store, url

    def api(self, *parts):
        return "/".join([f"{self.url}/api", *parts])

    def record(self, record, content, user, errors=None):
        """InvenioRDM's form of a draft or a published record."""
        draft = content is record.draft
        concept, files = record.concept, content.files
        access = deepcopy(content.access) | {"status": self.store.status(content)}
        shown = {"enabled": True, "order": []}
        if draft or self.store.sees_files(record, content, user):
            shown |= {
                "count": len(files),
                "total_bytes": sum(file.size for file in files.values()),
                "entries": {key: self._entry(file) for key, file in files.items()},
            }
        form = {
            "id": record.id,
            "created": record.created.isoformat(),
            "updated": record.updated.isoformat(),
            "revision_id": record.revision,
            "is_published": record.published is not None,
            "is_draft": draft,
            "status": self._status(record, draft=draft),
            "pids": deepcopy(content.pids),
            "metadata": deepcopy(content.metadata),
            "custom_fields": deepcopy(content.custom_fields),
            "access": access,
            "files": shown,
            "media_files": {"enabled": False, "order": [], "count": 0, "total_bytes": 0, "entries": {}},
            "versions": {
                "index": record.index,
                "is_latest": concept.latest is record,
                "is_latest_draft": (concept.next or concept.latest) is record,
            },
            "parent": self._parent(concept),
            "links": self._draft_links(record) if draft else self._links(record, content),
            "ui": {"title": content.metadata.get("title", ""), "access_status": {"id": access["status"]}},
        }
        if draft:
            form["expires_at"] = None
        if errors:
            form["errors"] = errors
        return form

    def old(self, record, content, user):
        """Zenodo's own form of the same, which is the default."""
        draft, concept, told = content is record.draft, record.concept, content.metadata
        kind = told.get("resource_type", {}).get("id", "")
        kind, _, subtype = kind.partition("-")
        metadata = {
            key: told[key]
            for key in ("title", "publication_date", "description", "version", "publisher")
            if key in told
        }
        metadata["access_right"] = _OLD_STATUS[self.store.status(content)]
        metadata["creators"] = [self._person(person) for person in told.get("creators", ())]
        metadata["keywords"] = [subject["subject"] for subject in told.get("subjects", ()) if "subject" in subject]
        metadata["resource_type"] = {"title": kind.title(), "type": kind} | (
            {"subtype": subtype} if subtype else {}
        )
        if told.get("rights") and "id" in told["rights"][0]:
            metadata["license"] = {"id": told["rights"][0]["id"]}
        metadata["related_identifiers"] = [
            {
                "identifier": item["identifier"],
                "relation": _RELATIONS.get(item["relation_type"]["id"], item["relation_type"]["id"]),
            }
            for item in told.get("related_identifiers", ())
        ]
        metadata["communities"] = [{"id": slug} for slug in concept.communities]
        metadata["relations"] = {
            "version": [
                {
                    "index": record.index - 1,
                    "is_last": (concept.next or concept.latest) is record,
                    "parent": {"pid_type": "recid", "pid_value": concept.id},
                }
            ]
        }
        visible = draft or self.store.sees_files(record, content, user)
        form = {
            "created": record.created.isoformat(),
            "modified": record.updated.isoformat(),
            "updated": record.updated.isoformat(),
            "id": int(record.id),
            "recid": record.id,
            "conceptrecid": concept.id,
            "revision": record.revision,
            "title": told.get("title", ""),
            "status": "draft" if draft else "published",
            "state": self._state(record),
            "submitted": record.published is not None,
            "owners": [{"id": "1"}],
            "metadata": metadata,
            "files": [self._old_file(record, file) for file in content.files.values()] if visible else [],
            "stats": dict.fromkeys(("downloads", "unique_downloads", "views", "unique_views"), 0),
            "links": self._draft_links(record) if draft else self._links(record, content),
        }
        if "doi" in content.pids:
            doi = content.pids["doi"]["identifier"]
            metadata["doi"] = doi
            form |= {"doi": doi, "doi_url": f"https://doi.org/{doi}"}
            if concept.versions:
                form["conceptdoi"] = self.store.doi(concept.id)
        return form

    def deposit(self, record):
        """The form of the deposit API."""
        content = record.draft or record.published
        told, links = content.metadata, {"html": f"{self.url}/deposit/{record.id}"}
        base = self.api("deposit", "depositions", record.id)
        links |= {"files": f"{base}/files", "latest_draft": base, "self": base}
        links |= {name: f"{base}/actions/{name}" for name in ("publish", "edit", "discard", "newversion")}
        if record.published:
            links |= {"self": self.api("records", record.id), "files": self.api("records", record.id, "files")}
        form = {
            "created": record.created.isoformat(),
            "modified": record.updated.isoformat(),
            "id": int(record.id),
            "conceptrecid": record.concept.id,
            "record_id": int(record.id),
            "metadata": {
                key: told[key] for key in ("title", "publication_date", "description", "version") if key in told
            }
            | {"prereserve_doi": {"doi": f"10.5281/zenodo.{record.id}", "recid": int(record.id)}},
            "title": told.get("title", ""),
            "owner": 1,
            "state": self._state(record),
            "submitted": record.published is not None,
            "files": [
                {"id": file.uuids["file_id"], "filename": file.key, "filesize": file.size, "checksum": file.md5}
                for file in content.files.values()
            ],
            "links": links,
        }
        if "doi" in content.pids:
            form["doi"] = content.pids["doi"]["identifier"]
        return form

    def files(self, record, files, *, draft):
        """The list of all files of a draft or record."""
        base = self._base(record, draft=draft)
        return {
            "enabled": True,
            "links": {"self": f"{base}/files", "archive": f"{base}/files-archive"},
            "entries": [self.file(record, file, draft=draft) for file in files.values()],
            "default_preview": None,
            "order": [],
        }

    def file(self, record, file, *, draft):
        """One file in such a list."""
        own = f"{self._base(record, draft=draft)}/files/{quote(file.key)}"
        links = {"self": own, "content": f"{own}/content"}
        if draft:
            links["commit"] = f"{own}/commit"
        form = {
            "key": file.key,
            "created": file.created.isoformat(),
            "updated": file.updated.isoformat(),
            "metadata": file.metadata,
            "access": {"hidden": False},
            "status": "completed" if file.completed else "pending",
            "transfer": {"type": "L"},
            "links": links,
        }
        if file.completed:
            form |= {**self._entry(file), **file.uuids}
        return form

    def hits(self, forms, total, where):
        """A page of search results."""
        return {
            "hits": {"hits": forms, "total": total},
            "aggregations": {},
            "sortBy": "newest",
            "links": {"self": where},
        }

    def community(self, community):
        return {
            "id": community.id,
            "slug": community.slug,
            "metadata": {"title": community.slug},
            "access": {
                "visibility": "public",
                "record_submission_policy": "closed" if community.closed else "open",
            },
            "links": {"self": self.api("communities", community.id)},
        }

    def _base(self, record, *, draft):
        return self.api("records", record.id, "draft") if draft else self.api("records", record.id)

    def _entry(self, file):
        if not file.completed:
            return {"key": file.key, "metadata": file.metadata, "access": {"hidden": False}}
        return {
            "id": file.uuids["file_id"],
            "key": file.key,
            "checksum": f"md5:{file.md5}",
            "size": file.size,
            "ext": PurePosixPath(file.key).suffix.lstrip("."),
            "mimetype": mimetype(file.key),
            "storage_class": "L",
            "metadata": file.metadata,
            "access": {"hidden": False},
        }

    def _old_file(self, record, file):
        link = self.api("records", record.id, "files", quote(file.key), "content")
        checksum = f"md5:{file.md5}" if file.completed else None
        return {
            "id": file.uuids["file_id"],
            "key": file.key,
            "size": file.size,
            "checksum": checksum,
            "links": {"self": link},
        }

    def _parent(self, concept):
        pids = {}
        if concept.versions:
            pids["doi"] = {"identifier": self.store.doi(concept.id), "provider": "datacite", "client": "datacite"}
        ids = [self.store.communities[slug].id for slug in concept.communities]
        return {
            "id": concept.id,
            "pids": pids,
            "access": {"owned_by": {"user": "1"}},
            "communities": {"ids": ids} if ids else {},
        }

    def _draft_links(self, record):
        base = self._base(record, draft=True)
        return {
            "self": base,
            "self_html": f"{self.url}/uploads/{record.id}",
            "files": f"{base}/files",
            "publish": f"{base}/actions/publish",
            "reserve_doi": f"{base}/pids/doi",
            "record": self.api("records", record.id),
            "review": f"{base}/review",
            "versions": self.api("records", record.id, "versions"),
            "archive": f"{base}/files-archive",
            "communities": self.api("records", record.id, "communities"),
        }

    def _links(self, record, content):
        base, parent = self._base(record, draft=False), record.concept.id
        doi = content.pids["doi"]["identifier"]
        return {
            "self": base,
            "self_html": f"{self.url}/records/{record.id}",
            "doi": f"https://doi.org/{doi}",
            "self_doi": f"https://doi.org/{doi}",
            "self_doi_html": f"{self.url}/doi/{doi}",
            "parent": self.api("records", parent),
            "parent_html": f"{self.url}/records/{parent}",
            "parent_doi": f"https://doi.org/{self.store.doi(parent)}",
            "files": f"{base}/files",
            "archive": f"{base}/files-archive",
            "latest": f"{base}/versions/latest",
            "latest_html": f"{self.url}/records/{record.id}/latest",
            "versions": f"{base}/versions",
            "draft": f"{base}/draft",
            "communities": f"{base}/communities",
        }

    @staticmethod
    def _person(person):
        who = person["person_or_org"]
        orcids = [item["identifier"] for item in who.get("identifiers", ()) if item.get("scheme") == "orcid"]
        affiliations = [item["name"] for item in person.get("affiliations", ()) if "name" in item]
        form = {"name": who["name"], "affiliation": affiliations[0] if affiliations else None}
        return form | ({"orcid": orcids[0]} if orcids else {})

    @staticmethod
    def _status(record, *, draft):
        if not draft:
            return "published"
        if record.published:
            return "published"
        return "new_version_draft" if record.concept.versions else "draft"

    @staticmethod
    def _state(record):
        if record.published is None:
            return "unsubmitted"
        return "inprogress" if record.draft else "done"


def mimetype(key):
    kind, encoding = guess_type(key)
    return "application/gzip" if encoding == "gzip" else kind or "application/octet-stream"
