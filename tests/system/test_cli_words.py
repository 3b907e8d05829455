"""Test the command line: accepted words, error messages, and start time."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app_env import COMPANY, AppEnv
from docferry import __version__
from docferry.cli.main import main

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Say:
    """`say("list", "--json")` runs a command in an empty folder; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("DOCFERRY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))

    def saying(*words: str) -> tuple[int, str, str]:
        try:
            code = main(words)
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return saying


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["stauts"], 'there is no command "stauts"; did you mean status?'),
        (["xyzzy"], "choose from run, sync, status"),
        (["sync", "--dryrun"], "there is no option --dryrun; did you mean --dry-run?"),
        (["sync", "--mappings=x"], "did you mean --mapping?"),
        (["--confg", "x", "sync"], "there is no option --confg; did you mean --config?"),
        (["sync", "now"], '"now" is one word too many'),
        (["sync", "--timeout", "soon"], '"soon" is not a duration; write it like'),
        (["list", "--state", "sented"], "did you mean sent?"),
        (["list", "--limit", "-1"], "is not a number from 1 on"),
        (["simulate", "--port", "99999"], "is not a port"),
        (["config", "shwo"], "did you mean show?"),
        (["config"], "WHAT"),
        (["show"], "ID|PATH"),
        (["retry"], "say which documents"),
        (["retry", "3", "--all"], "choose one of these ways"),
    ],
)
def test_what_is_not_understood_ends_with_2_and_the_nearest_right_word(say: Say, words: list[str], cure: str) -> None:
    code, out, err = say(*words)
    assert (code, out) == (2, "")
    assert err.startswith("docferry: ")
    assert cure in err
    assert len(err.splitlines()) == 1


def test_no_command_shows_the_help_and_ends_with_2(say: Say) -> None:
    code, out, _ = say()
    assert code == 2
    assert "docferry demo" in out


@pytest.mark.parametrize(
    "command", ["run", "sync", "status", "list", "show", "retry", "check", "config", "simulate", "demo"]
)
def test_every_command_has_a_help_with_an_example(say: Say, command: str) -> None:
    code, out, _ = say(command, "--help")
    assert code == 0
    assert f"examples:\n  docferry {command}" in out
    assert "--config" in out


def test_the_version(say: Say) -> None:
    assert say("--version") == (0, f"docferry {__version__}\n", "")


VERSION = """
import sys
from docferry.__main__ import main
sys.argv[1:] = ["--version"]
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def test_the_version_imports_no_large_library() -> None:
    """Each of these libraries takes longer to import than Python takes to start."""
    done = subprocess.run([sys.executable, "-c", VERSION], capture_output=True, text=True, check=True)
    assert done.stdout == f"docferry {__version__}\n"
    assert "docferry.cli.parser" in done.stderr.split()
    assert {"anyio", "asyncio", "httpx", "pydantic", "sqlalchemy", "rich", "jinja2"}.isdisjoint(done.stderr.split())


SYNC = """
import sys
from docferry.__main__ import main
code = main()
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""


def test_a_first_sync_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    """SQLAlchemy, for PostgreSQL and for migrations, would be a third of the start."""
    (tmp_path / "scans").mkdir()
    file = tmp_path / "docferry.toml"
    file.write_text(
        f'state_dir = "{tmp_path / "state"}"\n[codat]\nbase_url = "http://127.0.0.1:9"\n'
        f'[[upload]]\nname = "scans"\nfolder = "{tmp_path / "scans"}"\nto = "codat"\ncompany_id = "{COMPANY}"\n'
        f'connection_id = "{COMPANY}"\n'
    )
    words = [sys.executable, "-c", SYNC, "--config", str(file), "sync", "--json"]
    done = subprocess.run(words, env=os.environ | {"CODAT_API_KEY": "key"}, capture_output=True, text=True, check=True)
    imported = set(done.stderr.split())
    assert (tmp_path / "state" / "docferry.db").exists()
    assert "docferry.store.tables" in imported
    unused = {"alembic", "cryptography", "jinja2", "prometheus_client", "psycopg", "rich", "starlette", "uvicorn"}
    unused |= {"sqlalchemy", "smtplib", "docferry.web", "docferry.alerts"}
    assert unused.isdisjoint(imported)


def test_all_problems_of_a_configuration_are_told_one_a_line(say: Say, tmp_path: Path) -> None:
    (tmp_path / "docferry.toml").write_text('setle = "2s"\nworkers = "many"\n')
    code, out, err = say("sync")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("docferry: ") for line in lines)
    assert 'did you mean "settle"?' in err


