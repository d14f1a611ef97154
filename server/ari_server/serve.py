"""Starts a registry: checks what it stands on, mends what a crash left, listens, and runs uvicorn's workers."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn

from ari_core.contract import Backend, Capabilities, SupportsOwners, SupportsServing
from ari_core.errors import AriError, ConfigurationError, ReadOnly, Unavailable, escape, from_os_error
from ari_core.streams import Progress
from ari_server.config import ServerConfig, create_config_environment, variable_of
from ari_server.database import create_data_directory
from ari_server.index import Index
from ari_server.tokens import Tokens
from ari_server.turns import Turns

if TYPE_CHECKING:
    from fastapi import FastAPI
    from uvicorn.supervisors import Multiprocess

HOST: Final = "127.0.0.1"
PORT: Final = 8290

_METRICS_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_GRACE_SECONDS: Final = 30
"""How long a stopping server goes on with what it is sending or receiving."""
_HEALTH_SECONDS: Final = 30
"""A worker that says nothing for so long is replaced; much less would hit one that is only busy."""
_BACKLOG: Final = 2048

_M_ARENA_MAX: Final = -8  # <malloc.h>
_ARENAS: Final = 2


def serve(
    config: ServerConfig,
    host: str = HOST,
    port: int = PORT,
    workers: int = 1,
    *,
    progress: Callable[[], AbstractContextManager[Progress | None]] = nullcontext,
    on_listening: Callable[[str], None] = lambda _url: None,
) -> None:
    """Runs a registry until SIGTERM or SIGINT.

    Args:
        config: What workers find in their environment, which this sets.
        host: Address to listen on.
        port: Port to listen on; 0: any that is free.
        workers: Processes.
        progress: Shows how building an index goes on.
        on_listening: Called with the URL once it listens.

    Raises:
        ConfigurationError: The store lacks what a registry needs, or the address cannot be used.
        ReadOnly: The store takes no writes.
        AriError: The data directory, the store or a worker fails.
    """
    with suppress(_Stopped), _stoppable(), _metrics_folder(workers):
        os.environ.update(create_config_environment(config))
        prepare(config, progress)
        with closing(_listen(host, port)) as listener:
            on_listening(_url(listener))
            _run(listener, workers)


def prepare(
    config: ServerConfig, progress: Callable[[], AbstractContextManager[Progress | None]] = nullcontext
) -> None:
    """Checks databases and store, creating what is not there; mends or makes the index.

    Raises:
        ConfigurationError: The store lacks what a registry needs.
        AriError: The data directory, the database or the store fails.
    """
    from ari_server.service import open_store  # noqa: PLC0415 - after `_metrics_folder`

    with closing(Tokens(config)) as tokens, closing(Index(config)) as index, closing(Turns(config)) as turns:
        tokens.ping()
        create_data_directory(config.data)
        with open_store(config, turn=turns.turn) as store:
            _check_store(store)
            index.require_known(store)
            _check_serving(store, index)
            if not index.complete:
                with progress() as show:
                    index.reindex(store, progress=show)
            index.repair(store)


def worker() -> FastAPI:
    """Makes the application in a worker; one that cannot be made ends the whole server with one line."""
    from uvicorn.config import STARTUP_FAILURE  # noqa: PLC0415

    _leave_with_parent()
    _share_heaps()
    try:
        from ari_server.app import create  # noqa: PLC0415 - after `_metrics_folder`

        return create()
    except Exception as error:  # noqa: BLE001 - any other exit status, and it would be started again for ever
        what = error.message if isinstance(error, AriError) else f"{type(error).__name__}: {error}"
        print(f"error: the server cannot start: {escape(what)}", file=sys.stderr)  # noqa: T201 - nobody else does
        sys.exit(STARTUP_FAILURE)


def _leave_with_parent() -> None:
    """Stops a worker whose parent was killed: it would keep the port from the next server."""
    if parent := multiprocessing.parent_process():

        def wait() -> None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=wait, name="ari-parent", daemon=True).start()


def _share_heaps() -> None:
    """Lets all threads share two heaps: glibc gives each its own, and keeps in every one what was freed there."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none, and no such heaps
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


