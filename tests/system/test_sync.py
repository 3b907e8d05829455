"""Test one pass as a person or cron runs it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from pathlib import Path

from app_env import COMPANY, CONNECTION, AppEnv, digest
from docferry.simulator import Fault


def _claim(folder: Path, count: int, seed: int) -> dict[str, str]:
    """Small documents in nested folders: name → digest."""
    jitter = random.Random(seed)  # noqa: S311 - the same documents every time, no secret
    made = {}
    for number in range(count):
        place = folder / f"d{number % 5}" / f"e{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        content = jitter.randbytes(jitter.randrange(1, 60_000))
        name = f"document-{seed}-{number}.pdf"
        (place / name).write_bytes(content)
        made[name] = digest(content)
    return made


def test_160_documents_in_nested_folders_arrive_once_each_and_a_second_pass_sends_nothing(app_env: AppEnv) -> None:
    codat = _claim(app_env.upload("bank"), 80, 1)
    wootiv = _claim(app_env.upload("scans", "wootiv", object_name='"{name}"'), 80, 2)
    first = app_env.sync()
    assert (first["uploaded"], first["held"], first["due"]) == (160, 0, 0)
    assert app_env.stored() == dict.fromkeys({**codat, **wootiv}.items(), 1)
    second = app_env.sync()
    assert (second["uploaded"], second["unchanged"], second["requests"]) == (0, 160, 0)


def test_with_a_fifth_of_all_requests_failing_everything_arrives_exactly_once(app_env: AppEnv) -> None:
    kinds = [
        "reset_before", "reset_inside", "reset_after", "lost_answer", "html_200", "html_502", "truncated_answer",
        "too_many", "status", "stale_keepalive",
    ]  # fmt: skip
    app_env.simulator.set_faults([Fault(kind, rate=0.022) for kind in kinds])
    app_env.codat["timeout"] = '"2s"'
    made = _claim(app_env.upload("bank"), 100, 3)
    made |= _claim(app_env.upload("scans", "wootiv", object_name='"{name}"'), 60, 4)
    for _ in range(8):
        if app_env.sync(code=None)["due"] == 0:
            break
    assert app_env.stored() == dict.fromkeys(made.items(), 1)


def test_touched_renamed_and_copied_files_are_not_sent_again_and_changed_ones_are(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"first")
    assert app_env.sync()["uploaded"] == 1
    os.utime(folder / "a.pdf", (1, 1))
    (folder / "copy.pdf").write_bytes(b"first")
    (folder / "a.pdf").rename(folder / "b.pdf")
    again = app_env.sync()
    assert (again["uploaded"], again["due"]) == (0, 0)
    (folder / "b.pdf").write_bytes(b"second")
    assert app_env.sync()["uploaded"] == 1
    assert app_env.stored() == {("a.pdf", digest(b"first")): 1, ("b.pdf", digest(b"second")): 1}


def test_what_breaks_a_rule_is_held_with_a_reason_and_without_a_request(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    (folder / "empty.pdf").touch()
    (folder / "program.exe").write_bytes(b"MZ")
    (folder / "large.pdf").write_bytes(bytes(10 * 1024 * 1024 + 1))
    report = app_env.sync(code=1)
    assert (report["held"], report["requests"]) == (3, 0)
    reasons = {row["path"].rsplit("/", 1)[1]: row["reason"] for row in app_env.rows("--state", "held")}
    assert reasons == {"empty.pdf": "empty", "program.exe": "extension", "large.pdf": "too_large"}


def test_a_folder_that_is_away_stops_its_own_mapping_only(app_env: AppEnv) -> None:
    away, here = app_env.upload("away"), app_env.upload("here")
    (away / "x.pdf").write_bytes(b"x")
    (here / "y.pdf").write_bytes(b"y")
    app_env.sync()
    away.rename(away.with_name("elsewhere"))
    (here / "z.pdf").write_bytes(b"z")
    assert app_env.sync(code=75)["uploaded"] == 1
    away.mkdir()
    assert app_env.sync(code=75)["uploaded"] == 0  # suddenly empty
    assert {row["state"] for row in app_env.rows()} == {"sent"}
    away.rmdir()
    away.with_name("elsewhere").rename(away)
    assert app_env.sync()["uploaded"] == 0


def test_a_placeholder_that_is_no_uuid_is_held_as_unroutable(app_env: AppEnv) -> None:
    app_env.upload("customers", folder="customers/{company_id}/{connection_id}")
    good = app_env.root / "customers" / COMPANY / CONNECTION
    bad = app_env.root / "customers" / "acme" / CONNECTION
    for place in (good, bad):
        place.mkdir(parents=True)
        (place / f"{place.parent.name}.pdf").write_bytes(place.parent.name.encode())
    assert app_env.sync(code=1)["uploaded"] == 1
    (held,) = app_env.rows("--state", "held")
    assert held["reason"] == "unroutable"
    (stored,) = app_env.simulator.stored
    assert (stored.company, stored.connection) == (COMPANY, CONNECTION)


def test_a_remote_that_is_away_leaves_documents_due_and_ends_with_75(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    for number in range(20):
        (folder / f"{number}.pdf").write_bytes(b"%d" % number)
    app_env.write_config()
    app_env.simulator_thread.stop()
    report = app_env.sync(code=75)
    assert (report["uploaded"], report["due"], report["held"]) == (0, 20, 0)


def test_a_refused_key_holds_nothing_and_the_next_pass_with_a_good_one_sends_all(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    for number in range(5):
        (folder / f"{number}.pdf").write_bytes(b"%d" % number)
    report = app_env.sync(code=75, CODAT_API_KEY="wrong")
    assert (report["uploaded"], report["due"], report["held"]) == (0, 5, 0)
    assert app_env.sync()["uploaded"] == 5


def test_twenty_overlapping_passes_send_each_document_once(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    made = _claim(folder, 60, 5)
    app_env.write_config()
    passes = [
        subprocess.Popen(app_env.command("sync", "--json"), env=app_env.environment, stdout=subprocess.DEVNULL)
        for _ in range(6)
    ]
    for each in passes:
        each.wait(60)
    app_env.sync()
    assert app_env.stored() == dict.fromkeys(made.items(), 1)


def test_a_name_that_is_not_utf_8_is_sent_under_a_replaced_name(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    with open(os.path.join(os.fsencode(folder), b"\xff-statement.pdf"), "wb") as file:  # noqa: PTH118, PTH123 - bytes
        file.write(b"latin")
    assert app_env.sync()["uploaded"] == 1
    (row,) = app_env.rows()
    assert "\\xff" in row["path"]
    assert row["sha256"] == digest(b"latin")


def test_batches_are_proved_once_and_then_trusted(app_env: AppEnv) -> None:
    app_env.codat["batch"] = "20"
    made = _claim(app_env.upload("bank"), 100, 6)
    report = app_env.sync()
    assert report["uploaded"] == 100
    assert app_env.stored() == dict.fromkeys(made.items(), 1)
    more = app_env.root / "bank" / "more"
    more.mkdir()
    made = _claim(more, 40, 7)
    assert app_env.sync()["requests"] <= 4


def test_a_server_that_keeps_the_first_of_a_batch_gets_the_rest_singly(app_env: AppEnv) -> None:
    app_env.codat["batch"] = "20"
    app_env.simulator.options.keeps_only_first_of_batch = True
    made = _claim(app_env.upload("bank"), 50, 8)
    for _ in range(3):
        if app_env.sync(code=None)["due"] == 0:
            break
    assert app_env.stored() == dict.fromkeys(made.items(), 1)


def test_sent_files_are_deleted_or_archived_where_the_mapping_asks(app_env: AppEnv) -> None:
    deleted = app_env.upload("deleted", after_upload='"delete"')
    archived = app_env.upload("archived", after_upload='"archive"', archive_folder=f'"{app_env.root / "old"}"')
    (deleted / "a.pdf").write_bytes(b"a")
    (archived / "sub").mkdir()
    (archived / "sub" / "b.pdf").write_bytes(b"b")
    assert app_env.sync()["uploaded"] == 2
    assert not (deleted / "a.pdf").exists()
    assert not (archived / "sub" / "b.pdf").exists()
    assert (app_env.root / "old" / "sub" / "b.pdf").read_bytes() == b"b"
    assert app_env.sync()["uploaded"] == 0


def test_company_files_come_down_once_and_our_own_do_not(app_env: AppEnv) -> None:
    bank = app_env.upload("bank")
    inbox = app_env.download("inbox", company_id=f'"{COMPANY}"')
    (bank / "ours.pdf").write_bytes(b"ours")
    app_env.sync("--no-download")
    app_env.simulator.put_company_file(COMPANY, "theirs.pdf", b"theirs", "Banking", "2026-03-04T10:00:00Z")
    app_env.simulator.put_company_file(COMPANY, "theirs.pdf", b"other", "Banking", "2026-03-05T10:00:00Z")
    assert app_env.sync()["downloaded"] == 2
    down = {path.read_bytes() for path in inbox.rglob("*") if path.is_file()}
    assert down == {b"theirs", b"other"}
    assert app_env.sync()["downloaded"] == 0


def test_a_downloaded_file_inside_an_upload_mapping_is_not_sent_back(app_env: AppEnv) -> None:
    both = app_env.upload("both")
    inbox = app_env.root / "both" / "inbox"
    app_env.sections.append(
        f'[[download]]\nname = "inbox"\nfrom = "codat"\ncompany_id = "{COMPANY}"\nfolder = "{inbox}"'
    )
    app_env.simulator.put_company_file(COMPANY, "theirs.pdf", b"theirs", "Banking", "2026-03-04T10:00:00Z")
    assert app_env.sync()["downloaded"] == 1
    assert any(path.is_file() for path in both.rglob("*"))
    assert app_env.sync()["uploaded"] == 0
    assert [each.via for each in app_env.simulator.stored] == ["page"]


def test_wootiv_objects_come_down_when_they_change(app_env: AppEnv) -> None:
    scans = app_env.upload("scans", "wootiv")
    (scans / "reports").mkdir()
    (scans / "reports" / "latest.pdf").write_bytes(b"one")
    app_env.sync()
    inbox = app_env.download("statements", "wootiv", objects='["reports/latest.pdf"]')
    assert app_env.sync("--mapping", "statements")["downloaded"] == 1
    assert app_env.sync("--mapping", "statements")["downloaded"] == 0
    assert (inbox / "reports" / "latest.pdf").read_bytes() == b"one"
    (scans / "reports" / "latest.pdf").write_bytes(b"two")
    app_env.sync("--mapping", "scans")
    assert app_env.sync("--mapping", "statements")["downloaded"] == 1
    assert {path.read_bytes() for path in inbox.rglob("*.pdf")} == {b"one", b"two"}


def test_after_the_database_was_lost_adopt_sends_nothing_again_whatever_the_names_are(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    tokens = app_env.upload("tokens", file_name='"{stem}~{token}{suffix}"')
    made = _claim(folder, 12, 9)
    _claim(tokens, 12, 10)
    app_env.sync()
    for path in app_env.state.glob("docferry.db*"):
        path.unlink()
    (folder / "new.pdf").write_bytes(b"new")
    report = app_env.sync("--adopt")
    assert report["due"] == 0
    names = [each.name for each in app_env.simulator.stored]
    assert len(names) == 25
    assert {sha for _, sha in app_env.stored()} >= {*made.values(), digest(b"new")}
    assert app_env.sync()["uploaded"] == 0


def test_a_dry_run_lists_every_document_with_its_action(app_env: AppEnv) -> None:
    """Open for writing, unreadable, held, due and unchanged: none is missing."""
    folder = app_env.upload("bank")
    (folder / "sent.pdf").write_bytes(b"sent")
    (folder / "held.exe").write_bytes(b"MZ")
    app_env.sync(code=1)
    app_env.simulator.refuse(60.0)
    (folder / "due.pdf").write_bytes(b"due")
    app_env.sync(code=75)
    (folder / "new.pdf").write_bytes(b"new")
    (folder / "empty.pdf").touch()
    (folder / "open.pdf").write_bytes(b"half")
    time.sleep(0.3)  # past `settle`: these files are at rest, but for the open one
    with (folder / "open.pdf").open("ab"):
        done = app_env.run("sync", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["path"].rsplit("/", 1)[1]: row["would"] for row in rows} == {
        "sent.pdf": "unchanged",
        "held.exe": "held",
        "due.pdf": "upload",
        "new.pdf": "upload",
        "empty.pdf": "held",
        "open.pdf": "still being written",
    }


def test_a_pass_that_leaves_something_due_names_it(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    app_env.simulator.refuse(60.0)
    (folder / "due.pdf").write_bytes(b"due")
    done = app_env.run("sync")
    assert done.returncode == 75
    assert "due.pdf is waiting" in done.stderr
