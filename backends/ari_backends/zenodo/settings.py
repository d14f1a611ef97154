"""Settings of the zenodo backend, checked before anything is sent."""

from __future__ import annotations

import re
from typing import ClassVar, Final, Self

from pydantic import ByteSize, Field, FilePath, SecretStr, field_validator, model_validator

from ari_backends._http import HttpSettings, parse_url
from ari_core.errors import InvalidConfiguration

ZENODO: Final = "https://zenodo.org"
SANDBOX: Final = "https://sandbox.zenodo.org"
SLUG: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")


class ZenodoSettings(HttpSettings):
    """Settings of the zenodo backend."""

    prefix: ClassVar[str] = "ARI_ZENODO_"

    token: SecretStr | None = Field(
        None, description="personal access token with the scopes deposit:write and deposit:actions"
    )
    sandbox: bool = Field(
        default=False, description="publish to sandbox.zenodo.org, which is for trying things out"
    )
    base_url: str | None = Field(None, description="address of another repository that runs InvenioRDM")
    community: str | None = Field(None, description="community to submit to when the record is published")
    metadata: FilePath | None = Field(
        None, description="file that describes the bundle, before what the bundle says itself"
    )
    max_size: ByteSize = Field(
        ByteSize(50 * 10**9), gt=0, description="refuse larger bundles before sending ('50GB'; a record's quota)"
    )

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parsed = parse_url(url)
        except InvalidConfiguration as error:
            raise ValueError(error.message) from None
        if "?" in url or "#" in url:
            raise ValueError("the address of a repository has no '?' or '#' part")
        return str(parsed).rstrip("/").removesuffix("/api")

    @field_validator("community")
    @classmethod
    def _is_slug(cls, slug: str | None) -> str | None:
        if slug is not None and not SLUG.fullmatch(slug):
            raise ValueError("a community is named as in its address, …/communities/NAME")
        return slug

    @model_validator(mode="after")
    def _is_one_place(self) -> Self:
        if self.sandbox and self.base_url:
            raise ValueError("sandbox and base_url name two places")
        return self

    @property
    def base(self) -> str:
        """Address of the repository to publish to, and the only one that sees the token."""
        return self.base_url or (SANDBOX if self.sandbox else ZENODO)
