"""The simulated Zenodo does what the code of the real one was read to do: tests of `support.zenodo` itself."""

import contextlib
import hashlib
import re
import socket
import ssl
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from support.zenodo import Zenodo
from support.zenodo_api import BYTES, RDM

METADATA = {
    "resource_type": {"id": "dataset"},
    "title": "Run 12",
    "publication_date": "2026-03-01",
    "publisher": "Zenodo",
    "creators": [
        {
            "person_or_org": {
                "type": "personal",
                "family_name": "Doe",
                "given_name": "Jane",
                "identifiers": [{"scheme": "orcid", "identifier": "0000-0002-1825-0097"}],
            },
            "affiliations": [{"name": "Uni X"}],
        },
        {"person_or_org": {"type": "organizational", "name": "Team Y"}},
    ],
    "rights": [{"id": "cc-by-4.0"}],
}
ACCESS = {"record": "public", "files": "public"}
RESTRICTED = {"record": "public", "files": "restricted"}
DATA = b"not empty " * 1000
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to load the machine's certificates for each client takes long
DENIED = {"status": 403, "message": "Permission denied."}
INVALID = "A validation error occurred."


@dataclass
class User:
    """Somebody with a token, and what it takes to make records."""

    http: httpx2.Client

    def __call__(self, method, path, status=None, *, accept=RDM, **more):
        answer = self.http.request(method, path, headers={"Accept": accept, **more.pop("headers", {})}, **more)
        assert status in {None, answer.status_code}, (answer.status_code, answer.text)
        return answer

    def draft(self, **metadata):
        body = {"access": ACCESS, "files": {"enabled": True}, "metadata": METADATA | metadata}
        return self("POST", "/api/records", 201, json=body).json()["id"]

    def save(self, number, status=200, access=ACCESS, **metadata):
        body = {"access": access, "files": {"enabled": True}, "metadata": METADATA | metadata}
        return self("PUT", f"/api/records/{number}/draft", status, json=body).json()

    def init(self, number, *keys, status=201):
        return self(
            "POST", f"/api/records/{number}/draft/files", status, json=[{"key": key} for key in keys]
        ).json()

    def content(self, number, key="a.zip", data=DATA, status=200):
        path = f"/api/records/{number}/draft/files/{key}/content"
        return self("PUT", path, status, content=data, headers={"Content-Type": BYTES}).json()

    def commit(self, number, key="a.zip", status=200):
        return self("POST", f"/api/records/{number}/draft/files/{key}/commit", status).json()

    def upload(self, number, key="a.zip", data=DATA):
        self.init(number, key)
        self.content(number, key, data)
        return self.commit(number, key)

    def publish(self, number, status=202):
        return self("POST", f"/api/records/{number}/draft/actions/publish", status).json()

    def record(self, access=ACCESS, **metadata):
        number = self.draft(**metadata)
        self.save(number, access=access, **metadata)
        self.upload(number)
        self.publish(number)
        return number

    def read(self, number, key="a.zip", status=200, **more):
        return self("GET", f"/api/records/{number}/files/{key}/content", status, accept="*/*", **more)


def connected(url, token):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx2.Client(base_url=url, headers=headers, timeout=60, trust_env=False, verify=NO_TLS)


@pytest.fixture
def zenodo(tmp_path):
    with Zenodo(tmp_path / "zenodo") as zenodo:
        zenodo.tokens["token-of-bob"] = "bob"
        yield zenodo


@pytest.fixture
def user(zenodo):
    """Gives a function that returns the user of a token; None is anybody."""
    with contextlib.ExitStack() as stack:

        def get(token):
            return User(stack.enter_context(connected(zenodo.url, token)))

        yield get


@pytest.fixture
def alice(user, zenodo):
    return user(zenodo.token)


@pytest.fixture
def bob(user):
    return user("token-of-bob")


@pytest.fixture
def anybody(user):
    return user(None)


def messages(answer):
    return {item["field"]: item["messages"] for item in answer.get("errors", ())}


def said(answer):
    return answer.json()["message"]


# A record's life


def test_a_record_from_the_draft_to_the_download(alice, anybody, zenodo):
    number = alice.draft()
    concept = str(int(number) - 1)
    alice("POST", f"/api/records/{number}/draft/pids/doi", 201)
    assert alice.init(number, "a.zip")["entries"][0].items() >= {"status": "pending", "key": "a.zip"}.items()
    assert "checksum" not in alice.content(number)
    md5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
    entry = alice.commit(number)
    assert (entry["status"], entry["checksum"], entry["size"]) == ("completed", f"md5:{md5}", len(DATA))
    assert zenodo.state().drafts == {number: {"a.zip": md5}}
    assert alice.publish(number)["links"]["self"] == f"{zenodo.url}/api/records/{number}"
    answer = anybody.read(number)
    assert answer.content == DATA
    assert (answer.headers["ETag"], answer.headers["Content-MD5"]) == (f'"md5:{md5}"', md5)
    state = zenodo.state()
    assert (state.records, state.drafts, state.versions) == ({number: {"a.zip": md5}}, {}, {concept: (number,)})
    assert state.dois == {f"10.5281/zenodo.{number}": number, f"10.5281/zenodo.{concept}": number}


