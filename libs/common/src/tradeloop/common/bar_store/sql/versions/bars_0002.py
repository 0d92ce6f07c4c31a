"""Further columns of bars: those that a bar has, by name; NULL for none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("bars", sa.Column("extra", JSONB))
