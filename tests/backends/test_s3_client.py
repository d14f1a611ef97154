import contextlib
import datetime as dt
import email.utils
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import ValidationError
from support.faults import Faults
from support.httpd import Authority, OtherName, Server, forget_proxies
from support.programs import lasting_port

from ari_backends.s3.client import Client, Outcome
from ari_backends.s3.settings import S3Settings
from ari_core.contract import OpenContext
from ari_core.errors import (
    AccessDenied,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    QuotaExceeded,
    RangeError,
    RateLimited,
    Unavailable,
    Unsupported,
)

SECRET = "Wn3xQ0vT7sPlainlyNotToBeSeen"  # noqa: S105 - nobody's
TOKEN = "FwoGZXIvYXdzEBYaDKNotToBeSeenEither"  # noqa: S105 - nobody's
MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    forget_proxies(monkeypatch)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@contextlib.contextmanager
def opened(context=None, **settings):
    client = Client(S3Settings(**settings), context)
    try:
        yield client
    finally:
        client.close()


def settings_of(store, **more):
    keys = {"access_key_id": store.access_key, "secret_access_key": store.secret_key}
    return {"bucket": store.bucket, "endpoint_url": store.endpoint_url, **keys, **more}


@pytest.fixture
def client(s3_store):
    with opened(**settings_of(s3_store, prefix="lab/2026")) as client:
        yield client


def refusing(status, code="", message="", **headers):
    """A store that answers so to everything."""
    xml = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>" if code else ""

    def respond(request, wire):
        if "expect" in request.headers:  # else botocore waits a second with the body
            wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        got = len(request.raw.split(b"\r\n\r\n", 1)[1])
        while got < int(request.headers.get("content-length", 0)):
            got += len(wire.socket.recv(65536))
        body = b"" if request.method == "HEAD" else xml.encode()
        wire.answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)

    return Server(respond)


@contextlib.contextmanager
def asking(server, context=None, **settings):
    keys = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": SECRET, "session_token": TOKEN}
    if settings.pop("unsigned", False):
        keys = {}
    with server, opened(context, bucket="lab", endpoint_url=server.origin, **keys, **settings) as client:
        yield client


def said(raised):
    """All that a user, or a log, is shown of an error."""
    error = raised.value
    text = f"{error.message} | {error.hint}"
    for secret in (SECRET, TOKEN, "AKIDEXAMPLE", "Signature=", "X-Amz-"):
        assert secret not in text + repr(error)
    assert "\n" not in text
    return text


