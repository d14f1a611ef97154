"""Settings of the s3 backend, checked before anything is sent."""

from __future__ import annotations

import re
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ByteSize, ConfigDict, Field, FilePath, SecretStr, field_validator, model_validator

BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")

_MIB: Final = 1024 * 1024


class S3Settings(BaseModel):
    """Settings of the s3 backend."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    bucket: str | None = Field(default=None, description="where to publish; refs name the bucket they are in")
    prefix: str = Field(default="", description="folder in the bucket, such as lab/bundles")
    endpoint_url: str | None = Field(
        default=None, description="address of a store that is not AWS: https://HOST[:PORT]"
    )
    region: str | None = Field(
        default=None, description="region of the bucket, where AWS's own configuration has none"
    )
    profile: str | None = Field(default=None, description="profile in ~/.aws whose credentials to use")
    access_key_id: SecretStr | None = Field(
        default=None, description="access key, instead of those botocore finds (AWS_*, ~/.aws, a role)"
    )
    secret_access_key: SecretStr | None = Field(default=None, description="secret key of access_key_id")
    session_token: SecretStr | None = Field(default=None, description="with temporary keys only")
    anonymous: bool = Field(default=False, description="use no credentials, whatever there is")
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="HOST/BUCKET or BUCKET.HOST; auto: path with an endpoint_url"
    )
    storage_class: str | None = Field(
        default=None, description="storage class of the bundles, such as STANDARD_IA"
    )
    server_side_encryption: str | None = Field(default=None, description="AES256, aws:kms or aws:kms:dsse")
    sse_kms_key_id: str | None = Field(default=None, description="key for aws:kms")
    checksum: Literal["when_required", "when_supported"] | None = Field(
        default=None,
        description="when_supported: a checksum goes with each upload, behind it where that is https; "
        "default: when_required with an endpoint_url, else when_supported",
    )
    part_size: ByteSize = Field(
        default=ByteSize(8 * _MIB),
        ge=5 * _MIB,
        le=5 * 1024 * _MIB,
        description="size of an upload's parts ('64MiB')",
    )
    concurrency: int = Field(default=8, ge=1, le=32, description="parts uploaded at a time")
    ca_bundle: FilePath | None = Field(
        default=None, description="PEM file of the authorities to trust instead of the system's"
    )

    @field_validator("bucket")
    @classmethod
    def _is_bucket(cls, bucket: str | None) -> str | None:
        if bucket is not None and not BUCKET.fullmatch(bucket):
            raise ValueError("a bucket's name is 3 or more of A-Z a-z 0-9 . _ -; a folder in it goes into prefix")
        return bucket

    @field_validator("prefix")
    @classmethod
    def _is_prefix(cls, prefix: str) -> str:
        prefix = prefix.strip("/")
        if not prefix.isprintable() or (prefix and not {"", ".", ".."}.isdisjoint(prefix.split("/"))):
            raise ValueError("a prefix is names with one slash between them, none of them . or ..")
        return prefix

    @field_validator("endpoint_url")
    @classmethod
    def _is_endpoint(cls, url: str | None) -> str | None:
        return None if url is None else parse_endpoint(url)

    @model_validator(mode="after")
    def _whole_keys(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key go together")
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("a session_token goes with an access_key_id")
        return self

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may hold."""
        given = (self.session_token, self.secret_access_key, self.access_key_id)
        return tuple(text for each in given if each is not None and (text := each.get_secret_value()))


def parse_endpoint(url: str) -> str:
    """Returns the address of a store in its usual form.

    Raises:
        ValueError: It is none.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or not url.isprintable() or " " in url:
        raise ValueError("an endpoint is https://HOST[:PORT]")
    if "@" in url or "?" in url or "#" in url:
        raise ValueError("an endpoint has no user name, no ? and no #; keys go into access_key_id and the like")
    return url.rstrip("/")
