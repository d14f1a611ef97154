"""Which refs belong to which built-in backend: pure functions that import no SDK and do no I/O."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from ari_core.contract import Claim

# "::" chains file systems in fsspec's URLs (simplecache::file:///…); only an IPv6 host has it for another reason.
_IPV6_HOST: Final = re.compile(r"[^/?#]*\[[^]/?#]*\]")

# What fsspec reads from elsewhere, by URL. Not what leads back to this machine (file, dir, git, zip, the caches),
# goes in the clear (ftp), holds a whole file in memory (github, jupyter), or is another backend's (https, s3).
FSSPEC_SCHEMES: Final = frozenset(
    (
        *("abfs", "az", "box", "dbfs", "dropbox", "gcs", "gdrive", "gs", "hdfs", "hf", "lakefs", "memory", "oci"),
        *("ocilake", "oss", "root", "sftp", "smb", "ssh", "tos", "tosfs", "webdav", "webhdfs"),
    )
)

_ARTIFACT: Final = re.compile(r"[^?#]*/artifact/[0-9a-f]{16,64}/?")
_STORED: Final = re.compile(r"(?i:file):[^?#]*/artifacts/[0-9a-f]{16,64}/?", re.DOTALL)
_IN_BUCKET: Final = re.compile(r"(?i:s3)://.*", re.DOTALL)

ZENODO_DOI: Final = re.compile(r"10\.(?P<prefix>5281|5072)/zenodo\.(?P<id>[0-9]{1,18})", re.IGNORECASE)
_DOI: Final = re.compile(
    r"(?:doi: ?|https?://(?:dx\.|www\.)?doi\.org/)(?P<doi>10\.[0-9]{4,9}(?:\.[0-9]+)*/[!-~]+)", re.IGNORECASE
)
_ZENODO_PAGE: Final = re.compile(
    r"(?P<base>https://(?:sandbox\.)?zenodo\.org)/"
    r"(?:(?:api/)?records?/(?P<id>[0-9]{1,18})|doi/(?P<doi>10\.[!-~]+?))/?(?:[?#].*)?",
    re.IGNORECASE | re.DOTALL,
)
_INVENIO: Final = re.compile(r"(?i:zenodo)\+(?P<base>(?i:https?)://[^?#]+)/records/(?P<id>[0-9a-z-]{1,40})/?")


def filesystem_registry_claims(ref: str) -> Claim:
    """Claims a ``file:`` ref of an artifact's folder: ``…/artifacts/ID``."""
    return Claim.EXACT if _STORED.fullmatch(ref) else Claim.NO


def s3_claims(ref: str) -> Claim:
    """Claims ``s3://…``: what is no ref of an object is refused with an example."""
    return Claim.SCHEME if _IN_BUCKET.fullmatch(ref) else Claim.NO


def is_loopback(host: str) -> bool:
    """Says whether `host` (without brackets) is this very machine: 127.0.0.0/8, ::1 or ``localhost``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def https_claims(ref: str) -> Claim:
    """Claims ``https://…``, and ``http://…`` on this very machine; never a chained URL."""
    scheme = _scheme(ref)
    if scheme not in {"https", "http"}:
        return Claim.NO
    if scheme == "https":
        return Claim.SCHEME
    try:
        name = urlsplit(ref).hostname or ""
    except ValueError:
        return Claim.NO
    return Claim.SCHEME if is_loopback(name) else Claim.NO


def fsspec_claims(ref: str) -> Claim:
    """Claims what fsspec reads from elsewhere; never a chained URL."""
    return Claim.SCHEME if _scheme(ref) in FSSPEC_SCHEMES else Claim.NO


def _scheme(ref: str) -> str | None:
    """Returns the scheme of a URL in lower case; None if it is none, or a chained one."""
    scheme, separator, rest = ref.partition("://")
    host = _IPV6_HOST.match(rest)
    return scheme.lower() if separator and "::" not in rest[host.end() if host else 0 :] else None


def ari_registry_claims(ref: str) -> Claim:
    """Claims ``ari:`` refs, and what `https_claims` does if a registry's artifact would have that URL."""
    if ref[:4].lower() == "ari:":
        return Claim.SCHEME
    return Claim.EXACT if https_claims(ref) and _ARTIFACT.fullmatch(ref) else Claim.NO


def doi_of(ref: str) -> str | None:
    """Returns the DOI that a ref is, in any of its spellings; None if it is none."""
    found = _DOI.fullmatch(ref) or _ZENODO_PAGE.fullmatch(ref)
    return found["doi"] if found else None


def zenodo_record(ref: str) -> tuple[str, str] | None:
    """Returns the repository and the id in it that a ref names by its address; None if it names none."""
    found = _INVENIO.fullmatch(ref) or _ZENODO_PAGE.fullmatch(ref)
    if found is None or not found["id"]:
        return None
    return (found["base"] if found.re is _INVENIO else found["base"].lower()), found["id"]


def zenodo_claims(ref: str) -> Claim:
    """Claims any DOI, Zenodo's pages, and ``zenodo+https://HOST/records/ID``.

    A DOI that is written as a URL would be a tie with `https_claims` otherwise, and its page is no archive.
    """
    doi = doi_of(ref)
    if zenodo_record(ref) or (doi and (ZENODO_DOI.fullmatch(doi) or https_claims(ref))):
        return Claim.EXACT
    return Claim.SCHEME if doi else Claim.NO
