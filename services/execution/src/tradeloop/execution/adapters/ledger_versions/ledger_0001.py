"""Books, orders, fills, outputs that may have to be published again, and how far the inputs were read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "execution_books",
        sa.Column("portfolio", sa.String(64), primary_key=True),
        sa.Column("marked_us", sa.BigInteger, nullable=False),
        sa.Column("decided_us", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("signal", sa.Text, nullable=False),
    )
    op.create_table(
        "execution_orders",
        sa.Column("order_id", sa.String(36), primary_key=True),
        sa.Column("portfolio", sa.String(64), nullable=False),
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("decision_us", sa.BigInteger, nullable=False),
        sa.Column("instrument", sa.String(97), nullable=False),
        sa.Column("side", sa.String(4), nullable=False),
        sa.Column("quantity", sa.Float(53), nullable=False),
        sa.Column("filled_quantity", sa.Float(53), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Index("execution_orders_by_time", "portfolio", "decision_us"),
    )
    op.create_table(
        "execution_fills",
        sa.Column("fill_id", sa.String(36), primary_key=True),
        sa.Column("order_id", sa.String(36), nullable=False),
        sa.Column("portfolio", sa.String(64), nullable=False),
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("instrument", sa.String(97), nullable=False),
        sa.Column("side", sa.String(4), nullable=False),
        sa.Column("quantity", sa.Float(53), nullable=False),
        sa.Column("price", sa.Float(53), nullable=False),
        sa.Column("fee", sa.Float(53), nullable=False),
        sa.Index("execution_fills_by_time", "portfolio", "time_us"),
    )
    op.create_table(
        "execution_outbox",
        sa.Column("portfolio", sa.String(64), primary_key=True),
        sa.Column("input_id", sa.String(36), primary_key=True),
        sa.Column("messages", sa.Text, nullable=False),
    )
    op.create_table(
        "execution_offsets",
        sa.Column("topic", sa.String(249), primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
    )
