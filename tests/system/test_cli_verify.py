"""Test `docferry verify` and `retry --missing` against remotes that lost or changed documents."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from app_env import COMPANY, CONNECTION, AppEnv, digest, until
from docferry.simulator import Fault

NAMES = ("a.pdf", "b.pdf", "c.pdf")


@pytest.fixture
def codat(app_env: AppEnv) -> AppEnv:
    """Three documents at Codat, sent long enough ago to be listed."""
    folder = app_env.upload("bank")
    for name in NAMES:
        (folder / name).write_bytes(name.encode())
    app_env.sync()
    back_date(app_env)
    return app_env


@pytest.fixture
def wootiv(app_env: AppEnv) -> AppEnv:
    """Three objects at Wootiv."""
    folder = app_env.upload("scans", "wootiv")
    for name in NAMES:
        (folder / name).write_bytes(name.encode())
    app_env.sync()
    return app_env


def back_date(app_env: AppEnv) -> None:
    """Move all uploads two seconds back: Codat's list has caught up."""
    with closing(sqlite3.connect(app_env.state / "docferry.db")) as connection:
        connection.execute("UPDATE transfer SET last_sent = last_sent - 2, first_sent = first_sent - 2")
        connection.commit()


def verify(app_env: AppEnv, *words: str, code: int = 0) -> dict[str, Any]:
    done = app_env.run("verify", "--json", *words)
    assert done.returncode == code, (done.stdout, done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def counts(found: dict[str, Any]) -> tuple[int, int, int, int]:
    return found["present"], found["missing"], found["changed"], found["unknown"]


def lose(app_env: AppEnv, name: str) -> None:
    app_env.simulator.remove_company_file(COMPANY, name)
    app_env.simulator.remove_object(name)


# -- Codat -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--bytes"]], ids=["list", "bytes"])
def test_all_that_codat_has_is_present(codat: AppEnv, words: list[str]) -> None:
    found = verify(codat, *words)
    assert counts(found) == (3, 0, 0, 0)
    assert (found["complete"], found["documents"]) == (True, [])


def test_what_codat_lost_is_named_and_sent_again_once(codat: AppEnv) -> None:
    lose(codat, "b.pdf")
    done = codat.run("verify")
    assert done.returncode == 1
    assert "missing" in done.stdout
    assert str(codat.root / "bank" / "b.pdf") in done.stdout
    (document,) = verify(codat, code=1)["documents"]
    assert (document["verdict"], document["remote_name"]) == ("missing", "b.pdf")
    done = codat.run("retry", "--missing")
    assert done.returncode == 0
    assert "1 document to be sent again" in done.stdout
    assert codat.sync()["uploaded"] == 1
    assert codat.stored() == {(name, digest(name.encode())): 1 for name in NAMES}
    back_date(codat)
    assert counts(verify(codat)) == (3, 0, 0, 0)
    assert codat.run("retry", "--missing").stdout.startswith("nothing is sent again")
    assert codat.sync()["uploaded"] == 0
    receipts = codat.run("receipts", "find", digest(b"b.pdf"), "--json").stdout.splitlines()
    assert [json.loads(each)["kind"] for each in receipts] == ["sent", "gone", "sent"]
    assert codat.run("receipts", "verify").returncode == 0


def test_what_is_missing_and_not_in_the_folder_any_more_is_said(codat: AppEnv) -> None:
    lose(codat, "b.pdf")
    verify(codat, code=1)
    (codat.root / "bank" / "b.pdf").unlink()
    codat.sync()
    done = codat.run("retry", "--missing")
    assert done.returncode == 1
    assert "b.pdf is missing at the remote, and its file is not there any more" in done.stderr


def test_a_renamed_document_is_found_by_its_bytes(codat: AppEnv) -> None:
    lose(codat, "b.pdf")
    codat.simulator.put_company_file(COMPANY, "x.pdf", b"b.pdf")
    assert counts(verify(codat)) == (3, 0, 0, 0)


def test_other_bytes_under_its_name_are_a_change(codat: AppEnv) -> None:
    lose(codat, "b.pdf")
    codat.simulator.put_company_file(COMPANY, "b.pdf", b"other")
    found = verify(codat, "--bytes", code=1)
    assert counts(found) == (2, 0, 1, 0)
    assert found["documents"][0]["verdict"] == "changed"


def test_an_empty_list_proves_nothing(codat: AppEnv) -> None:
    for name in NAMES:
        lose(codat, name)
    found = verify(codat, code=75)
    assert counts(found) == (0, 0, 0, 3)
    assert "proves nothing" in found["documents"][0]["detail"]


def test_what_was_sent_just_now_is_unknown(app_env: AppEnv) -> None:
    app_env.codat["list_lag"] = '"1h"'
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    app_env.sync()
    lose(app_env, "a.pdf")
    assert counts(verify(app_env, code=75)) == (0, 0, 0, 1)


def test_only_what_was_asked_for_is_told(codat: AppEnv) -> None:
    lose(codat, "b.pdf")
    assert counts(verify(codat, "--since", "2126-01-01")) == (0, 0, 0, 0)
    assert counts(verify(codat, "--mapping", "bank", code=1)) == (2, 1, 0, 0)
    done = codat.run("verify", "--mapping", "bonk")
    assert (done.returncode, "did you mean" in done.stderr) == (2, True)


def test_a_stopped_round_goes_on_where_it_was(app_env: AppEnv) -> None:
    other = COMPANY.replace("8a21", "9a21")
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    (app_env.root / "other").mkdir()
    app_env.sections.append(
        f'[[upload]]\nname = "other"\nfolder = "{app_env.root}/other"\nto = "codat"\n'
        f'company_id = "{other}"\nconnection_id = "{CONNECTION}"'
    )
    (app_env.root / "other" / "b.pdf").write_bytes(b"b")
    app_env.sync()
    back_date(app_env)
    app_env.simulator.set_faults([Fault("status", f"GET */{other}/files", params={"status": 503})])
    done = app_env.run("verify", "--json")
    assert done.returncode == 75, done.stderr
    found = json.loads(done.stdout)
    assert (found["complete"], found["present"]) == (False, 1)
    assert "it continues" in app_env.run("verify").stderr
    app_env.simulator.set_faults([])
    before = app_env.simulator.requests["codat.list"]
    assert counts(verify(app_env)) == (2, 0, 0, 0)
    assert app_env.simulator.requests["codat.list"] == before + 1


# -- Wootiv ------------------------------------------------------------------------------------------------------------


def test_all_objects_are_present_and_hardly_a_byte_is_read(wootiv: AppEnv) -> None:
    assert counts(verify(wootiv)) == (3, 0, 0, 0)


def test_a_lost_and_a_changed_object_are_named(wootiv: AppEnv) -> None:
    lose(wootiv, "a.pdf")
    wootiv.simulator.put_object("c.pdf", b"C.pdf")
    found = verify(wootiv, code=1)
    assert counts(found) == (1, 1, 1, 0)
    assert {each["remote_name"]: each["verdict"] for each in found["documents"]} == {
        "a.pdf": "missing",
        "c.pdf": "changed",
    }
    wootiv.run("retry", "--missing")
    assert wootiv.sync()["uploaded"] == 1
    assert wootiv.stored()["a.pdf", digest(b"a.pdf")] == 1


def test_only_the_newest_version_of_an_object_is_asked_for(wootiv: AppEnv) -> None:
    (wootiv.root / "scans" / "a.pdf").write_bytes(b"a second version")
    wootiv.sync()
    assert counts(verify(wootiv)) == (3, 0, 0, 0)


# -- the daemon --------------------------------------------------------------------------------------------------------


def test_the_daemon_verifies_by_itself(codat: AppEnv) -> None:
    lose(codat, "b.pdf")
    codat.sections.append('[verify]\nevery = "1d"')
    with codat.daemon() as daemon:
        until(lambda: " missing " in daemon.text() and " verified " in daemon.text(), what="the round")


def test_nothing_was_sent_yet(app_env: AppEnv) -> None:
    app_env.upload("bank")
    done = app_env.run("verify")
    assert (done.returncode, done.stdout) == (0, "nothing was sent yet\n")
