"""A plugin's backend that lies, dies and hangs, as its ref says: ``evil://wrong``, ``evil://hangs-reading``, …"""

import hashlib
import io
import threading
from contextlib import contextmanager
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from ari_core.contract import Artifact, Backend, BackendSpec, Capabilities, Claim, Locator


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Stream(io.RawIOBase):
    """Returns something other than bytes, or fails, in the middle."""

    def __init__(self, data, how):
        super().__init__()
        self.data, self.how, self.reads = data, how, 0

    def read(self, size=-1):
        self.reads += 1
        if self.how == "hangs-reading" and self.reads > 1:
            Evil.forever.wait()
        if self.how == "raises-reading" and self.reads > 1:
            raise KeyError("a foreign exception\x1b[31m")
        if self.how == "text":
            return "text"
        if self.how == "none":
            return None
        if self.how == "too-much":
            return self.data + b"x" * size
        piece, self.data = self.data[: size // 4096 or 1], self.data[size // 4096 or 1 :]
        return piece


class Evil(Backend):
    name = "evil"
    capabilities = Capabilities(ranges=True)
    Settings = Settings
    forever: ClassVar = threading.Event()  # set at the end of a test, so that no thread stays
    bundle: ClassVar = b""
    other: ClassVar = b""

    def _resolve(self, ref):
        how = ref.removeprefix("evil://")
        if how == "raises":
            raise ZeroDivisionError("boom\nsecond line")
        if how == "exits":
            raise SystemExit(0)
        if how == "hangs":
            Evil.forever.wait()
        if how == "path":
            return "/etc/passwd"
        return Locator(how)

    def _ref(self, locator):
        return f"evil://{locator}"

    def _stat(self, locator):
        if locator == "verified":  # claims what was asked for, and sends something else
            return Artifact(locator, len(self.other), hashlib.sha256(self.bundle).hexdigest(), "0" * 64)
        if locator == "no-artifact":
            return {"verified": True}
        return Artifact(locator, len(self.bundle))

    @contextmanager
    def _open(self, locator, offset):
        data = {"wrong": bytes(len(self.bundle)), "verified": self.other, "short": self.bundle[:-5]}
        data |= {"long": self.bundle + b"more", "other": self.other}
        yield Stream(data.get(locator, self.bundle)[offset:], locator)


SPEC = BackendSpec(
    name="evil",
    backend="support.evil:Evil",
    help="lies",
    claims=lambda ref: Claim.SCHEME if ref.startswith("evil:") else Claim.NO,
    api=1,
)