def test_the_doi_of_a_draft_is_reserved_once_and_survives_a_save_without_pids(alice):
    number = alice.draft()
    assert alice("GET", f"/api/records/{number}/draft").json()["pids"] == {}
    doi = alice("POST", f"/api/records/{number}/draft/pids/doi", 201).json()["pids"]["doi"]
    assert doi == {"identifier": f"10.5281/zenodo.{number}", "provider": "datacite", "client": "datacite"}
    again = alice("POST", f"/api/records/{number}/draft/pids/doi", 400).json()
    assert messages(again) == {"pids.doi": ["A PID already exists for type doi"]}
    assert alice.save(number)["pids"]["doi"] == doi
    assert alice("DELETE", f"/api/records/{number}/draft/pids/doi", 200).json()["pids"] == {}


def test_what_was_published_has_no_draft_any_more(alice):
    number = alice.record()
    for method, path in (
        ("GET", ""),
        ("PUT", ""),
        ("DELETE", ""),
        ("POST", "/actions/publish"),
        ("POST", "/files"),
    ):
        assert said(alice(method, f"/api/records/{number}/draft{path}", 404)).startswith(
            "The persistent identifier"
        )


def test_a_draft_is_nothing_to_those_who_read(alice, anybody):
    number = alice.draft()
    for path in ("", "/files", "/versions", "/versions/latest"):
        answer = anybody("GET", f"/api/records/{number}{path}", 404, accept="*/*")
        assert said(answer) == "The persistent identifier is not registered."
    assert said(anybody("GET", "/api/records/77", 404)) == "The persistent identifier does not exist."
    assert alice("POST", f"/api/records/{number}/versions", 404)


def test_a_deleted_draft_leaves_nothing(alice, zenodo):
    number = alice.draft()
    alice.upload(number)
    alice("DELETE", f"/api/records/{number}/draft", 204)
    alice("DELETE", f"/api/records/{number}/draft", 404)
    assert zenodo.state().drafts == {}
    assert list(zenodo.store.folder.iterdir()) == []


def test_other_metadata_of_a_published_record_without_a_new_doi(alice):
    number = alice.record()
    assert alice("POST", f"/api/records/{number}/draft", 201).json()["pids"]["doi"]
    assert said(alice("DELETE", f"/api/records/{number}/draft/files/a.zip", 403)) == (
        "Bucket is locked for modifications."
    )
    alice("POST", f"/api/records/{number}/draft/files", 403, json=[{"key": "b"}])
    alice.save(number, title="Run 13")
    assert alice("GET", f"/api/records/{number}").json()["metadata"]["title"] == "Run 12"
    alice.publish(number)
    assert alice("GET", f"/api/records/{number}").json()["metadata"]["title"] == "Run 13"
    assert alice.read(number).content == DATA


# Versions and concepts


def test_a_next_version_is_one_draft_without_files(alice, zenodo):
    first = alice.record(version="1.0")
    draft = alice("POST", f"/api/records/{first}/versions", 201).json()
    second = draft["id"]
    assert alice("POST", f"/api/records/{first}/versions", 201).json()["id"] == second
    assert (draft["files"]["count"], draft["pids"], draft["versions"]["index"]) == (0, {}, 2)
    assert "version" not in draft["metadata"]
    assert draft["metadata"]["publication_date"] != METADATA["publication_date"]
    alice("POST", f"/api/records/{second}/draft/actions/files-import", 201)
    again = alice("POST", f"/api/records/{second}/draft/actions/files-import", 400).json()
    assert messages(again) == {"files.enabled": ["Please remove all files first."]}
    alice.publish(second)
    assert alice.read(second).content == DATA
    assert list(zenodo.state().versions.values()) == [(first, second)]


def test_a_file_that_two_versions_share_survives_in_the_other(alice):
    first = alice.record()
    second = alice("POST", f"/api/records/{first}/versions").json()["id"]
    alice("POST", f"/api/records/{second}/draft/actions/files-import", 201)
    alice("DELETE", f"/api/records/{second}/draft/files", 204)
    assert alice.read(first).content == DATA


def test_a_concept_and_the_latest_version_are_redirects(alice, anybody, zenodo):
    first = alice.record()
    second = alice("POST", f"/api/records/{first}/versions").json()["id"]
    alice.upload(second)
    concept = alice("GET", f"/api/records/{first}").json()["parent"]["id"]
    assert anybody("GET", f"/api/records/{concept}", 302).headers["Location"].endswith(f"/{first}")
    alice.publish(second)
    latest = f"{zenodo.url}/api/records/{second}"
    assert anybody("GET", f"/api/records/{concept}", 302).headers["Location"] == latest
    answer = anybody("GET", f"/api/records/{first}/versions/latest", 301)
    assert answer.headers["Location"] == answer.json()["location"] == latest
    shown = anybody("GET", f"/api/records/{first}/versions").json()["hits"]
    assert [hit["id"] for hit in shown["hits"]] == [second, first]
    assert alice("POST", f"/api/records/{concept}/versions", 404)


