"""Test that an arbitrary exception stays with its document, folder or command: never exit code 70."""

from __future__ import annotations

from pathlib import Path

import pytest

from app_env import AppEnv, until

POISON = str(Path(__file__).with_name("poison"))
ERRORS = [
    *("OSError:5", "OSError:116", "OSError:24", "PermissionError:13", "BlockingIOError:11"),
    *("ValueError", "OverflowError", "RecursionError", "UnicodeDecodeError", "UnicodeEncodeError", "RuntimeError"),
    *("EOFError", "KeyError", "StopIteration"),
]
CALLS = {"folder": "scandir", "file": "fstat", "content": "pread"}


def poisoned(error: str, calls: str, word: str = "poison") -> dict[str, str]:
    return {"PYTHONPATH": POISON, "POISON_ERROR": error, "POISON_CALLS": calls, "POISON_WORD": word}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("place", CALLS)
def test_a_file_or_folder_that_raises_anything_harms_nobody_else(app_env: AppEnv, place: str, error: str) -> None:
    first, second = app_env.upload("first"), app_env.upload("second")
    (first / "fine.pdf").write_bytes(b"fine")
    (second / "ok.pdf").write_bytes(b"ok")
    (first / "poison").mkdir()
    (first / "poison" / "a.pdf").write_bytes(b"a")

    def is_healthy() -> bool:
        done = app_env.run("sync", "--timeout", "2", **poisoned(error, CALLS[place]))
        assert done.returncode in (1, 75), done.stderr[-2000:]
        assert "poison" in done.stderr + app_env.run("status", "--json").stdout
        return sorted(name for name, _ in app_env.stored()) == ["fine.pdf", "ok.pdf"]

    until(is_healthy, what="both healthy documents")  # a pass of two seconds is short on a busy machine


@pytest.mark.parametrize("error", ["OSError:5", "ValueError", "RecursionError"])
@pytest.mark.parametrize("place", CALLS)
@pytest.mark.parametrize("words", [("check", "--offline"), ("sync", "--dry-run"), ("status",)])
def test_commands_name_a_file_or_folder_that_raises_anything(
    app_env: AppEnv, words: tuple[str, ...], place: str, error: str
) -> None:
    folder = app_env.upload("first") / "poison"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(b"a")
    done = app_env.run(*words, **poisoned(error, CALLS[place]))
    assert done.returncode in (0, 1, 2, 75), done.stderr[-2000:]


@pytest.mark.parametrize("error", ["OSError:5", "OverflowError", "RecursionError"])
def test_the_daemon_survives_a_folder_that_raises_anything(
    app_env: AppEnv, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = app_env.upload("first"), app_env.upload("second")
    (first / "poison").mkdir()
    (first / "poison" / "a.pdf").write_bytes(b"a")
    for name, value in poisoned(error, "scandir,fstat,pread").items():
        monkeypatch.setenv(name, value)
    with app_env.daemon() as daemon:
        (second / "ok.pdf").write_bytes(b"ok")
        until(lambda: app_env.stored(), what="the healthy document")
        assert daemon.running.poll() is None
        assert daemon.end() == 0
