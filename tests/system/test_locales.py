"""Test paths as bytes in every locale: no name and no terminal makes a command fail."""

from __future__ import annotations

import os
import subprocess

import pytest

from app_env import AppEnv

NAMES = [
    b"M\xfcller.pdf",
    "Müller.pdf".encode(),
    "日本.pdf".encode(),
    b"a\tb.pdf",
    b"\xff\xfe.pdf",
    b"n\nl.pdf",
    b"\x1b[31m.pdf",
]
LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "latin-1": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"},
    "strict ASCII": {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"},
}
COMMANDS = (
    *(("check", "--offline"), ("check", "--offline", "--json"), ("sync", "--dry-run"), ("sync", "--dry-run", "--json")),
    *(("sync",), ("list",), ("list", "--json"), ("status",), ("status", "--json"), ("show", "1"), ("metrics",)),
    *(("verify",), ("config", "show"), ("retry", "--all")),
)


@pytest.mark.parametrize("locale", LOCALES)
def test_every_command_works_with_any_names(app_env: AppEnv, locale: str) -> None:
    root = os.fsencode(app_env.upload("bank", folder="Ordner für 日本"))
    for folder in (b"", b"/\xfcmlaut", "/ümlaut".encode(), b"/x\xff\ny"):
        os.makedirs(root + folder, exist_ok=True)  # noqa: PTH103 - names that are not UTF-8
        for name in NAMES:
            with open(root + folder + b"/" + name, "wb") as file:  # noqa: PTH123 - pathlib takes no bytes
                file.write(folder + name)
    app_env.write_config()
    for words in COMMANDS:
        done = subprocess.run(
            app_env.command(*words), env=app_env.environment | LOCALES[locale], capture_output=True, check=False
        )
        assert done.returncode == 0, (words, done.stderr)
    assert len(app_env.stored()) == 4 * len(NAMES)
