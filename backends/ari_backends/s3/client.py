"""One bucket, over botocore: a few typed operations, and no errors but this project's.

Nothing here knows what is stored. botocore signs, sends, and repeats a request a few times; the body of an answer
is read outside of that, so whoever reads it resumes.
"""

from __future__ import annotations

import base64
import binascii
import enum
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http import HTTPStatus
from io import RawIOBase
from typing import Any, Final, Self

import urllib3.exceptions
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from ari_backends.s3.connection import Connection
from ari_backends.s3.refusals import Asked, changed, code_of, date_of, refusal, status_of
from ari_backends.s3.settings import S3Settings
from ari_core.contract import OpenContext
from ari_core.errors import (
    AccessDenied,
    BackendError,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    Unavailable,
    Unsupported,
    escape,
)
from ari_core.streams import CHUNK

PAGE: Final = 1000

_EMPTY_PAGES: Final = 3  # in a row, which a store may give where much was deleted
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")
_SHA256_BYTES: Final = 32


class Outcome(enum.Enum):
    """How a conditional write ended.

    A request whose answer got lost is sent again, so `FAILED` may be about our own first try: compare.
    """

    DONE = "done"
    FAILED = "the condition does not hold"
    CONFLICT = "somebody else is writing: try again"


@dataclass(frozen=True, slots=True)
class Written:
    """How a write ended, and the ETag of what is there, with its quotes; "" unless it is `DONE`."""

    outcome: Outcome
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """An object without its bytes.

    Attributes:
        size: Of the whole object in bytes.
        etag: With its quotes.
        modified: When it was written.
        now: What the store's clock says; ours if it does not tell.
        metadata: The user's, names in lower case.
        sha256: Of the whole object, as the store computed it when it was written; only if asked for.
    """

    size: int
    etag: str
    modified: datetime
    now: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """An object in a listing; its ETag with quotes."""

    key: str
    size: int
    etag: str
    modified: datetime


@dataclass(frozen=True, slots=True)
class Upload:
    """An unfinished upload."""

    key: str
    id: str
    started: datetime


