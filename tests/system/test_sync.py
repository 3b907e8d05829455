"""One pass, as a person or cron runs it."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

from docferry.simulator import Fault
from ground import COMPANY, CONNECTION, Ground, digest


def _fill(folder: Path, count: int, seed: int) -> dict[str, str]:
    """Small documents in nested folders: name → digest."""
    dice = random.Random(seed)  # noqa: S311 - the same documents every time, no secret
    made = {}
    for number in range(count):
        place = folder / f"d{number % 5}" / f"e{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        content = dice.randbytes(dice.randrange(1, 60_000))
        name = f"document-{seed}-{number}.pdf"
        (place / name).write_bytes(content)
        made[name] = digest(content)
    return made


def test_160_documents_in_nested_folders_arrive_once_each_and_a_second_pass_sends_nothing(ground: Ground) -> None:
    codat = _fill(ground.upload("bank"), 80, 1)
    wootiv = _fill(ground.upload("scans", "wootiv", object_name='"{name}"'), 80, 2)
    first = ground.sync()
    assert (first["uploaded"], first["held"], first["due"]) == (160, 0, 0)
    assert ground.stored() == dict.fromkeys({**codat, **wootiv}.items(), 1)
    second = ground.sync()
    assert (second["uploaded"], second["unchanged"], second["requests"]) == (0, 160, 0)


def test_with_a_fifth_of_all_requests_failing_everything_arrives_exactly_once(ground: Ground) -> None:
    kinds = [
        "reset_before", "reset_inside", "reset_after", "lost_answer", "html_200", "html_502", "truncated_answer",
        "too_many", "status", "stale_keepalive",
    ]  # fmt: skip
    ground.simulator.set_faults([Fault(kind, rate=0.022) for kind in kinds])
    ground.codat["timeout"] = '"2s"'
    made = _fill(ground.upload("bank"), 100, 3)
    made |= _fill(ground.upload("scans", "wootiv", object_name='"{name}"'), 60, 4)
    for _ in range(8):
        if ground.sync(code=None)["due"] == 0:
            break
    assert ground.stored() == dict.fromkeys(made.items(), 1)


def test_touched_renamed_and_copied_files_are_not_sent_again_and_changed_ones_are(ground: Ground) -> None:
    folder = ground.upload("bank")
    (folder / "a.pdf").write_bytes(b"first")
    assert ground.sync()["uploaded"] == 1
    os.utime(folder / "a.pdf", (1, 1))
    (folder / "copy.pdf").write_bytes(b"first")
    (folder / "a.pdf").rename(folder / "b.pdf")
    again = ground.sync()
    assert (again["uploaded"], again["due"]) == (0, 0)
    (folder / "b.pdf").write_bytes(b"second")
    assert ground.sync()["uploaded"] == 1
    assert ground.stored() == {("a.pdf", digest(b"first")): 1, ("b.pdf", digest(b"second")): 1}


def test_what_breaks_a_rule_is_held_with_a_reason_and_without_a_request(ground: Ground) -> None:
    folder = ground.upload("bank")
    (folder / "empty.pdf").touch()
    (folder / "program.exe").write_bytes(b"MZ")
    (folder / "large.pdf").write_bytes(bytes(10 * 1024 * 1024 + 1))
    report = ground.sync(code=1)
    assert (report["held"], report["requests"]) == (3, 0)
    reasons = {row["path"].rsplit("/", 1)[1]: row["reason"] for row in ground.rows("--state", "held")}
    assert reasons == {"empty.pdf": "empty", "program.exe": "extension", "large.pdf": "too_large"}


def test_a_folder_that_is_away_stops_its_own_mapping_only(ground: Ground) -> None:
    away, here = ground.upload("away"), ground.upload("here")
    (away / "x.pdf").write_bytes(b"x")
    (here / "y.pdf").write_bytes(b"y")
    ground.sync()
    away.rename(away.with_name("elsewhere"))
    (here / "z.pdf").write_bytes(b"z")
    assert ground.sync(code=75)["uploaded"] == 1
    away.mkdir()
    assert ground.sync(code=75)["uploaded"] == 0  # suddenly empty
    assert {row["state"] for row in ground.rows()} == {"sent"}
    away.rmdir()
    away.with_name("elsewhere").rename(away)
    assert ground.sync()["uploaded"] == 0


def test_a_placeholder_that_is_no_uuid_is_held_as_unroutable(ground: Ground) -> None:
    ground.upload("customers", folder="customers/{company_id}/{connection_id}")
    good = ground.root / "customers" / COMPANY / CONNECTION
    bad = ground.root / "customers" / "acme" / CONNECTION
    for place in (good, bad):
        place.mkdir(parents=True)
        (place / f"{place.parent.name}.pdf").write_bytes(place.parent.name.encode())
    assert ground.sync(code=1)["uploaded"] == 1
    (held,) = ground.rows("--state", "held")
    assert held["reason"] == "unroutable"
    (stored,) = ground.simulator.stored
    assert (stored.company, stored.connection) == (COMPANY, CONNECTION)


def test_a_remote_that_is_away_leaves_documents_due_and_ends_with_75(ground: Ground) -> None:
    folder = ground.upload("bank")
    for number in range(20):
        (folder / f"{number}.pdf").write_bytes(b"%d" % number)
    ground.write_config()
    ground.shore.stop()
    report = ground.sync(code=75)
    assert (report["uploaded"], report["due"], report["held"]) == (0, 20, 0)


def test_a_refused_key_holds_nothing_and_the_next_pass_with_a_good_one_sends_all(ground: Ground) -> None:
    folder = ground.upload("bank")
    for number in range(5):
        (folder / f"{number}.pdf").write_bytes(b"%d" % number)
    report = ground.sync(code=75, CODAT_API_KEY="wrong")
    assert (report["uploaded"], report["due"], report["held"]) == (0, 5, 0)
    assert ground.sync()["uploaded"] == 5


def test_twenty_overlapping_passes_send_each_document_once(ground: Ground) -> None:
    folder = ground.upload("bank")
    made = _fill(folder, 60, 5)
    ground.write_config()
    passes = [
        subprocess.Popen(ground.command("sync", "--json"), env=ground.environment, stdout=subprocess.DEVNULL)
        for _ in range(6)
    ]
    for each in passes:
        each.wait(60)
    ground.sync()
    assert ground.stored() == dict.fromkeys(made.items(), 1)


def test_a_name_that_is_not_utf_8_is_sent_under_a_replaced_name(ground: Ground) -> None:
    folder = ground.upload("bank")
    with open(os.path.join(os.fsencode(folder), b"\xff-statement.pdf"), "wb") as file:  # noqa: PTH118, PTH123 - bytes
        file.write(b"latin")
    assert ground.sync()["uploaded"] == 1
    (row,) = ground.rows()
    assert "\\xff" in row["path"]
    assert row["sha256"] == digest(b"latin")


def test_batches_are_proved_once_and_then_trusted(ground: Ground) -> None:
    ground.codat["batch"] = "20"
    made = _fill(ground.upload("bank"), 100, 6)
    report = ground.sync()
    assert report["uploaded"] == 100
    assert ground.stored() == dict.fromkeys(made.items(), 1)
    more = ground.root / "bank" / "more"
    more.mkdir()
    made = _fill(more, 40, 7)
    assert ground.sync()["requests"] <= 4


def test_a_server_that_keeps_the_first_of_a_batch_gets_the_rest_singly(ground: Ground) -> None:
    ground.codat["batch"] = "20"
    ground.simulator.switches.keeps_only_first_of_batch = True
    made = _fill(ground.upload("bank"), 50, 8)
    for _ in range(3):
        if ground.sync(code=None)["due"] == 0:
            break
    assert ground.stored() == dict.fromkeys(made.items(), 1)


def test_sent_files_are_deleted_or_archived_where_the_mapping_asks(ground: Ground) -> None:
    deleted = ground.upload("deleted", after_upload='"delete"')
    archived = ground.upload("archived", after_upload='"archive"', archive_folder=f'"{ground.root / "old"}"')
    (deleted / "a.pdf").write_bytes(b"a")
    (archived / "sub").mkdir()
    (archived / "sub" / "b.pdf").write_bytes(b"b")
    assert ground.sync()["uploaded"] == 2
    assert not (deleted / "a.pdf").exists()
    assert not (archived / "sub" / "b.pdf").exists()
    assert (ground.root / "old" / "sub" / "b.pdf").read_bytes() == b"b"
    assert ground.sync()["uploaded"] == 0


def test_company_files_come_down_once_and_our_own_do_not(ground: Ground) -> None:
    bank = ground.upload("bank")
    inbox = ground.download("inbox", company_id=f'"{COMPANY}"')
    (bank / "ours.pdf").write_bytes(b"ours")
    ground.sync("--no-download")
    ground.simulator.put_company_file(COMPANY, "theirs.pdf", b"theirs", "Banking", "2026-03-04T10:00:00Z")
    ground.simulator.put_company_file(COMPANY, "theirs.pdf", b"other", "Banking", "2026-03-05T10:00:00Z")
    assert ground.sync()["downloaded"] == 2
    down = {path.read_bytes() for path in inbox.rglob("*") if path.is_file()}
    assert down == {b"theirs", b"other"}
    assert ground.sync()["downloaded"] == 0


def test_a_downloaded_file_inside_an_upload_mapping_is_not_sent_back(ground: Ground) -> None:
    both = ground.upload("both")
    inbox = ground.root / "both" / "inbox"
    ground.sections.append(
        f'[[download]]\nname = "inbox"\nfrom = "codat"\ncompany_id = "{COMPANY}"\nfolder = "{inbox}"'
    )
    ground.simulator.put_company_file(COMPANY, "theirs.pdf", b"theirs", "Banking", "2026-03-04T10:00:00Z")
    assert ground.sync()["downloaded"] == 1
    assert any(path.is_file() for path in both.rglob("*"))
    assert ground.sync()["uploaded"] == 0
    assert [each.via for each in ground.simulator.stored] == ["page"]


def test_wootiv_objects_come_down_when_they_change(ground: Ground) -> None:
    scans = ground.upload("scans", "wootiv")
    (scans / "reports").mkdir()
    (scans / "reports" / "latest.pdf").write_bytes(b"one")
    ground.sync()
    inbox = ground.download("statements", "wootiv", objects='["reports/latest.pdf"]')
    assert ground.sync("--mapping", "statements")["downloaded"] == 1
    assert ground.sync("--mapping", "statements")["downloaded"] == 0
    assert (inbox / "reports" / "latest.pdf").read_bytes() == b"one"
    (scans / "reports" / "latest.pdf").write_bytes(b"two")
    ground.sync("--mapping", "scans")
    assert ground.sync("--mapping", "statements")["downloaded"] == 1
    assert {path.read_bytes() for path in inbox.rglob("*.pdf")} == {b"one", b"two"}


def test_after_the_database_was_lost_adopt_sends_nothing_again_whatever_the_names_are(ground: Ground) -> None:
    folder = ground.upload("bank")
    tokens = ground.upload("tokens", file_name='"{stem}~{token}{suffix}"')
    made = _fill(folder, 12, 9)
    _fill(tokens, 12, 10)
    ground.sync()
    for path in ground.state.glob("docferry.db*"):
        path.unlink()
    (folder / "new.pdf").write_bytes(b"new")
    report = ground.sync("--adopt")
    assert report["due"] == 0
    names = [each.name for each in ground.simulator.stored]
    assert len(names) == 25
    assert {sha for _, sha in ground.stored()} >= {*made.values(), digest(b"new")}
    assert ground.sync()["uploaded"] == 0
