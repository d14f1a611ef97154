"""``ari registry …``: run a server, and look after its tokens and its index."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from ari_core.cli import options, output
from ari_core.contract import SupportsServing
from ari_core.errors import NotFound, UsageError
from ari_core.names import quoted
from ari_server.config import DATA_VARIABLE, DEFAULT_BACKEND, PREFIX, ServerConfig, load_config, variable_of

if TYPE_CHECKING:
    from typing import Literal

    from ari_server.tokens import IssuedToken, TokenInfo

# `ari registry --help` must be quick, and say what to install when that is missing: so look, but import nothing.
for _module in (
    "alembic",
    "fastapi",
    "uvicorn",
    "uvloop",
    "httptools",
    "sqlalchemy",
    "python_multipart",
    "prometheus_client",
):
    if find_spec(_module) is None:
        raise ModuleNotFoundError(f"No module named '{_module}'", name=_module)

_F = TypeVar("_F", bound=Callable[..., Any])
_TOKEN_ID: Final = re.compile(r"[0-9a-f]{1,64}")


def _settings(*names: str) -> Callable[[_F], _F]:
    """Adds an option for each of these settings of `ServerConfig`, which knows what they mean."""

    def add(command: _F) -> _F:
        for name in reversed(names):
            if name == "options":
                command = options.setting(command)
                continue
            what = ServerConfig.model_fields[name].description or ""
            about = f"{what[:1].upper()}{what[1:]}.  [env: {variable_of(name)}]"
            spelling = "--data-dir" if name == "data" else "--" + name.replace("_", "-")
            command = click.option(spelling, name, metavar=_METAVARS.get(name, "TEXT"), help=about)(command)
        return command

    return add


_METAVARS: Final = {
    "data": "DIR",
    "backend": "NAME",
    "base_url": "URL",
    "max_upload": "SIZE",
    "quota": "SIZE",
    "id_digits": "N",
    "body_timeout": "SECONDS",
    "uploads": "N",
    "metrics": "open|token|off",
    "accel": "PATH",
    "redirect": "SECONDS",
}
# Anybody on the machine can read a command line, and this holds a password: it comes from the environment only.
_NOT_AN_OPTION: Final = "db"


def _configuration(*, pairs: tuple[str, ...] = (), needs_data: bool = True, **given: str | None) -> ServerConfig:
    if not needs_data and os.environ.get(variable_of("db")):
        given["data"] = (
            given.get("data") or os.environ.get(DATA_VARIABLE) or os.curdir
        )  # nothing is looked for there
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeprecationWarning)
        config = load_config(None, options=options.settings(pairs) or None, **given)
    for warning in caught:  # which Python would not show
        output.warn(str(warning.message))
    return config


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def app() -> None:
    """Run a registry: serve, tokens, reindex, db.

    The data directory is $ARI_REGISTRY_DATA, or --data-dir. Tokens and index are in files there; for several
    servers, in the PostgreSQL database that $ARI_REGISTRY_DB names.

    \b
    Examples:
      export ARI_REGISTRY_DATA=/srv/ari
      ari registry token issue alice
      ari registry serve
    """


@app.command()
@click.option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    envvar=PREFIX + "HOST",
    show_default=True,
    help=f"Address to listen on; 0.0.0.0 for all.  [env: {PREFIX}HOST]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    default=8290,
    envvar=PREFIX + "PORT",
    show_default=True,
    help=f"Port to listen on; 0 for any that is free.  [env: {PREFIX}PORT]",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    metavar="N",
    default=1,
    envvar=PREFIX + "WORKERS",
    show_default=True,
    help=f"Processes that serve.  [env: {PREFIX}WORKERS]",
)
@_settings(*(name for name in ServerConfig.model_fields if name != _NOT_AN_OPTION))
def serve(*, host: str, port: int, workers: int, **given: Any) -> None:
    """Serve until told to stop (Ctrl-C, SIGTERM).

    \b
    Examples:
      ari registry serve --data-dir /srv/ari
      ari registry serve --workers 4 --base-url https://ari.example.org --quota 100GB
    """
    from ari_server.serve import serve as run

    config = _configuration(**given)

    def say(url: str) -> None:
        where = f"data directory: {quoted(str(config.data))}, backend: {config.backend}"
        click.echo(f"Serving {url}  ({where}{', with PostgreSQL' if config.db else ''})")

    run(config, host, port, workers, progress=output.progress, on_listening=say)


@app.command()
@click.option(
    "--take-over",
    is_flag=True,
    help="From now on this database and this store belong together; whoever had either before must be gone.",
)
@_settings("data", "backend", "options")
@options.json
def reindex(*, take_over: bool, **given: Any) -> None:
    """Make the index again from what is in the store; servers may go on meanwhile.

    \b
    Examples:
      ari registry reindex
      ari registry reindex --data-dir /srv/ari --json
      ari registry reindex --backend s3 -o bucket=lab --take-over
    """
    from contextlib import closing

    from ari_server.index import Index
    from ari_server.service import open_store

    config = _configuration(**given)
    if config.db is None or config.backend == DEFAULT_BACKEND:
        _require_data(config)
    with output.progress() as progress, closing(Index(config)) as index, open_store(config) as store:
        if not take_over:
            index.require_known(store)
        elif (serving := store.optional(SupportsServing)) is not None:
            serving.serve_for(index.identify(), take_over=True)
            output.warn("a server that runs with another database on this store must be stopped now")
        elif config.db is None:
            raise UsageError(f"the backend '{store.name}' notes nothing that could be taken over")
        done = index.reindex(store, progress=progress)
    for warning in done.warnings:
        output.warn(warning)
    output.result(
        {"indexed": done.indexed, "removed": done.removed, "warnings": list(done.warnings)},
        f"{done.indexed} in the index, {done.removed} removed that the store no longer has.",
    )


@app.group()
def db() -> None:
    """Bring the tables of the databases up to date, or check them.

    Files are brought up to date whenever they are opened; PostgreSQL only by `upgrade`.

    \b
    Examples:
      ari registry db check
      ari registry db upgrade
    """


@db.command()
@_settings("data")
@options.json
def upgrade(**given: Any) -> None:
    """Make tables, or bring them up to date; several may do so at once.

    \b
    Examples:
      export ARI_REGISTRY_DB=postgresql+psycopg://ari:PASSWORD@db.example.org/ari
      ari registry db upgrade
    """
    config = _configuration(needs_data=False, **given)
    if config.db is not None:
        from ari_server.migrations import NEWEST
        from ari_server.postgres import upgrade as apply

        for kind in NEWEST:
            apply(config.db, kind)
    _report_newest(config)


@db.command()
@_settings("data")
@options.json
def check(**given: Any) -> None:
    """Say whether the tables are those of this version; exit status 2 if not.

    \b
    Examples:
      ari registry db check
      ari registry db check --json
    """
    _report_newest(_configuration(needs_data=False, **given))


def _report_newest(config: ServerConfig) -> None:
    from contextlib import closing

    from ari_server.index import Index
    from ari_server.migrations import NEWEST
    from ari_server.tokens import Tokens

    if config.db is None:
        _require_data(config)
    with closing(Tokens(config)) as tokens, closing(Index(config)) as index:  # which fail when they are not
        tokens.ping()
        index.ping()
        versions = ", ".join(f"{kind} {version}" for kind, version in NEWEST.items())
    output.result({"versions": dict(NEWEST)}, f"Up to date: {versions}.")


def _require_data(config: ServerConfig) -> None:
    if not config.data.is_dir():
        raise NotFound(f"there is no data directory {quoted(str(config.data))}", hint="check --data-dir")


@app.group()
def token() -> None:
    """Issue, revoke and list the tokens of users.

    \b
    Examples:
      ari registry token issue alice
      ari registry token list
      ari registry token revoke 0123456789abcdef
    """


@token.command()
@click.argument("user")
@click.option("--expires", metavar="WHEN", help="12h, 90d, 4w, 2y or its last day, 2027-12-31.  [default: never]")
@click.option(
    "--scope",
    type=click.Choice(["publish", "read"]),
    default="publish",
    show_default=True,
    help="What it may do; read is for reading only.",
)
@_settings("data")
@options.json
def issue(*, user: str, expires: str | None, scope: Literal["publish", "read"], **given: Any) -> None:
    """Make a token for USER and print it, once.

    \b
    Examples:
      ari registry token issue alice
      ari registry token issue ci-robot --scope read --expires 90d --json
    """
    from contextlib import closing

    from ari_core.durations import parse_expiry
    from ari_server.tokens import Tokens

    lifetime = None if expires is None else parse_expiry(expires)
    config = _configuration(needs_data=False, **given)
    if not _have_tokens(config):  # a mistyped folder would make a token that no server knows
        output.warn(f"there was no registry in {quoted(str(config.data))} yet; this begins one")
    with closing(Tokens(config)) as tokens:
        issued = tokens.issue(user, scope=scope, expires=lifetime)
    output.result(
        {
            "id": issued.id,
            "token": issued.token,
            "user": issued.user,
            "scope": issued.scope,
            "created": _time(issued.created),
            "expires": _time(issued.expires),
        },
        *_issued(issued),
    )


def _issued(issued: IssuedToken) -> list[str]:
    until = f"expires {_time(issued.expires)}" if issued.expires else "never expires"
    return [
        f"Token for {issued.user}: may {issued.scope}, {until}; its id is {issued.id}",
        f"  {issued.token}",
        "It is shown this once. Whoever gets it does:",
        f"  export ARI_REGISTRY_TOKEN={issued.token}",
        "and puts into .ari/registries.yaml, with this server's address:",
        "  registries: [{name: lab, url: 'https://…', token: $ARI_REGISTRY_TOKEN}]",
        f"To take it back: ari registry token revoke {issued.id}",
    ]


@token.command()
@click.argument("token_id", metavar="ID")
@click.option("--shares", is_flag=True, help="Revoke all fetch tokens of the same user, too.")
@_settings("data")
@options.json
def revoke(*, token_id: str, shares: bool, **given: Any) -> None:
    """Revoke a token by its id; the next request with it is refused.

    Fetch tokens that its user made (`ari ear share`) go on working, unless --shares is given: do that when a token
    was stolen.

    \b
    Examples:
      ari registry token revoke 0123456789abcdef
      ari registry token revoke 0123456789abcdef --shares
    """
    from contextlib import closing

    if not _TOKEN_ID.fullmatch(token_id):  # not echoed: it may be the token itself
        raise UsageError("that is no id of a token", hint="`ari registry token list` shows the ids")
    with closing(_existing_tokens(given)) as tokens:
        user = next((info.user for info in tokens.list(shares=True) if info.id == token_id), None)
        if user is None or not tokens.revoke(token_id):
            raise NotFound(f"no token has the id {token_id}", hint="`ari registry token list` shows the ids")
        made = [i.id for i in tokens.list(shares=True) if (i.scope, i.user, i.revoked) == ("fetch", user, None)]
        if shares:
            for fetch in made:
                tokens.revoke(fetch)
    if made and not shares:
        output.warn(f"{len(made)} fetch tokens that {user} made still work; --shares revokes them, too")
    output.result(
        {"revoked": token_id, "shares_revoked": made if shares else []},
        f"Revoked {token_id}{f', and {len(made)} fetch tokens of {user}' if shares else ''}.",
    )


@token.command("list")
@click.option("--shares", is_flag=True, help="List the fetch tokens that users made, too.")
@_settings("data")
@options.json
def list_(*, shares: bool, **given: Any) -> None:
    """List the tokens of users: ids and facts, never the tokens themselves.

    \b
    Examples:
      ari registry token list
      ari registry token list --shares
    """
    from contextlib import closing

    with closing(_existing_tokens(given)) as tokens:
        found = tokens.list(shares=shares)
    output.result(
        {"tokens": [_fields(info) for info in found]},
        *([f"{'ID':<16}  {'SCOPE':<7}  {'CREATED':<20}  {'LAST USED':<20}  {'STATE':<28}  USER"] if found else []),
        *(_line(info) for info in found),
        *([] if found else ["No tokens yet; `ari registry token issue USER` makes one."]),
    )


def _existing_tokens(given: dict[str, Any]) -> Any:
    from ari_server.tokens import Tokens

    config = _configuration(needs_data=False, **given)
    if not _have_tokens(config):
        raise NotFound(
            f"there are no tokens in {quoted(str(config.data))}",
            hint="check --data-dir; `ari registry token issue USER` makes a first token",
        )
    return Tokens(config)


def _have_tokens(config: ServerConfig) -> bool:
    from ari_server.database import FILES

    return config.db is not None or (config.data / FILES["tokens"]).exists()


def _fields(info: TokenInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "user": info.user,
        "scope": info.scope,
        "created": _time(info.created),
        "expires": _time(info.expires),
        "revoked": _time(info.revoked),
        "last_used": _time(info.last_used),
    }


def _line(info: TokenInfo) -> str:
    created, used = _time(info.created) or "?", _time(info.last_used) or "-"
    return f"{info.id:<16}  {info.scope:<7}  {created:<20}  {used:<20}  {_state(info):<28}  {info.user}"


def _state(info: TokenInfo) -> str:
    if info.revoked:
        return f"revoked {_time(info.revoked)}"
    if info.expires:
        return f"{'expired' if info.expires <= datetime.now(UTC) else 'until'} {_time(info.expires)}"
    return "valid"


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")