@pytest.mark.parametrize("prefix", ["10.5281", "10.5072"])
def test_dois_lead_to_the_page_of_a_record(tmp_path, prefix):
    with Zenodo(tmp_path, prefix=prefix) as zenodo, connected(zenodo.url, zenodo.token) as http:
        alice = User(http)
        number = alice.draft()
        assert http.get(f"/{prefix}/zenodo.{number}").status_code == 404
        alice.upload(number)
        alice.publish(number)
        for doi in (f"{prefix}/zenodo.{number}", f"{prefix}/zenodo.{int(number) - 1}"):
            answer = http.get(f"/{doi}", follow_redirects=True)
            assert [str(step.url) for step in answer.history] == [f"{zenodo.url}/{doi}", f"{zenodo.url}/doi/{doi}"]
            assert str(answer.url) == f"{zenodo.url}/records/{number}"
            assert answer.headers["Content-Type"] == "text/html"
        assert http.get(f"/records/{int(number) - 1}").headers["Location"] == f"{zenodo.url}/records/{number}"


def test_links_begin_with_the_host_that_was_asked(alice, anybody):
    number = alice.record()
    headers = {"Host": "zenodo.example", "X-Forwarded-Proto": "https"}
    links = anybody("GET", f"/api/records/{number}", headers=headers).json()["links"]
    assert links["files"] == f"https://zenodo.example/api/records/{number}/files"
    answer = anybody("GET", f"/api/records/{int(number) - 1}", 302, headers=headers)
    assert answer.headers["Location"] == f"https://zenodo.example/api/records/{number}"


# What is said in which form


@pytest.mark.parametrize(
    ("accept", "answered"),
    [
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        (RDM, RDM),
        (f"{RDM}, application/json;q=0.9", RDM),
        (f"application/json;q=0.1, {RDM};q=0.2", RDM),
        (f"*/*, {RDM};q=0.1", RDM),
        ("application/xml", None),
    ],
)
def test_the_form_of_a_record_is_negotiated(alice, accept, answered):
    number = alice.draft()
    answer = alice("GET", f"/api/records/{number}/draft", accept=accept)
    if answered is None:
        assert answer.status_code == 406
        assert said(answer).startswith("Invalid 'Accept' header. Expected one of: application/json")
        return
    assert answer.headers["Content-Type"] == answered
    old = answered == "application/json"
    assert (answer.json()["id"], "recid" in answer.json()) == ((int(number), True) if old else (number, False))


@pytest.mark.parametrize("method", ["POST", "GET", "PUT"])
def test_without_an_accept_header_a_draft_has_zenodos_own_form(alice, method):
    number = alice.draft()
    path = "/api/records" if method == "POST" else f"/api/records/{number}/draft"
    body = {"json": {"metadata": {"title": "x"}}} if method != "GET" else {}
    form = alice(method, path, accept="*/*", **body).json()
    assert form["state"] == "unsubmitted"
    assert "errors" not in form


def test_published_files_have_one_form_only_and_contents_none(alice):
    number = alice.record()
    for path in ("files", "files/a.zip", "files/a.zip/content"):
        alice("GET", f"/api/records/{number}/{path}", 406)
        alice("GET", f"/api/records/{number}/{path}", 200, accept="application/json")
    alice("GET", f"/api/records/{number}/files/a.zip/content", 406, accept=BYTES)
    alice("GET", f"/api/records/{number}/files/a.zip/content", 406, accept="application/zip")


@pytest.mark.parametrize(
    ("kind", "status"), [("application/json", 201), (None, 201), ("application/json; charset=utf-8", 415)]
)
def test_the_type_of_json_is_compared_letter_by_letter(alice, kind, status):
    headers = {} if kind is None else {"Content-Type": kind}
    answer = alice("POST", "/api/records", status, content=b"{}", headers=headers)
    if status == 415:
        assert said(answer) == "Invalid 'Content-Type' header. Expected one of: application/json"


def test_the_bytes_of_a_file_are_an_octet_stream_or_nothing(alice):
    number = alice.draft()
    alice.init(number, "a.zip")
    path = f"/api/records/{number}/draft/files/a.zip/content"
    answer = alice("PUT", path, 415, content=DATA, headers={"Content-Type": "application/zip"})
    assert said(answer) == f"Invalid 'Content-Type' header. Expected one of: {BYTES}"
    alice("PUT", path, 200, content=DATA)


