"""Reads one archive from a URL: ``https://…``, or ``http://…`` on this very machine. It writes nothing."""

from __future__ import annotations

import re
from typing import Final

from ari_backends._claims import zenodo_record
from ari_backends._http import Answer, HttpReader, HttpSettings, parse_url
from ari_core.contract import Artifact, Capabilities, Locator
from ari_core.errors import Unsupported, escape

_HTML: Final = re.compile(r"text/html\b", re.IGNORECASE)


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

    def _note(self, locator: Locator, answer: Answer) -> Artifact:
        if _HTML.match(answer.header("content-type") or "") and zenodo_record(f"zenodo+{answer.place}"):
            raise Unsupported(
                f"{answer.where}: this is a web page, and no archive",
                hint=f"if it is a record of a repository that runs InvenioRDM: zenodo+{escape(answer.place)}",
            )
        return super()._note(locator, answer)

    def _probe(self) -> Capabilities:
        self._fetcher.client()
        return self.capabilities
