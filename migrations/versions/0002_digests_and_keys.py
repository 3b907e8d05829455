"""Store a fast fingerprint and an MD5 of each transfer's bytes, and free the dedupe keys of gone transfers.

The unique index of keys then needs no condition on the state, which changes with every transition.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this migration."""
    op.add_column("transfer", sa.Column("fingerprint", sa.Text))
    op.add_column("transfer", sa.Column("md5", sa.Text))
    op.execute("DROP INDEX transfer_once")
    op.execute("UPDATE transfer SET once = 'gone:' || id WHERE state = 'gone'")
    op.execute("CREATE UNIQUE INDEX transfer_once ON transfer (lane, once)")
    op.execute("DROP INDEX transfer_digest")  # only downloads need it; `store/downloads.py` creates it
