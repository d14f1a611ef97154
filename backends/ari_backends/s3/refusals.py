"""What a store's refusal, or silence, means: botocore's exceptions as this project's errors, with a next step.

botocore's own texts hold whole URLs and whatever the store wrote; of the latter only its message is shown, escaped
and without long words that could be a key or a signature.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import urllib3.exceptions
from botocore import exceptions
from botocore.parsers import ResponseParserError
from urllib3.util.ssl_match_hostname import CertificateError

from ari_backends._tls import OTHER_NAME, handshake_problem
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

CLOCKS: Final = timedelta(minutes=14)
"""How far the store's clock may be from ours; stores refuse signatures that are 15 minutes old."""

_LONGEST: Final = 200
_SECRET_LIKE: Final = re.compile(r"[A-Za-z0-9+/=%_-]{40,}")

_CREDENTIALS: Final = (
    exceptions.NoCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.MetadataRetrievalError,
    exceptions.RefreshWithMFAUnsupportedError,
    exceptions.TokenRetrievalError,
    exceptions.UnknownCredentialError,
    exceptions.SSOError,
    exceptions.LoginError,
)

AWS: Final = "AWS"
"""How the endpoint is called in messages where none was set."""
_MEANS_AWS: Final = "without an endpoint_url it is AWS that is asked"
_FORGOTTEN: Final = f"{_MEANS_AWS}: give -o endpoint_url=https://… for another store, or check region and network"
_KEYS: Final = "access_key_id (ARI_S3_ACCESS_KEY_ID), the AWS_* variables or the profile"


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of whom.

    Attributes:
        where: Bucket, key and endpoint, ready for a message.
        endpoint: The endpoint alone, ready for a message.
        bucket: Ready for a message.
        unsigned: For a request without credentials: why it has none, and what to do about it.
        secrets: What no message may hold.
    """

    where: str
    endpoint: str
    bucket: str
    unsigned: str | None
    secrets: tuple[str, ...] = ()


def refusal(error: Exception, asked: Asked) -> BackendError | None:
    """Turns botocore's exception into ours; None if it is not one of botocore's."""
    if isinstance(error, exceptions.ClientError):
        return _refused(error, asked)
    if isinstance(error, ResponseParserError):
        return InvalidConfiguration(
            f"{asked.where}: what answers there does not speak S3",
            hint="check endpoint_url (ARI_S3_ENDPOINT_URL): the address of the S3 service, not of its web page",
        )
    if isinstance(error, exceptions.PartialCredentialsError):
        return AccessDenied(
            f"{asked.where}: of the credentials one half is missing",
            hint="set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither",
        )
    if isinstance(error, _CREDENTIALS):
        return AccessDenied(
            f"{asked.where}: the credentials cannot be had ({type(error).__name__})",
            hint="`aws sts get-caller-identity`, with the same profile, says why; "
            "a login that has expired is renewed with `aws sso login`",
        )
    if isinstance(error, exceptions.FlexibleChecksumError):
        return IntegrityError(
            f"{asked.where}: the bytes that came do not have the checksum the store gave for them"
        )
    if isinstance(error, exceptions.ConnectionError | exceptions.HTTPClientError | exceptions.IncompleteReadError):
        return _unreachable(error, asked)
    if isinstance(error, exceptions.BotoCoreError):
        text = _shown(str(error), asked)
        return InvalidConfiguration(
            f"{asked.where}: {text}", hint="`ari backends show s3` shows what is set where"
        )
    return None


def changed(where: str) -> BackendError:
    """Says that an object has another ETag than it had."""
    return IntegrityError(f"{where}: it changed while it was being read", hint="run the same command again")


# -- answers -----------------------------------------------------------------------------------------------------


def code_of(error: exceptions.ClientError) -> str:
    """The store's word for it; of an answer without a body, the status."""
    return str(error.response.get("Error", {}).get("Code") or "")


def status_of(error: exceptions.ClientError) -> int:
    """The HTTP status; 0 if there was none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def headers_of(answer: Mapping[str, Any]) -> Mapping[str, str]:
    """The header fields of any answer, in lower case."""
    found: Mapping[str, str] = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return found


def date_of(answer: Mapping[str, Any]) -> datetime | None:
    """What the store's clock said when it answered."""
    try:
        date = parsedate_to_datetime(headers_of(answer).get("date", ""))
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _refused(error: exceptions.ClientError, asked: Asked) -> BackendError:
    code, status = code_of(error), status_of(error)
    known = _BY_CODE.get(code)
    if known is not None:
        return known(error, asked)
    for first, last, rule in _BY_STATUS:
        if first <= status <= last:
            return rule(error, asked)
    return InvalidConfiguration(_says(error, asked))


