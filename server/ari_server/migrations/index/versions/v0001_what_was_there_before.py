"""All tables, where they are not there: files were made before they had versions."""

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, Text

revision = "0001"
down_revision = None

_PLAIN = Text().with_variant(Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Makes them."""
    op.create_table(
        "artifacts",
        Column("archive_sha256", _PLAIN, primary_key=True),
        Column("id", _PLAIN, nullable=False, unique=True),
        Column("bundle_sha256", _PLAIN),
        Column("size", BigInteger, nullable=False),
        Column("visibility", _PLAIN, nullable=False),
        Column("created", BigInteger, nullable=False),
        Column("locator", _PLAIN, nullable=False),
        Column("file_count", BigInteger),
        Column("total_bytes", BigInteger),
        Column("license", _PLAIN),
        Column("title", _PLAIN),
        Column("manifest_sha256", _PLAIN),
        Column("generation", BigInteger, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_index(
        "artifacts_newest", "artifacts", ["visibility", "created", "archive_sha256"], if_not_exists=True
    )
    op.create_table(
        "owners",
        Column("archive_sha256", _PLAIN, primary_key=True),
        Column("position", BigInteger, primary_key=True, autoincrement=False),
        Column("user", _PLAIN, nullable=False),
        Column("visibility", _PLAIN, nullable=False),
        Column("since", BigInteger),
        Column("created", BigInteger, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_index("owners_newest", "owners", ["user", "created", "archive_sha256"], if_not_exists=True)
    op.create_table(
        "words",
        Column("archive_sha256", _PLAIN, primary_key=True),
        Column("text", _PLAIN, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "removals",
        Column("archive_sha256", _PLAIN, primary_key=True),
        Column("id", _PLAIN, nullable=False),
        Column("deleted", BigInteger, nullable=False),
        Column("shown", Boolean, nullable=False),
        Column("generation", BigInteger, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "intents",
        Column("archive_sha256", _PLAIN, primary_key=True),
        Column("who", _PLAIN, primary_key=True),
        Column("locator", _PLAIN, nullable=False),
        Column("begun", BigInteger, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "facts",
        Column("name", _PLAIN, primary_key=True),
        Column("value", BigInteger, nullable=False),
        if_not_exists=True,
    )
