"""Test network shares that do not answer: the commands and the other mappings continue."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path

from app_env import AppEnv, until
from hung_share import hung_share

COMMANDS = (("status",), ("list",), ("check", "--offline"), ("config", "show"), ("retry", "--all"), ("sync", "--json"))


def _start(app_env: AppEnv, *words: str) -> subprocess.Popen[str]:
    environment, pipe = app_env.environment, subprocess.PIPE
    return subprocess.Popen(app_env.command(*words), env=environment, stdout=pipe, stderr=pipe, text=True)


def test_commands_name_a_share_that_does_not_answer(app_env: AppEnv) -> None:
    """Every command starts, names the folder, and does its work for the other mappings."""
    share, bank = app_env.upload("share"), app_env.upload("bank")
    (bank / "1.pdf").write_bytes(b"%PDF-1.4 a document\n%%EOF")
    app_env.write_config()
    with hung_share(share):
        running = {words[0]: _start(app_env, *words) for words in COMMANDS}
        ended = {name: (*process.communicate(timeout=90), process.returncode) for name, process in running.items()}
    for name, (_, stderr, _) in ended.items():
        assert f"{share} does not answer" in stderr + ended[name][0], (name, stderr)
        assert "Traceback" not in stderr
    codes = {name: code for name, (_, _, code) in ended.items()}
    assert codes == {"status": 0, "list": 0, "check": 75, "config": 0, "retry": 0, "sync": 75}
    assert json.loads(ended["sync"][0])["uploaded"] == 1


def test_the_daemon_serves_the_others_and_takes_the_share_up_again(app_env: AppEnv) -> None:
    """The daemon starts without the share, `status` names it, and its documents go once it answers."""
    share, bank = app_env.upload("share"), app_env.upload("bank")
    for folder in (share, bank):
        (folder / f"{folder.name}.pdf").write_bytes(b"%PDF-1.4 " + folder.name.encode() + b"\n%%EOF")
    with ExitStack() as mounted:
        mounted.enter_context(hung_share(share))
        with app_env.daemon() as daemon:
            until(lambda: len(app_env.stored()) == 1, what="the upload of the other mapping")
            status = json.loads(app_env.run("status", "--json").stdout)
            problems = {row["mapping"]: row["problem"] for row in status["uploads"]}
            assert problems["bank"] is None
            assert f"{share} does not answer" in problems["share"]
            mounted.close()
            until(lambda: len(app_env.stored()) == 2, what="the upload of the share's document")
            assert daemon.running.poll() is None
    assert set(app_env.stored().values()) == {1}


def test_a_share_that_turns_out_to_be_another_mapping_sends_nothing(app_env: AppEnv) -> None:
    """A folder that answers late and is the folder of another mapping goes to one target only."""
    bank = app_env.upload("bank")
    (bank / "1.pdf").write_bytes(b"%PDF-1.4 a document\n%%EOF")
    way = app_env.root / "way"
    way.mkdir()
    (way / "link").symlink_to(bank)
    app_env.sections.append(f'[[upload]]\nname = "share"\nfolder = "{way}/link"\nto = "wootiv"\n')
    with ExitStack() as mounted:
        mounted.enter_context(hung_share(way))
        with app_env.daemon() as daemon:
            until(lambda: len(app_env.stored()) == 1, what="the upload of the first mapping")
            mounted.close()
            until(lambda: "folder_refused" in daemon.text(), what="the refusal of the second mapping")
            assert "have different targets" in daemon.text()
            (bank / "2.pdf").write_bytes(b"%PDF-1.4 another document\n%%EOF")
            until(lambda: len(app_env.stored()) == 2, what="the second document of the first mapping")
    assert set(app_env.stored().values()) == {1}


def test_real_paths_are_known_behind_a_hung_one(tmp_path: Path) -> None:
    """A path that hangs does not delay the answer of those behind it."""
    from docferry.settings.real_paths import RealPaths

    hung, target, link = tmp_path / "hung", tmp_path / "target", tmp_path / "link"
    hung.mkdir()
    target.mkdir()
    link.symlink_to(target)
    with hung_share(hung):
        found = RealPaths([hung / "a", link, tmp_path / "none", hung / "b", target], limit=1.0)
        assert [found[path].answers for path in (hung / "a", link, tmp_path / "none", hung / "b")] == [
            False,
            True,
            True,
            False,
        ]
        assert found[link].path == target
        assert found[link].is_same(found[target])
        assert found.unanswered([target, hung / "b"]) == hung / "b"
        assert not found.has_late_answer
    until(lambda: found.has_late_answer, what="the answer after the end of the share")