# -- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"bucket": "lab/bundles"}, "goes into prefix"),
        ({"bucket": "s3://lab"}, "goes into prefix"),
        ({"bucket": "arn:aws:s3:::lab"}, "goes into prefix"),
        ({"bucket": ".."}, "goes into prefix"),
        ({"prefix": "a//b"}, "one slash"),
        ({"prefix": "a/../b"}, "one slash"),
        ({"prefix": "a\x1b[0m"}, "one slash"),
        ({"endpoint_url": "ftp://h"}, "https://HOST"),
        ({"endpoint_url": "store.example.org"}, "https://HOST"),
        ({"endpoint_url": "https://"}, "https://HOST"),
        ({"endpoint_url": "https://h:99999"}, "https://HOST"),
        ({"endpoint_url": f"https://AKID:{SECRET}@h"}, "no user name"),
        ({"endpoint_url": "https://h/?a=b"}, "no user name"),
        ({"access_key_id": "AKID"}, "go together"),
        ({"secret_access_key": SECRET}, "go together"),
        ({"session_token": TOKEN}, "goes with"),
        ({"part_size": "4MiB"}, "greater than or equal"),
        ({"part_size": "6GiB"}, "less than or equal"),
        ({"concurrency": 0}, "greater than or equal"),
        ({"concurrency": 33}, "less than or equal"),
        ({"checksum": "always"}, "when_required"),
        ({"colour": "blue"}, "not permitted"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_in_words_that_show_no_secret(wrong, told):
    with pytest.raises(ValidationError) as raised:
        S3Settings(**wrong)
    assert told in str(raised.value)
    assert SECRET not in str(raised.value)
    assert TOKEN not in str(raised.value)


def test_settings_are_brought_into_their_usual_form():
    settings = S3Settings(
        prefix="/lab/2026/", endpoint_url="https://store.example.org:9000/s3/", part_size="64MiB"
    )
    assert (settings.prefix, settings.endpoint_url) == ("lab/2026", "https://store.example.org:9000/s3")
    assert settings.part_size == 64 * MIB
    assert Client(settings).key("artifacts", "f0") == "lab/2026/artifacts/f0"
    assert Client(S3Settings()).key("artifacts", "f0") == "artifacts/f0"


def test_every_setting_says_what_it_is_for():
    assert all(field.description for field in S3Settings.model_fields.values())


@pytest.mark.parametrize(
    ("endpoint", "style", "url"),
    [
        (None, "auto", "https://lab.s3.eu-central-1.amazonaws.com/a/x"),
        (None, "virtual", "https://lab.s3.eu-central-1.amazonaws.com/a/x"),
        (None, "path", "https://s3.eu-central-1.amazonaws.com/lab/a/x"),
        ("https://store.example.org:9000", "virtual", "https://lab.store.example.org:9000/a/x"),
    ],
)
def test_the_addressing_style_says_whether_the_bucket_is_in_the_host_or_in_the_path(endpoint, style, url):
    keys = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": SECRET, "region": "eu-central-1"}
    with opened(bucket="lab", endpoint_url=endpoint, addressing_style=style, **keys) as client:
        assert client.presign("a/x", 60).partition("?")[0] == url


def test_without_a_bucket_the_user_is_told_how_to_name_one():
    with opened(endpoint_url="http://127.0.0.1:1") as client, pytest.raises(InvalidConfiguration) as raised:
        client.head("x")
    assert "-o bucket=" in raised.value.hint


# -- objects, on real stores -------------------------------------------------------------------------------------


def test_what_is_put_is_there_byte_for_byte_and_can_be_read_from_the_middle(client):
    data = os.urandom(300_000)
    key = client.key("dir", "name with späce+plus")
    written = client.put(key, bytearray(data), metadata={"ari-write": "t1"}, content_type="application/gzip")
    assert written.outcome is Outcome.DONE
    head = client.head(key)
    assert (head.size, head.etag, head.metadata["ari-write"]) == (len(data), written.etag, "t1")
    assert abs(head.now - head.modified) < dt.timedelta(minutes=1)
    got, described = client.read(key, len(data))
    assert (got, described.etag) == (data, head.etag)
    with client.get(key, offset=7, length=100, if_match=written.etag) as body:
        assert (body.length, body.head.size) == (100, len(data))
        assert whole(body) == data[7:107]
    with client.get(key, offset=len(data) - 5) as body:
        assert whole(body) == data[-5:]
    with pytest.raises(RangeError):
        client.get(key, offset=len(data))
    with pytest.raises(IntegrityError, match="more than 10 bytes"):
        client.read(key, 10)


def whole(body):
    data = b""
    while more := body.read(65536):
        data += more
    return data


def test_of_an_object_that_is_not_there_nothing_is_said_but_that(client):
    key = client.key("missing")
    assert client.head(key) is None
    assert client.read(key, 10) is None
    with pytest.raises(NotFound):
        client.get(key)
    client.delete(key)
    client.delete_many([key])


def test_an_object_that_was_replaced_is_not_read_on_as_if_it_were_the_same(client):
    key = client.key("x")
    old = client.put(key, b"old").etag
    client.put(key, b"new")
    with pytest.raises(IntegrityError, match="changed"):
        client.get(key, if_match=old)


@pytest.mark.parametrize("s3_store", ["moto"], indirect=True)
def test_nor_is_it_where_the_store_ignores_the_condition(s3_store):
    with Faults(s3_store.endpoint_url) as faults, opened(**settings_of(s3_store.behind(faults))) as client:
        old = client.put("x", b"old").etag
        client.put("x", b"new")
        faults.order("GetObject", without=("if-match",))
        with pytest.raises(IntegrityError, match="changed"):
            client.get("x", if_match=old)


def test_a_bucket_that_is_not_there_is_never_taken_for_an_object_that_is_not(client):
    other = client.at("nobody-has-this-one")
    for ask in (
        lambda: other.head("x"),
        lambda: other.read("x", 9),
        lambda: other.put("x", b""),
        lambda: other.delete("x"),
        lambda: list(other.keys()),
        other.head_bucket,
        other.now,
    ):
        with pytest.raises(InvalidConfiguration, match="there is no bucket 'nobody-has-this-one'"):
            ask()


def test_creating_what_is_there_fails_and_changes_nothing(client):
    key = client.key("x")
    assert client.put(key, b"first", if_absent=True).outcome is Outcome.DONE
    assert client.put(key, b"second", if_absent=True).outcome is Outcome.FAILED
    assert client.read(key, 99)[0] == b"first"


def test_replacing_goes_by_the_version_that_is_there(s3_store, client):
    key = client.key("x")
    old = client.put(key, b"1").etag
    spelled = old.strip('"') if s3_store.name == "rgw" else old
    if s3_store.name == "swift":
        with pytest.raises(Unsupported):
            client.put(key, b"2", if_match=spelled)
        return
    assert client.put(key, b"2", if_match=spelled).outcome is Outcome.DONE
    assert client.put(key, b"3", if_match=spelled) == client.put(client.key("gone"), b"4", if_match=spelled)
    assert client.put(key, b"3", if_match=spelled).outcome is Outcome.FAILED
    assert client.read(key, 9)[0] == b"2"
    assert client.head(client.key("gone")) is None


def test_an_upload_in_parts_is_seen_by_nobody_before_it_is_completed(client):
    key = client.key("big")
    parts = [os.urandom(5 * MIB), b"the end"]
    upload = client.create_upload(key, metadata={"sha256": "0f"}, content_type="application/gzip")
    etags = [client.upload_part(key, upload, number, part) for number, part in enumerate(parts, 1)]
    assert client.head(key) is None
    assert [(found.key, found.id) for found in client.uploads(client.key())] == [(key, upload)]
    assert list(client.uploads("elsewhere/")) == []
    written = client.complete(key, upload, etags)
    head = client.head(key)
    assert (written.outcome, written.etag) == (Outcome.DONE, head.etag)
    assert (head.size, head.metadata["sha256"]) == (5 * MIB + 7, "0f")
    with client.get(key) as body:
        assert hashlib.sha256(whole(body)).digest() == hashlib.sha256(b"".join(parts)).digest()
    assert list(client.uploads()) == []


def test_an_aborted_upload_leaves_nothing_and_can_be_aborted_again(client):
    key = client.key("big")
    upload = client.create_upload(key)
    client.upload_part(key, upload, 1, b"x")
    client.abort(key, upload)
    client.abort(key, upload)
    assert list(client.uploads()) == []
    assert client.head(key) is None


def test_listings_are_in_order_continue_anywhere_and_keep_to_their_prefix(client):
    keys = [client.key("artifacts", name, "meta.json") for name in ("aa", "bb", "bc", "cc")]
    for key in (*keys, client.key("artifacts2"), "elsewhere"):
        client.put(key, key.encode())
    prefix = client.key("artifacts", "")
    assert [entry.key for entry in client.keys(prefix)] == keys
    assert [entry.key for entry in client.keys(prefix, after=keys[1])] == keys[2:]
    folders = [key.removesuffix("meta.json") for key in keys]
    assert list(client.folders(prefix)) == sorted(folders)
    assert list(client.folders(prefix, after=prefix + "bb/")) == sorted(folders)[2:]
    entry, head = next(client.keys(keys[0])), client.head(keys[0])
    assert (entry.size, entry.etag) == (head.size, head.etag)
    assert abs(entry.modified - head.modified) < dt.timedelta(seconds=2)
    client.delete_many([entry.key for entry in client.keys("")])
    assert list(client.keys()) == []


@pytest.mark.parametrize("s3_store", ["moto"], indirect=True)
def test_a_long_listing_is_fetched_page_by_page_as_it_is_read(s3_store, monkeypatch):
    monkeypatch.setattr("ari_backends.s3.client.PAGE", 3)
    names = [f"{number:02}" for number in range(8)]
    with Faults(s3_store.endpoint_url) as faults, opened(**settings_of(s3_store.behind(faults))) as client:
        for name in names:
            client.put(name, b"")
        listing = client.keys()
        next(listing)
        assert faults.counts["ListObjectsV2"] == 1
        assert [entry.key for entry in listing] == names[1:]
        assert faults.counts["ListObjectsV2"] == 3
        client.delete_many(names)
        assert faults.counts["DeleteObjects"] == 3
        assert list(client.keys()) == []


def test_a_presigned_url_lets_anybody_read_under_the_name_given(client):
    import httpx2

    key = client.key("x")
    client.put(key, b"data")
    url = client.presign(key, 60, disposition='attachment; filename="bundle.tar.gz"')
    answer = httpx2.get(url, trust_env=False)
    assert (answer.status_code, answer.content) == (200, b"data")
    assert answer.headers["content-disposition"] == 'attachment; filename="bundle.tar.gz"'


@pytest.mark.parametrize("s3_store", ["moto"], indirect=True)
def test_the_class_of_storage_is_for_bundles_and_encryption_for_all(s3_store):
    more = {"storage_class": "STANDARD_IA", "server_side_encryption": "AES256"}
    with opened(**settings_of(s3_store, **more)) as client:
        client.put("small", b"x")
        client.put("bundle", b"x", bulk=True)
        upload = client.create_upload("parts")
        client.complete("parts", upload, [client.upload_part("parts", upload, 1, b"x")])
    plain = s3_store.client()
    kept = {key: plain.head_object(Bucket=s3_store.bucket, Key=key) for key in ("small", "bundle", "parts")}
    plain.close()
    assert [head.get("StorageClass") for head in kept.values()] == [None, "STANDARD_IA", "STANDARD_IA"]
    assert {head["ServerSideEncryption"] for head in kept.values()} == {"AES256"}


@pytest.mark.parametrize("s3_store", ["moto"], indirect=True)
def test_a_key_to_encrypt_with_goes_along_with_all_that_is_written(s3_store):
    more = {"server_side_encryption": "aws:kms", "sse_kms_key_id": "alias/lab"}
    with Faults(s3_store.endpoint_url) as faults, opened(**settings_of(s3_store.behind(faults), **more)) as client:
        client.put("small", b"x")
        client.put("bundle", b"x", bulk=True)
        client.create_upload("parts")
    sent = [
        (seen.headers["x-amz-server-side-encryption"], seen.headers["x-amz-server-side-encryption-aws-kms-key-id"])
        for seen in faults.seen
    ]
    assert sent == [("aws:kms", "alias/lab")] * 3


# -- what goes wrong on the way ----------------------------------------------------------------------------------


@pytest.mark.parametrize("s3_store", ["moto"], indirect=True)
def test_a_body_that_is_cut_is_unavailable_and_the_rest_can_be_fetched(s3_store):
    data = os.urandom(MIB)
    with Faults(s3_store.endpoint_url) as faults, opened(**settings_of(s3_store.behind(faults))) as client:
        etag = client.put("x", data).etag
        faults.order("GetObject", cut_response=300_000)
        body, got = client.get("x"), b""
        with body, pytest.raises(Unavailable, match="cut"):  # noqa: PT012 - how much comes before is open
            for _ in range(100):
                got += body.read(65536)
        assert data.startswith(got)
        with client.get("x", offset=len(got), if_match=etag) as body:
            assert got + whole(body) == data


@pytest.mark.parametrize("s3_store", ["moto"], indirect=True)
def test_a_write_whose_answer_is_lost_looks_like_one_that_somebody_else_won(s3_store):
    with Faults(s3_store.endpoint_url) as faults, opened(**settings_of(s3_store.behind(faults))) as client:
        faults.order("PutObject", lose=True)
        assert client.put("x", b"mine", if_absent=True).outcome is Outcome.FAILED
        assert client.read("x", 9)[0] == b"mine"
        assert faults.counts["PutObject"] == 2


@pytest.mark.parametrize("s3_store", ["moto"], indirect=True)
def test_where_many_cannot_be_deleted_at_once_they_are_one_by_one(s3_store):
    with Faults(s3_store.endpoint_url) as faults, opened(**settings_of(s3_store.behind(faults))) as client:
        for status, code in ((400, "MissingContentMD5"), (501, "NotImplemented"), (400, "InvalidRequest")):
            client.put("a", b"")
            client.put("b", b"")
            faults.order("DeleteObjects", answer=(status, code))
            client.delete_many(["a", "b"])
            assert list(client.keys()) == []
        assert faults.counts["DeleteObject"] == 6


@pytest.mark.parametrize("s3_store", ["moto"], indirect=True)
def test_a_store_that_knows_no_ranges_is_read_from_the_middle_all_the_same(s3_store):
    with Faults(s3_store.endpoint_url) as faults, opened(**settings_of(s3_store.behind(faults))) as client:
        client.put("x", b"0123456789")
        faults.order("GetObject", without=("range",), times=None)
        with client.get("x", offset=4, length=2) as body:
            assert (body.length, whole(body)) == (6, b"456789")
        with client.get("x", offset=10) as body:
            assert whole(body) == b""


def test_a_read_that_waits_can_be_interrupted_by_another_thread():
    waiting = threading.Event()

    def respond(request, wire):
        wire.send(b'HTTP/1.1 200 -\r\nContent-Length: 9\r\nETag: "e"\r\n\r\nsome')
        waiting.set()
        wire.hang()

    with asking(Server(respond)) as client:
        body = client.get("x")
        assert body.read(4) == b"some"
        assert waiting.wait(10)
        stopper = threading.Timer(0.2, body.interrupt)
        stopper.start()
        with pytest.raises(Unavailable, match="cut"):
            body.read(5)
        stopper.join()
        body.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 206 -\r\nContent-Range: bytes 0-4/9\r\nContent-Length: 5\r\n\r\n01234",
        b"HTTP/1.1 206 -\r\nContent-Range: bytes x\r\nContent-Length: 5\r\n\r\n01234",
        b"HTTP/1.1 200 -\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_another_part_than_the_one_asked_for_is_not_passed_on(answer):
    with asking(Server(lambda _request, wire: wire.send(answer))) as client, pytest.raises(IntegrityError):
        client.get("x", offset=4)


@pytest.mark.parametrize(
    "pages",
    [
        ("<Key>b</Key>", "<Key>a</Key>"),  # out of order
        ("<Key>a</Key>", "<Key>a</Key>"),  # the same page for ever
        ("<Key>a</Key>", None),  # "there is more", but not how to get it
    ],
)
def test_a_listing_that_is_out_of_order_or_does_not_end_is_refused(pages):
    def respond(request, wire):
        last = "continuation-token" in request.target
        token = "" if pages[1] is None else f"<NextContinuationToken>t{last}</NextContinuationToken>"
        facts = "<Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified>"
        more = "false" if last and pages[0] != pages[1] else "true"
        page = f"<Contents>{pages[last]}{facts}</Contents><IsTruncated>{more}</IsTruncated>{token}"
        wire.answer(200, {}, f"<ListBucketResult>{page}</ListBucketResult>".encode())

    with asking(Server(respond)) as client, pytest.raises(IntegrityError, match="listing"):
        list(client.keys())


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "kind", "told"),
    [
        (403, "AccessDenied", AccessDenied, "policy"),
        (403, "InvalidAccessKeyId", AccessDenied, "does not know this access key"),
        (403, "SignatureDoesNotMatch", AccessDenied, "secret_access_key"),
        (400, "ExpiredToken", AccessDenied, "aws sso login"),
        (400, "InvalidToken", AccessDenied, "session_token"),
        (403, "RequestTimeTooSkewed", AccessDenied, "clock"),
        (401, "Unauthorized", AccessDenied, "policy"),
        (404, "NoSuchBucket", InvalidConfiguration, "there is no bucket 'lab'"),
        (400, "AuthorizationHeaderMalformed", InvalidConfiguration, "region"),
        (301, "PermanentRedirect", InvalidConfiguration, "region"),
        (411, "MissingContentLength", InvalidConfiguration, "checksum=when_required"),
        (400, "InvalidStorageClass", InvalidConfiguration, "storage_class"),
        (403, "QuotaExceeded", QuotaExceeded, "no room"),
        (507, "InsufficientStorage", QuotaExceeded, "no room"),
        (413, "EntityTooLarge", QuotaExceeded, "no room"),
        (403, "InvalidObjectState", Unsupported, "restore"),
        (501, "NotImplemented", Unsupported, "cannot"),
        (405, "MethodNotAllowed", Unsupported, "cannot"),
        (503, "SlowDown", RateLimited, "patience"),
        (429, "TooManyRequests", RateLimited, "patience"),
        (503, "ServiceUnavailable", Unavailable, "failing"),
        (500, "InternalError", Unavailable, "failing"),
        (400, "BadDigest", Unavailable, "damaged"),
        (400, "RequestTimeout", Unavailable, "damaged"),
    ],
)
def test_a_refusal_is_the_right_error_and_says_what_to_do(status, code, kind, told):
    message = f"The request {TOKEN} was &#155;31m refused for {SECRET}"
    with asking(refusing(status, code, message)) as client, pytest.raises(kind) as raised:
        client.put("dir/\x1bx", b"data")
    assert type(raised.value) is kind
    text = said(raised)
    assert told in text
    assert client.settings.endpoint_url in text
    assert text.isprintable()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (403, AccessDenied),
        (401, AccessDenied),
        (400, InvalidConfiguration),
        (503, Unavailable),
        (301, InvalidConfiguration),
    ],
)
def test_a_refusal_without_a_word_is_never_taken_for_absent(status, kind):
    with asking(refusing(status)) as client, pytest.raises(kind) as raised:
        client.head("x")
    said(raised)