def test_zenodos_own_form_of_a_record(alice, anybody, zenodo):
    number = alice.record(
        related_identifiers=[{"identifier": "10.1/x", "relation_type": {"id": "issupplementto"}}]
    )
    form = anybody("GET", f"/api/records/{number}", accept="application/json").json()
    md5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
    assert form.items() >= {"id": int(number), "recid": number, "doi": f"10.5281/zenodo.{number}"}.items()
    assert form["conceptdoi"] == f"10.5281/zenodo.{form['conceptrecid']}"
    assert [(file["key"], file["size"], file["checksum"]) for file in form["files"]] == [
        ("a.zip", len(DATA), f"md5:{md5}")
    ]
    assert form["files"][0]["links"] == {"self": f"{zenodo.url}/api/records/{number}/files/a.zip/content"}
    assert [creator["name"] for creator in form["metadata"]["creators"]] == ["Doe, Jane", "Team Y"]
    assert form["metadata"]["related_identifiers"] == [{"identifier": "10.1/x", "relation": "isSupplementTo"}]


def test_the_deposit_api_predicts_a_doi_that_is_wrong_on_the_sandbox(tmp_path):
    with Zenodo(tmp_path, prefix="10.5072") as zenodo, connected(zenodo.url, zenodo.token) as http:
        assert http.post("/api/deposit/depositions").status_code == 500
        form = http.post("/api/deposit/depositions", json={}).json()
        assert form["metadata"]["prereserve_doi"]["doi"] == f"10.5281/zenodo.{form['id']}"
        real = http.post(f"/api/records/{form['id']}/draft/pids/doi", headers={"Accept": RDM})
        assert real.json()["pids"]["doi"]["identifier"] == f"10.5072/zenodo.{form['id']}"
        assert [mine["id"] for mine in http.get("/api/deposit/depositions").json()] == [form["id"]]


# Metadata


def test_a_draft_is_saved_although_it_is_invalid_and_publishing_refuses_it(alice):
    number = alice.draft()
    alice.upload(number)
    told = alice("PUT", f"/api/records/{number}/draft", 200, json={"metadata": {"title": "Only this"}}).json()
    assert told["metadata"] == {"title": "Only this"}
    required = {f"metadata.{key}" for key in ("resource_type", "creators", "publication_date")}
    assert messages(told) == {field: ["Missing data for required field."] for field in required}
    assert messages(alice("GET", f"/api/records/{number}/draft").json()).keys() == required
    refused = alice.publish(number, 400)
    assert (refused["status"], refused["message"]) == (400, INVALID)
    assert messages(refused).keys() == required | {"metadata.publisher"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"title": "ab"}, "metadata.title"),
        ({"publication_date": "soon"}, "metadata.publication_date"),
        ({"creators": []}, "metadata.creators"),
        (
            {"creators": [{"person_or_org": {"type": "personal", "name": "X"}}]},
            "creators.0.person_or_org.family_name",
        ),
        ({"creators": [{"person_or_org": {"name": "X"}}]}, "creators.0.person_or_org.type"),
        ({"nonsense": 1}, "metadata.nonsense"),
        ({"related_identifiers": [{"identifier": "10.1/x"}]}, "related_identifiers.0.relation_type"),
        ({"rights": [{"id": "mit", "title": {"en": "MIT"}}]}, "rights.0.id"),
        ({"additional_descriptions": [{"description": "Some text"}]}, "additional_descriptions.0.type"),
        ({"subjects": [{"keyword": "x"}]}, "subjects.0.subject"),
    ],
)
def test_what_is_wrong_is_told_and_not_kept(alice, change, field):
    number = alice.draft()
    alice.upload(number)
    told = alice.save(number, **change)
    assert any(name.endswith(field) for name in messages(told)), told["errors"]
    assert change.keys() - told["metadata"].keys() == change.keys()


def test_a_wrong_orcid_and_an_unknown_identifier_are_seen(alice):
    number = alice.draft()
    orcid = {"scheme": "orcid", "identifier": "0000-0002-1825-0098"}
    creator = {"person_or_org": {"type": "personal", "family_name": "Doe", "identifiers": [orcid]}}
    related = [{"identifier": "whatever", "relation_type": {"id": "cites"}}]
    told = messages(alice.save(number, creators=[creator], related_identifiers=related))
    assert "metadata.creators.0.person_or_org.identifiers.0.identifier" in told
    assert told["metadata.related_identifiers.0.scheme"] == ["No valid scheme recognized for identifier."]


@pytest.mark.parametrize(
    "change", [{"rights": [{"id": "MIT"}]}, {"resource_type": {"id": "data"}}, {"languages": [{"id": "en"}]}]
)
def test_an_id_of_no_vocabulary_is_not_saved_at_all(alice, change):
    number = alice.draft(title="As it was")
    body = {"metadata": METADATA | {"title": "Other"} | change}
    assert re.fullmatch(r"Invalid value \S+\.", said(alice("PUT", f"/api/records/{number}/draft", 400, json=body)))
    assert alice("GET", f"/api/records/{number}/draft").json()["metadata"]["title"] == "As it was"


def test_a_save_without_files_says_so_and_publishing_needs_them_complete(alice):
    number = alice.draft()
    missing = {"files.enabled": ["Missing uploaded files."]}
    assert messages(alice.save(number)) == missing
    assert messages(alice("GET", f"/api/records/{number}/draft").json()) == {}
    assert messages(alice.publish(number, 400)) == missing
    alice.init(number, "a.zip")
    assert messages(alice.save(number)) == {}
    assert messages(alice.publish(number, 400)).keys() == {"files"}


