"""The real servers that other tests use: they answer and end with their users, and the proxy really does harm."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import httpx2
import psycopg
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from support.faults import Faults, operation
from support.programs import descendants, gone, naming, require
from support.registry import eventually
from support.stores import PROGRAMS, Moto, Postgres, Rgw, Swift, shared

pytestmark = pytest.mark.in_ci
ROOT = Path(__file__).parents[2]
ONCE = {"retries": {"total_max_attempts": 1}}
BODY = os.urandom(200_000)


@pytest.fixture
def faults(moto):
    with Faults(moto.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def client(moto, faults):
    """Asks once, through the proxy; `bucket` is a bucket."""
    with contextlib.closing(moto.behind(faults).client(**ONCE)) as client:
        client.bucket = moto.bucket
        yield client


def put(client, key="a/b.bin", body=BODY, **more):
    return client.put_object(Bucket=client.bucket, Key=key, Body=body, **more)


def get(client, key="a/b.bin", **more):
    return client.get_object(Bucket=client.bucket, Key=key, **more)["Body"].read()


def code_of(error):
    return error.value.response["Error"]["Code"]


class TestStores:
    def test_each_takes_and_gives_also_through_the_proxy(self, s3_store):
        with Faults(s3_store.endpoint_url) as proxy:
            for store in (s3_store, s3_store.behind(proxy)):
                with contextlib.closing(store.client(**ONCE)) as client:
                    client.bucket = store.bucket
                    put(client)
                    assert get(client) == BODY
                    assert get(client, Range="bytes=10-19") == BODY[10:20]
                    parts = client.create_multipart_upload(Bucket=store.bucket, Key="parts")
                    where = {"Bucket": store.bucket, "Key": "parts", "UploadId": parts["UploadId"]}
                    part = client.upload_part(**where, PartNumber=1, Body=BODY)
                    done = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
                    client.complete_multipart_upload(**where, MultipartUpload=done)
                    assert [one["Key"] for one in client.list_objects_v2(Bucket=store.bucket)["Contents"]] == [
                        "a/b.bin",
                        "parts",
                    ]
                    client.delete_object(Bucket=store.bucket, Key="parts")
                    with pytest.raises(ClientError) as error:
                        get(client, "parts")
                    assert code_of(error) == "NoSuchKey"
            assert proxy.counts == {
                "PutObject": 1,
                "GetObject": 3,
                "CreateMultipartUpload": 1,
                "UploadPart": 1,
                "CompleteMultipartUpload": 1,
                "ListObjectsV2": 1,
                "DeleteObject": 1,
            }

    @pytest.mark.parametrize("s3_store", ["rgw", "swift"], indirect=True)
    def test_a_signature_counts(self, s3_store):
        forged = s3_store.client(**ONCE)
        with contextlib.closing(forged):
            forged._request_signer._credentials.secret_key = "wrong"  # noqa: S105 - it is
            with pytest.raises(ClientError) as error:
                forged.list_objects_v2(Bucket=s3_store.bucket)
        assert code_of(error) == "SignatureDoesNotMatch"

    @pytest.mark.parametrize("kind", [Rgw, Swift, Moto])
    def test_one_of_the_tests_own_can_be_killed_and_started_again(self, tmp_path, kind):
        require(*PROGRAMS[kind.__name__.lower()])
        with kind(tmp_path) as server, contextlib.closing(server.store.client(**ONCE)) as client:
            client.bucket = server.store.with_bucket().bucket
            put(client)
            server.kill()
            with pytest.raises(BotoCoreError):
                get(client)
            server.start()
            if kind is not Moto:
                assert get(client) == BODY

    def test_postgresql_killed_and_started_again_has_what_was_committed(self, tmp_path):
        require(*PROGRAMS["postgres"])
        with Postgres(tmp_path) as server, server.store.database() as url:
            database = url.rpartition("/")[2]
            server.store.run("CREATE TABLE t AS SELECT generate_series(1, 1000)", database)
            for end in (server.kill, server.stop):
                end()
                with pytest.raises(psycopg.OperationalError):
                    server.store.run("SELECT 1")
                server.start()
                assert server.store.run("SELECT count(*) FROM t", database) == [(1000,)]

    def test_each_test_has_a_database_of_its_own_and_no_password_is_shown(self, postgres_url, shared_server):
        cluster = shared_server("postgres")
        with cluster.database() as other:
            assert other != postgres_url
            cluster.run("CREATE TABLE t ()", other.rpartition("/")[2])
        assert cluster.run("SELECT to_regclass('t')", postgres_url.rpartition("/")[2]) == [(None,)]
        assert cluster.password not in repr(cluster)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            replace(cluster, password="wrong").run("SELECT 1")  # noqa: S106 - it is


class TestLifetime:
    USER = """
