"""Rename tables and columns to the terms of the glossary."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this migration."""
    for table, old, new in (
        ("transfer", "owner", "lease_owner"),
        ("transfer", "once", "dedupe_key"),
        ("transfer", "generation", "key_version"),
        ("bookmark", "subject", "key"),
        ("bookmark", "mark", "value"),
        ("arrival", "landed", "published"),
        ("receipt_log", "arrivals_done", "downloads_done"),
        ("receipt_log", "arrivals_old", "downloads_old"),
    ):
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
    op.rename_table("bookmark", "cursor")
    op.rename_table("arrival", "download")
    # SQLite cannot rename an index.
    op.execute("DROP INDEX transfer_once")
    op.execute("CREATE UNIQUE INDEX transfer_dedupe_key ON transfer (lane, dedupe_key)")
    op.execute("DROP INDEX arrival_origin")
    op.execute("CREATE UNIQUE INDEX download_origin ON download (mapping, origin, sha256)")
    op.execute("DROP INDEX arrival_path")
    op.execute("CREATE INDEX download_path ON download (path)")