def test_records_of_zenodo_are_public_and_have_files(alice):
    number = alice.draft()
    told = alice.save(number, access={"record": "restricted", "files": "restricted"})
    assert messages(told)["access"] == ["You don't have permissions to manage record access."]
    body = {"metadata": METADATA, "files": {"enabled": False}}
    told = alice("PUT", f"/api/records/{number}/draft", json=body).json()
    assert messages(told) == {"files.enabled": ["You don't have permissions to manage files options."]}


def test_a_doi_of_ours_cannot_be_chosen(alice):
    number = alice.draft()
    doi = {"identifier": "10.5072/zenodo.1", "provider": "datacite", "client": "datacite"}
    told = alice("PUT", f"/api/records/{number}/draft", json={"metadata": METADATA, "pids": {"doi": doi}}).json()
    assert messages(told)["pids.doi"][0].startswith("Wrong DOI 10.5072 prefix provided, it should be 10.5281")


def test_a_change_of_what_changed_meanwhile_is_refused(alice):
    number = alice.draft()
    seen = alice("GET", f"/api/records/{number}/draft").json()["revision_id"]
    headers = {"If-Match": str(seen)}
    alice("PUT", f"/api/records/{number}/draft", 200, json={"metadata": METADATA}, headers=headers)
    alice("PUT", f"/api/records/{number}/draft", 412, json={"metadata": METADATA}, headers=headers)


# Files


def test_files_that_cannot_be_begun(alice, zenodo):
    zenodo.limits.files = 2
    number = alice.draft()
    alice.init(number, "a.zip")
    assert alice.init(number, "a.zip", status=400)["message"] == "File with key a.zip already exists."
    assert alice.init(number, status=400)["message"] == "No files to upload."
    assert alice.init(number, "x" * 256, status=400)
    assert alice.init(number, "b", "c", status=400)["message"] == (
        "Uploading selected files will result in exceeding the max amount per record."
    )
    unknown = alice("POST", f"/api/records/{number}/draft/files", 400, json=[{"key": "b", "name": "b"}]).json()
    assert messages(unknown) == {"0.name": ["Unknown field."]}
    assert alice.content(number, "b", status=404)["message"] == f"Record '{number}' has no file 'b'."


def test_commits_that_fail(alice):
    number = alice.draft()
    alice.init(number, "a.zip", "empty")
    assert "internal error" in alice.commit(number, status=500)["message"]
    alice.content(number, "empty", b"")
    assert alice.commit(number, "empty", status=400)["message"] == "Empty files are not accepted."


def test_a_second_upload_of_a_committed_file_loses_it_and_is_called_a_success(alice, zenodo):
    number = alice.draft()
    alice.upload(number)
    assert alice.content(number, data=b"other")["errors"] == "File upload transfer failed."
    assert zenodo.state().drafts == {number: {}}
    alice("GET", f"/api/records/{number}/draft/files/a.zip", 404)


def test_a_pending_file_can_be_sent_again(alice):
    number = alice.draft()
    alice.init(number, "a.zip")
    alice.content(number, data=b"first")
    alice.content(number, data=b"second!")
    assert alice.commit(number)["size"] == 7


def test_files_above_the_quota(alice, zenodo):
    zenodo.limits.record, zenodo.limits.file = 100, 80
    number = alice.draft()
    alice.init(number, "a.zip", "b.zip")
    assert alice.content(number, data=b"x" * 81, status=400)["message"] == "Maximum file size exceeded."
    alice.content(number, data=b"x" * 80)
    assert alice.content(number, "b.zip", b"x" * 21, status=400)["message"] == "Bucket quota exceeded."


def test_an_upload_needs_a_length(alice):
    number = alice.draft()
    alice.init(number, "a.zip")
    answer = alice("PUT", f"/api/records/{number}/draft/files/a.zip/content", 400, content=iter([b"abc"]))
    assert said(answer) == "File is smaller than expected."


def test_names_of_files_may_be_anything(alice):
    number = alice.draft()
    key = "a b/ü#?%.txt"
    alice.init(number, key)
    quoted = "a%20b/%C3%BC%23%3F%25.txt"
    alice.content(number, quoted)
    assert alice.commit(number, quoted)["key"] == key
    alice.publish(number)
    assert alice.read(number, quoted).content == DATA
    link = alice("GET", f"/api/records/{number}/files", accept="*/*").json()["entries"][0]["links"]["content"]
    assert link.endswith(f"/files/{quoted}/content")


