"""A plugin's backend that notes who opens it, with which settings, and serves bytes: ``noting://NAME``."""

import io
from contextlib import contextmanager
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, SecretStr

from ari_core.contract import Artifact, Backend, BackendSpec, Capabilities, Claim, Locator
from ari_core.errors import NotFound


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: SecretStr | None = None
    endpoint: str = ""
    max_download: int = 0


class Noting(Backend):
    """Serves `files` by name.

    Attributes:
        opened: Of each time it was opened: the ref, whether anonymously, and the settings that were set.
    """

    name = "noting"
    capabilities = Capabilities()
    Settings = Settings
    reader_settings = ("endpoint",)
    files: ClassVar = {}
    opened: ClassVar = []

    def _resolve(self, ref):
        given = self.settings.model_dump(exclude_defaults=True)
        if token := given.get("token"):
            given["token"] = token.get_secret_value()
        self.opened.append((ref, self.context.anonymous, given))
        locator = Locator(ref.removeprefix("noting://").partition("?")[0])
        if locator not in self.files:
            raise NotFound(f"there is no '{locator.rpartition('@')[2]}'")
        return locator

    def _ref(self, locator):
        return f"noting://{locator}"

    def _stat(self, locator):
        return Artifact(locator, len(self.files[locator]))

    @contextmanager
    def _open(self, locator, offset):
        yield io.BytesIO(self.files[locator])


SPEC = BackendSpec(
    name="noting",
    backend="support.noting:Noting",
    help="notes",
    claims=lambda ref: Claim.SCHEME if ref.startswith("noting:") else Claim.NO,
    api=1,
)