def test_how_long_to_wait_is_passed_on():
    with asking(refusing(503, "SlowDown", Retry_After="7")) as client, pytest.raises(RateLimited) as raised:
        client.head("x")
    assert raised.value.retry_after == 7
    with asking(refusing(503, Retry_After="7")) as client, pytest.raises(RateLimited) as raised:
        client.head("x")
    assert raised.value.retry_after == 7


def test_a_store_that_is_busy_is_asked_a_few_times_and_then_left_alone():
    with asking(server := refusing(503, "SlowDown")) as client, pytest.raises(RateLimited):
        client.put("x", b"data")
    assert len(server.seen) == 3


def test_a_conflict_is_an_outcome_of_a_write_with_a_condition():
    with asking(refusing(409, "ConditionalRequestConflict")) as client:
        assert client.put("x", b"", if_absent=True).outcome is Outcome.CONFLICT
    with asking(refusing(304)) as client:
        assert client.put("x", b"", if_absent=True).outcome is Outcome.FAILED


def test_a_clock_that_is_wrong_is_named_also_where_the_store_says_nothing():
    date = email.utils.format_datetime(dt.datetime.now(dt.UTC) - dt.timedelta(hours=26, minutes=2), usegmt=True)
    with asking(refusing(403, Date=date)) as client, pytest.raises(AccessDenied) as raised:
        client.head("x")
    assert "clock is wrong: 26 h 2 min fast" in said(raised)