def _check_store(store: Backend) -> None:
    found: Capabilities = store.probe()
    needed = {
        "put": found.put,
        "delete": found.delete == "yes",
        "list": found.list != "no",
        "ranges": found.ranges,
        "visibility": found.visibility != "none",
        "stores_meta": found.stores_meta,
        "owners": store.optional(SupportsOwners) is not None,
    }
    if missing := [name for name, there in needed.items() if not there]:
        if store.capabilities.put and not found.put:
            raise ReadOnly(
                f"the backend '{store.name}' takes no writes here, and a registry has to write",
                hint="check who owns its folder (by default the data directory), its mode, and how it is mounted",
            )
        raise ConfigurationError(
            f"the backend '{store.name}' cannot serve a registry: it lacks {', '.join(missing)}",
            hint="`ari backends show NAME` tells what a backend can do",
        )


def _check_serving(store: Backend, index: Index) -> None:
    serving = store.optional(SupportsServing)
    if serving is not None and serving.serve_for(index.identify()) != index.identify():
        raise ConfigurationError(
            "the store is served with another database already, and the two would contradict each other: "
            f"several servers of one store need one PostgreSQL database ({variable_of('db')})",
            hint="if that database is gone for good: `ari registry reindex --take-over`",
        )


def _listen(host: str, port: int) -> socket.socket:
    doing = f"listening on {escape(host)} port {port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)  # now, not in a worker: only this notices every program that has the port
        except BaseException:
            listener.close()
            raise
    except PermissionError as error:
        raise from_os_error(error, doing) from error
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(f"{doing}: {reason}", hint="choose another --port or --host") from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _run(listener: socket.socket, workers: int) -> None:
    import uvicorn  # noqa: PLC0415
    from uvicorn.config import STARTUP_FAILURE  # noqa: PLC0415

    from ari_server.logs import LOG_CONFIG  # noqa: PLC0415

    config = uvicorn.Config(
        "ari_server.serve:worker",
        factory=True,
        workers=workers,
        http="ari_server.wire:BoundedHead",
        loop="uvloop",
        lifespan="on",
        ws="none",
        access_log=False,  # ours is in the application, and shows no secrets
        log_config=LOG_CONFIG,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        timeout_worker_healthcheck=_HEALTH_SECONDS,
    )
    # `uvicorn.run` would bind by itself, after saying nothing of use about a port that is taken.
    if workers == 1:
        try:
            uvicorn.Server(config).run(sockets=[listener])
            failed = False
        except SystemExit as exit_:
            if exit_.code != STARTUP_FAILURE:
                raise
            failed = True
    else:
        supervisor = _supervisor()(config, sockets=[listener])
        supervisor.run()
        failed = any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes)
    if failed:
        raise Unavailable("a worker could not start", hint="the lines above say why")


def _supervisor() -> type[Multiprocess]:
    from uvicorn.supervisors import Multiprocess  # noqa: PLC0415

    class Supervisor(Multiprocess):
        def init_processes(self) -> None:
            super().init_processes()
            for process in self.processes:
                # With the parent's copy open, a worker that ends while it is asked how it is counts as busy.
                process.child_conn.close()

    return Supervisor


@contextmanager
def _metrics_folder(workers: int) -> Iterator[None]:
    """Names a folder in which workers add up their metrics; it has to be known before that code is imported."""
    if workers == 1:
        os.environ.pop(_METRICS_VARIABLE, None)
        yield
        return
    folder = tempfile.mkdtemp(prefix="ari-registry-metrics-")
    os.environ[_METRICS_VARIABLE] = folder
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Stopped(BaseException):
    """The server was told to stop. Not SystemExit: a backend that is being asked something must not raise that."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """Makes SIGTERM and SIGINT end it in order, with exit status 0: that is how a server is told to stop."""

    def stop(*_: Any) -> NoReturn:
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