def _says(error: exceptions.ClientError, asked: Asked, what: str = "the store refuses") -> str:
    told = _shown(str(error.response.get("Error", {}).get("Message") or ""), asked)
    code = escape(code_of(error))[:_LONGEST]
    inside = ": ".join(part for part in (code if not code.isdigit() else f"HTTP {code}", told) if part)
    return f"{asked.where}: {what}" + (f" ({inside})" if inside else "")


def _shown(text: str, asked: Asked) -> str:
    for secret in asked.secrets:
        text = text.replace(secret, "…")
    text = escape(_SECRET_LIKE.sub("…", text).strip().rstrip("."))
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


_Rule = Callable[[exceptions.ClientError, Asked], BackendError]


def _no_bucket(error: exceptions.ClientError, asked: Asked) -> BackendError:  # noqa: ARG001 - one kind of rule
    return InvalidConfiguration(
        f"{asked.endpoint}: there is no bucket '{asked.bucket}'",
        hint=f"check bucket, endpoint_url and region{f' ({_MEANS_AWS})' if asked.endpoint == AWS else ''}; "
        "this program makes no buckets",
    )


def _absent(error: exceptions.ClientError, asked: Asked) -> BackendError:  # noqa: ARG001
    return NotFound(f"{asked.where}: there is no such object")


def _no_upload(error: exceptions.ClientError, asked: Asked) -> BackendError:  # noqa: ARG001
    return NotFound(f"{asked.where}: the upload is not known (any more)", hint="run the same command again")


def _denied(error: exceptions.ClientError, asked: Asked) -> BackendError:
    if asked.unsigned:
        return AccessDenied(
            _says(error, asked, "access without credentials is refused"),
            hint=f"is it spelled in full? Who may not list is not told what is absent. Else {asked.unsigned}",
        )
    date = date_of(error.response)
    if date is not None and abs(date - datetime.now(UTC)) > CLOCKS:
        return _clock(error, asked)
    return AccessDenied(
        _says(error, asked, "access is refused"),
        hint=f"the credentials may not do this, or not in this bucket: check its policy, and {_KEYS}",
    )


def _clock(error: exceptions.ClientError, asked: Asked) -> BackendError:
    date = date_of(error.response)
    off = "" if date is None else _off(datetime.now(UTC) - date)
    return AccessDenied(
        f"{asked.where}: the store refuses because this machine's clock is wrong{off}",
        hint="set the clock (`timedatectl` shows it); signatures are good for 15 minutes",
    )


def _off(difference: timedelta) -> str:
    minutes = round(abs(difference).total_seconds() / 60)
    if not minutes:
        return ""
    hours, minutes = divmod(minutes, 60)
    return f": {f'{hours} h ' if hours else ''}{minutes} min {'fast' if difference > timedelta() else 'slow'}"


def _denying(what: str, hint: str) -> _Rule:
    return lambda error, asked: AccessDenied(_says(error, asked, what), hint=hint)


def _another_region(error: exceptions.ClientError, asked: Asked) -> BackendError:
    headers = headers_of(error.response)
    told = error.response.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region")
    region = f"region={_shown(str(told), asked)}" if told else "region=…"
    to = urlsplit(headers.get("location", ""))
    endpoint = f"; it points to {_shown(f'{to.scheme}://{to.netloc}', asked)}" if to.netloc else ""
    return InvalidConfiguration(
        _says(error, asked, "the bucket is in another region, or behind another address"),
        hint=f"give -o {region} (ARI_S3_REGION), and check endpoint_url{endpoint}",
    )


def _bad_request(error: exceptions.ClientError, asked: Asked) -> BackendError:
    if asked.unsigned:  # Swift's answer to anybody without credentials
        return _denied(error, asked)
    return InvalidConfiguration(
        _says(error, asked),
        hint="check region, addressing_style (path or virtual), storage_class and server_side_encryption",
    )


def _checksums(error: exceptions.ClientError, asked: Asked) -> BackendError:
    return InvalidConfiguration(
        _says(error, asked, "the store does not take uploads with a checksum behind them"),
        hint="give -o checksum=when_required (ARI_S3_CHECKSUM)",
    )