@pytest.mark.needs("faketime", "radosgw")
def test_a_machine_whose_clock_is_wrong_is_told_so_by_a_real_store(rgw):
    script = (
        "import sys\n"
        "from ari_backends.s3.client import Client\n"
        "from ari_backends.s3.settings import S3Settings\n"
        "from ari_core.errors import AccessDenied\n"
        "client = Client(S3Settings(bucket=sys.argv[1], endpoint_url=sys.argv[2]))\n"
        "for ask in (lambda: client.head('x'), lambda: client.put('x', b'')):\n"
        "    try:\n"
        "        ask()\n"
        "    except AccessDenied as error:\n"
        "        print(error.message)\n"
    )
    done = subprocess.run(
        [shutil.which("faketime"), "-f", "-3h", sys.executable, "-c", script, rgw.bucket, rgw.endpoint_url],
        env={**os.environ, **rgw.env},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.count("clock is wrong: 3 h slow") + done.stdout.count("clock is wrong: 3 h 0 min slow") == 2


@pytest.mark.parametrize("s3_store", ["rgw", "swift"], indirect=True)
def test_wrong_keys_are_refused_in_words_that_name_them(s3_store):
    good = settings_of(s3_store)
    with opened(**good) as client:
        client.put("x", b"data")
    for wrong, told in (
        ({"secret_access_key": SECRET}, "secret"),
        ({"access_key_id": "nobody:here"}, "access key"),
    ):
        with opened(**{**good, **wrong}) as client:
            for ask in (lambda c=client: c.read("x", 9), lambda c=client: c.put("x", b"")):
                with pytest.raises(AccessDenied) as raised:
                    ask()
                said(raised)
                assert told in raised.value.message + raised.value.hint
            with pytest.raises(AccessDenied):
                client.head("x")
            with pytest.raises(AccessDenied):
                client.head("missing")


@pytest.mark.parametrize("s3_store", ["rgw", "swift"], indirect=True)
def test_where_no_credentials_are_found_a_refusal_says_so(s3_store):
    where = {"bucket": s3_store.bucket, "endpoint_url": s3_store.endpoint_url}
    with opened(**where) as client:
        for ask in (lambda: client.head("x"), lambda: client.put("x", b""), client.head_bucket):
            with pytest.raises(AccessDenied) as raised:
                ask()
            assert "no credentials were found" in raised.value.hint
        with pytest.raises(Unsupported, match="credentials"):
            client.presign("x", 60)


@pytest.mark.parametrize("s3_store", ["rgw"], indirect=True)
def test_what_is_public_is_read_without_credentials(s3_store):
    plain = s3_store.client()
    plain.put_object(Bucket=s3_store.bucket, Key="x", Body=b"for all", ACL="public-read")
    plain.close()
    with opened(bucket=s3_store.bucket, endpoint_url=s3_store.endpoint_url) as client:
        assert client.read("x", 99)[0] == b"for all"


# -- credentials -------------------------------------------------------------------------------------------------


def seen_by(monkeypatch, environment, context=None, **settings):
    """How a request is signed that is sent in an environment."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with asking(server := refusing(200, ETag='"e"'), context, unsigned=True, **settings) as client:
        client.head("x")
    return server.seen[-1].headers.get("authorization", "")


ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "FROMENV", "AWS_SECRET_ACCESS_KEY": SECRET}


def test_credentials_of_the_environment_are_used(monkeypatch):
    assert "Credential=FROMENV/" in seen_by(monkeypatch, ENVIRONMENT)


def test_keys_that_are_given_win_over_those_of_the_environment(monkeypatch):
    given = {"access_key_id": "GIVEN", "secret_access_key": SECRET}
    assert "Credential=GIVEN/" in seen_by(monkeypatch, ENVIRONMENT, **given)
    assert "Credential=GIVEN/" in seen_by(monkeypatch, ENVIRONMENT, OpenContext(anonymous=True), **given)


def test_a_profile_gives_the_credentials_also_where_the_environment_has_some(monkeypatch, tmp_path):
    file = tmp_path / "credentials"
    for name, key in ("default", "OFDEFAULT"), ("lab", "OFLAB"):
        with file.open("a") as profiles:
            profiles.write(f"[{name}]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET}\n")
    environment = {**ENVIRONMENT, "AWS_SHARED_CREDENTIALS_FILE": str(file)}
    assert "Credential=OFLAB/" in seen_by(monkeypatch, environment, profile="lab")


def test_the_token_of_temporary_keys_and_the_region_are_signed(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    with asking(server := refusing(200, ETag='"e"'), region="eu-central-1") as client:
        client.head("x")
        query = parse_qs(urlsplit(client.presign("x", 60)).query)
    headers = server.seen[0].headers
    assert headers["x-amz-security-token"] == TOKEN
    assert re.search(r"SignedHeaders=[^,]*;x-amz-security-token\b", headers["authorization"])
    assert re.search(r"Credential=AKIDEXAMPLE/\d+/eu-central-1/s3/aws4_request,", headers["authorization"])
    assert query["X-Amz-Security-Token"] == [TOKEN]
    assert query["X-Amz-Credential"][0].endswith("/eu-central-1/s3/aws4_request")


def test_nothing_is_signed_when_anonymous_is_set(monkeypatch):
    assert seen_by(monkeypatch, ENVIRONMENT, anonymous=True) == ""


def test_for_an_address_out_of_a_record_no_credentials_are_so_much_as_looked_for(monkeypatch, tmp_path):
    (tmp_path / "config").write_text(
        "[default]\ncredential_process = touch called\naws_access_key_id = AKID\naws_secret_access_key = x\n"
        f"[profile p]\ncredential_process = touch {tmp_path}/called\nregion = eu-west-1\n"
    )
    with Server(lambda _request, wire: wire.answer(404)) as role:
        environment = {
            **ENVIRONMENT,
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": role.url("/role"),
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": role.origin,
            "AWS_EC2_METADATA_DISABLED": "false",
        }
        context = OpenContext(anonymous=True)
        assert seen_by(monkeypatch, environment, context, profile="p") == ""
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        assert seen_by(monkeypatch, {}, context, profile="p") == ""
        assert role.seen == []
        assert not (tmp_path / "called").exists()
        with pytest.raises(AccessDenied):  # but without the record it is asked: the test can fail
            seen_by(monkeypatch, {}, profile="p")
        assert (tmp_path / "called").exists()


def test_a_refusal_says_that_an_address_out_of_a_record_is_read_without_credentials(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FROMENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    context = OpenContext(anonymous=True)
    with asking(refusing(403), context, unsigned=True) as client, pytest.raises(AccessDenied) as raised:
        client.head("x")
    assert "stands in a record" in said(raised)


def test_the_role_of_an_aws_machine_is_not_offered_to_other_stores(monkeypatch):
    with Server(lambda _request, wire: wire.answer(404)) as role:
        environment = {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": role.origin}
        assert seen_by(monkeypatch, environment) == ""
        assert role.seen == []


def test_a_profile_that_does_not_exist_is_named():
    with (
        asking(refusing(200), unsigned=True, profile="nobody") as client,
        pytest.raises(InvalidConfiguration) as raised,
    ):
        client.head("x")
    assert "nobody" in said(raised)


def test_the_address_of_a_store_may_stand_in_aws_own_configuration(monkeypatch):
    with refusing(200, ETag='"e"') as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.origin)
        with opened(bucket="lab", access_key_id="AKID", secret_access_key=SECRET) as client:
            client.head("x")
            assert server.origin in client.where("x")
    assert server.seen[0].target == "/lab/x"


# -- silence -----------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("ARI_DEADLINE", "1.5")


def test_a_store_that_is_not_there_is_unavailable_in_words_one_can_act_on():
    where = {"bucket": "lab", "anonymous": True}
    with opened(endpoint_url=f"http://127.0.0.1:{lasting_port()}", **where) as client:
        with pytest.raises(Unavailable) as raised:
            client.head("x")
        assert "takes no connection" in said(raised)
        assert "endpoint_url" in said(raised)
    with opened(endpoint_url="http://nowhere.invalid", **where) as client:
        with pytest.raises(Unavailable) as raised:
            client.head("x")
        assert "the name of http://nowhere.invalid is not known" in said(raised)


def test_a_store_that_says_nothing_is_given_up(impatient):
    with (
        asking(server := Server(lambda _request, wire: wire.hang())) as client,
        pytest.raises(Unavailable) as raised,
    ):
        client.head("x")
    assert "nothing came" in said(raised)
    assert len(server.seen) == 3


def test_a_caller_s_patience_is_the_limit_of_one_answer():
    context = OpenContext(patience=0.3)
    with (
        asking(server := Server(lambda _request, wire: wire.hang()), context) as client,
        pytest.raises(Unavailable),
    ):
        client.head("x")
    assert len(server.seen) == 3


def test_a_store_that_hangs_up_is_unavailable():
    with asking(Server(lambda _request, wire: wire.reset())) as client, pytest.raises(Unavailable) as raised:
        client.put("x", b"data")
    assert "cut" in said(raised)


def test_a_web_page_instead_of_a_store_is_told_as_one():
    page = b"<!DOCTYPE html><html><p>Welcome to our caf\xe9!</html>"
    with asking(Server(lambda _request, wire: wire.answer(200, {"Content-Type": "text/html"}, page))) as client:
        with pytest.raises(Unavailable) as raised:
            list(client.keys())
        assert "web page" in said(raised)


def test_an_answer_that_lacks_what_was_asked_for_is_not_taken_for_one():
    with asking(refusing(200)) as client:
        for ask in (lambda: client.create_upload("x"), lambda: client.upload_part("x", "u", 1, b"data")):
            with pytest.raises(IntegrityError, match="lacks"):
                ask()


def test_a_store_that_has_moved_is_told_with_its_new_address():
    answer = refusing(301, Location="https://store.example.org/lab/x?X-Amz-Signature=0")
    with asking(answer) as client, pytest.raises(InvalidConfiguration) as raised:
        client.head("x")
    assert "it points to https://store.example.org" in said(raised)


def test_an_answer_to_head_bucket_without_a_reason_is_asked_for_it():
    with asking(refusing(403, "ExpiredToken", "The provided token has expired.")) as client:
        for ask in (client.head_bucket, client.now):
            with pytest.raises(AccessDenied) as raised:
                ask()
            assert "temporary credentials have expired" in said(raised)


def test_who_may_list_only_the_prefix_sees_the_bucket():
    def respond(request, wire):
        allowed = "prefix=lab%2F2026%2F" in request.target
        empty = b"<?xml version='1.0'?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
        wire.answer(*((200, {}, empty) if allowed else (403, {}, b"")))

    with asking(Server(respond), prefix="lab/2026") as client:
        client.head_bucket()


def test_a_certificate_that_is_not_trusted_is_told_with_the_setting_that_helps(tmp_path, moto):
    def respond(_request, wire):
        wire.answer(200, {"ETag": '"e"'})

    ours, other = Authority(tmp_path), OtherName(tmp_path)
    with asking(Server(respond, authority=ours, host="localhost")) as client:
        with pytest.raises(InvalidConfiguration) as raised:
            client.head("x")
        assert "ca_bundle" in said(raised)
    ours = Authority(tmp_path)
    with asking(Server(respond, authority=ours, host="localhost"), ca_bundle=ours.file) as client:
        assert client.head("x").etag == '"e"'
    other = OtherName(tmp_path)
    with (
        asking(Server(respond, authority=other, host="localhost"), ca_bundle=other.file) as client,
        pytest.raises(InvalidConfiguration, match="certificate"),
    ):
        client.head("x")
    with (
        opened(bucket="lab", endpoint_url=f"https://{moto.host}", anonymous=True) as client,
        pytest.raises(InvalidConfiguration, match="not https"),
    ):
        client.head("x")
    (tmp_path / "empty.pem").touch()
    with (
        asking(Server(respond, authority=ours), ca_bundle=tmp_path / "empty.pem") as client,
        pytest.raises(InvalidConfiguration, match="authorities"),
    ):
        client.head("x")


# -- how it is sent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "trailing"), [(None, False), ("when_supported", True)])
def test_a_checksum_goes_behind_an_upload_only_where_that_is_asked_for(moto, tmp_path, mode, trailing):
    ours = Authority(tmp_path)
    with (
        Faults(moto.endpoint_url, authority=ours, host="localhost") as faults,
        opened(**settings_of(moto.behind(faults), ca_bundle=ours.file, checksum=mode)) as client,
    ):
        client.put("x", b"data")
        assert client.read("x", 9)[0] == b"data"
    headers = faults.seen[0].headers
    assert ("x-amz-trailer" in headers) is trailing
    assert ("aws-chunked" in headers.get("content-encoding", "")) is trailing
    assert "ari-registry/" in headers["user-agent"]


def test_a_forked_process_uses_no_connection_of_its_parent():
    with asking(server := refusing(200, ETag='"e"')) as client:
        client.head("x")
        first = client._connection.sdk()
        assert first is client._connection.sdk()
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if client._connection.sdk() is not first and client.head("y") else 1)
            except BaseException:  # noqa: BLE001 - a child must not go on
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert client.head("z")
    assert [request.target for request in server.seen] == ["/lab/x", "/lab/y", "/lab/z"]


def test_nothing_is_sent_and_no_credentials_are_read_before_the_first_request(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    client = Client(S3Settings(bucket="lab"))
    assert client._connection._sdk is None
    assert client.where("x") == "s3://lab/x"
    client.close()