def test_parts_of_a_file_can_be_read_where_ranges_are_honoured(alice, zenodo):
    number = alice.record()
    answer = alice.read(number, headers={"Range": "bytes=5-9"}, status=206)
    assert (answer.content, answer.headers["Content-Range"]) == (DATA[5:10], f"bytes 5-9/{len(DATA)}")
    assert alice.read(number, headers={"Range": "bytes=9990-"}, status=206).content == DATA[9990:]
    alice.read(number, headers={"Range": f"bytes={len(DATA)}-"}, status=416)
    alice.read(number, headers={"Range": "bytes=5-", "If-Range": '"other"'}, status=200)
    zenodo.limits.ranges = False
    assert alice.read(number, headers={"Range": "bytes=5-9"}, status=200).content == DATA


def test_a_client_that_goes_away_in_the_middle_leaves_no_entry(alice, zenodo):
    number = alice.draft()
    alice.init(number, "a.zip")
    path = f"/api/records/{number}/draft/files/a.zip"
    headers = f"Host: x\r\nAuthorization: Bearer {zenodo.token}\r\nContent-Length: 9\r\n\r\n"
    head = f"PUT {path}/content HTTP/1.1\r\n{headers}"
    with socket.create_connection(("127.0.0.1", zenodo.port), 10) as sock:
        sock.sendall(head.encode() + b"1234")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    alice("GET", path, 404)
    assert list(zenodo.store.folder.iterdir()) == []


# Who may


@pytest.mark.parametrize("token", [None, "wrong"])
def test_without_a_token_nothing_is_changed(alice, user, token):
    number, anybody = alice.draft(), user(token)
    for method, path in (("POST", ""), ("GET", f"/{number}/draft"), ("PUT", f"/{number}/draft")):
        assert anybody(method, f"/api/records{path}", 403).json() == DENIED
    assert anybody("GET", "/api/user/records", 403).json() == DENIED
    assert anybody("GET", "/api/records", 200).headers["X-RateLimit-Limit"] == "133"
    assert alice("GET", "/api/records", 200).headers["X-RateLimit-Limit"] == "1000"


def test_a_token_may_stand_in_the_address(alice, anybody, zenodo):
    number = alice.draft()
    anybody("GET", f"/api/records/{number}/draft?access_token={zenodo.token}", 200)


def test_others_change_nothing(alice, bob):
    draft, number = alice.draft(), alice.record()
    for method, path in (
        *(("GET", f"{draft}/draft"), ("PUT", f"{draft}/draft"), ("POST", f"{draft}/draft/actions/publish")),
        *(("POST", f"{number}/versions"), ("POST", f"{number}/draft"), ("POST", f"{number}/request-deletion")),
    ):
        assert bob(method, f"/api/records/{path}", 403).json() == DENIED


def test_a_token_may_be_limited(alice, zenodo):
    zenodo.api.scopes[zenodo.token] = {"deposit:write"}
    number = alice.draft()
    alice.upload(number)
    assert alice.publish(number, 403) == DENIED


def test_cookies_without_a_token_are_a_forgery(anybody, alice):
    answer = alice("POST", "/api/records", 201, json={})
    assert answer.headers["Set-Cookie"].startswith("csrftoken=")
    answer = anybody("POST", "/api/records", 400, json={}, headers={"Cookie": "csrftoken=x"})
    assert said(answer) == "CSRF token missing or incorrect."
    answer = anybody("POST", "/api/records", 400, json={}, headers={"Cookie": "session=x"})
    assert said(answer) == "CSRF cookie not set."
    alice("POST", "/api/records", 201, json={}, headers={"Cookie": "csrftoken=x"})


def test_restricted_files_are_not_even_listed(alice, bob, anybody):
    number = alice.record(RESTRICTED)
    for user in (bob, anybody):
        form = user("GET", f"/api/records/{number}", accept="application/json").json()
        assert (form["files"], form["metadata"]["access_right"]) == ([], "restricted")
        assert "entries" not in user("GET", f"/api/records/{number}").json()["files"]
        for path in ("files", "files/a.zip", "files/a.zip/content"):
            assert user("GET", f"/api/records/{number}/{path}", 403, accept="*/*").json() == DENIED
    assert alice.read(number).content == DATA


def test_an_embargo_ends(alice, anybody, zenodo):
    zenodo.pass_days(0)
    until = zenodo.store.date().replace(year=zenodo.store.date().year + 1, day=1).isoformat()
    embargo = {"embargo": {"active": True, "until": until, "reason": None}}
    number = alice.record(RESTRICTED | embargo)
    shown = anybody("GET", f"/api/records/{number}").json()["access"]
    assert (shown["status"], shown["embargo"]["until"]) == ("embargoed", until)
    anybody.read(number, status=403)
    zenodo.pass_days(366)
    assert anybody("GET", f"/api/records/{number}").json()["access"]["status"] == "open"
    assert anybody.read(number).content == DATA


def test_an_embargo_must_end_in_the_future(alice):
    number = alice.draft()
    past = RESTRICTED | {"embargo": {"active": True, "until": "2020-01-01"}}
    told = alice.save(number, access=past)
    assert messages(told)["access.embargo.until"] == ["Embargo end date must be set to a future date."]