def _archived(error: exceptions.ClientError, asked: Asked) -> BackendError:
    return Unsupported(
        _says(error, asked, "it lies in an archive and cannot be read"),
        hint="whoever owns the bucket can restore it (`aws s3api restore-object`)",
    )


def _no_room(error: exceptions.ClientError, asked: Asked) -> BackendError:
    return QuotaExceeded(_says(error, asked, "no room"), hint="ask whoever runs the store for more")


def _cannot(error: exceptions.ClientError, asked: Asked) -> BackendError:
    return Unsupported(_says(error, asked, "the store cannot do this"), hint=None)


def _past_the_end(error: exceptions.ClientError, asked: Asked) -> BackendError:  # noqa: ARG001
    return RangeError(f"{asked.where}: there are fewer bytes than that")


def _changed(error: exceptions.ClientError, asked: Asked) -> BackendError:
    if asked.unsigned and error.operation_name != "GetObject":  # no condition went with it: Swift's way to refuse
        return _denied(error, asked)
    return changed(asked.where)


def _damaged(error: exceptions.ClientError, asked: Asked) -> BackendError:
    return Unavailable(_says(error, asked, "what was sent arrived damaged"))


def _busy(error: exceptions.ClientError, asked: Asked) -> BackendError:
    from ari_backends._http import retry_after  # noqa: PLC0415 - an HTTP library comes with it

    wait = retry_after(headers_of(error.response).get("retry-after"))
    return RateLimited(_says(error, asked, "the store asks for patience"), retry_after=wait)


def _failing(error: exceptions.ClientError, asked: Asked) -> BackendError:
    if headers_of(error.response).get("retry-after"):
        return _busy(error, asked)
    page = headers_of(error.response).get("content-type", "").startswith("text/html")
    hint = "if it goes on, check endpoint_url: what came is a web page" if page else None
    return Unavailable(_says(error, asked, "the store is failing"), hint=hint)


def _conflict(error: exceptions.ClientError, asked: Asked) -> BackendError:
    return Unavailable(_says(error, asked, "somebody else is changing it"), hint="run the same command again")


def _rules() -> Iterator[tuple[str, _Rule]]:
    for rule, codes in (
        (_no_bucket, "NoSuchBucket InvalidBucketName"),
        (_absent, "NoSuchKey NoSuchVersion"),
        (_no_upload, "NoSuchUpload"),
        (_clock, "RequestTimeTooSkewed RequestExpired"),
        (
            _another_region,
            "PermanentRedirect TemporaryRedirect AuthorizationHeaderMalformed IllegalLocationConstraint",
        ),
        (_another_region, "AuthorizationQueryParametersError IllegalLocationConstraintException"),
        (_checksums, "MissingContentLength"),
        (_archived, "InvalidObjectState"),
        (_no_room, "QuotaExceeded ServiceQuotaExceeded ServiceQuotaExceededException EntityTooLarge"),
        (_no_room, "XMinioStorageFull InsufficientCapacity"),
        (_cannot, "NotImplemented MethodNotAllowed"),
        (_past_the_end, "InvalidRange"),
        (_changed, "PreconditionFailed"),
        (_damaged, "BadDigest InvalidDigest XAmzContentSHA256Mismatch IncompleteBody RequestTimeout"),
        (
            _busy,
            "SlowDown Throttling ThrottlingException RequestLimitExceeded TooManyRequests BandwidthLimitExceeded",
        ),
        (_conflict, "OperationAborted ConditionalRequestConflict ConcurrentModification"),
    ):
        yield from ((code, rule) for code in codes.split())
    another = (
        f"check {_KEYS}, and that endpoint_url is the store they are for; "
        "a public bucket is read with -o anonymous=true"
    )
    yield "InvalidAccessKeyId", _denying("the store does not know this access key", another)
    pair = "check secret_access_key (ARI_S3_SECRET_ACCESS_KEY) for missing or extra characters, and region"
    yield "SignatureDoesNotMatch", _denying("the secret key does not belong to the access key", pair)
    renew = "get new ones, such as with `aws sso login`"
    for code in ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"):
        yield code, _denying("the temporary credentials have expired", renew)
    temporary = "check session_token: it belongs to one pair of keys, and to AWS only"
    yield "InvalidToken", _denying("the session token is not valid", temporary)