import sys
from contextlib import ExitStack
from support import stores
with ExitStack() as stack:
    for kind in sys.argv[3:]:
        how = stores.KINDS[kind] if sys.argv[1] == "own" else lambda folder: stores.shared(kind, folder)
        stack.enter_context(how(sys.argv[2] + "/" + kind))
    print("ready", flush=True)
    sys.stdin.read()
"""

    @contextlib.contextmanager
    def user(self, how, folder, *kinds):
        """A process that uses servers until it is killed."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
        with subprocess.Popen(
            [sys.executable, "-c", self.USER, how, folder, *kinds],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        ) as process:
            try:
                assert process.stdout.readline() == "ready\n"
                yield process
            finally:
                process.kill()

    @pytest.mark.parametrize("kinds", [["moto", "rgw"], ["swift", "postgres"]])
    def test_a_tests_own_servers_die_with_a_test_run_that_is_killed(self, tmp_path, kinds):
        require(*(program for kind in kinds for program in PROGRAMS[kind]))
        with self.user("own", tmp_path, *kinds) as process:
            family = descendants(process.pid)
            assert len(family) >= 1 + len(kinds)
            process.send_signal(signal.SIGKILL)
            assert eventually(lambda: all(map(gone, family)))

    def test_shared_servers_die_with_the_last_of_their_users_even_if_both_are_killed(self, tmp_path):
        kinds = ("postgres", "swift", "moto")
        require(*(program for kind in kinds for program in PROGRAMS[kind]))
        with self.user("shared", tmp_path, *kinds) as one, self.user("shared", tmp_path, *kinds) as other:
            keepers = [pid for pid in naming(str(tmp_path)) if b"stores.py" in cmdline(pid)]
            assert len(keepers) == len(kinds)
            family = [pid for keeper in keepers for pid in (keeper, *descendants(keeper))]
            assert len(family) > 8
            one.send_signal(signal.SIGKILL)
            one.wait()
            with shared("postgres", tmp_path / "postgres") as cluster:
                assert cluster.run("SELECT 1") == [(1,)]
            assert not any(map(gone, family))
            other.send_signal(signal.SIGKILL)
            assert eventually(lambda: all(map(gone, family)))
        with shared("moto", tmp_path / "moto") as store:  # and the next one starts another
            store.with_bucket()

    def test_shared_servers_die_with_their_keeper(self, tmp_path):
        require(*PROGRAMS["postgres"])
        with shared("postgres", tmp_path) as cluster:
            (keeper,) = [pid for pid in naming(str(tmp_path)) if b"stores.py" in cmdline(pid)]
            family = descendants(keeper)
            os.kill(keeper, signal.SIGKILL)
            assert eventually(lambda: all(map(gone, family)))
            with pytest.raises(psycopg.OperationalError):
                cluster.run("SELECT 1")

    def test_why_one_does_not_start_is_said(self, tmp_path):
        (tmp_path / "moto" / "server").mkdir(parents=True)
        (tmp_path / "moto" / "server" / "moto.log").mkdir()
        with pytest.raises(AssertionError, match=r"(?s)moto did not start.*moto\.log"), shared("moto", tmp_path):
            pass


