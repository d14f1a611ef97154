"""Changes of the tables, in steps that Alembic applies to both databases: here is how far one has come.

Each kind of database has its own steps and its own version table: both kinds may lie in one PostgreSQL database.

To change a table: change it in ``tokens.py`` or ``index.py``, write the step into ``KIND/versions``, and name it
in `NEWEST`. A step that older servers do not survive must not come before they are gone: first add, later remove.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, inspect, select

from ari_core.errors import ConfigurationError, escape

Kind = Literal["tokens", "index"]
NEWEST: Final[Mapping[Kind, str]] = {"tokens": "0001", "index": "0001"}
"""The last step of each."""


def current(connection: Connection, kind: Kind) -> str | None:
    """Returns the last step that was applied; None before the first."""
    table = _version_table(kind)
    if not inspect(connection).has_table(table.name):
        return None
    return connection.execute(select(table.c.version_num)).scalar()


def is_newest(version: str | None, kind: Kind, what: str) -> bool:
    """Says whether a database is up to date.

    Args:
        version: What `current` says.
        kind: Which of the two.
        what: How the database is called in a message.

    Raises:
        ConfigurationError: It comes from a newer version of this program, which alone knows what is in it.
    """
    newest = NEWEST[kind]
    if version is not None and version > newest:
        raise ConfigurationError(
            f"{what} is of version {escape(version)}, and this program knows versions up to {newest}",
            hint="use the program that made it, or a newer one",
        )
    return version == newest


def upgrade(connection: Connection, kind: Kind) -> None:
    """Applies what is missing, in the transaction of `connection`."""
    # Most never need it, and it takes long to import.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name(kind)).replace("%", "%%"))
    config.attributes.update(connection=connection, version_table=_version_table(kind).name)
    command.upgrade(config, "head")


def stamp(connection: Connection, kind: Kind) -> None:
    """Notes in a database made at this moment that its tables are the newest."""
    table = _version_table(kind)
    table.create(connection)
    connection.execute(table.insert().values(version_num=NEWEST[kind]))


def run() -> None:
    """Does what Alembic calls an environment's ``env.py`` for."""
    from alembic import context  # noqa: PLC0415

    given = context.config.attributes
    context.configure(connection=given["connection"], version_table=given["version_table"])
    with context.begin_transaction():
        context.run_migrations()


def _version_table(kind: Kind) -> Table:
    name = f"alembic_version_{kind}"
    return Table(
        name,
        MetaData(),
        Column("version_num", String(32), nullable=False),
        PrimaryKeyConstraint("version_num", name=f"{name}_pkc"),
    )
