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
_IN_BUCKET: Final = re.compile(r"(?i:s3)://[^/]+/.+", re.DOTALL)


def filesystem_registry_claims(ref: str) -> Claim:
    """Claims a ``file:`` ref of an artifact's folder: ``…/artifacts/ID``."""
    return Claim.EXACT if _STORED.fullmatch(ref) else Claim.NO


def s3_claims(ref: str) -> Claim:
    """Claims ``s3://BUCKET/KEY``, whatever the key."""
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