_BY_CODE: Final = dict(_rules())
_BY_STATUS: Final[tuple[tuple[int, int, _Rule], ...]] = (
    (300, 399, _another_region),
    (HTTPStatus.UNAUTHORIZED, HTTPStatus.UNAUTHORIZED, _denied),
    (HTTPStatus.FORBIDDEN, HTTPStatus.FORBIDDEN, _denied),
    (HTTPStatus.NOT_FOUND, HTTPStatus.NOT_FOUND, _absent),
    (HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.METHOD_NOT_ALLOWED, _cannot),
    (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_TIMEOUT, _failing),
    (HTTPStatus.CONFLICT, HTTPStatus.CONFLICT, _conflict),
    (HTTPStatus.LENGTH_REQUIRED, HTTPStatus.LENGTH_REQUIRED, _checksums),
    (HTTPStatus.PRECONDITION_FAILED, HTTPStatus.PRECONDITION_FAILED, _changed),
    (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _no_room),
    (HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, _past_the_end),
    (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.TOO_MANY_REQUESTS, _busy),
    (400, 499, _bad_request),
    (HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.NOT_IMPLEMENTED, _cannot),
    (HTTPStatus.INSUFFICIENT_STORAGE, HTTPStatus.INSUFFICIENT_STORAGE, _no_room),
    (500, 599, _failing),
)


# -- silence -----------------------------------------------------------------------------------------------------


def _unreachable(error: Exception, asked: Asked) -> BackendError:
    causes = list(_causes(error))
    if isinstance(error, exceptions.SSLError):
        return _untrusted(causes, asked)
    if isinstance(error, exceptions.ProxyConnectionError):
        return Unavailable(
            f"{asked.where}: the proxy cannot be reached", hint="check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
        )
    if isinstance(error, exceptions.ConnectTimeoutError):
        return Unavailable(
            f"{asked.where}: no connection to {asked.endpoint} in time",
            hint="check endpoint_url, and whether a firewall or VPN is in between",
        )
    if isinstance(error, exceptions.ReadTimeoutError):
        return Unavailable(f"{asked.where}: nothing came for a long time")
    if isinstance(error, exceptions.EndpointConnectionError):
        if any(isinstance(cause, urllib3.exceptions.NameResolutionError | socket.gaierror) for cause in causes):
            return Unavailable(
                f"{asked.where}: the name of {asked.endpoint} is not known",
                hint=_FORGOTTEN
                if asked.endpoint == AWS
                else "check endpoint_url and region for a slip, and whether this machine is online",
            )
        return Unavailable(
            f"{asked.where}: {asked.endpoint} takes no connection",
            hint="check endpoint_url and its port, and whether the store runs",
        )
    # An OSError in itself, and nothing of the network's: botocore's "Could not find a suitable TLS CA bundle".
    if any(type(cause) is OSError and cause.errno is None for cause in causes):
        return InvalidConfiguration(
            f"{asked.where}: the file of trusted authorities cannot be used",
            hint="check ca_bundle, AWS_CA_BUNDLE and REQUESTS_CA_BUNDLE",
        )
    return Unavailable(f"{asked.where}: the connection was cut")


def _untrusted(causes: list[BaseException], asked: Asked) -> BackendError:
    trust, plain = "-o ca_bundle=FILE.pem (ARI_S3_CA_BUNDLE)", "if it is meant, write http:// in endpoint_url"
    if problem := handshake_problem(causes, trust=trust, plain=plain):
        return InvalidConfiguration(f"{asked.endpoint}: {problem[0]}", hint=problem[1])
    if other := next((cause for cause in causes if isinstance(cause, CertificateError)), None):
        why = _shown(str(other), asked)
        return InvalidConfiguration(f"{asked.endpoint}: its certificate is not trusted: {why}", hint=OTHER_NAME)
    reason = next((c.reason for c in causes if isinstance(c, ssl.SSLError) and c.reason), "")
    if reason in {"NO_CERTIFICATE_OR_CRL_FOUND", "PEM_LIB"}:
        return InvalidConfiguration(
            f"{asked.where}: the file of trusted authorities cannot be used",
            hint="check ca_bundle, AWS_CA_BUNDLE and REQUESTS_CA_BUNDLE",
        )
    return Unavailable(f"{asked.where}: no secure connection to {asked.endpoint} ({escape(reason) or 'cut'})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from, as far as each of the libraries tells."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        told = (getattr(error, "kwargs", None) or {}).get("error") or getattr(error, "reason", None)
        error = told if isinstance(told, BaseException) else error.__cause__ or error.__context__
