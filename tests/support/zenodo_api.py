"""The addresses of the simulated Zenodo: what is asked there, and what it answers."""

import contextlib
import json
import re
import uuid
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from urllib.parse import quote, unquote

from support.faults import Body
from support.zenodo_faults import Fault, spoilt
from support.zenodo_forms import Forms, mimetype
from support.zenodo_rules import MISSING, Refusal, error
from support.zenodo_store import GONE, UPLOAD_FAILED

JSON = "application/json"
RDM = "application/vnd.inveniordm.v1+json"
EXPORTS = (
    *("application/x-bibtex", "application/ld+json", "application/marcxml+xml", "text/x-bibliography"),
    *("application/vnd.datacite.datacite+json", "application/vnd.citationstyles.csl+json"),
)
BYTES = "application/octet-stream"
HTML = "<!DOCTYPE html><html><head><title>{0}</title></head><body><h1>{0}</h1></body></html>"


@dataclass
class Request:
    """One request, with who it is from and what it brings."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    user: str | None
    body: Body
    fault: Fault | None
    forms: Forms
    accept: str = ""
    data: object = None

    @property
    def url(self):
        return self.forms.url


@dataclass
class Answer:
    """`body` is JSON, or text, or a `File` of which `part` (first byte, length) is sent."""

    status: int
    body: object = None
    headers: dict = field(default_factory=dict)
    kind: str = JSON
    part: tuple[int, int] | None = None


_ROUTES = []


def _route(method, pattern, offers=(JSON, RDM), *, takes=JSON):
    """Registers a method of `Zenodo`; `offers` are the types of its answers, the first is the default."""

    def register(function):
        named = re.sub(r"{(\w+):path}", r"(?P<\1>.+)", pattern)
        compiled = re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", named))
        _ROUTES.append((method, compiled, function, offers, takes))
        return function

    return register


class Api:
    """Answers requests about what is in `store`.

    Attributes:
        scopes: What a token may do ("deposit:write", "deposit:actions"), by token; all, if it is not here.
    """

    def __init__(self, store):
        self.store, self.scopes = store, {}

    def answer(self, request, blocks):
        """Finds out what is wanted, and whether it is wanted rightly; does it."""
        try:
            handler, given, offers, takes = self._find(request)
            if request.path.startswith("/api/"):
                self._check_csrf(request)
                request.accept = _negotiated(request.headers.get("accept", ""), offers)
                _check_type(request, takes)
            if takes == JSON:
                request.data = _decoded(b"".join(blocks))
                with self.store.lock:
                    return handler(self, request, **given)
            return handler(self, request, blocks=blocks, **given)
        except Refusal as refusal:
            return Answer(refusal.status, refusal.body)
        except RuntimeError:
            return crash()

    def _find(self, request):
        method = "GET" if request.method == "HEAD" else request.method
        known = False
        for wanted, pattern, handler, offers, takes in _ROUTES:
            if match := pattern.fullmatch(request.path):
                known = True
                if wanted == method:
                    return (
                        handler,
                        {name: unquote(part) for name, part in match.groupdict().items()},
                        offers,
                        takes,
                    )
        if known:
            raise Refusal(405, "The method is not allowed for the requested URL.")
        message = (
            "The requested URL was not found on the server. If you entered the URL manually please check your"
        )
        raise Refusal(404, f"{message} spelling and try again.")

    @staticmethod
    def _check_csrf(request):
        if request.user or request.method in {"GET", "HEAD"} or not request.headers.get("cookie"):
            return
        sent = SimpleCookie(request.headers["cookie"])
        raise Refusal(400, "CSRF token missing or incorrect." if "csrftoken" in sent else "CSRF cookie not set.")

    def notice(self, path):
        """Forgets the file whose upload broke off."""
        match = re.fullmatch(r"/api/records/([^/]+)/draft/files/(.+)/content", path)
        with self.store.lock, contextlib.suppress(Refusal):
            record = match and self.store.all.get(match[1])
            if record and record.draft:
                self.store.remove(record, unquote(match[2]))

    # Records

    def _show(self, request, record, content, status=200, errors=None):
        if request.accept == RDM:
            form = request.forms.record(record, content, request.user, errors)
        else:
            form = request.forms.old(record, content, request.user)
        return Answer(status, form, {"ETag": f'"{record.revision}"'}, request.accept)

    def _mine(self, request, number):
        if request.user is None and number in self.store.all and self.store.all[number].draft is not None:
            raise Refusal(403, "Permission denied.")
        return self.store.draft(number, request.user)

    def _scoped(self, request, scope):
        """Refuses a token that has some scopes, but not this one."""
        token = request.headers.get("authorization", "").partition(" ")[2]
        if scope not in self.scopes.get(token, {scope}):
            raise Refusal(403, "Permission denied.")

    @staticmethod
    def _unchanged(request, record):
        wanted = request.headers.get("if-match", "").strip('"')
        if wanted and wanted != str(record.revision):
            raise Refusal(412, "Precondition failed.")

    @_route("POST", "/api/records")
    def _create(self, request):
        if request.user is None:
            raise Refusal(403, "Permission denied.")
        self._scoped(request, "deposit:write")
        record, errors = self.store.create(request.user, request.data or {})
        return self._show(request, record, record.draft, 201, errors)

    @_route("GET", "/api/records/{number}", (JSON, RDM, *EXPORTS))
    def _read(self, request, number):
        concept = self.store.concepts.get(number)
        if concept and concept.versions:
            where = request.forms.api("records", concept.latest.id)
            return Answer(302, HTML.format("Redirecting..."), {"Location": where}, "text/html")
        record = self.store.published(number)
        return self._show(request, record, record.published)

    @_route("GET", "/api/records/{number}/draft", (JSON, RDM))
    def _read_draft(self, request, number):
        record = self._mine(request, number)
        return self._show(request, record, record.draft, errors=self.store.errors(record))

    @_route("PUT", "/api/records/{number}/draft")
    def _update_draft(self, request, number):
        record = self._mine(request, number)
        self._scoped(request, "deposit:write")
        self._unchanged(request, record)
        errors = self.store.update(record, request.data or {})
        return self._show(request, record, record.draft, errors=errors)

    @_route("DELETE", "/api/records/{number}/draft")
    def _delete_draft(self, request, number):
        record = self._mine(request, number)
        self._unchanged(request, record)
        self.store.drop(record)
        return Answer(204)

    @_route("POST", "/api/records/{number}/draft")
    def _edit(self, request, number):
        record = self.store.all.get(number)
        if record is None or record.published is None:
            record = self._mine(request, number)
            return self._show(request, record, record.draft, 201)
        self.store.edit(self.store.owned(self.store.published(number), request.user))
        return self._show(request, record, record.draft, 201)

    @_route("POST", "/api/records/{number}/draft/pids/doi")
    def _reserve(self, request, number):
        record = self._mine(request, number)
        self.store.reserve(record)
        return self._show(request, record, record.draft, 201)

    @_route("DELETE", "/api/records/{number}/draft/pids/doi")
    def _discard_doi(self, request, number):
        record = self._mine(request, number)
        self.store.discard_doi(record)
        return self._show(request, record, record.draft)

    @_route("POST", "/api/records/{number}/draft/actions/publish")
    def _publish(self, request, number):
        record = self._mine(request, number)
        self._scoped(request, "deposit:actions")
        self.store.publish(record)
        return self._show(request, record, record.published, 202)

    @_route("POST", "/api/records/{number}/versions")
    def _new_version(self, request, number):
        draft = self.store.new_version(self.store.owned(self.store.published(number), request.user))
        return self._show(request, draft, draft.draft, 201)

    @_route("GET", "/api/records/{number}/versions")
    def _versions(self, request, number):
        concept = self.store.published(number).concept
        records = [record for record in reversed(concept.versions) if not record.tombstone]
        return self._page(request, records)

    @_route("GET", "/api/records/{number}/versions/latest")
    def _latest(self, request, number):
        where = request.forms.api("records", self.store.published(number).concept.latest.id)
        body = {"status": 301, "message": "Moved Permanently", "location": where}
        return Answer(301, body, {"Location": where})

    @_route("POST", "/api/records/{number}/request-deletion")
    def _request_deletion(self, request, number):
        record = self.store.owned(self.store.published(number), request.user)
        reason = (request.data or {}).get("reason")
        if not reason:
            raise Refusal.invalid([error("reason", MISSING)])
        self.store.delete(record, reason)
        return Answer(200, {"type": "record-deletion", "status": "accepted", "is_open": False})

    # Files

    @_route("GET", "/api/records/{number}/draft/files")
    def _draft_files(self, request, number):
        record = self._mine(request, number)
        return Answer(200, request.forms.files(record, record.draft.files, draft=True), kind=request.accept)

    @_route("POST", "/api/records/{number}/draft/files")
    def _init(self, request, number):
        record = self._mine(request, number)
        if not isinstance(request.data, list):
            raise Refusal(400, "No files to upload." if not request.data else "A validation error occurred.")
        self.store.init_files(record, request.data)
        return Answer(201, request.forms.files(record, record.draft.files, draft=True), kind=request.accept)

    @_route("DELETE", "/api/records/{number}/draft/files")
    def _delete_files(self, request, number):
        record = self._mine(request, number)
        for key in list(record.draft.files):
            self.store.remove(record, key)
        return Answer(204)

    @_route("POST", "/api/records/{number}/draft/actions/files-import")
    def _import(self, request, number):
        record = self._mine(request, number)
        self.store.import_files(record)
        return Answer(201, request.forms.files(record, record.draft.files, draft=True), kind=request.accept)

    @_route("PUT", "/api/records/{number}/draft/files/{key:path}/content", takes=BYTES)
    def _receive(self, request, number, key, blocks):
        with self.store.lock:
            record = self._mine(request, number)
            self._scoped(request, "deposit:write")
        if request.fault and request.fault.kind == "wrong-bytes":
            blocks = spoilt(blocks, request.fault.at)
        length = request.headers.get("content-length")
        try:
            taken = self.store.receive(record, key, blocks, None if length is None else int(length))
        except OSError:  # the client went away in the middle
            self.notice(request.path)
            raise
        if not taken:
            return Answer(200, {"key": key, "errors": UPLOAD_FAILED}, kind=request.accept)
        with self.store.lock:
            file = self.store.file(record, key)
            return Answer(200, request.forms.file(record, file, draft=True), kind=request.accept)

    @_route("GET", "/api/records/{number}/draft/files/{key:path}/content", takes=BYTES)
    def _draft_content(self, request, number, key, blocks):
        with self.store.lock:
            file = self.store.file(self._mine(request, number), key)
        if not file.completed:
            raise Refusal(404, f"Record '{number}' has no file '{key}'.")
        return self._content_of(request, file)

    @_route("POST", "/api/records/{number}/draft/files/{key:path}/commit")
    def _commit(self, request, number, key):
        record = self._mine(request, number)
        if request.fault and request.fault.kind == "lost-content":
            self.store.remove(record, key)
        file = self.store.commit(record, key)
        return Answer(200, request.forms.file(record, file, draft=True), kind=request.accept)

    @_route("GET", "/api/records/{number}/draft/files/{key:path}")
    def _draft_file(self, request, number, key):
        record = self._mine(request, number)
        return Answer(
            200, request.forms.file(record, self.store.file(record, key), draft=True), kind=request.accept
        )

    @_route("PUT", "/api/records/{number}/draft/files/{key:path}")
    def _file_metadata(self, request, number, key):
        record = self._mine(request, number)
        file = self.store.file(record, key)
        file.metadata = request.data
        return Answer(200, request.forms.file(record, file, draft=True), kind=request.accept)

    @_route("DELETE", "/api/records/{number}/draft/files/{key:path}")
    def _delete_file(self, request, number, key):
        self.store.remove(self._mine(request, number), key)
        return Answer(204)

    @_route("GET", "/api/records/{number}/files", (JSON,))
    def _files(self, request, number):
        files = self.store.readable(number, request.user)
        return Answer(200, request.forms.files(self.store.all[number], files, draft=False))

    @_route("GET", "/api/records/{number}/files/{key:path}/content", (JSON,), takes=BYTES)
    def _file_content(self, request, number, key, blocks):
        return self._content_of(request, self._published_file(request, number, key))

    @_route("GET", "/api/records/{number}/files/{key:path}", (JSON,))
    def _file(self, request, number, key):
        file = self._published_file(request, number, key)
        return Answer(200, request.forms.file(self.store.all[number], file, draft=False))

    def _published_file(self, request, number, key):
        with self.store.lock:
            files = self.store.readable(number, request.user)
        if key not in files:
            raise Refusal(404, f"Record '{number}' has no file '{key}'.")
        return files[key]

    def _content_of(self, request, file):
        etag = f'"md5:{file.md5}"'
        headers = {
            "Content-Type": BYTES if mimetype(file.key) == "text/html" else mimetype(file.key),
            "Content-Disposition": f"attachment; filename={quote(file.key)}",
            "Content-MD5": file.md5,
            "ETag": etag,
            "Last-Modified": file.updated.strftime("%a, %d %b %Y %H:%M:%S GMT"),
        }
        wanted = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", request.headers.get("range", ""))
        if not self.store.limits.ranges or wanted is None or request.headers.get("if-range", etag) != etag:
            return Answer(200, file, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or file.size), file.size - 1)
        if first >= file.size:
            return Answer(416, "", {"Content-Range": f"bytes */{file.size}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{file.size}"
        return Answer(206, file, headers, part=(first, last - first + 1))

    # Searches

    @_route("GET", "/api/records")
    def _search(self, request):
        every = _asked(request, "all_versions") or _asked(request, "allversions")
        found = [
            record
            for record in self.store.all.values()
            if record.published and not record.tombstone and (every or record.concept.latest is record)
        ]
        return self._page(request, found)

    @_route("GET", "/api/user/records")
    def _my_records(self, request):
        if request.user is None:
            raise Refusal(403, "Permission denied.")
        every = _asked(request, "allversions")
        published = request.query.get("is_published")
        found = [
            record
            for record in self.store.all.values()
            if record.concept.owner == request.user
            and not record.tombstone
            and (every or (record.concept.next or record.concept.latest) is record)
            and (published is None or (record.published is not None) == _asked(request, "is_published"))
        ]
        return self._page(request, found)

    def _page(self, request, records):
        size, page = self._page_of(request)
        if request.fault and request.fault.kind == "search-lag":
            since = request.fault.since
            records = [record for record in records if self.store.changes.get(record.id, 0) <= since]
        found = [record for record in records if self._fits(record, request)]
        found.sort(key=lambda record: record.updated, reverse=True)
        shown = [
            self._show(request, record, record.draft or record.published).body
            for record in found[(page - 1) * size : page * size]
        ]
        return Answer(200, request.forms.hits(shown, len(found), request.url + request.path), kind=request.accept)

    @staticmethod
    def _page_of(request):
        try:
            size, page = int(request.query.get("size", 25)), int(request.query.get("page", 1))
        except ValueError:
            size = page = 0
        most = 100 if request.user else 25
        if not 1 <= size <= most or page < 1:
            raise Refusal.invalid([error("size", f"Page size cannot be greater than {most}.")])
        return size, page

    def _fits(self, record, request):
        """Says whether a record is what searched for: words, "phrases", and field:value; all must fit."""
        content = record.draft or record.published
        form = request.forms.record(record, content, record.concept.owner)
        form |= {"recid": record.id, "conceptrecid": record.concept.id, "doi": content.pids.get("doi", {})}
        del form["links"]
        return any(self._has_all(form, content, query) for query in request.query.get("q", "").split(" OR "))

    def _has_all(self, form, content, query):
        for name, quoted, word in re.findall(r'(?:([\w.]+):)?(?:"([^"]*)"|(\S+))', query):
            if word in {"AND", "+"}:
                continue
            value = form
            for part in name.split(".") if name else ():
                value = [inner[part] for inner in _flat(value) if isinstance(inner, dict) and part in inner]
            if name == "files.entries.checksum":
                value = [f"md5:{file.md5}" for file in content.files.values()]
            wanted = re.sub(r"\\(.)", r"\1", quoted or word).lower()
            if wanted != "*" and wanted not in json.dumps(value, ensure_ascii=False).lower():
                return False
        return True

    # Communities

    @_route("GET", "/api/communities/{slug}")
    def _community(self, request, slug):
        for community in self.store.communities.values():
            if slug in {community.slug, community.id}:
                return Answer(200, request.forms.community(community), kind=request.accept)
        raise Refusal(404, GONE)

    @_route("GET", "/api/records/{number}/communities")
    def _communities(self, request, number):
        slugs = self.store.published(number).concept.communities
        shown = [request.forms.community(self.store.communities[slug]) for slug in slugs]
        return Answer(200, request.forms.hits(shown, len(shown), request.url + request.path), kind=request.accept)

    @_route("POST", "/api/records/{number}/communities")
    def _include(self, request, number):
        record = self.store.owned(self.store.published(number), request.user)
        asked = (request.data or {}).get("communities") or []
        if not 1 <= len(asked) <= 10:
            raise Refusal.invalid([error("communities", "Length must be between 1 and 10.")])
        body = {"processed": [], "errors": []}
        for item in asked:
            try:
                community, number, accepted = self.store.include(record, item["id"], request.user)
            except Refusal as refusal:
                body["errors"].append({"community_id": item["id"], "message": refusal.body["message"]})
                continue
            state = {"id": number, "status": "accepted" if accepted else "submitted", "is_open": not accepted}
            told = {"community_id": community.id, "request_id": number, "request": state}
            body["processed"].append(told)
        status = 200 if body["processed"] else 400
        return Answer(status, {name: items for name, items in body.items() if items}, kind=request.accept)

    # Deposits: no more than is needed to see what they say

    @_route("GET", "/api/deposit/depositions", (JSON,))
    def _deposits(self, request):
        if request.user is None:
            raise Refusal(403, "Permission denied.")
        mine = [record for record in self.store.all.values() if record.concept.owner == request.user]
        return Answer(200, [request.forms.deposit(record) for record in mine if not record.tombstone])

    @_route("POST", "/api/deposit/depositions", (JSON,))
    def _deposit(self, request):
        if request.user is None:
            raise Refusal(403, "Permission denied.")
        if request.data is None:
            raise RuntimeError("an empty body is no {}")
        record, _ = self.store.create(request.user, {"metadata": {"publisher": "Zenodo"}})
        return Answer(201, request.forms.deposit(record))

    @_route("GET", "/api/deposit/depositions/{number}", (JSON,))
    def _read_deposit(self, request, number):
        record = self.store.all.get(number)
        if record is None:
            raise Refusal(404, GONE)
        return Answer(200, request.forms.deposit(self.store.owned(record, request.user)))

    @_route("DELETE", "/api/deposit/depositions/{number}", (JSON,))
    def _delete_deposit(self, request, number):
        self.store.drop(self._mine(request, number))
        return Answer(204)

    # Pages, and doi.org

    @_route("GET", "/records/{number}")
    def _record_page(self, request, number):
        concept = self.store.concepts.get(number)
        if concept and concept.versions:
            return self._to_page(request, concept.latest)
        try:
            record = self.store.published(number)
        except Refusal as refusal:
            return Answer(refusal.status, HTML.format("Page not found"), kind="text/html")
        return Answer(200, HTML.format(record.published.metadata["title"]), kind="text/html")

    @_route("GET", "/record/{number}")
    def _old_page(self, request, number):
        return Answer(301, "", {"Location": f"{request.url}/records/{quote(number)}"}, "text/html")

    @_route("GET", "/doi/{doi:path}")
    def _doi_page(self, request, doi):
        record = self.store.resolve(doi)
        return (
            self._to_page(request, record)
            if record
            else Answer(404, HTML.format("Page not found"), kind="text/html")
        )

    @_route("GET", r"/(?P<doi>10\..+)")
    def _doi_org(self, request, doi):
        if self.store.resolve(doi) is None:
            return Answer(404, HTML.format("DOI Not Found"), kind="text/html")
        return Answer(302, "", {"Location": f"{request.url}/doi/{doi}"}, "text/html")

    def _to_page(self, request, record):
        return Answer(302, "", {"Location": f"{request.url}/records/{record.id}"}, "text/html")


def _negotiated(header, offers):
    """Returns the type of the answer. They take the first they have; "*/*" is the default, as is no header.

    Raises:
        Refusal: There is none the client wants.
    """
    ranked = []
    for number, item in enumerate(filter(None, (part.strip() for part in header.split(",")))):
        kind, *parameters = (part.strip() for part in item.split(";"))
        quality = next((float(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
        ranked.append((-quality, number, kind.lower()))
    wanted = [kind for _, _, kind in sorted(ranked)]
    for kind in wanted:
        if kind in offers:
            return kind
    if not wanted or "*/*" in wanted:
        return offers[0]
    raise Refusal(406, f"Invalid 'Accept' header. Expected one of: {', '.join(offers)}")


def _check_type(request, wanted):
    """Refuses a body of another type; they compare the whole header."""
    if request.method in {"POST", "PUT"} and request.headers.get("content-type", wanted) != wanted:
        raise Refusal(415, f"Invalid 'Content-Type' header. Expected one of: {wanted}")


def _decoded(data):
    if not data:
        return None
    try:
        return json.loads(data)
    except ValueError:
        raise Refusal(400, "Unable to decode JSON data in request body.") from None


def crash():
    message = (
        "The server encountered an internal error and was unable to complete your request. Either the server is"
        " overloaded or there is an error in the application."
    )
    return Answer(500, {"status": 500, "message": message, "error_id": uuid.uuid4().hex})


def _asked(request, name):
    return request.query.get(name, "").lower() in {"1", "true"}


def _flat(value):
    """Gives the values in a value, lists within lists opened."""
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value
