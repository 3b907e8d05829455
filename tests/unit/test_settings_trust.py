"""Test that configurations and keys that other users can change are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from docferry.errors import ConfigError
from docferry.settings import load

CONFIG = '[[upload]]\nname = "scans"\nfolder = "scans"\nto = "wootiv"\n[wootiv]\nbase_url = "https://w.example.com"\n'
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "docferry.toml"
    path.parent.mkdir(mode=0o755)
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize("mode", [0o666, 0o662, 0o620])
def test_a_file_that_others_may_write_is_refused(config: Path, mode: int) -> None:
    config.chmod(mode)
    with pytest.raises(ConfigError, match=r"others may write .*docferry\.toml; run: chmod go-w"):
        load(config, {})


def test_a_file_in_a_folder_that_others_may_write_is_refused(config: Path) -> None:
    config.parent.chmod(0o777)
    with pytest.raises(ConfigError, match=r"others may write .*home"):
        load(config, {})
    config.parent.chmod(0o1777)  # the sticky bit keeps others from replacing the file, as in /tmp
    assert load(config, {}).uploads


@needs_root
def test_a_file_or_a_folder_of_another_user_is_refused(config: Path) -> None:
    os.chown(config, 12_345, 12_345)
    with pytest.raises(ConfigError, match="belongs to another user"):
        load(config, {})
    os.chown(config, 0, 0)
    os.chown(config.parent, 12_345, 12_345)
    with pytest.raises(ConfigError, match="home belongs to another user"):
        load(config, {})


@needs_root
def test_a_link_of_another_user_to_our_file_is_refused(config: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "docferry.toml").symlink_to(config)
    os.chown(theirs, 12_345, 12_345)
    with pytest.raises(ConfigError, match="theirs belongs to another user"):
        load(theirs / "docferry.toml", {})


@needs_root
def test_a_planted_file_in_the_working_folder_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A customer's folder as the working folder must not choose the key."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "docferry.toml").write_text(CONFIG.replace("w.example.com", "evil.example.com"))
    os.chown(theirs, 12_345, 12_345)
    monkeypatch.chdir(theirs)
    own = tmp_path / "xdg" / "docferry" / "docferry.toml"
    own.parent.mkdir(parents=True)
    own.write_text(CONFIG)
    settings = load(None, {"XDG_CONFIG_HOME": str(tmp_path / "xdg")})
    assert settings.path == own
    assert any("was passed over" in warning for warning in settings.passed_over)


def test_a_key_file_that_others_can_read_or_write_is_refused(config: Path) -> None:
    key = config.parent / "wootiv.key"
    key.write_text("k")
    config.write_text(CONFIG + 'api_key_file = "wootiv.key"\n')
    for mode in (0o644, 0o604, 0o602, 0o622):
        key.chmod(mode)
        with pytest.raises(ConfigError, match=r"wootiv\.api_key_file: .*wootiv\.key; run: chmod"):
            load(config, {})
    for mode in (0o600, 0o400, 0o640):  # our own group may read it
        key.chmod(mode)
        assert load(config, {}).secrets({}).wootiv == "k"


def test_a_fifo_does_not_hang(config: Path) -> None:
    key = config.parent / "wootiv.key"
    os.mkfifo(key, 0o600)
    config.write_text(CONFIG + 'api_key_file = "wootiv.key"\n')
    with pytest.raises(ConfigError, match="not a regular file"):
        load(config, {})
    config.unlink()
    os.mkfifo(config, 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        load(config, {})
