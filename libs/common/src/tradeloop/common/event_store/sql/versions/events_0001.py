"""The tables of trades, order books and news."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "market_trades",
        sa.Column("instrument", sa.Text, primary_key=True),
        sa.Column("time_us", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("price", sa.Double, nullable=False),
        sa.Column("size", sa.Double, nullable=False),
        sa.Column("side", sa.Text),
    )
    op.create_table(
        "market_books",
        sa.Column("instrument", sa.Text, primary_key=True),
        sa.Column("time_us", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("bids", sa.Text, nullable=False),
        sa.Column("asks", sa.Text, nullable=False),
    )
    op.create_table(
        "market_news",
        sa.Column("instrument", sa.Text, primary_key=True),
        sa.Column("time_us", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("headline", sa.Text, nullable=False),
        sa.Column("sentiment", sa.Double),
    )
