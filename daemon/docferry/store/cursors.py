"""How far something got, and which files a download brought: written before the file appears."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, bindparam, text

from docferry.clock import Clock
from docferry.store.database import Database


@dataclass(frozen=True, slots=True)
class Arrival:
    """One remote file: where it came from, its digest, and where it lies (None: our own, not brought back)."""

    mapping: str
    origin: str
    sha256: str
    path: bytes | None
    landed: bool
    size: int


class Cursors:
    """The bookmark and arrival tables."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def mark(self, subject: str) -> str | None:
        """What was last noted under `subject`."""

        def work(connection: Connection) -> str | None:
            row = (connection.execute(text("SELECT mark FROM bookmark WHERE subject = :s"), {"s": subject})).first()
            return None if row is None else str(row[0])

        return await self._database.read(work)

    async def marks(self, prefix: str) -> dict[str, str]:
        """All marks whose subject begins with `prefix`."""

        def work(connection: Connection) -> dict[str, str]:
            rows = connection.execute(
                text("SELECT subject, mark FROM bookmark WHERE subject >= :a AND subject < :b"),
                {"a": prefix, "b": prefix + "\U0010ffff"},
            )
            return {row[0]: row[1] for row in rows.all()}

        return await self._database.read(work)

    async def note(self, subject: str, mark: str) -> None:
        def work(connection: Connection) -> None:
            connection.execute(
                text(
                    "INSERT INTO bookmark (subject, mark, updated) VALUES (:s, :m, :now) "
                    "ON CONFLICT (subject) DO UPDATE SET mark = excluded.mark, updated = excluded.updated"
                ),
                {"s": subject, "m": mark, "now": self._clock.now()},
            )

        await self._database.write(work)

    async def arrivals(self, mapping: str, origins: Collection[str]) -> list[Arrival]:
        """What is known of these remote files."""

        def work(connection: Connection) -> list[Arrival]:
            rows = connection.execute(_ARRIVALS, {"mapping": mapping, "origins": list(origins)})
            return [Arrival(r[0], r[1], r[2], r[3], bool(r[4]), r[5]) for r in rows.all()]

        return await self._database.read(work)

    async def expect(self, arrivals: Sequence[Arrival]) -> None:
        """Note files that are about to appear, or that are our own."""

        now = self._clock.now()
        rows = [asdict(arrival) | {"now": now} for arrival in arrivals]
        landed = [row for row in rows if row["landed"] and row["path"] is not None]

        def work(connection: Connection) -> None:
            connection.execute(_EXPECT, rows)
            self._database.receipts.append_downloaded(connection, landed, now)

        if arrivals:
            await self._database.write(work)

    async def came_down(self, paths: Collection[bytes]) -> set[tuple[bytes, str]]:
        """Which of these absolute paths a download made, with the digest it gave them."""

        def work(connection: Connection) -> set[tuple[bytes, str]]:
            rows = connection.execute(_CAME_DOWN, {"paths": list(paths)})
            return {(row[0], row[1]) for row in rows.all()}

        return await self._database.read(work)

    async def any_arrival(self) -> bool:
        """Whether any download ever brought anything: spares intake a look-up per file where none did."""

        def work(connection: Connection) -> bool:
            return connection.execute(text("SELECT 1 FROM arrival LIMIT 1")).first() is not None

        return await self._database.read(work)

    async def own_digests(self, company_id: str, digests: Collection[str]) -> set[str]:
        """Which of these digests docferry itself sent to the company, or may have."""

        def work(connection: Connection) -> set[str]:
            connection.execute(_BY_DIGEST)
            rows = connection.execute(_OWN, {"company": company_id, "digests": list(digests)})
            return {row[0] for row in rows.all()}

        return await self._database.write(work)


_ARRIVALS = text(
    "SELECT mapping, origin, sha256, path, landed, size FROM arrival WHERE mapping = :mapping AND origin IN :origins"
).bindparams(bindparam("origins", expanding=True))
_EXPECT = text("""
INSERT INTO arrival (mapping, origin, sha256, path, landed, size, updated)
VALUES (:mapping, :origin, :sha256, :path, :landed, :size, :now)
ON CONFLICT (mapping, origin, sha256) DO UPDATE SET path = excluded.path, landed = excluded.landed,
  updated = excluded.updated
""")
_CAME_DOWN = text("SELECT path, sha256 FROM arrival WHERE path IN :paths").bindparams(
    bindparam("paths", expanding=True)
)
# Made by the first who asks, who brings files down from Codat: digests fall anywhere into it, so that in a database of
# millions it costs each document that goes up a page of its own.
_BY_DIGEST = text("CREATE INDEX IF NOT EXISTS transfer_digest ON transfer (sha256)")
_OWN = text(
    "SELECT DISTINCT sha256 FROM transfer WHERE sha256 IN :digests AND company_id = :company "
    "AND (state = 'sent' OR first_sent IS NOT NULL)"
).bindparams(bindparam("digests", expanding=True))
