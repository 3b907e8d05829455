"""A transfer keeps a fast fingerprint and an MD5 of its bytes; one that is gone gives up its key, so that the index of
keys no longer hangs on the state, which changes with every move."""

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
    op.execute("DROP INDEX transfer_once")
    op.execute("UPDATE transfer SET once = 'gone:' || id WHERE state = 'gone'")
    op.execute("CREATE UNIQUE INDEX transfer_once ON transfer (lane, once)")
    op.execute("DROP INDEX transfer_digest")  # only downloads ask for it: whoever has some makes it
