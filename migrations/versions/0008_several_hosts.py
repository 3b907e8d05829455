"""Add leases of companies and of shared folders, a log of receipts for each host, and more facts about processes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this migration."""
    integer = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    bytewise = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.create_table(
        "company_lease",
        sa.Column("company", bytewise, primary_key=True),
        sa.Column("owner", bytewise, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("claims", integer, nullable=False),
        sa.Column("asked", sa.Float),
    )
    op.create_table(
        "scan_lease",
        sa.Column("mapping", bytewise, primary_key=True),
        sa.Column("owner", bytewise, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
    )
    op.add_column("process", sa.Column("clock_offset", sa.Float))
    op.add_column("process", sa.Column("unreadable", bytewise))
    op.add_column("receipt_log", sa.Column("number", integer, nullable=False, server_default=sa.text("0")))
    op.add_column("receipt_log", sa.Column("host", bytewise))
    op.add_column("receipt_head", sa.Column("log", integer, nullable=False, server_default=sa.text("0")))