class Body:
    """An object that is being read; also a context manager.

    Attributes:
        head: What the store said about it.
        length: How many bytes it gives: all of the rest, where the store knows no ranges.
    """

    def __init__(self, client: Client, key: str, answer: Mapping[str, Any], offset: int) -> None:
        self._client, self._key = client, key
        self._stream = answer["Body"]
        self.head = client.described(key, answer)
        self._skip, self.length = 0, self.head.size
        if told := answer.get("ContentRange"):  # rclone says so, and 200
            match = _CONTENT_RANGE.fullmatch(told)
            if not match or int(match[1]) != offset:
                raise IntegrityError(f"{client.where(key)}: the store sends another part than the one asked for")
            self.head = replace(self.head, size=int(match[2]))
        else:  # it knows no ranges, and sends everything
            self._skip = min(offset, self.head.size)
            self.length -= self._skip
        self._left = self.length

    def read(self, size: int, /) -> bytes:
        """Returns at most `size` bytes, b"" only at the end.

        Raises:
            Unavailable: The connection broke. `Client.get` the rest of it.
            IntegrityError: The store gave a checksum, and this is something else.
        """
        while self._skip:
            self._skip -= len(self._more(min(self._skip, CHUNK)))
        if not size:
            return b""
        if not self._left:
            return self._received(size)  # nothing more: what makes botocore compare its checksum
        data = self._more(min(size, self._left))
        self._left -= len(data)
        return data

    def _more(self, size: int) -> bytes:
        if data := self._received(size):
            return data
        raise self._cut()

    def _received(self, size: int) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except Exception as error:  # botocore lets some of urllib3's through, and a ValueError after a close
            raise self._client.translate(error, self._key) or self._cut() from error
        return data

    def _cut(self) -> Unavailable:
        return Unavailable(f"{self._client.where(self._key)}: the connection was cut")

    def interrupt(self) -> None:
        """Makes a `read` that waits in another thread end now."""
        # In both directions, so that a store that sends on learns it, whoever still holds this connection.
        with suppress(Exception):  # an answer that has ended has none any more
            self._stream._raw_stream.connection.sock.shutdown(socket.SHUT_RDWR)  # noqa: SLF001 - no other way

    def close(self) -> None:
        """Lets go of the connection."""
        with suppress(OSError, urllib3.exceptions.HTTPError):
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client:
    """A bucket and a prefix in it. Keys are whole keys: see `key`. May be used by many threads.

    Attributes:
        settings: As given.
        prefix: Without a slash at either end.
    """

    def __init__(self, settings: S3Settings, context: OpenContext | None = None) -> None:
        """Keeps the settings."""
        self.settings = settings
        self.prefix = settings.prefix
        self._bucket = settings.bucket
        self._connection = Connection(settings, context or OpenContext())

    def at(self, bucket: str, prefix: str = "") -> Client:
        """Returns another bucket, or another prefix, over the same connections."""
        other = Client.__new__(Client)
        other.settings, other.prefix, other._bucket = self.settings, prefix, bucket  # noqa: SLF001
        other._connection = self._connection  # noqa: SLF001
        return other

    @property
    def bucket(self) -> str:
        """The bucket.

        Raises:
            InvalidConfiguration: None is set, or the endpoint holds it too.
        """
        if self._bucket is None:
            raise InvalidConfiguration(
                "no bucket is set",
                hint="give -o bucket=NAME or set ARI_S3_BUCKET; `ari backends show s3` lists more",
            )
        before, _, last = (self._connection.endpoint or "").rpartition("/")
        if last == self._bucket and "://" in before:
            raise InvalidConfiguration(
                f"{self._connection.shown}: the address of the store ends with the bucket's name",
                hint=f"leave that out: endpoint_url={escape(before)}",
            )
        return self._bucket

    def key(self, *parts: str) -> str:
        """Returns the key of something below the prefix."""
        return "/".join((self.prefix, *parts) if self.prefix else parts)

    def where(self, key: str = "") -> str:
        """Names the bucket, or what is in it, for a message."""
        at = f" at {self._connection.shown}" if self._connection.endpoint else ""
        return escape(f"s3://{self._bucket}/{key}".rstrip("/")) + at

    def translate(self, error: Exception, key: str = "") -> BackendError | None:
        """Turns botocore's exception into ours; None if it is not one of botocore's."""
        asked = Asked(
            where=self.where(key),
            endpoint=self._connection.shown,
            bucket=escape(str(self._bucket)),
            unsigned=self._connection.unsigned,
            secrets=self.settings.secrets,
        )
        return refusal(error, asked)

    def close(self) -> None:
        """Lets go of the connections, also of those of `at`. May be called twice."""
        self._connection.close()

    # -- objects -------------------------------------------------------------------------------------------------

    def head(self, key: str, *, checksum: bool = False) -> Head | None:
        """Describes an object; None only if it is certainly absent.

        Args:
            key: Which.
            checksum: Ask for its SHA-256, too; few stores keep one.
        """
        mode: dict[str, Any] = {"ChecksumMode": "ENABLED"} if checksum else {}
        try:
            return self.described(key, self._ask("head_object", key, **mode))
        except NotFound:
            return None

    def get(self, key: str, *, offset: int = 0, length: int | None = None, if_match: str | None = None) -> Body:
        """Starts reading an object.

        Args:
            key: Which.
            offset: First byte.
            length: How many bytes are wanted; None: to the end. A store may send more: see `Body.length`.
            if_match: The ETag it must still have.

        Raises:
            NotFound: It is absent.
            IntegrityError: It has another ETag.
            RangeError: `offset` is at its end or behind.
        """
        more: dict[str, Any] = {"IfMatch": if_match} if if_match else {}
        if offset or length is not None:
            more["Range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
        answer = self._ask("get_object", key, **more)
        try:
            body = Body(self, key, answer, offset)
            if if_match and body.head.etag != _quoted(if_match):
                raise changed(self.where(key))
        except BackendError:
            answer["Body"].close()
            raise
        return body

    def read(self, key: str, most: int) -> tuple[bytes, Head] | None:
        """Reads a small object, whole; None only if it is certainly absent.

        Raises:
            IntegrityError: It has more than `most` bytes.
        """
        try:
            body = self.get(key)
        except NotFound:
            return None
        with body:
            data = bytearray()
            while len(data) <= most and (more := body.read(most + 1 - len(data))):
                data += more
        if len(data) > most:
            raise IntegrityError(f"{self.where(key)}: it has more than {most} bytes")
        return bytes(data), body.head

    def put(
        self,
        key: str,
        data: bytes | bytearray | RawIOBase,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "application/octet-stream",
        sha256: str | None = None,
        bulk: bool = False,
    ) -> Written:
        """Writes an object, whole or not at all; over another one, unless a condition says otherwise.

        Args:
            key: Where.
            data: What; not to be changed meanwhile. Of a file all, which it is at the beginning of.
            if_absent: Only if nothing is there, where the store heeds that (`Promises.if_none_match`).
            if_match: Only if this ETag is there, spelled as the store wants it (`Promises.spelled`).
            metadata: Kept with it; ASCII.
            content_type: Kept with it.
            sha256: Digest of `data`, for stores that check it while receiving.
            bulk: It goes into the `storage_class`, where reading a small object may cost too much, or take hours.

        Raises:
            Unsupported: The store refuses such conditions.
        """
        more: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}
        if if_match:
            more["IfMatch"] = if_match
        if sha256 and self._connection.checksum == "when_supported":
            more["ChecksumSHA256"] = base64.b64encode(bytes.fromhex(sha256)).decode()
        with self._outcome(if_absent=if_absent, if_match=if_match is not None) as outcome:
            answer = self._ask(
                "put_object", key, Body=data, **self._kept(metadata, content_type, bulk=bulk), **more
            )
            outcome.append(self._written(key, answer))
        return outcome[0]

    def delete(self, key: str, *, once: bool = False) -> None:
        """Removes an object; absent is fine.

        Args:
            key: Which.
            once: What fails is not sent again: a try that was given up may still arrive, whenever.
        """
        with suppress(NotFound):
            self._ask("delete_object", key, once=once)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Removes objects; absent is fine."""
        waiting = list(keys)
        for at in range(0, len(waiting), PAGE):
            page = waiting[at : at + PAGE]
            if not self._deleted(page):
                for key in page:
                    self.delete(key)

    def _deleted(self, keys: Sequence[str]) -> bool:
        """Removes up to `PAGE` objects at once; False: one at a time, please, to do it or to see what is wrong."""
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        try:
            answer = self._ask("delete_objects", Delete=wanted)
        except (Unsupported, InvalidConfiguration, AccessDenied):
            # For want of a Content-MD5, which botocore sends no more; or Ceph, which asks for a right to the whole
            # bucket then.
            return False
        return not answer.get("Errors")

    # -- listings ------------------------------------------------------------------------------------------------

    def keys(self, prefix: str = "", *, after: str = "") -> Iterator[Entry]:
        """Yields the objects whose keys start with `prefix` and come behind `after`, in the order of their bytes.

        Raises:
            IntegrityError: The store's listing is out of order, or does not end.
        """
        pages = self._pages("Contents", prefix, after)
        for each in self._in_order(pages, "Key", after):
            yield Entry(each["Key"], int(each["Size"]), _quoted(each.get("ETag")), each["LastModified"])

    def folders(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """Yields what stands in keys from `prefix` to the next slash, with both, behind `after`, in order."""
        pages = self._pages("CommonPrefixes", prefix, after, Delimiter="/")
        for each in self._in_order(pages, "Prefix", after):
            yield each["Prefix"]

    def _pages(self, part: str, prefix: str, after: str, **more: Any) -> Iterator[Mapping[str, Any]]:
        more |= {"StartAfter": after} if after else {}
        empty = 0
        while True:
            answer = self._ask("list_objects_v2", Prefix=prefix, MaxKeys=PAGE, **more)
            yield from answer.get(part, ())
            if not answer.get("IsTruncated"):
                return
            token = answer.get("NextContinuationToken")
            empty = 0 if answer.get(part) else empty + 1
            if not token or token == more.get("ContinuationToken") or empty > _EMPTY_PAGES:
                raise self._broken_listing()
            more["ContinuationToken"] = token

    def _in_order(self, found: Iterator[Mapping[str, Any]], name: str, after: str) -> Iterator[Mapping[str, Any]]:
        """Passes on what is behind `after`: for a store, what is in a folder may be behind the folder."""
        last = None
        for each in found:
            place = each[name].encode("utf-8", "surrogatepass")
            if last is not None and place <= last:
                raise self._broken_listing()
            last = place
            if each[name] > after:
                yield each

    def _broken_listing(self) -> IntegrityError:
        return IntegrityError(f"{self.where()}: the store's listing is out of order, or does not end", hint=None)

    # -- uploads in parts ----------------------------------------------------------------------------------------

    def create_upload(
        self,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "application/octet-stream",
    ) -> str:
        """Starts an upload in parts, which nobody sees before `complete`; returns its id."""
        answer = self._ask("create_multipart_upload", key, **self._kept(metadata, content_type, bulk=True))
        return self._fact(key, answer, "UploadId")

    def upload_part(self, key: str, upload: str, number: int, data: bytes | bytearray | RawIOBase) -> str:
        """Sends a part, the first of which is number 1; returns its ETag.

        Raises:
            NotFound: There is no such upload (any more).
        """
        answer = self._ask("upload_part", key, UploadId=upload, PartNumber=number, Body=data)
        return self._fact(key, answer, "ETag")

    def complete(self, key: str, upload: str, etags: Sequence[str], *, if_absent: bool = False) -> Written:
        """Puts the parts together, over what is there, unless `if_absent`, where the store heeds that.

        Raises:
            NotFound: There is no such upload (any more); perhaps a first try did it, and its answer got lost.
        """
        more: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        with self._outcome(if_absent=if_absent) as outcome:
            answer = self._ask(
                "complete_multipart_upload", key, UploadId=upload, MultipartUpload={"Parts": parts}, **more
            )
            outcome.append(self._written(key, answer))
        return outcome[0]

    def abort(self, key: str, upload: str) -> None:
        """Throws an unfinished upload away; absent is fine."""
        with suppress(NotFound):
            self._ask("abort_multipart_upload", key, UploadId=upload)

    def uploads(self, prefix: str = "") -> Iterator[Upload]:
        """Yields the unfinished uploads of keys that start with `prefix`."""
        more: dict[str, Any] = {}
        while True:
            answer = self._ask("list_multipart_uploads", Prefix=prefix, MaxUploads=PAGE, **more)
            for each in answer.get("Uploads", ()):
                yield Upload(each["Key"], each["UploadId"], each["Initiated"])
            if not answer.get("IsTruncated"):
                return
            following = {
                "KeyMarker": answer.get("NextKeyMarker") or "",
                "UploadIdMarker": answer.get("NextUploadIdMarker") or "",
            }
            if following in ({"KeyMarker": "", "UploadIdMarker": ""}, more) or not answer.get("Uploads"):
                raise self._broken_listing()
            more = following

    # -- the bucket ----------------------------------------------------------------------------------------------

    def head_bucket(self) -> None:
        """Asks whether the bucket is there.

        Raises:
            InvalidConfiguration: It is not.
            AccessDenied: It is not ours to ask.
        """
        self._seen_bucket()

    def presign(self, key: str, seconds: int, *, disposition: str | None = None) -> str:
        """Returns a URL that anybody can read an object from for a while; sends nothing.

        Args:
            key: Which.
            seconds: How long; AWS allows 7 days, and no longer than temporary credentials last.
            disposition: The Content-Disposition to answer with.

        Raises:
            Unsupported: There are no credentials to sign with.
        """
        params = {"Bucket": self.bucket, "Key": key}
        if disposition:
            params["ResponseContentDisposition"] = disposition
        with self._translated(key) as sdk:
            if self._connection.unsigned:
                raise Unsupported(
                    f"{self.where(key)}: a URL for others needs credentials to sign it with",
                    hint=self._connection.unsigned,
                )
            url: str = sdk.generate_presigned_url("get_object", Params=params, ExpiresIn=seconds)
        return url

    def now(self) -> datetime:
        """Returns what the store's clock says, which the times of its objects are compared with."""
        return date_of(self._seen_bucket()) or datetime.now(UTC)

    def _seen_bucket(self) -> Mapping[str, Any]:
        """Returns an answer about the bucket."""
        try:
            return self._ask("head_bucket")
        except (AccessDenied, InvalidConfiguration) as error:
            if not isinstance(error.__cause__, ClientError) or not code_of(error.__cause__).isdigit():
                raise
            # The answer to HEAD has no body, and so no reason. And it may be that only the prefix is ours to list.
            return self._ask("list_objects_v2", Prefix=self.key(""), MaxKeys=1)

    # -- how -----------------------------------------------------------------------------------------------------

    def _ask(
        self, operation: str, key: str | None = None, *, once: bool = False, **params: Any
    ) -> Mapping[str, Any]:
        """Sends a request, and again a few times where that may help; not with `once`.

        Raises:
            BackendError: What the refusal means.
        """
        target = {"Bucket": self.bucket} | ({} if key is None else {"Key": key})
        with self._translated(key or "") as sdk:
            try:
                client = self._connection.once() if once else sdk
                answer: Mapping[str, Any] = getattr(client, operation)(**target, **params)
            except ClientError as error:
                if status_of(error) == HTTPStatus.NOT_FOUND and code_of(error).isdigit():
                    self._find_bucket(sdk)
                raise
        return answer

    def _find_bucket(self, sdk: Any) -> None:
        """Raises unless there is the bucket: an answer without a body may have been about the one or the other."""
        try:
            sdk.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            if status_of(error) == HTTPStatus.NOT_FOUND:
                error.response["Error"] = {"Code": "NoSuchBucket"}
                raise

    @contextmanager
    def _translated(self, key: str) -> Iterator[Any]:
        try:
            yield self._connection.sdk()
        except (BotoCoreError, ClientError, ResponseParserError) as error:
            ours = self.translate(error, key)
            if ours is None:
                raise
            raise ours from error

    @contextmanager
    def _outcome(self, *, if_absent: bool, if_match: bool = False) -> Iterator[list[Written]]:
        """Tells a condition that does not hold from refusals."""
        outcome: list[Written] = []
        try:
            yield outcome
        except BackendError as error:
            cause = error.__cause__
            if not (if_absent or if_match) or not isinstance(cause, ClientError):
                raise
            status = status_of(cause)
            if (
                status == HTTPStatus.PRECONDITION_FAILED
                or (if_absent and status == HTTPStatus.NOT_MODIFIED)  # MinIO
                or (if_match and code_of(cause) == "NoSuchKey")
            ):
                outcome.append(Written(Outcome.FAILED))
            elif status == HTTPStatus.CONFLICT:
                outcome.append(Written(Outcome.CONFLICT))
            else:
                raise

    def _written(self, key: str, answer: Mapping[str, Any]) -> Written:
        etag = _quoted(answer.get("ETag"))
        if not etag:  # Ceph's answer to a completed upload
            head = self.head(key)
            if head is None:
                raise Unavailable(f"{self.where(key)}: it is gone right after it was written")
            etag = head.etag
        return Written(Outcome.DONE, etag)

    def _fact(self, key: str, answer: Mapping[str, Any], name: str) -> str:
        fact = answer.get(name)
        if not isinstance(fact, str) or not fact:
            raise IntegrityError(f"{self.where(key)}: the store's answer lacks the {name}")
        return fact

    def described(self, key: str, answer: Mapping[str, Any]) -> Head:
        """Reads what an answer says about an object."""
        if answer.get("ContentLength", -1) < 0:
            raise IntegrityError(f"{self.where(key)}: the store does not say how long it is")
        now = date_of(answer) or datetime.now(UTC)
        return Head(
            size=answer["ContentLength"],
            etag=_quoted(answer.get("ETag")),
            modified=answer.get("LastModified") or now,
            now=now,
            metadata={name.lower(): value for name, value in answer.get("Metadata", {}).items()},
            sha256=_sha256(answer),
        )

    def _kept(self, metadata: Mapping[str, str] | None, content_type: str, *, bulk: bool) -> dict[str, Any]:
        settings = self.settings
        kept = {
            "ContentType": content_type,
            "Metadata": dict(metadata or {}),
            "StorageClass": settings.storage_class if bulk else None,
            "ServerSideEncryption": settings.server_side_encryption,
            "SSEKMSKeyId": settings.sse_kms_key_id,
        }
        return {name: value for name, value in kept.items() if value}


def _quoted(etag: str | None) -> str:
    """Returns an ETag with its quotes, which some stores leave out here and there; "" for none."""
    bare = (etag or "").strip('"')
    return f'"{bare}"' if bare and not bare.startswith("W/") else bare


def _sha256(answer: Mapping[str, Any]) -> str | None:
    """The digest of the whole object, where the store gives one: that of an upload in parts is of digests."""
    text = answer.get("ChecksumSHA256")
    if not text or answer.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
        return None
    with suppress(binascii.Error, ValueError):
        digest = base64.b64decode(text, validate=True)
        if len(digest) == _SHA256_BYTES:
            return digest.hex()
    return None
