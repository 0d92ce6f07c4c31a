"""The reason of a fill that no order made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # The release before writes none: those fills are of orders.
    op.add_column("execution_fills", sa.Column("reason", sa.String(16), nullable=False, server_default=""))
