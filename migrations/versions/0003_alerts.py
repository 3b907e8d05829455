"""Add the tables of alerts, of their deliveries and of silences."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this migration."""
    op.create_table(
        "alert",
        sa.Column("host", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("since", sa.Float, primary_key=True),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("advice", sa.Text, nullable=False),
        sa.Column("observed", sa.Text, nullable=False),
        sa.Column("last_seen", sa.Float, nullable=False),
        sa.Column("changed", sa.Float, nullable=False),
        sa.Column("ended", sa.Float),
    )
    op.create_table(
        "alert_delivery",
        sa.Column("host", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("since", sa.Float, primary_key=True),
        sa.Column("receiver", sa.Text, primary_key=True),
        sa.Column("delivered", sa.Text),
        sa.Column("delivered_at", sa.Float, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
    )
    op.create_table(
        "alert_silence",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("until", sa.Float, nullable=False),
    )
