"""Test `list` and `show` on a real queue."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from app_env import COMPANY, CONNECTION, AppEnv, digest, until
from docferry.simulator import Fault
from system.conftest import Say
from system.terminal import on_a_terminal


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


LIST_KEYS = [
    "id", "mapping", "path", "size", "sha256", "state", "reason", "detail", "attempts", "remote_name", "company_id",
    "connection_id", "next_attempt", "first_seen", "updated",
]  # fmt: skip


def test_list_has_exactly_the_promised_keys_in_their_order(app_env: AppEnv, say: Say) -> None:
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"a")
    say("sync")
    code, out, _ = say("list", "--json")
    assert code == 0
    (row,) = objects(out)
    assert list(row) == LIST_KEYS
    assert row["path"] == str(folder / "a.pdf")
    assert (row["state"], row["attempts"], row["sha256"]) == ("sent", 1, digest(b"a"))
    assert (row["company_id"], row["connection_id"], row["next_attempt"]) == (COMPANY, CONNECTION, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["first_seen"])


def test_list_filters_and_stops_at_the_limit(app_env: AppEnv, say: Say) -> None:
    bank, other = app_env.upload("bank"), app_env.upload("other")
    for number in range(3):
        (bank / f"{number}.pdf").write_bytes(b"%d" % number)
        (other / f"{number}.exe").write_bytes(b"%d" % number)
    (other / "empty.pdf").touch()
    say("sync")
    assert len(objects(say("list", "--json")[1])) == 7
    assert len(objects(say("list", "--json", "--limit", "2")[1])) == 2
    assert {row["mapping"] for row in objects(say("list", "--json", "--state", "sent")[1])} == {"bank"}
    assert len(objects(say("list", "--json", "--state", "sent", "--state", "held")[1])) == 7
    assert len(objects(say("list", "--json", "--mapping", "other", "--reason", "empty")[1])) == 1
    assert say("list", "--reason", "emty")[2] == 'docferry: there is no reason "emty"; did you mean "empty"?\n'
    assert say("list", "--mapping", "nobody")[0] == 2


def test_a_long_list_comes_in_chunks_and_stays_aligned(
    app_env: AppEnv, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = app_env.upload("bank")
    for number in range(25):
        (folder / f"{'long-' * (number // 10)}{number}.exe").write_bytes(b"x")
    say("sync")
    monkeypatch.setattr("docferry.cli.documents.CHUNK", 10)
    _, out, _ = say("list")
    lines = out.splitlines()
    assert len(lines) == 26
    assert sum("state" in line for line in lines) == 1
    assert len(objects(say("list", "--json")[1])) == 25
    assert len(objects(say("list", "--json", "--limit", "20")[1])) == 20


def test_a_mapping_that_is_no_longer_configured_is_listed_with_relative_paths(app_env: AppEnv, say: Say) -> None:
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"a")
    say("sync")
    app_env.sections.clear()
    app_env.upload("other")
    (row,) = objects(say("list", "--json", "--mapping", "bank")[1])
    assert row["path"] == "a.pdf"
    assert "no longer configured" in say("status")[1]
    assert json.loads(say("status", "--json")[1])["uploads"][1]["configured"] is False


def test_names_that_could_fool_a_terminal_are_escaped_everywhere(app_env: AppEnv, say: Say) -> None:
    folder = app_env.upload("bank")
    name = "evil\x1b[31m\n\u202efdp.exe"
    (folder / name).write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.exe")).write_bytes(b"y")
    say("sync")
    for words in (["list"], ["list", "--json"], ["show", "1"], ["show", "1", "--json"], ["sync", "--dry-run"]):
        _, out, _ = say(*words)
        assert "\x1b" not in out
        assert "\u202e" not in out
    paths = {row["path"] for row in objects(say("list", "--json")[1])}
    assert paths == {f"{folder}/evil\\x1b[31m\\n\\u202efdp.exe", f"{folder}/\\xff.exe"}
    assert "\x1b[31m\\n" not in on_a_terminal(app_env, "list")[1]


def test_show_tells_every_attempt_by_number_and_by_path(app_env: AppEnv, say: Say) -> None:
    folder = app_env.upload("bank")
    app_env.simulator.set_faults([Fault("lost_answer", "codat.upload", first=1)])
    (folder / "a.pdf").write_bytes(b"a")
    until(lambda: say("sync")[0] == 0)
    (row,) = objects(say("show", "1", "--json")[1])
    assert list(row) == [*LIST_KEYS, "history"]
    assert [each["state"] for each in row["history"]] == ["doubtful", "sent"]
    assert row["history"][-1]["proof"] in {"list", "zip"}
    for path in ("bank/a.pdf", str(folder / "a.pdf"), "./bank/../bank/a.pdf"):
        assert objects(say("show", path, "--json")[1]) == [row]
    _, out, _ = say("show", "bank/a.pdf")
    assert re.search(r"^state +sent$", out, re.MULTILINE)
    assert "doubtful" in out


def test_show_tells_every_version_of_a_path_the_newest_first(app_env: AppEnv, say: Say) -> None:
    folder = app_env.upload("bank")
    for content in (b"first", b"second!"):
        (folder / "a.pdf").write_bytes(content)
        assert say("sync")[0] == 0
    rows = objects(say("show", str(folder / "a.pdf"), "--json")[1])
    assert [row["sha256"] for row in rows] == [digest(b"second!"), digest(b"first")]
    assert "an earlier version" in say("show", str(folder / "a.pdf"))[1]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("99", "there is no document 99"),
        ("99999999999999999999999", "there is no document"),
        ("bank/none.pdf", "has not seen bank/none.pdf yet"),
        ("/etc/hostname", "is in no mapping's folder"),
    ],
)
def test_show_of_nothing_is_a_sentence_and_2(app_env: AppEnv, say: Say, document: str, why: str) -> None:
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    say("sync")
    code, out, err = say("show", document)
    assert (code, out) == (2, "")
    assert why in err
