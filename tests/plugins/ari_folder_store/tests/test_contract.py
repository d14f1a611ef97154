"""The package against the contract: one fixture is enough, two hooks let the suite test more."""

import errno
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pytest
from ari_folder_store.store import FolderStore

from ari_core.conformance import BackendContract


class TestFolderStore(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path):
        with FolderStore(FolderStore.Settings(path=tmp_path)) as backend:
            yield backend

    def raw_corrupt(self, backend, locator):
        data = bytearray(Path(locator).read_bytes())
        data[len(data) // 2] ^= 1
        Path(locator).write_bytes(data)

    @contextmanager
    def break_store(self, backend, step):
        what, code = {
            "stat": ([(Path, "stat")], errno.EIO),
            "open": ([(Path, "open")], errno.EIO),
            "read": ([], errno.EIO),
            "list": ([(Path, "iterdir")], errno.EIO),
            "put": ([(os, "fsync")], errno.ENOSPC),
            "denied": ([(Path, "stat"), (Path, "open")], errno.EACCES),
        }[step]
        with ExitStack() as stack:
            for owner, name in what:
                failure = OSError(code, os.strerror(code), "the folder")
                stack.enter_context(mock.patch.object(owner, name, side_effect=failure))
            if step == "read":
                stack.enter_context(mock.patch.object(Path, "open", return_value=FailsInTheMiddle()))
            yield


class FailsInTheMiddle:
    left = 2

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def seek(self, offset):
        pass

    def read(self, size):
        self.left -= 1
        if not self.left:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return bytes(size)
