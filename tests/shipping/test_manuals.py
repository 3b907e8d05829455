"""Test man pages and completions with man and the shells."""

from __future__ import annotations

import gzip
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app_env import until
from docferry.cli.parser import build_parser

_BASH = """
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
_shtab_docferry docferry "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def share(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("share")
    subprocess.run([sys.executable, root / "packaging" / "manuals.py", folder], check=True)
    return folder


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Provide an environment with docferry in the search path and a configuration with two mappings."""
    file = tmp_path / "docferry.toml"
    file.write_text('[[upload]]\nname = "acme-bank"\n[[download]]\nname = "acme-inbox"\n')
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(tmp_path), "DOCFERRY_CONFIG": str(file), "TERM": "dumb"}


def test_there_is_a_page_for_every_command(share: Path) -> None:
    pages = {path.name for path in (share / "man" / "man1").iterdir()}
    assert pages == {"docferry.1.gz", *(f"docferry-{name}.1.gz" for name in build_parser().commands.choices)}
    sync = gzip.decompress((share / "man" / "man1" / "docferry-sync.1.gz").read_bytes()).decode()
    assert sync.count(".SH EXAMPLES") == 1
    assert "docferry sync \\-\\-dry\\-run" in sync


def test_the_page_of_the_configuration_explains_every_key(share: Path, root: Path) -> None:
    page = gzip.decompress((share / "man" / "man5" / "docferry.toml.5.gz").read_bytes()).decode()
    tables = (root / "docs" / "configuration.md").read_text().splitlines()
    keys = [line.split("`")[1] for line in tables if line.startswith("| `")]
    assert len(keys) > 40
    for key in keys:
        assert f".TP\n\\fB{key}\\fR\n" in page, key


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed here")
def test_groff_has_nothing_to_say_about_any_page(share: Path) -> None:
    for page in (share / "man").glob("*/*.gz"):
        groff = ["groff", "-man", "-Tutf8", "-K", "utf8", "-ww", "-z"]
        done = subprocess.run(groff, input=gzip.decompress(page.read_bytes()), capture_output=True, check=False)
        assert (done.returncode, done.stderr.decode()) == (0, ""), page.name


@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        (["docferry", "s"], {"sync", "status", "show", "simulate"}),
        (["docferry", "sync", "--mapping", "acme"], {"acme-bank", "acme-inbox"}),
        (["docferry", "list", "--state", "h"], {"held"}),
        (["docferry", "sync", "--dry"], {"--dry-run"}),
    ],
)
def test_bash_completes(share: Path, environ: dict[str, str], words: list[str], proposed: set[str]) -> None:
    script = share / "bash-completion" / "completions" / "docferry"
    bash = ["bash", "--norc", "-c", _BASH, "bash", str(script), *words]
    done = subprocess.run(bash, env=environ, capture_output=True, text=True, check=True)
    assert proposed <= {word.strip() for word in done.stdout.splitlines()}, done.stderr


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed here")
def test_fish_completes(share: Path, environ: dict[str, str]) -> None:
    script = share / "fish" / "vendor_completions.d" / "docferry.fish"
    code = f'source {script}; complete --do-complete="docferry sync --mapping acme"'
    done = subprocess.run(["fish", "--no-config", "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert {"acme-bank", "acme-inbox"} <= {line.split("\t")[0] for line in done.stdout.splitlines()}, done.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed here")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("docferry rec", "docferry receipts"),
        ("docferry sync --mapping acme-b", "docferry sync --mapping acme-bank"),
        ("docferry remote ls acme-i", "docferry remote ls acme-inbox"),
        ("docferry put acme-bank docf", "docferry put acme-bank docferry.toml"),
    ],
)
def test_zsh_completes(share: Path, environ: dict[str, str], tmp_path: Path, typed: str, completed: str) -> None:
    """The key Tab of an interactive zsh completes; Ctrl-X writes the line to a file."""
    (tmp_path / ".zshrc").write_text(f"""\
fpath=({share / "zsh" / "vendor-completions"} $fpath)
autoload -Uz compinit && compinit -u -D
write_line() {{ print -r -- $BUFFER >line.new && mv line.new line }}
zle -N write_line && bindkey '^X' write_line
""")
    terminal, side = pty.openpty()
    shell = subprocess.Popen(
        ["zsh", "-d", "-i"], env=environ, cwd=tmp_path, stdin=side, stdout=side, stderr=side, start_new_session=True
    )
    try:
        os.write(terminal, f"{typed}\t\x18".encode())
        until((tmp_path / "line").exists, 60, "the completed line")
    finally:
        shell.kill()
        shell.wait()
        os.close(side)
        os.close(terminal)
    assert (tmp_path / "line").read_text().strip() == completed


def test_names_of_mappings_are_asked_for_when_they_are_needed(share: Path) -> None:
    """Zsh reads its script again at each key press, so that no command may stand among the options."""
    script = (share / "zsh" / "vendor-completions" / "_docferry").read_text()
    assert script.count("docferry config names") == 1
    assert "names=(${(f)" in script
