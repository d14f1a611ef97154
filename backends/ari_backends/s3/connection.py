"""botocore's client for one store: with which credentials, to which address, and how patiently."""

from __future__ import annotations

import os
import re
import threading
import time
from functools import cache, partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit

import botocore.loaders
import botocore.session
import botocore.tokens
import urllib3.exceptions
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, CredentialRetrievalError, HTTPClientError

from ari_backends._claims import is_loopback
from ari_backends.s3.settings import S3Settings, parse_endpoint
from ari_core.contract import OpenContext
from ari_core.errors import escape
from ari_core.streams import CHUNK, deadline

ATTEMPTS: Final = 3
"""How often botocore sends one request."""
CONNECT_SECONDS: Final = 10.0

_CONNECTIONS: Final = 50
_LONGEST_ANSWER: Final = 16 * 1024 * 1024
"""A thousand keys of a listing, every byte of them escaped."""


class Connection:
    """botocore's client, made at first use, once in each process.

    Attributes:
        endpoint: The address of a store that is not AWS, or None.
        unsigned: What to tell a user whose requests go without credentials; None: they have some.
    """

    def __init__(self, settings: S3Settings, context: OpenContext) -> None:
        self._settings, self._context = settings, context
        self.endpoint = settings.endpoint_url
        self.unsigned: str | None = None
        self._reset()

    def _reset(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._sdk: Any = None
        self._once: Any = None

    @property
    def shown(self) -> str:
        """The endpoint for a message."""
        return escape(self.endpoint or "AWS")

    @property
    def checksum(self) -> str:
        """When to send a checksum that is not asked for."""
        return self._settings.checksum or ("when_required" if self.endpoint else "when_supported")

    def sdk(self) -> Any:
        """Returns botocore's client."""
        if self._process != os.getpid():  # a fork copies connections, and a lock that may be held
            self._reset()
        with self._lock:
            if self._sdk is None:
                self._sdk = self._new()
            return self._sdk

    def once(self) -> Any:
        """Returns botocore's client, one that sends a request once."""
        self.sdk()
        with self._lock:
            if self._once is None:
                self._once = self._new(attempts=1)
            return self._once

    def close(self) -> None:
        """Lets go of the connections; `sdk` makes new ones."""
        with self._lock:
            clients, self._sdk, self._once = (self._sdk, self._once), None, None
        for client in clients:
            if client is not None:
                client.close()

    def _new(self, attempts: int = ATTEMPTS) -> Any:
        settings, anonymous = self._settings, self._context.anonymous
        session = botocore.session.Session(profile=None if anonymous else settings.profile)
        session.register_component("data_loader", _models())
        session.register_component("token_provider", botocore.tokens.TokenProviderChain([]))  # S3 takes none
        if not settings.endpoint_url:  # it may stand in AWS's own configuration
            unsigned = Config(signature_version=UNSIGNED)
            url = session.create_client("s3", config=unsigned).meta.endpoint_url
            self.endpoint = None if _is_aws(url) else parse_endpoint(url)
        region = settings.region
        if self.endpoint and not region and not session.get_config_variable("region"):
            region = "us-east-1"
        self.unsigned = self._why_unsigned(session)
        keys = {} if self.unsigned else self._keys()
        sdk = session.create_client(
            "s3",
            region_name=region,
            endpoint_url=self.endpoint,
            verify=None if settings.ca_bundle is None else str(settings.ca_bundle),
            config=self._config(attempts),
            **keys,
        )
        if self.endpoint:
            sdk.meta.events.register("before-parameter-build.s3", _stay)
        http = sdk._endpoint.http_session  # noqa: SLF001 - botocore reads answers without any bound
        http.send = partial(_bounded, http.send, seconds=ATTEMPTS * sdk.meta.config.read_timeout)
        return sdk

    def _keys(self) -> dict[str, str]:
        settings = self._settings
        given = {
            "aws_access_key_id": settings.access_key_id,
            "aws_secret_access_key": settings.secret_access_key,
            "aws_session_token": settings.session_token,
        }
        return {name: value.get_secret_value() for name, value in given.items() if value is not None}

    def _why_unsigned(self, session: botocore.session.Session) -> str | None:
        if self._settings.anonymous:
            return "leave out -o anonymous (ARI_S3_ANONYMOUS) to use your credentials"
        if self._settings.access_key_id is not None:
            return None
        if self._context.anonymous:
            return (
                "the address stands in a record, so your own credentials were not used: if you trust it, "
                "clone the ref itself, with its -o settings (`ari ear status` shows the command)"
            )
        if self.endpoint and not _is_aws(self.endpoint):  # where a role of an AWS machine is nobody
            session.get_component("credential_provider").remove("iam-role")
        try:
            if session.get_credentials() is not None:
                return None
        except BotoCoreError:
            raise
        except Exception as error:  # of a program, or a file, that gives credentials
            raise CredentialRetrievalError(provider="environment", error_msg="") from error
        return (
            "no credentials were found: run `aws configure`, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or give -o profile=NAME"
        )

    def _config(self, attempts: int) -> Config:
        settings, seconds = self._settings, self._context.patience or deadline() / ATTEMPTS
        # Not botocore's own "auto", which presigns for AWS's global host, and that redirects to the region's.
        auto = "path" if self.endpoint else "virtual"
        style = auto if settings.addressing_style == "auto" else settings.addressing_style
        local = self.endpoint is not None and is_loopback(urlsplit(self.endpoint).hostname or "")
        return Config(
            signature_version=UNSIGNED if self.unsigned else "s3v4",
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=min(CONNECT_SECONDS, seconds),
            read_timeout=seconds,
            max_pool_connections=max(_CONNECTIONS, settings.concurrency),
            tcp_keepalive=True,
            s3={"addressing_style": style},
            request_checksum_calculation=self.checksum,
            response_checksum_validation=self.checksum,
            user_agent_extra=f"ari-registry/{version('ari-registry')}",
            proxies={} if local else None,
        )


@cache
def _models() -> botocore.loaders.Loader:
    """Returns botocore's description of the service: each client that is made would read and parse it again."""
    return botocore.loaders.create_loader()


def _bounded(send: Any, request: Any, *, seconds: float) -> Any:
    """Sends a request; reads what is no object itself, so much of it and for so long at most."""
    streams, request.stream_output = request.stream_output, True
    try:
        answer = send(request)
    finally:
        request.stream_output = streams
    if streams and answer.status_code < HTTPStatus.MULTIPLE_CHOICES:
        return answer
    data, until = bytearray(), time.monotonic() + seconds
    try:
        while more := answer.raw.read1(CHUNK):
            data += more
            if len(data) > _LONGEST_ANSWER or time.monotonic() > until:
                answer.raw.close()
                raise HTTPClientError(error="the answer does not end")
    except urllib3.exceptions.HTTPError as error:
        raise HTTPClientError(error=error) from error
    answer._content = bytes(data)  # noqa: SLF001
    return answer


def _stay(context: dict[str, Any], **_: object) -> None:
    """Keeps botocore from looking for AWS's other regions: of a store that redirects it asks for ever where."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def _is_aws(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return re.search(r"\.amazonaws\.(com|com\.cn|eu)\Z", host) is not None
