"""Fill a queue with documents in every state, and write it as SQL, like the older ones in `tests/system/data`.

Run it in a checkout of the older version, such as commit d618402, two days back, so that everything is due:

    PYTHONPATH=daemon faketime -f -2d .venv/bin/python THIS_FILE > 0002.sql
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from app_env import COMPANY, AppEnv, until
from docferry.simulator import Fault, Simulator, SimulatorThread

#: Stands in the dump for the folder of the environment.
ROOT = "/older-version"
#: The folder of another connection.
CARD = f"card/{COMPANY}/5b1f6a6e-1c0f-4d0e-9a55-5b8a0f1f7a51"
#: By folder: the documents that the remote has, and the others that have to be sent.
STORED = {"bank": ("sent", "doubtful-stored"), CARD: ("sending",), "scans": ("sent",)}
MISSING = {"bank": ("doubtful-absent", "waiting-1", "waiting-2"), "scans": ("waiting",)}
THEIRS = b"%PDF-1.4\n% what the customer uploaded\n%%EOF\n"


def content(folder: str, name: str) -> bytes:
    """Return the bytes of a document."""
    return f"%PDF-1.4\n% {folder} {name}\n%%EOF\n".encode()


def configure(env: AppEnv) -> None:
    """Add the mappings to an environment."""
    env.upload("bank")
    env.upload("card", folder="card/{company_id}/{connection_id}")
    (env.root / CARD).mkdir(parents=True)
    env.upload("scans", "wootiv")
    env.download("inbox", company_id=f'"{COMPANY}"')


def write(env: AppEnv, folder: str, *names: str) -> None:
    """Write documents into a folder."""
    (env.root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (env.root / folder / f"{name}.pdf").write_bytes(content(folder, name))


def fill(env: AppEnv) -> None:
    """Bring documents into every state in which they can rest, and into `sending` by a kill."""
    env.codat |= {"list_lag": '"1h"', "timeout": '"1s"'}  # a doubt stays one
    simulator = env.simulator
    simulator.put_company_file(COMPANY, "theirs.pdf", THEIRS)
    for mapping in ("bank", "scans"):
        write(env, mapping, "sent")
    env.sync()
    (env.root / "bank" / "empty.pdf").write_bytes(b"")
    (env.root / "bank" / "replaced.pdf").write_bytes(b"")
    write(env, "bank", "refused")
    simulator.set_faults([Fault("status", "codat.upload", params={"status": 400})])
    env.sync(code=1)
    (env.root / "bank" / "replaced.pdf").unlink()
    for name, fault in (
        ("doubtful-stored", Fault("lost_answer", "codat.upload")),
        ("doubtful-absent", Fault("stall", "codat.upload", params={"stored": False, "seconds": 5})),
    ):
        simulator.set_faults([fault])
        write(env, "bank", name)
        env.sync("--timeout", "4s", code=None)
    write(env, "bank", "waiting-1", "waiting-2")
    write(env, "scans", "waiting")
    stall = Fault("stall", f"POST */{CARD.rpartition('/')[2]}/*", params={"stored": True, "seconds": 60})
    unknown = Fault("status", "codat.upload", params={"status": 404})
    simulator.set_faults([stall, unknown, Fault("reset_before", "wootiv.*")])
    env.sync("--timeout", "3s", code=75)
    env.codat["timeout"] = '"60s"'
    with env.daemon() as daemon:
        write(env, CARD, "sending")
        until(lambda: "sending.pdf" in {each.name for each in simulator.stored}, what="the upload")
        daemon.kill()


def dump(database: Path, root: Path) -> str:
    """Return a database as SQL, with ROOT in place of its folder."""
    with closing(sqlite3.connect(database)) as connection:
        lines = [f"{line}\n".replace(str(root), ROOT) for line in connection.iterdump()]
        paths = connection.execute("SELECT hex(path) FROM arrival").fetchall()
    text = "".join(lines)
    for (path,) in paths:
        text = text.replace(path, bytes.fromhex(path).replace(str(root).encode(), ROOT.encode()).hex().upper())
    return text


def restore(sql: Path, env: AppEnv) -> None:
    """Give an environment the files and the database of the older version, and the simulator what it had stored."""
    configure(env)
    for documents in (STORED, MISSING, {"bank": ("refused",)}):
        for folder, names in documents.items():
            write(env, folder, *names)
    (env.root / "bank" / "empty.pdf").write_bytes(b"")
    text = sql.read_text().replace(ROOT.encode().hex().upper(), str(env.root).encode().hex().upper())
    env.state.mkdir(mode=0o700)
    with closing(sqlite3.connect(env.state / "docferry.db")) as connection:
        connection.executescript(text.replace(ROOT, str(env.root)))
        _restore_stamps(connection, env.root)
        connection.commit()
        sent = connection.execute("SELECT remote_name, first_sent FROM transfer WHERE first_sent NOTNULL").fetchall()
        downloads = connection.execute("SELECT path FROM arrival WHERE path NOTNULL").fetchall()
    at = {name.rpartition("/")[2]: datetime.fromtimestamp(when, UTC) for name, when in sent}
    for folder, names in STORED.items():
        for name in names:
            if folder == "scans":
                env.simulator.put_object(f"{name}.pdf", content(folder, name))
            else:
                uploaded = at[f"{name}.pdf"]
                env.simulator.put_company_file(COMPANY, f"{name}.pdf", content(folder, name), uploaded=uploaded)
    env.simulator.put_company_file(COMPANY, "theirs.pdf", THEIRS, uploaded=min(at.values()))
    for (path,) in downloads:
        Path(path.decode()).parent.mkdir(parents=True)
        Path(path.decode()).write_bytes(THEIRS)


def _restore_stamps(connection: sqlite3.Connection, root: Path) -> None:
    """Write the times of the files into the rows, because an upgrade finds the older version's files unchanged."""
    for number, mapping, folder, name in connection.execute(
        "SELECT id, mapping, folder, name FROM document WHERE present"
    ).fetchall():
        found = (root / mapping / (folder + b"/" + name).decode().lstrip("/")).stat()
        times = (found.st_mtime_ns, found.st_ctime_ns, number)
        connection.execute("UPDATE document SET mtime_ns = ?, ctime_ns = ? WHERE id = ?", times)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, SimulatorThread(Simulator()) as thread:
        made = AppEnv(Path(folder), thread)
        configure(made)
        fill(made)
        sys.stdout.write(dump(made.state / "docferry.db", made.root))
