"""Test `demo`, `simulate` and `check` as a new user runs them."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from app_env import COMPANY, CONNECTION, AppEnv, until
from docferry.cli.demo import papers
from docferry.cli.main import main
from docferry.simulator import Fault, Simulator, SimulatorOptions, SimulatorThread
from system.conftest import Say


@pytest.fixture
def app_env(tmp_path: Path) -> Iterator[AppEnv]:
    with SimulatorThread(Simulator(SimulatorOptions())) as simulator_thread:
        app_env = AppEnv(tmp_path, simulator_thread)
        app_env.state.mkdir(mode=0o700)
        yield app_env


# -- demo --------------------------------------------------------------------------------------------------------------


def test_the_demo_shows_everything_proves_it_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCFERRY_WORKERS", "broken")  # somebody's own settings must not get into it
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    began = time.monotonic()
    code = main(["demo"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, ""), out
    assert time.monotonic() - began < 60
    assert "Proved against what the remotes have: 22 documents, each exactly once" in out
    assert re.search(r"held +too-large.pdf +too_large", out)
    assert re.search(r"sent +slowly-written.pdf +→ Codat", out)
    assert re.search(r"came down +inbox/acme/[\d-]+/from-the-customer-3.pdf", out)
    assert out.count(" fault ") == 5
    assert "docferry config init > docferry.toml" in out
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_demo_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "docferry", "demo"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        assert running.stdout is not None
        until(lambda: " sent " in running.stdout.readline())  # type: ignore[union-attr]  # it is a pipe
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err == ""
    assert list(tmp_path.iterdir()) == []


def test_the_demos_papers_are_what_they_say() -> None:
    assert papers.statement(1) != papers.statement(2)
    document = papers.statement(1)
    assert document.startswith(b"%PDF-1.4")
    table = int(document.rsplit(b"startxref\n", 1)[1].split()[0])
    assert document[table:].startswith(b"xref\n0 6\n")
    for number, line in enumerate(document[table:].split(b"\n")[3:8], 1):
        assert document[int(line.split()[0]) :].startswith(b"%d 0 obj" % number)
    assert len(papers.pdf("x", [], 5000)) > 5000
    _assert_png(papers.png(3))
    picture = papers.jpeg(3)
    assert (picture[:2], picture[-2:]) == (b"\xff\xd8", b"\xff\xd9")
    assert papers.csv(1).startswith(b"date,payee,amount\r\n")


def _assert_png(content: bytes) -> None:
    file = io.BytesIO(content)
    assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    kinds = []
    while head := file.read(8):
        length, kind = struct.unpack(">I4s", head)
        body = file.read(length)
        assert struct.unpack(">I", file.read(4))[0] == zlib.crc32(kind + body)
        kinds.append(kind)
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]


# -- simulate ----------------------------------------------------------------------------------------------------------


def test_simulate_gives_all_that_is_needed_and_docferry_works_with_it(tmp_path: Path) -> None:
    faults = tmp_path / "faults.toml"
    faults.write_text('[[fault]]\nkind = "lost_answer"\nmatch = "codat.upload"\nnth = 1\n')
    command = [sys.executable, "-m", "docferry", "simulate", "--faults", str(faults)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DOCFERRY_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout is not None
        shown = ""
        while "Ctrl-C ends it" not in shown:
            shown += running.stdout.readline()
        config = re.search(r"# docferry.toml\n(.*?)\n\n3\.", shown, re.DOTALL)
        assert config
        (tmp_path / "docferry.toml").write_text(config[1])
        keys = dict(line.removeprefix("export ").split("=", 1) for line in shown.splitlines() if "export" in line)
        for folder, name in (("codat", "a.pdf"), ("wootiv", "b.txt")):
            (tmp_path / "outbox" / folder).mkdir(parents=True)
            (tmp_path / "outbox" / folder / name).write_bytes(papers.statement(1))
        pass_ = subprocess.run(
            [sys.executable, "-m", "docferry", "sync", "--json"],
            cwd=tmp_path,
            env=environment | keys,
            capture_output=True,
            check=False,
        )
        assert json.loads(pass_.stdout)["uploaded"] == 2, pass_.stderr
        url = re.search(r"http://\S+", shown)
        assert url
        record = urllib.request.Request(f"{url[0]}/_sim/stored")  # noqa: S310 - loopback
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(record)  # noqa: S310 - loopback
        record.add_header("Authorization", f"Bearer {keys['CODAT_API_KEY']}")
        with urllib.request.urlopen(record) as answer:  # noqa: S310 - loopback
            assert len(json.load(answer)) == 2
        running.send_signal(signal.SIGTERM)
        rest = running.stdout.read()
    assert running.returncode == 0
    assert re.search(r"no answer POST /companies/\S+/files .*\[lost_answer\]", rest)
    assert "X-Amz-Signature" not in rest
    assert re.search(r"codat.upload +1", rest)
    assert "2 documents stored" in rest


@pytest.mark.parametrize("text", ['[[fault]]\nkind = "lost_anwser"\n', "[[fault\n"])
def test_a_wrong_fault_file_is_told_and_ends_with_2(say: Say, tmp_path: Path, text: str) -> None:
    (tmp_path / "faults.toml").write_text(text)
    code, out, err = say("simulate", "--faults", str(tmp_path / "faults.toml"))
    assert (code, out) == (2, "")
    assert err.startswith("docferry: ")


def test_a_port_that_is_taken_is_told_and_ends_with_2(app_env: AppEnv, say: Say) -> None:
    code, _, err = say("simulate", "--port", str(app_env.simulator_thread.port))
    assert code == 2
    assert "choose another port" in err


# -- check -------------------------------------------------------------------------------------------------------------


def findings(say: Say, *words: str) -> tuple[int, dict[str, list[tuple[str, str, str]]]]:
    """Return the exit code and the findings of `check --json` by subject: level, detail, cure."""
    code, out, err = say("check", "--json", *words)
    assert err == ""
    told = json.loads(out)
    assert told["ok"] == (code == 0)
    found: dict[str, list[tuple[str, str, str]]] = {}
    for each in told["findings"]:
        found.setdefault(each["subject"], []).append((each["level"], each["detail"], each["cure"] or ""))
    return code, found


def levels(found: dict[str, list[tuple[str, str, str]]], subject: str) -> set[str]:
    return {level for level, _, _ in found[subject]}


def test_when_all_is_right_check_says_so_and_ends_with_0(app_env: AppEnv, say: Say) -> None:
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    app_env.upload("scans", "wootiv")
    app_env.download("inbox", company_id=f'"{COMPANY}"')
    code, found = findings(say)
    assert code == 0
    assert levels(found, f"codat company {COMPANY}") == {"ok"}
    assert levels(found, f"codat connection {CONNECTION}") == {"ok"}
    assert levels(found, "wootiv") == {"ok"}
    assert levels(found, "bank") <= {"ok", "note"}
    assert levels(found, "inotify") == {"ok"}
    assert app_env.simulator.stored == []
    code, out, _ = say("check")
    assert code == 0
    assert re.search(r"^ok +configuration ", out, re.MULTILINE)
    assert out.splitlines()[-1].startswith("all is right")


def test_offline_asks_nobody(app_env: AppEnv, say: Say) -> None:
    app_env.upload("bank")
    assert findings(say, "--offline")[0] == 0
    assert app_env.simulator.requests.total() == 0


def test_a_wrong_key_and_an_unlinked_connection_are_told(
    app_env: AppEnv, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    app_env.upload("bank")
    app_env.simulator.options.connection_status = {CONNECTION: "Deauthorized"}
    code, found = findings(say)
    assert code == 2
    (wrong,) = found[f"codat connection {CONNECTION}"]
    assert wrong[0] == "fail"
    assert "Deauthorized" in wrong[1]
    assert wrong[2]
    monkeypatch.setenv("CODAT_API_KEY", "wrong-key-here")
    code, found = findings(say)
    assert code == 2
    assert levels(found, f"codat company {COMPANY}") == {"fail"}
    monkeypatch.delenv("CODAT_API_KEY")
    code, found = findings(say)
    assert code == 2
    assert found["key"][0][0] == "fail"
    assert "CODAT_API_KEY" in found["key"][0][2]


def test_a_remote_that_is_away_ends_with_75(app_env: AppEnv, say: Say) -> None:
    app_env.upload("bank")
    app_env.write_config()
    app_env.simulator_thread.stop()
    assert findings(say)[0] == 75


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("too_many", "*", params={"seconds": 5}), 75),
        (Fault("status", "*", params={"status": 503}), 75),
        (Fault("html_502", "*"), 75),
        (Fault("lost_answer", "*"), 75),
        (Fault("status", "*", params={"status": 403}), 2),
        (Fault("redirect", "*"), 2),
        (Fault("html_200", "*"), 2),
    ],
    ids=lambda case: case.kind if isinstance(case, Fault) else str(case),
)
@pytest.mark.parametrize("to", ["codat", "wootiv"])
def test_what_passes_by_itself_ends_with_75_and_what_must_be_mended_with_2(
    app_env: AppEnv, say: Say, fault: Fault, code: int, to: str
) -> None:
    app_env.upload("bank", to)
    app_env.simulator.set_faults([fault])
    ended, found = findings(say)
    (wrong,) = [each for each in itertools.chain(*found.values()) if each[0] == "fail"]
    assert (ended, bool(wrong[2])) == (code, True)


def test_one_thing_that_must_be_mended_is_enough_for_2(app_env: AppEnv, say: Say) -> None:
    app_env.upload("bank")
    app_env.upload("scans", "wootiv")
    app_env.simulator.set_faults([Fault("too_many", "codat.*"), Fault("status", "wootiv.*", params={"status": 401})])
    assert findings(say)[0] == 2


def test_a_clock_that_is_off_is_told(app_env: AppEnv, say: Say) -> None:
    app_env.upload("bank")
    app_env.simulator.options.date_skew = 100
    code, found = findings(say)
    assert code == 0
    assert "warn" in levels(found, "codat")
    app_env.simulator.options.date_skew = 1000
    code, found = findings(say)
    assert code == 2
    assert any("timedatectl" in cure for level, _, cure in found["codat"] if level == "fail")


def test_folders_that_cannot_be_used_are_told_with_their_cure(app_env: AppEnv, say: Say) -> None:
    app_env.upload("bank").rmdir()
    code, found = findings(say, "--offline")
    assert code == 75
    assert levels(found, "bank") == {"fail"}
    (app_env.state / "letter.txt").touch()  # in a folder of its own, docferry repairs the mode
    app_env.state.chmod(0o755)
    code, found = findings(say, "--offline")
    assert code == 2
    assert found["state folder"][0][2] == f"run `chmod 700 {app_env.state}`"
    assert stat.S_IMODE(app_env.state.stat().st_mode) == 0o755  # told, not changed


def test_a_folder_with_placeholders_is_asked_for_by_its_subfolders(app_env: AppEnv, say: Say) -> None:
    app_env.upload("customers", folder="customers/{company_id}/{connection_id}")
    for number in range(3):
        place = app_env.root / "customers" / COMPANY / f"{CONNECTION[:-1]}{number}"
        place.mkdir(parents=True)
        (place / "a.pdf").write_bytes(b"a")
    (app_env.root / "customers" / "no-uuid" / CONNECTION).mkdir(parents=True)
    code, found = findings(say)
    assert code == 0
    assert sum(subject.startswith("codat connection") for subject in found) == 3
