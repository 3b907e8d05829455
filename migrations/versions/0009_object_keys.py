"""Give transfers to Wootiv the dedupe key of their object; they had that of their bytes, or of their file's name.

Without it, the first scan after an upgrade would store every object again. Of several versions of an object the one
that a file has now stands for it, else the latest.
"""

from __future__ import annotations

from unicodedata import normalize

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

#: Rows that are read and written at once: the memory of an upgrade does not grow with the queue.
_ROWS = 10_000


def upgrade() -> None:
    """Apply this migration."""
    connection = op.get_bind()
    bytewise = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    integer = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    keys = sa.Table(
        "object_key",
        sa.MetaData(),
        sa.Column("id", integer, primary_key=True, autoincrement=False),
        sa.Column("lane", bytewise, nullable=False),
        sa.Column("key", bytewise, nullable=False),
        prefixes=["TEMPORARY"],
    )
    keys.create(connection)
    last = 0
    while rows := connection.execute(_OLD_KEYS, {"last": last, "rows": _ROWS}).fetchall():
        last = rows[-1].id
        connection.execute(
            keys.insert(), [{"id": row.id, "lane": row.lane, "key": _key(row.remote_name)} for row in rows]
        )
    connection.execute(sa.text("CREATE INDEX object_key_key ON object_key (lane, key)"))
    connection.execute(_FREE)
    connection.execute(_ASSIGN)
    keys.drop(connection)


def _key(remote_name: str) -> str:
    """Return the key that docferry.detect.planner gives to this object."""
    return "object:" + normalize("NFC", remote_name).casefold()


# A key with another prefix is that of a transfer that stands for no object: held before it was read, gone, superseded.
_OLD_KEYS = sa.text("""
SELECT id, lane, remote_name FROM transfer WHERE remote = 'wootiv' AND id > :last
  AND (dedupe_key NOT LIKE '%:%' OR dedupe_key LIKE 'name:%') ORDER BY id LIMIT :rows
""")
_FREE = sa.text("""
UPDATE transfer SET dedupe_key = 'superseded:' || id WHERE id IN (SELECT id FROM object_key)
""")
_ASSIGN = sa.text("""
UPDATE transfer SET dedupe_key = (SELECT k.key FROM object_key k WHERE k.id = transfer.id) WHERE id IN (
  SELECT id FROM (
    SELECT k.id, row_number() OVER (PARTITION BY k.lane, k.key ORDER BY
      CASE WHEN EXISTS (SELECT 1 FROM document d WHERE d.transfer_id = k.id AND d.present) THEN 0 ELSE 1 END,
      k.id DESC) AS place
    FROM object_key k
    WHERE NOT EXISTS (SELECT 1 FROM transfer o WHERE o.lane = k.lane AND o.dedupe_key = k.key)
  ) ranked WHERE place = 1)
""")
