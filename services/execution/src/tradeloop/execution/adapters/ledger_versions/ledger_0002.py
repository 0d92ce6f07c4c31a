"""Revisions of books, the order of what may have to be published again, and the log that an offset belongs to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # The release before writes none of these: each has a value of its own.
    op.add_column("execution_books", sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("execution_outbox", sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("execution_outbox", sa.Column("place", sa.Integer, nullable=False, server_default="0"))
    op.add_column("execution_offsets", sa.Column("log", sa.String(120), nullable=False, server_default=""))
