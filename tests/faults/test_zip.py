"""Test rows Z1 to Z5: from any ZIP a folder gets complete files with safe names, or nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

import zips
from app_env import COMPANY, until
from docferry.errors import ArchiveError
from docferry.files import publish
from docferry.simulator import Fault
from faults.conftest import FULL, FaultEnv
from faults.unpacking import files, publish_archive


@pytest.fixture
def inbox(fault_env: FaultEnv) -> Path:
    """Provide a mapping that downloads constantly, from a day with one file."""
    fault_env.simulator.put_company_file(COMPANY, "good.pdf", b"good", "Banking", "2026-03-04T10:00:00Z", "Bank")
    return fault_env.download("inbox", company_id=f'"{COMPANY}"', every='"1s"')


def _serving(monkeypatch: pytest.MonkeyPatch, give: Callable[[], bytes]) -> None:
    """Let Codat respond with this archive."""

    async def build_zip(_files: object) -> tuple[object, int]:
        import io

        raw = give()
        return io.BytesIO(raw), len(raw)

    monkeypatch.setattr("docferry.simulator.codat.build_zip", build_zip)


def test_z1_cut_html_crc(fault_env: FaultEnv, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is visible, the daemon continues, `status` reports it, and the next download succeeds."""
    whole = zips.plain({"Bank/good.pdf": b"good" * 500})
    bad = [whole[: len(whole) // 2], b"<html>no</html>", whole[:45] + b"\xff" + whole[46:], b""]
    served: list[bytes] = []
    visible_early: list[object] = []  # the simulator's thread calls `give`: an assertion there would be a 500

    def give() -> bytes:
        served.append(bad.pop(0) if bad else whole)
        if len(served) <= 4:
            visible_early.extend(files(inbox))
        return served[-1]

    _serving(monkeypatch, give)
    fault_env.simulator.set_faults([Fault("truncated_answer", "codat.download", first=1)])
    with fault_env.daemon() as daemon:
        until(lambda: files(inbox), what="the publication of the good archive")
        assert not visible_early
        assert daemon.text().count("download_incomplete") >= 4
    assert [path.read_bytes() for path in files(inbox)] == [b"good" * 500]
    assert len(served) >= 5


def test_z1_cut_everywhere(tmp_path: Path) -> None:
    """Cut at every kilobyte: nothing of it is kept."""
    whole = zips.plain({f"Bank/{number}.pdf": os.urandom(3000) for number in range(20)})
    for cut in range(0, len(whole), 1024):
        with pytest.raises(ArchiveError):
            publish_archive(whole[:cut], tmp_path)
    assert {path.name for path in files(tmp_path)} == {"day.zip"}


@pytest.mark.parametrize(
    "raw", [raw for _, raw in zips.refused_members()], ids=[name for name, _ in zips.refused_members()]
)
def test_z2_slip_link_nul_drive(tmp_path: Path, raw: bytes) -> None:
    """The bad member is refused, inside and outside the inbox; the good one is extracted."""
    published, refused = publish_archive(raw, tmp_path)
    assert refused == 1
    assert all(path.name == "good.pdf" for path in published)
    assert {path.name for path in files(tmp_path)} <= {"day.zip", "good.pdf"}


def _unpack(tmp_path: Path, *runs: tuple[int, int] | None) -> dict[str, int]:
    """Extract archives in separate programs, two at a time; return outcomes and the largest memory."""
    inside, outside = tmp_path / "inside", tmp_path / "escape.pdf"
    inside.mkdir()
    outside.write_bytes(b"mine")
    program = [sys.executable, str(Path(__file__).with_name("unpacking.py"))]
    found = Counter[str]()
    started = [
        subprocess.Popen([*program, str(inside / str(number)), *map(str, run or ())], stdout=subprocess.PIPE)
        for number, run in enumerate(runs)
    ]
    for running in started:
        said, _ = running.communicate()
        assert running.returncode == 0
        fates = json.loads(said)
        assert not fates["wrong"], fates["wrong"][:20]
        memory = max(found["memory"], fates["memory"])
        found += Counter(taken=fates["taken"], refused=fates["refused"])
        found["memory"] = memory
    assert {path.name for path in tmp_path.iterdir()} == {"inside", "escape.pdf"}
    assert outside.read_bytes() == b"mine"
    assert files(inside) == []
    return found


def _say(what: str, found: dict[str, int]) -> None:
    memory = f"at most {found['memory'] / 1e6:.0f} MB"
    print(f"  Z2: {what}: {found['taken']:,} taken, {found['refused']:,} refused, {memory}", flush=True)


def test_z2_corpus(tmp_path: Path) -> None:
    """Some six hundred archives, each with one fault, are refused or extracted as expected."""
    found = _unpack(tmp_path, None)
    _say("corpus", found)
    assert found["taken"] + found["refused"] >= 500
    assert found["memory"] < 150_000_000


def test_z2_mutations(tmp_path: Path) -> None:
    """Thousands of damaged archives: refused, or landed inside; no other error, no byte outside, within the caps."""
    half = 50_000 if FULL else 1_000
    found = _unpack(tmp_path, (0, half), (half, 2 * half))
    print(
        f"  Z2: mutations: {found['taken']} taken, {found['refused']} refused, at most {found['memory'] / 1e6:.0f} MB"
    )
    assert found["taken"] + found["refused"] == 2 * half
    assert min(found["taken"], found["refused"]) > 100
    assert found["memory"] < 150_000_000


def test_z2_through_the_daemon(fault_env: FaultEnv, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path traversal is refused and reported, uploads continue, and no file is outside."""
    _serving(monkeypatch, lambda: zips.odd("../../escape.pdf"))
    folder = fault_env.upload("bank")
    with fault_env.daemon() as daemon:
        until(lambda: "leads out of the archive" in daemon.text())
        (folder / "a.pdf").write_bytes(b"a")
        until(lambda: "a.pdf" in fault_env.names())
        until(lambda: files(inbox), what="the good member")
        assert daemon.running.poll() is None
    assert not list(fault_env.root.rglob("escape*"))
    assert [path.name for path in files(inbox)] == ["good.pdf"]
    assert not list((fault_env.state / "spool").iterdir())


@pytest.mark.parametrize(
    ("what", "raw"),
    [
        ("sum", zips.plain({f"Bank/{n}.pdf": bytes(1_000_000) for n in range(3)})),
        ("size", zips.plain({f"{n}.pdf": os.urandom(900_000) for n in range(3)}, zipfile.ZIP_STORED)),
        ("count", zips.plain({f"{number}.pdf": b"" for number in range(201)})),
        ("overlap", zips.sharing(150, b"x" * 5000)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_z3_bombs(tmp_path: Path, what: str, raw: bytes) -> None:
    """Stopped at the caps, and little is ever on the disk."""
    with pytest.raises(ArchiveError):
        publish_archive(raw, tmp_path)
    assert {path.name for path in files(tmp_path)} == {"day.zip"}, what


@pytest.mark.parametrize("raw", [os.urandom(1024 * 1024 + 1), bytes(8 * 1024 * 1024)], ids=["stored", "packed"])
def test_z3_a_member_above_its_cap_is_refused_alone(tmp_path: Path, raw: bytes) -> None:
    published, refused = publish_archive(zips.plain({"good.pdf": b"good", "a.pdf": raw}), tmp_path)
    assert ([path.name for path in published], refused) == (["good.pdf"], 1)


def test_z4_names(tmp_path: Path) -> None:
    """Duplicate, case, reserved, long, right-to-left: every byte lands once, under its own safe name."""
    names = [*zips.ODD_NAMES, "same.pdf", "same.pdf", "Same.pdf", "a" * 300 + ".pdf"]
    wanted = [(f"Bank/{name}", b"%d" % number) for number, name in enumerate(names)]
    published, _ = publish_archive(zips.plain(wanted), tmp_path)
    assert sorted(path.read_bytes() for path in files(tmp_path / "inbox")) == sorted(body for _, body in wanted)
    assert len(set(published)) == len(names)
    for path in published:
        relative = PurePosixPath(path.relative_to(tmp_path / "inbox"))
        assert all(part == publish.safe_name(part) for part in relative.parts[:-1])
        assert path.name.isprintable()
        assert len(path.name.encode()) <= 220
        assert path.name.split(".")[0].lower() not in ("con", "aux", "nul", "com1")


def _wait_for(inbox: Path, count: int) -> None:
    until(lambda: len(files(inbox)) >= count, what=f"{count} files")


def test_z5_killed_while_landing(fault_env: FaultEnv) -> None:
    """Killed at any moment of a download, several times: old or whole new files only, each once, and no litter."""
    count, kills = (1500, 50) if FULL else (120, 5)
    members = {f"Bank/{number}.pdf": os.urandom(2000) + b"%d" % number for number in range(count)}
    for name in members:
        fault_env.simulator.put_company_file(
            COMPANY, name[5:], members[name], "Banking", "2026-03-04T10:00:00Z", "Bank"
        )
    inbox = fault_env.download("inbox", company_id=f'"{COMPANY}"', every='"100ms"')
    whole = set(members.values())
    faulty = 0
    for kill in range(kills):
        with fault_env.daemon(wait=False) as daemon:
            _wait_for(inbox, min(len(files(inbox)) + 3 + 7 * (kill % 5), count))
            daemon.running.send_signal(signal.SIGKILL)
            daemon.running.wait()
        faulty += len(files(inbox)) < count
        assert {path.read_bytes() for path in files(inbox)} <= whole
    assert faulty >= kills - 1, "it was through before it was killed so often"
    with fault_env.daemon():
        until(lambda: len(files(inbox)) >= count)
    assert sorted(path.read_bytes() for path in files(inbox)) == sorted(whole)
    assert fault_env.sync()["downloaded"] == 0
    assert not list((fault_env.state / "spool").iterdir())


def test_z5_disk_full(fault_env: FaultEnv, namespace: Callable[[str], list[str]]) -> None:
    """On a full disk no incomplete file is visible, the problem is reported, and the download resumes later."""
    content = os.urandom(3 * 1024 * 1024)
    fault_env.simulator.put_company_file(COMPANY, "large.pdf", content, "Banking", "2026-03-04T10:00:00Z", "Bank")
    inbox = fault_env.download("inbox", company_id=f'"{COMPANY}"', every='"500ms"')
    fault_env.prefix = namespace(f"mount -t tmpfs -o size=2m none {inbox}")
    with fault_env.daemon() as daemon:
        until(lambda: "No space left on device" in daemon.text())
        inside = Path(f"/proc/{daemon.running.pid}/root{inbox}")
        assert not files(inside)
        words = ["nsenter", "-t", str(daemon.running.pid), "-U", "-m", "--preserve-credentials"]
        subprocess.run([*words, "mount", "-o", "remount,size=9m", str(inbox)], check=True)
        until(lambda: [path.read_bytes() for path in files(inside)] == [content])
