"""Give PostgreSQL the types and names of a fresh database, and index digests of paths there.

Earlier migrations left numbers of 32 bits and texts of the database's collation. A key of an index has at most
2,704 bytes, and a path 4,096.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this migration."""
    op.drop_index("download_path", "download")  # nothing reads it
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    for (statement,) in connection.execute(_CORRECTIONS).fetchall():
        op.execute(statement)
    op.drop_index("document_path", "document")
    op.create_index(
        "document_path",
        "document",
        ["mapping", sa.text("sha256(folder)"), "name"],
        unique=True,
        postgresql_where=sa.text("present"),
    )


_CORRECTIONS = sa.text("""
SELECT format('ALTER TABLE %I %s', table_name, string_agg(format('ALTER COLUMN %I TYPE %s', column_name,
  CASE data_type WHEN 'text' THEN 'text COLLATE "C"' ELSE 'bigint' END), ', '))
FROM information_schema.columns
WHERE table_schema = current_schema() AND table_name <> 'alembic_version'
  AND (data_type = 'integer' OR data_type = 'text' AND collation_name IS DISTINCT FROM 'C')
GROUP BY table_name
UNION ALL
SELECT format('ALTER SEQUENCE %I AS bigint', sequencename) FROM pg_sequences
WHERE schemaname = current_schema() AND data_type = 'integer'::regtype
UNION ALL
SELECT 'ALTER SEQUENCE arrival_id_seq RENAME TO download_id_seq' FROM pg_sequences
WHERE schemaname = current_schema() AND sequencename = 'arrival_id_seq'
UNION ALL
SELECT format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', conrelid::regclass, conname, relname || '_pkey')
FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid
WHERE connamespace = current_schema()::regnamespace AND contype = 'p' AND relname <> 'alembic_version'
  AND conname <> relname || '_pkey'
""")
