"""The tables of fetched ranges and of the terms of instruments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "fetched_spans",
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("instrument", sa.Text, primary_key=True),
        sa.Column("timeframe", sa.Text, primary_key=True),
        sa.Column("start_us", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("end_us", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("left_out", sa.Integer, nullable=False),
        sa.Column("known_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "instrument_terms",
        sa.Column("instrument", sa.Text, primary_key=True),
        sa.Column("known_us", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("terms", sa.Text, nullable=False),
    )
