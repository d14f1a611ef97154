"""What a record says about the bundle in it: a note for people in its description, which `read` understands.

A draft says which archive is on its way and which run sends it; the digests come with the last change of a put.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import unescape
from typing import Final

from ari_backends.zenodo.settings import SLUG

_HEX64: Final = r"[0-9a-f]{64}"
_COMPLETE: Final = re.compile(
    rf"The bundle digest \(SHA-256\) is (?P<bundle>{_HEX64})\. bundle\.tar\.gz has the SHA-256 "
    rf"(?P<archive>{_HEX64}) and the MD5 (?P<md5>[0-9a-f]{{32}})\."
)
_UNFINISHED: Final = re.compile(
    rf"ari-registry is sending bundle\.tar\.gz, SHA-256 (?P<archive>{_HEX64}), "
    r"in the run (?P<run>[0-9a-f]{32})\."
)
_COMMUNITIES: Final = re.compile(r"It is meant for: (?P<slugs>[A-Za-z0-9_, -]+)\.")
_TAG: Final = re.compile(r"<[^<>]*>")


@dataclass(frozen=True, slots=True)
class Note:
    """What our note says; all are claims.

    Attributes:
        archive_sha256: Digest of ``bundle.tar.gz``.
        run: Who is sending it, while a put is under way.
        bundle_sha256: Digest of the bundle, once it is complete.
        md5: What the repository said of the file, once it is complete.
        communities: To submit the record to, by their slugs.
    """

    archive_sha256: str
    run: str | None = None
    bundle_sha256: str | None = None
    md5: str | None = None
    communities: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.run:
            text = f"ari-registry is sending bundle.tar.gz, SHA-256 {self.archive_sha256}, in the run {self.run}."
        else:
            text = (
                f"The bundle digest (SHA-256) is {self.bundle_sha256}. bundle.tar.gz has the SHA-256 "
                f"{self.archive_sha256} and the MD5 {self.md5}. To verify it with the program that is here, too: "
                f"python3 -I verify_bundle.py bundle.tar.gz {self.bundle_sha256}"
            )
        return text + (f". It is meant for: {', '.join(self.communities)}." if self.communities else "")


def read(descriptions: Iterable[str]) -> Note | None:
    """Finds our note among a record's descriptions, as the repository keeps or formats them."""
    for description in descriptions:
        text = " ".join(unescape(_TAG.sub(" ", description)).split())
        communities = _COMMUNITIES.search(text)
        slugs = tuple(s for s in communities["slugs"].split(", ") if SLUG.fullmatch(s)) if communities else ()
        if found := _UNFINISHED.search(text):
            return Note(found["archive"], run=found["run"], communities=slugs)
        if found := _COMPLETE.search(text):
            return Note(found["archive"], bundle_sha256=found["bundle"], md5=found["md5"], communities=slugs)
    return None
