"""Archives in one folder, each called `<SHA-256 of its bytes>.tar.gz`."""

import errno
import os
import re
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field

from ari_core.contract import CHUNK, Artifact, Backend, Capabilities, Locator
from ari_core.errors import AccessDenied, InvalidConfiguration, NotFound, QuotaExceeded, Unavailable

NAME = re.compile(r"[0-9a-f]{64}\.tar\.gz")
REF = re.compile(rf"folder-store://(/(?:[!-~]*/)?{NAME.pattern})")


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    path: Path | None = Field(None, description="the folder; a ref names its own")


class FolderStore(Backend):
    name = "folder-store"
    capabilities = Capabilities(put=True, delete="yes", list="immediate", ranges=True, exclusive_create=True)
    Settings = Settings

    # A locator is the file's absolute path.

    def _resolve(self, ref):
        match = REF.fullmatch(ref)
        locator = Locator(unquote(match[1], errors="surrogateescape") if match else "")
        file_of(locator)
        return locator

    def _ref(self, locator):
        return "folder-store://" + quote(os.fsencode(file_of(locator)))

    def _probe(self):
        if self.settings.path is None:
            return Capabilities(delete="yes", ranges=True)
        self._folder()
        return self.capabilities

    def _stat(self, locator):
        path = file_of(locator)
        return Artifact(locator, size=path.stat().st_size, archive_sha256=path.name[:64])

    @contextmanager
    def _open(self, locator, offset):
        with file_of(locator).open("rb") as stream:
            stream.seek(offset)
            yield stream

    def _put(self, source, new, resume, on_reserved):
        path = self._folder() / f"{source.archive_sha256}.tar.gz"
        created = False
        if not path.exists():
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".incoming-") as incoming:
                with source.open() as stream:
                    while data := stream.read(CHUNK):
                        incoming.write(data)
                # Only a source that ended cleanly gets here. The name comes last, when the bytes are on the disk.
                os.fchmod(incoming.fileno(), 0o644)
                incoming.flush()
                os.fsync(incoming.fileno())
                with suppress(FileExistsError):  # somebody else stored the same archive meanwhile
                    os.link(incoming.name, path)
                    created = True
            sync_folder(path.parent)
        return self._stat(Locator(str(path))), created

    def _delete(self, locator):
        path = file_of(locator)
        path.unlink(missing_ok=True)
        sync_folder(path.parent)

    def _list(self, after):
        for path in sorted(self._folder().iterdir()):
            if NAME.fullmatch(path.name) and (after is None or path.name > after):
                with suppress(FileNotFoundError):  # deleted a moment ago
                    yield self._stat(Locator(str(path))), path.name

    def _translate(self, error):
        """The system's exceptions in the contract's words; all others are bugs of this package."""
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return NotFound(f"there is no {error.filename!r}")
        if isinstance(error, PermissionError):
            return AccessDenied(f"no access to {error.filename!r}", hint="check who owns it and its mode")
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return QuotaExceeded("the disk is full")
        return Unavailable(f"the disk fails: {error.strerror}") if isinstance(error, OSError) else None

    def _folder(self):
        path = self.settings.path
        if path is None:
            raise InvalidConfiguration("no folder is given", hint="-o path=DIR")
        if not path.is_dir():
            raise InvalidConfiguration(f"there is no folder {str(path)!r}", hint="create it, or give -o path=DIR")
        return path.absolute()


def file_of(locator):
    path = Path(locator)
    if not path.is_absolute() or not NAME.fullmatch(path.name) or "\0" in locator:
        raise NotFound("this names nothing in a folder-store")
    if not path.parent.is_dir():  # so nobody knows what is in it: it may be on a disk that is not plugged in
        raise InvalidConfiguration(f"the folder {str(path.parent)!r} is not there")
    return path


def sync_folder(folder):
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
