"""Commands as a person gives them, in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from docferry.cli.main import main
from ground import Ground

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(ground: Ground, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """`say("list", "--json")` runs a command in the ground's folder: exit code, stdout, stderr."""
    monkeypatch.chdir(ground.root)
    for name, value in ground.environment.items():
        monkeypatch.setenv(name, value)

    def saying(*words: str) -> tuple[int, str, str]:
        ground.write_config()
        code = main(["--config", str(ground.root / ground.config_name), *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return saying