def test_a_deleted_record_leaves_a_tombstone(alice, anybody, zenodo):
    number = alice.record()
    alice("POST", f"/api/records/{number}/request-deletion", 200, json={"reason": "test-record"})
    for path in ("", "/files", "/files/a.zip/content"):
        answer = anybody("GET", f"/api/records/{number}{path}", 410, accept="*/*").json()
        assert (answer["message"], answer["tombstone"]["removal_reason"]) == (
            "Record deleted",
            {"id": "test-record"},
        )
    assert zenodo.state().deleted == {number}
    hidden = alice.record()
    zenodo.delete(hidden, visible=False)
    assert said(anybody("GET", f"/api/records/{hidden}", 404)) == "Record not found"


# Searches and communities


def test_drafts_and_records_are_found_by_what_they_say(alice, bob, anybody):
    note = {"description": "<p>digest deadbeef00</p>", "type": {"id": "notes"}}
    marked = alice.draft(additional_descriptions=[note])
    published = alice.record()

    def found(user, path="/api/user/records", **query):
        return {hit["id"] for hit in user("GET", path, 200, params=query).json()["hits"]["hits"]}

    assert found(alice) == {marked, published}
    assert found(alice, q='"deadbeef00"') == found(alice, is_published="false") == {marked}
    assert found(alice, q='metadata.title:"Run 12" AND deadbeef00') == {marked}
    assert found(bob) == set()
    doi = f'doi:"10.5281/zenodo.{published}"'
    assert found(anybody, "/api/records", q=doi) == found(anybody, "/api/records") == {published}
    anybody("GET", "/api/records?size=26", 400)
    alice("GET", "/api/user/records?size=100", 200)
    alice("GET", "/api/user/records?size=101", 400)


def test_only_the_latest_version_is_found_unless_all_are_asked_for(alice):
    first = alice.record()
    second = alice("POST", f"/api/records/{first}/versions").json()["id"]
    shown = alice("GET", "/api/user/records").json()["hits"]
    assert [hit["id"] for hit in shown["hits"]] == [second]
    assert alice("GET", "/api/user/records?allversions=true").json()["hits"]["total"] == 2


def test_communities_take_what_their_members_submit(alice, bob, zenodo):
    zenodo.community("lab", "alice")
    zenodo.community("club", "bob", closed=True)
    number = alice.record()

    def submit(user, status, *slugs):
        body = {"communities": [{"id": slug} for slug in slugs]}
        return user("POST", f"/api/records/{number}/communities", status, json=body).json()

    assert submit(alice, 200, "lab", "nowhere")["processed"][0]["request"]["status"] == "accepted"
    assert submit(alice, 400, "nowhere")["errors"][0]["message"] == "Community not found."
    assert submit(alice, 400, "lab")["errors"][0]["message"].endswith("already included in this community.")
    assert "closed" in submit(alice, 400, "club")["errors"][0]["message"]
    submit(bob, 403, "club")
    assert list(zenodo.state().communities.values()) == [("lab",)]
    theirs = bob.draft()
    bob.upload(theirs)
    bob.publish(theirs)
    body = {"communities": [{"id": "lab"}]}
    answer = bob("POST", f"/api/records/{theirs}/communities", 200, json=body).json()
    assert answer["processed"][0]["request"]["is_open"]


# Faults


def test_every_answer_speaks_of_its_limits(alice):
    for path in ("/api/records", "/api/records/77", "/nowhere"):
        headers = alice("GET", path).headers
        assert {"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-Request-Id"} <= {
            name.title().replace("Ratelimit", "RateLimit") for name in headers
        }
        assert headers["Retry-After"] == "60"


def test_a_fault_meets_those_it_is_ordered_for(alice, zenodo):
    fault = zenodo.faults.add("429", "GET .*user", nth=2, times=2, retry_after=7)
    alice("GET", "/api/records", 200)
    answers = [alice("GET", "/api/user/records") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 429, 429, 200]
    assert answers[1].headers["Retry-After"] == "7"
    assert answers[1].json() == {"message": "100 per 1 minute", "status": 429}
    assert (fault.done, zenodo.counts("GET .*user")) == (2, 4)
    zenodo.faults.add("500", times=None)
    zenodo.faults.clear()
    alice("GET", "/api/records", 200)
    with pytest.raises(ValueError, match="misspelt"):
        zenodo.faults.add("misspelt")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", ["500", "502", "504"])
def test_an_answer_is_lost_before_or_after_it_was_done(alice, zenodo, kind, after):
    number = alice.draft()
    alice.upload(number)
    zenodo.faults.add(kind, "actions/publish", after=after)
    answer = alice("POST", f"/api/records/{number}/draft/actions/publish", int(kind))
    if kind == "500":
        assert answer.json()["error_id"]
    else:
        assert answer.headers["Content-Type"] == "text/html"
    assert (number in zenodo.state().records) is after


def test_a_record_is_made_and_nobody_learns_of_it(alice, zenodo):
    zenodo.faults.add("lost-answer", "POST /api/records$")
    with pytest.raises(httpx2.TransportError):
        alice.draft()
    assert len(zenodo.state().drafts) == 1


