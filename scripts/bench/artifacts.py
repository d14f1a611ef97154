"""Fills a registry's index with artifacts that are in no store, which is enough for HEAD and for lists."""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ari_core.contract import Artifact, Backend, Capabilities, Locator, Owner, ReadStream, Visibility
from ari_core.errors import Unsupported
from ari_server.config import ServerConfig
from ari_server.index import Index

START = datetime(2020, 1, 1, tzinfo=UTC)
USERS = 50


class MadeUp(Backend):
    """A store that lists what it is given, and says that each has the same manifest."""

    name = "made-up"
    capabilities = Capabilities(list="immediate")

    def __init__(self, artifacts: Iterator[Artifact], manifest: bytes) -> None:
        super().__init__(None)
        self._artifacts = artifacts
        self._manifest = manifest

    def manifest(self, _locator: Locator) -> bytes:
        """Returns the manifest."""
        return self._manifest

    def _list(self, after: str | None) -> Iterator[tuple[Artifact, str]]:
        del after
        for artifact in self._artifacts:
            yield artifact, artifact.locator

    def _ref(self, locator: Locator) -> str:
        return locator

    def _resolve(self, ref: str) -> Locator:
        raise Unsupported(ref)

    def _stat(self, locator: Locator) -> Artifact:
        raise Unsupported(locator)

    def _open(self, locator: Locator, offset: int) -> AbstractContextManager[ReadStream]:
        raise Unsupported(f"{locator} at {offset}")


def fill(data: Path, count: int, manifest: bytes) -> None:
    """Adds `count` public artifacts, all with the same manifest, to the index of the data directory `data`."""

    def artifacts() -> Iterator[Artifact]:
        for row in rows:  # what is not listed would be taken for gone
            yield Artifact(
                row.locator,
                row.size,
                row.archive_sha256,
                visibility=row.visibility,
                owners=row.owners,
                created=row.created,
            )
        for number in range(count):
            digest = hashlib.sha256(str(number).encode()).hexdigest()
            created = START + timedelta(seconds=number)
            owner = Owner(f"user{number % USERS}", Visibility.PUBLIC, created)
            yield Artifact(
                Locator(digest), 1000, digest, visibility=owner.visibility, owners=(owner,), created=created
            )

    with closing(Index(ServerConfig(data=data))) as index:
        rows, _ = index.page(user=None)
        index.reindex(MadeUp(artifacts(), manifest))
