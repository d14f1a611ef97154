"""What Alembic runs first."""

from ari_server.migrations import run

run()
