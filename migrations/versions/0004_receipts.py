"""Add the log of receipts. Maintenance adds receipts of earlier transfers in steps, from their attempts."""

from __future__ import annotations

import platform
import re
import secrets

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this migration."""
    op.create_table(
        "receipt",
        sa.Column("idx", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("transfer_id", sa.Integer),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("body", sa.Text),
        sa.Column("leaf", sa.LargeBinary, nullable=False),
    )
    op.execute("CREATE INDEX receipt_transfer ON receipt (transfer_id)")
    op.create_table(
        "receipt_log",
        sa.Column("origin", sa.Text, primary_key=True),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("frontier", sa.LargeBinary, nullable=False),
        sa.Column("transfers_done", sa.Integer, nullable=False),
        sa.Column("transfers_old", sa.Integer, nullable=False),
        sa.Column("arrivals_done", sa.Integer, nullable=False),
        sa.Column("arrivals_old", sa.Integer, nullable=False),
        sa.Column("erased", sa.Integer, nullable=False),
    )
    op.create_table(
        "receipt_head",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("timestamp", sa.LargeBinary),
    )
    op.execute("CREATE INDEX receipt_head_size ON receipt_head (size)")
    host = re.sub(r"[^A-Za-z0-9._-]", "-", platform.node()) or "localhost"
    begun = sa.text(
        "INSERT INTO receipt_log SELECT :origin, 0, :nothing, 0, (SELECT coalesce(max(id), 0) FROM transfer), "
        "0, (SELECT coalesce(max(id), 0) FROM arrival), 0"
    )
    op.get_bind().execute(begun, {"origin": f"docferry/{host}/{secrets.token_hex(8)}", "nothing": b""})
