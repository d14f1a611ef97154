"""Reads one archive from a URL: ``https://…``, or ``http://…`` on this very machine. It writes nothing."""

from __future__ import annotations

from ari_backends._http import HttpReader, HttpSettings, parse_url
from ari_core.contract import Capabilities, Locator


class HttpsSettings(HttpSettings):
    """Settings of `Https`."""


class Https(HttpReader):
    """Read-only backend for a single archive behind a URL, which is also its locator."""

    name = "https"
    capabilities = Capabilities(ranges=True)
    Settings = HttpsSettings
    settings: HttpsSettings

    def _resolve(self, ref: str) -> Locator:
        return Locator(str(parse_url(ref)))

    def _ref(self, locator: Locator) -> str:
        return locator

    def _probe(self) -> Capabilities:
        self._fetcher.client()
        return self.capabilities
