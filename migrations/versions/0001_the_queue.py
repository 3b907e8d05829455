"""Create the tables of the queue."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this migration."""
    op.create_table(
        "document",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("mapping", sa.Text, nullable=False),
        sa.Column("folder", sa.LargeBinary, nullable=False),
        sa.Column("name", sa.LargeBinary, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("mtime_ns", sa.Integer, nullable=False),
        sa.Column("ctime_ns", sa.Integer, nullable=False),
        sa.Column("sha256", sa.Text),
        sa.Column("transfer_id", sa.Integer),
        sa.Column("present", sa.Boolean, nullable=False),
        sa.Column("first_seen", sa.Float, nullable=False),
        sa.Column("updated", sa.Float, nullable=False),
    )
    # Absent rows are history, which this index does not contain.
    op.execute("CREATE UNIQUE INDEX document_path ON document (mapping, folder, name) WHERE present")
    op.execute("CREATE INDEX document_transfer ON document (transfer_id)")

    op.create_table(
        "transfer",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("uid", sa.Text, nullable=False),
        sa.Column("mapping", sa.Text, nullable=False),
        sa.Column("lane", sa.Text, nullable=False),
        sa.Column("remote", sa.Text, nullable=False),
        sa.Column("company_id", sa.Text),
        sa.Column("connection_id", sa.Text),
        sa.Column("remote_name", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text),
        sa.Column("once", sa.Text, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("lease", sa.Integer, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("due_since", sa.Float, nullable=False),
        sa.Column("next_attempt", sa.Float, nullable=False),
        sa.Column("first_sent", sa.Float),
        sa.Column("last_sent", sa.Float),
        sa.Column("reason", sa.Text),
        sa.Column("detail", sa.Text),
        sa.Column("updated", sa.Float, nullable=False),
    )
    op.execute("CREATE UNIQUE INDEX transfer_once ON transfer (lane, once) WHERE state <> 'gone'")
    op.execute("CREATE INDEX transfer_waiting ON transfer (mapping, lane, next_attempt) WHERE state = 'waiting'")
    op.execute("CREATE INDEX transfer_doubtful ON transfer (mapping, lane, next_attempt) WHERE state = 'doubtful'")
    op.execute(
        "CREATE INDEX transfer_in_flight ON transfer (owner, state) WHERE state IN ('leased', 'sending', 'asking')"
    )
    op.execute("CREATE INDEX transfer_held ON transfer (mapping, reason) WHERE state = 'held'")
    op.execute("CREATE INDEX transfer_sent ON transfer (company_id, last_sent) WHERE state = 'sent'")
    op.execute("CREATE INDEX transfer_digest ON transfer (sha256)")

    op.create_table(
        "attempt",
        sa.Column("transfer_id", sa.Integer, primary_key=True),
        sa.Column("lease", sa.Integer, primary_key=True),
        sa.Column("began", sa.Float, nullable=False),
        sa.Column("ended", sa.Float),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("detail", sa.Text),
        sa.Column("status", sa.Integer),
        sa.Column("correlation_id", sa.Text),
        sa.Column("etag", sa.Text),
        sa.Column("proof", sa.Text),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "gate",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("until", sa.Float, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("lets_doubts_pass", sa.Boolean, nullable=False),
    )
    op.create_table(
        "bookmark",
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("mark", sa.Text, nullable=False),
        sa.Column("updated", sa.Float, nullable=False),
    )
    op.create_table(
        "arrival",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("mapping", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("path", sa.LargeBinary),
        sa.Column("landed", sa.Boolean, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("updated", sa.Float, nullable=False),
    )
    op.execute("CREATE UNIQUE INDEX arrival_origin ON arrival (mapping, origin, sha256)")
    op.execute("CREATE INDEX arrival_path ON arrival (path)")
