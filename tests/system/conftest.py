"""Provide functions that run commands in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app_env import AppEnv
from docferry.cli.main import main

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(app_env: AppEnv, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """`say("list", "--json")` runs a command in the folder of the environment; returns exit code, stdout, stderr."""
    monkeypatch.chdir(app_env.root)
    for name, value in app_env.environment.items():
        monkeypatch.setenv(name, value)

    def saying(*words: str) -> tuple[int, str, str]:
        app_env.write_config()
        code = main(["--config", str(app_env.root / app_env.config_name), *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return saying