def cmdline(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


class TestFaults:
    def test_nothing_happens_to_requests_that_no_order_is_about(self, client, faults):
        order = faults.order("PUT", "other", drop=True)
        put(client)
        assert get(client) == BODY
        assert (order.matched, order.done) == (0, 0)

    def test_only_the_nth_of_those_that_match_is_hit_and_so_often_as_ordered(self, client, faults):
        put(client)
        order = faults.order("GetObject", r"a/b", nth=2, times=2, answer=500)
        outcomes = []
        for _ in range(5):
            try:
                get(client)
                outcomes.append("ok")
            except ClientError:
                outcomes.append("500")
        assert outcomes == ["ok", "500", "500", "ok", "ok"]
        assert (order.matched, order.done, faults.counts["GetObject"]) == (5, 2, 5)

    def test_a_request_that_is_cut_is_not_stored(self, client, faults):
        faults.order("PutObject", cut_request=1000)
        with pytest.raises(BotoCoreError):
            put(client)
        with pytest.raises(ClientError) as error:
            get(client)
        assert code_of(error) == "NoSuchKey"

    @pytest.mark.parametrize("reset", [False, True])
    def test_an_answer_is_cut_where_ordered(self, client, faults, reset):
        put(client)
        faults.order("GetObject", cut_response=1000, reset=reset)
        body = client.get_object(Bucket=client.bucket, Key="a/b.bin")["Body"]
        assert body.read(900) == BODY[:900]
        with pytest.raises(BotoCoreError):
            b"".join(iter(lambda: body.read(1000), b""))  # a short read is no error, but the end is

    def test_a_dropped_request_does_not_arrive(self, client, faults):
        faults.order("PutObject", drop=True)
        with pytest.raises(BotoCoreError):
            put(client)
        with pytest.raises(ClientError):
            get(client)

    def test_the_store_asks_to_slow_down(self, client, faults):
        faults.order("PutObject", answer=(503, "SlowDown"), retry_after=7)
        with pytest.raises(ClientError) as error:
            put(client)
        assert code_of(error) == "SlowDown"
        told = error.value.response["ResponseMetadata"]
        assert (told["HTTPStatusCode"], told["HTTPHeaders"]["retry-after"]) == (503, "7")
        with pytest.raises(ClientError):
            get(client)

    def test_a_conflict_of_conditional_requests(self, client, faults):
        faults.order("PutObject", answer=(409, "ConditionalRequestConflict"))
        with pytest.raises(ClientError) as error:
            put(client, IfNoneMatch="*")
        assert code_of(error) == "ConditionalRequestConflict"
        put(client, IfNoneMatch="*")

    @pytest.mark.parametrize("fault", [{"lose": True}, {"answer_after": 500}])
    def test_what_is_answered_wrongly_is_stored_all_the_same(self, client, faults, fault):
        faults.order("PutObject", **fault)
        with pytest.raises((BotoCoreError, ClientError)):
            put(client)
        assert get(client) == BODY

    def test_one_bit_of_an_answer_is_wrong(self, client, faults):
        put(client)
        faults.order("GetObject", flip=150_000, times=None)
        raw = client.get_object(Bucket=client.bucket, Key="a/b.bin")["Body"]._raw_stream.read()
        assert [at for at in range(len(BODY)) if raw[at] != BODY[at]] == [150_000]

    def test_conditions_are_ignored(self, client, faults):
        put(client)
        with pytest.raises(ClientError):
            put(client, body=b"2", IfNoneMatch="*")
        faults.order("PutObject", without=("if-none-match",))
        put(client, body=b"3", IfNoneMatch="*")
        assert get(client) == b"3"

    def test_the_frame_of_an_upload_is_stored_with_it(self, client, faults):
        faults.order("PutObject", framed=True)
        put(client, body=b"hello")
        assert get(client) == b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"

    def test_an_upload_without_a_length_is_passed_on(self, client, moto):
        url = client.generate_presigned_url("put_object", {"Bucket": moto.bucket, "Key": "a/b.bin"})
        assert httpx2.put(url, content=iter([BODY[:1], BODY[1:]]), trust_env=False).status_code == 200
        assert get(client) == BODY

    def test_a_request_waits_for_an_event(self, client, faults):
        event = threading.Event()
        order = faults.order("PutObject", until=event)
        thread = threading.Thread(target=put, args=[client])
        thread.start()
        assert eventually(lambda: order.done)
        with pytest.raises(ClientError):
            get(client)
        event.set()
        thread.join()
        assert get(client) == BODY

    def test_counting_begins_anew(self, client, faults):
        faults.order(answer=500, times=None)
        with pytest.raises(ClientError):
            put(client)
        faults.forget()
        put(client)
        assert faults.counts == {"PutObject": 1}


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/", "ListBuckets"),
        ("PUT", "/bucket", "CreateBucket"),
        ("GET", "/bucket/?list-type=2&prefix=uploads", "ListObjectsV2"),
        ("GET", "/bucket?uploads", "ListMultipartUploads"),
        ("POST", "/bucket/?delete", "DeleteObjects"),
        ("GET", "/bucket/delete", "GetObject"),
        ("GET", "/bucket/k?X-Amz-Signature=0&uploads=", "GetObject"),
        ("PUT", "/bucket/k?partNumber=1&uploadId=2", "UploadPart"),
        ("POST", "/bucket/k?uploads", "CreateMultipartUpload"),
        ("OPTIONS", "/bucket/k", "OPTIONS"),
    ],
)
def test_requests_are_counted_by_their_s3_names(method, target, expected):
    assert operation(method, target) == expected