@pytest.mark.parametrize("noticed", [True, False])
def test_a_connection_breaks_in_the_middle_of_an_upload(alice, zenodo, noticed):
    number = alice.draft()
    alice.init(number, "a.zip")
    zenodo.faults.add("reset", "PUT .*/content", at=3000, noticed=noticed)
    with pytest.raises(httpx2.TransportError):
        alice.content(number, data=b"x" * 5_000_000)
    assert zenodo.state().drafts == {number: {} if noticed else {"a.zip": None}}
    if not noticed:
        alice.init(number, "a.zip", status=400)
        alice("DELETE", f"/api/records/{number}/draft/files/a.zip", 204)
    alice.upload(number)


def test_a_download_is_cut_short_or_wrong(alice, zenodo):
    number = alice.record()
    zenodo.faults.add("truncate", "GET .*/content", at=100)
    with pytest.raises(httpx2.RemoteProtocolError, match="received 100 bytes"):
        alice.read(number)
    zenodo.faults.add("wrong-bytes", "GET .*/content", at=100)
    data = alice.read(number).content
    assert [place for place, byte in enumerate(data) if byte != DATA[place]] == [100]
    assert alice.read(number).content == DATA


def test_an_upload_arrives_wrong(alice, zenodo):
    number = alice.draft()
    zenodo.faults.add("wrong-bytes", "PUT .*/content", at=100)
    wrong = bytearray(DATA)
    wrong[100] ^= 1
    assert alice.upload(number)["checksum"] == f"md5:{hashlib.md5(wrong, usedforsecurity=False).hexdigest()}"


@pytest.mark.parametrize(("status", "kind"), [(403, "text/html"), (200, BYTES)])
def test_a_client_is_blocked(alice, zenodo, status, kind):
    number = alice.record()
    zenodo.faults.add("blocked", "/content", status=status, content_type=kind)
    answer = alice.read(number, status=status)
    assert answer.headers["Content-Type"] == kind
    assert "unusual traffic" in answer.text


def test_the_other_faults(alice, zenodo):
    number = alice.draft()
    alice.init(number, "a.zip")
    zenodo.faults.add("quota")
    assert alice.content(number, status=400)["message"] == "Bucket quota exceeded."
    alice.content(number)
    zenodo.faults.add("lost-content")
    assert alice.commit(number, status=404)["message"] == f"Record '{number}' has no file 'a.zip'."
    zenodo.faults.add("guest")
    assert alice("GET", f"/api/records/{number}/draft", 403).headers["X-RateLimit-Limit"] == "133"
    alice.upload(number)
    alice.publish(number)
    zenodo.faults.add("slow-doi", times=1)
    assert [alice("GET", f"/10.5281/zenodo.{number}").status_code for _ in range(2)] == [404, 302]
    zenodo.faults.add("redirect", "/content", location="http://127.0.0.1:9/")
    assert alice.read(number, status=302).headers["Location"] == "http://127.0.0.1:9/"


def test_a_search_lags_behind_what_came_after_the_order(alice, zenodo):
    old = alice.draft()
    zenodo.faults.add("search-lag", times=2)
    new = alice.draft()
    shown = [alice("GET", "/api/user/records").json()["hits"]["hits"] for _ in range(3)]
    assert [{hit["id"] for hit in hits} for hits in shown] == [{old}, {old}, {old, new}]


def test_a_connection_that_says_nothing(alice, zenodo):
    ended = threading.Event()
    zenodo.faults.add("hang", until=ended)
    with pytest.raises(httpx2.ReadTimeout):
        alice("GET", "/api/records", timeout=0.2)
    ended.set()
    alice("GET", "/api/records", 200)


def test_damage_behind_its_back(alice, zenodo):
    number = alice.record()
    zenodo.path(number, "a.zip").write_bytes(b"x" * len(DATA))
    listed = alice("GET", f"/api/records/{number}/files", accept="*/*").json()["entries"][0]
    assert listed["checksum"] == f"md5:{hashlib.md5(DATA, usedforsecurity=False).hexdigest()}"
    assert alice.read(number).content == b"x" * len(DATA)
    zenodo.path(number, "a.zip").write_bytes(b"short")
    with pytest.raises(httpx2.RemoteProtocolError):
        alice.read(number)
    zenodo.swap(number, b"other", "a.zip")
    zenodo.swap(number, b"more", "b.zip")
    assert (alice.read(number).content, alice.read(number, "b.zip").content) == (b"other", b"more")
    md5 = hashlib.md5(b"other", usedforsecurity=False).hexdigest()
    assert zenodo.state().records[number]["a.zip"] == md5


# By itself


def test_it_runs_by_itself(tmp_path):
    command = [sys.executable, "-m", "support.zenodo", "--token", "t", "--folder", str(tmp_path)]
    tests = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=tests, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            with connected(url, "t") as http:
                assert User(http).record()
        finally:
            process.terminate()
        assert process.wait(30) == 0
