"""A transfer keeps what later passes over its bytes need: a fast fingerprint, and the MD5 that a remote is told."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("transfer", sa.Column("fingerprint", sa.Text))
    op.add_column("transfer", sa.Column("md5", sa.Text))