def test_no_configuration_says_where_it_looked(say: Say) -> None:
    code, _, err = say("status")
    assert code == 2
    assert "docferry config init" in err


def test_config_is_taken_before_and_after_the_command(say: Say, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(f'state_dir = "{tmp_path / "state"}"\n')
    assert say("--config", "other.toml", "status")[0] == 0
    assert say("status", "--config", "other.toml")[0] == 0
    assert say("status", "--config", "missing.toml")[0] == 2


def test_config_init_is_a_configuration_and_schema_is_json(say: Say, tmp_path: Path) -> None:
    code, text, _ = say("config", "init")
    assert code == 0
    (tmp_path / "docferry.toml").write_text(text)
    assert json.loads(say("config", "schema")[1])["type"] == "object"
    code, shown, _ = say("config", "show")
    assert code == 0
    assert "[codat]" in shown


def test_commands_that_only_look_make_no_state_folder(say: Say, tmp_path: Path) -> None:
    (tmp_path / "docferry.toml").write_text(f'state_dir = "{tmp_path / "state"}"\n')
    assert "nothing yet" in say("status")[1]
    assert say("list", "--json") == (0, "", "")
    assert say("retry", "--all")[0] == 0
    code, _, err = say("show", "1")
    assert code == 2
    assert "has not seen any document yet" in err
    assert json.loads(say("status", "--json")[1])["documents"]["sent"] == 0
    assert not (tmp_path / "state").exists()


def test_a_mistake_of_its_own_is_a_sentence_and_70(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise RuntimeError("the example is\nupside down")

    monkeypatch.setattr("docferry.cli.config.init_text", broken)
    code, out, err = say("config", "init")
    assert (code, out) == (70, "")
    assert "RuntimeError: the example is" in err
    assert "Traceback" not in err
    assert "DOCFERRY_LOG_LEVEL=debug" in err
    monkeypatch.setenv("DOCFERRY_LOG_LEVEL", "debug")
    assert "Traceback" in say("config", "init")[2]


def test_a_reader_that_goes_away_is_no_mistake() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "docferry", "config", "init"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == 141


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
@pytest.mark.parametrize(
    "words", ["sync --json", "sync", "status", "list --json", "check --offline", "config schema", "--help", "--version"]
)
def test_output_that_cannot_be_written_is_74_and_everything_is_sent(
    app_env: AppEnv, words: str, redirection: str
) -> None:
    app_env.settings["log_level"] = '"error"'
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    app_env.write_config()
    if not words.startswith("sync"):
        assert app_env.sync()["uploaded"] == 1
    line = f"{shlex.join(app_env.command(*words.split()))} {redirection}"
    done = subprocess.run(line, shell=True, env=app_env.environment, stderr=subprocess.PIPE, check=False)  # noqa: S602 - the redirection is the subject
    assert done.returncode == 74, done.stderr
    assert len(app_env.simulator.stored) == 1


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_errors_that_cannot_be_written_leave_the_exit_code(app_env: AppEnv, redirection: str) -> None:
    app_env.write_config()
    line = f"{shlex.join(app_env.command('list', '--state', 'nonsense'))} {redirection}"
    assert subprocess.run(line, shell=True, env=app_env.environment, check=False).returncode == 2  # noqa: S602 - the redirection is the subject
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    app_env.write_config()
    line = f"{shlex.join(app_env.command('sync', '--json'))} {redirection}"
    assert subprocess.run(line, shell=True, env=app_env.environment, check=False).returncode in (0, 74)  # noqa: S602 - the redirection is the subject
    assert len(app_env.simulator.stored) == 1
    assert app_env.state.joinpath("docferry.db").read_bytes()[:15] == b"SQLite format 3"


@pytest.mark.parametrize("words", ["metrics", "verify", "status", "list", "check --offline", "receipts verify"])
@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">/dev/full", ">&- 2>&- <&-"])
def test_no_command_fails_where_an_output_is_closed_or_full(app_env: AppEnv, words: str, redirection: str) -> None:
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    app_env.sync()
    line = f"{shlex.join(app_env.command(*words.split()))} {redirection}"
    done = subprocess.run(line, shell=True, env=app_env.environment, capture_output=True, check=False)  # noqa: S602 - the shell redirects
    assert done.returncode == (0 if redirection == "2>&-" else 74)
