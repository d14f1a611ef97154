"""All tables, where they are not there: files were made before they had versions, some by the existing server."""

from alembic import op
from sqlalchemy import Column, Text

revision = "0001"
down_revision = None

_PLAIN = Text().with_variant(Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Makes them."""
    op.create_table(
        "tokens",
        Column("id", _PLAIN, primary_key=True),
        Column("token_hash", _PLAIN, nullable=False, unique=True),
        Column("user", _PLAIN, nullable=False),
        Column("created_at", _PLAIN, nullable=False),
        Column("revoked_at", _PLAIN),
        if_not_exists=True,
    )
    op.create_table(
        "limited_tokens",
        Column("id", _PLAIN, primary_key=True),
        Column("token_hash", _PLAIN, nullable=False, unique=True),
        Column("user", _PLAIN, nullable=False),
        Column("scope", _PLAIN, nullable=False),
        Column("created_at", _PLAIN, nullable=False),
        Column("expires_at", _PLAIN),
        Column("revoked_at", _PLAIN),
        if_not_exists=True,
    )
    op.create_table(
        "fetch_tokens",
        Column("id", _PLAIN, primary_key=True),
        Column("token_hash", _PLAIN, nullable=False, unique=True),
        Column("archive_sha256", _PLAIN, nullable=False),
        Column("user", _PLAIN, nullable=False),
        Column("note", _PLAIN, nullable=False),
        Column("created_at", _PLAIN, nullable=False),
        Column("expires_at", _PLAIN),
        Column("revoked_at", _PLAIN),
        if_not_exists=True,
    )
    op.create_index("ix_fetch_tokens_archive_sha256", "fetch_tokens", ["archive_sha256"], if_not_exists=True)
    op.create_table(
        "token_uses",
        Column("id", _PLAIN, primary_key=True),
        Column("used_at", _PLAIN, nullable=False),
        if_not_exists=True,
    )
