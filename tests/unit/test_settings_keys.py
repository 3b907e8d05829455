"""Test API keys: priority of sources, refusals, and hiding."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from docferry.errors import ConfigError
from docferry.settings import Settings, load, missing_keys

CANARY = "canary-7f3a9c2e-key"
MAPPINGS = """
[[upload]]
name = "a"
folder = "/srv/{company_id}/{connection_id}"
to = "codat"
"""


def write(tmp_path: Path, codat: str = "", mode: int = 0o600) -> Path:
    path = tmp_path / "docferry.toml"
    path.write_text(f"[codat]\n{codat}\n{MAPPINGS}")
    path.chmod(mode)
    return path


def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "codat.key"
    path.touch(0o600)
    return path


def loaded(tmp_path: Path, codat: str = "", mode: int = 0o600) -> Settings:
    return load(write(tmp_path, codat, mode), {})


def test_environment_wins_over_credential_over_key_file_over_file(tmp_path: Path) -> None:
    key_file(tmp_path).write_text("from-key-file\n")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "codat_api_key").write_text("  from-credential\n\n")
    settings = loaded(tmp_path, 'api_key = "from-file"\napi_key_file = "codat.key"')
    environ = {
        "DOCFERRY_CODAT__API_KEY": "from-own-variable",
        "CODAT_API_KEY": "from-variable\n",
        "CREDENTIALS_DIRECTORY": str(credentials),
    }
    assert settings.secrets(environ).codat == "from-own-variable"
    del environ["DOCFERRY_CODAT__API_KEY"]
    assert settings.secrets(environ).codat == "from-variable"
    environ["CODAT_API_KEY"] = " "
    assert settings.secrets(environ).codat == "from-credential"
    (credentials / "codat_api_key").unlink()
    assert settings.secrets(environ).codat == "from-key-file"
    assert loaded(tmp_path, 'api_key = "from-file"').secrets({}).codat == "from-file"
    assert loaded(tmp_path).secrets({}).codat is None


def test_each_remote_has_its_own_sources(tmp_path: Path) -> None:
    settings = loaded(tmp_path)
    found = settings.secrets({"WOOTIV_API_KEY": "for-wootiv", "DOCFERRY_CODAT__API_KEY": "for-codat"})
    assert (found.codat, found.wootiv) == ("for-codat", "for-wootiv")
    (tmp_path / "wootiv_api_key").write_text("for-wootiv-too")
    found = settings.secrets({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert (found.codat, found.wootiv) == (None, "for-wootiv-too")


def test_keys_are_read_afresh_each_time(tmp_path: Path) -> None:
    key = key_file(tmp_path)
    key.write_text("first")
    by_file = loaded(tmp_path, 'api_key_file = "codat.key"')
    assert by_file.secrets({}).codat == "first"
    key.write_text("second")
    assert by_file.secrets({}).codat == "second"
    inline = loaded(tmp_path, 'api_key = "first"')
    write(tmp_path, 'api_key = "second"')
    assert inline.secrets({}).codat == "second"


def test_a_file_that_broke_or_was_opened_to_others_leaves_the_loaded_key(tmp_path: Path) -> None:
    settings = loaded(tmp_path, 'api_key = "first"')
    write(tmp_path, 'api_key = "second"', mode=0o644)
    assert settings.secrets({}).codat == "first"
    write(tmp_path, 'api_key = "second')
    assert settings.secrets({}).codat == "first"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_key_in_a_file_that_others_can_read_is_refused_with_the_cure(mode: int, tmp_path: Path) -> None:
    path = write(tmp_path, f'api_key = "{CANARY}"', mode)
    with pytest.raises(ConfigError) as caught:
        load(path, {"CODAT_API_KEY": "another"})
    (problem,) = caught.value.problems
    assert problem.startswith("codat.api_key ")
    assert f"chmod 600 {path}" in problem
    assert CANARY not in problem


def test_a_key_in_somebody_elses_file_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = write(tmp_path, f'api_key = "{CANARY}"')
    os.chown(path, 12_345, 12_345)
    with pytest.raises(ConfigError, match="belongs to another user"):
        load(path, {})


def test_a_file_without_keys_may_be_read_by_all(tmp_path: Path) -> None:
    assert loaded(tmp_path, "batch = 2", 0o644).codat.batch == 2


@pytest.mark.parametrize("written", ["", " \n", "two\nlines", "tab\there", "kéy", "nul\0"])
def test_what_is_no_key_is_told_and_no_lower_source_is_taken(written: str, tmp_path: Path) -> None:
    key_file(tmp_path).write_text(written)
    settings = loaded(tmp_path, 'api_key_file = "codat.key"\napi_key = "lower"')
    found = settings.secrets({})
    assert found.codat is None
    (sentence,) = missing_keys(settings, found)
    assert "codat.key" in sentence
    assert "CODAT_API_KEY" in sentence


def test_a_finished_header_value_is_a_key(tmp_path: Path) -> None:
    assert loaded(tmp_path).secrets({"CODAT_API_KEY": " Basic YWJjZGVm \n"}).codat == "Basic YWJjZGVm"


def test_a_missing_key_fails_no_load_and_is_told_for_used_remotes_alone(tmp_path: Path) -> None:
    settings = loaded(tmp_path, 'api_key_file = "nowhere.key"')
    (sentence,) = missing_keys(settings, settings.secrets({}))
    assert "nowhere.key cannot be read: no such file" in sentence
    assert "systemd credential codat_api_key" in sentence
    assert missing_keys(settings, settings.secrets({"CODAT_API_KEY": "x-key"})) == []


def test_no_text_form_of_settings_or_secrets_shows_a_key(tmp_path: Path) -> None:
    settings = loaded(tmp_path, f'api_key = "{CANARY}"\nproxy = "http://user:{CANARY}@proxy:3128"')
    secrets = settings.secrets({"WOOTIV_API_KEY": CANARY})
    assert secrets.known() == (CANARY, CANARY)
    shown = [f(each) for f in (repr, str) for each in (settings, settings.codat, secrets, secrets.codat_key)]
    assert not any(CANARY in text for text in shown)


def test_no_problem_shows_a_key_however_wrong_its_place(tmp_path: Path) -> None:
    for section in (f'api_kye = "{CANARY}"', f'api_key = ["{CANARY}"]', f'proxy = "{CANARY}"', f'api_key = "{CANARY}'):
        with pytest.raises(ConfigError) as caught:
            loaded(tmp_path, section)
        assert CANARY not in str(caught.value)
        assert CANARY not in repr(caught.value.__cause__)
