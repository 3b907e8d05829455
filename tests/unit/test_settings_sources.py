"""Test the search for the configuration, and overrides by the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from docferry.errors import ConfigError
from docferry.settings import load, sources

PLAIN = """
[wootiv]
base_url = "https://wootiv.example.com"
[[upload]]
name = "scans"
folder = "scans"
to = "wootiv"
[[upload]]
name = "more"
folder = "/srv/more"
to = "wootiv"
"""


def write(place: Path, text: str = PLAIN) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    return place


def problems(path: Path | None, environ: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    return caught.value.problems


def test_the_first_place_that_has_a_file_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = write(tmp_path / "named.toml")
    by_variable = write(tmp_path / "variable.toml")
    here = write(tmp_path / "docferry.toml")
    own = write(tmp_path / "xdg" / "docferry" / "docferry.toml")
    environ = {"DOCFERRY_CONFIG": str(by_variable), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert load(named, environ).path == named
    assert load(None, environ).path == by_variable
    del environ["DOCFERRY_CONFIG"]
    assert load(None, environ).path == here
    here.unlink()
    assert load(None, environ).path == own
    assert load(None, {"HOME": str(tmp_path / "home"), "DOCFERRY_CONFIG": "", **environ}).path == own


def test_the_home_folder_and_etc_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sources.usual_places({"HOME": "/home/u"}) == [
        tmp_path / "docferry.toml",
        Path("/home/u/.config/docferry/docferry.toml"),
        Path("/etc/docferry/docferry.toml"),
    ]
    relative = sources.usual_places({"HOME": "/home/u", "XDG_CONFIG_HOME": "rel"})
    assert Path("/home/u/.config/docferry/docferry.toml") in relative


@pytest.mark.parametrize("by", ["--config", "$DOCFERRY_CONFIG"])
def test_a_named_file_that_is_missing_is_an_error_and_nothing_else_is_taken(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "docferry.toml")
    missing = tmp_path / "missing.toml"
    given = (missing, {}) if by == "--config" else (None, {"DOCFERRY_CONFIG": str(missing)})
    (problem,) = problems(*given)
    assert by in problem
    assert str(missing) in problem


def test_without_any_file_the_error_lists_the_places_and_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if Path("/etc/docferry/docferry.toml").exists():
        pytest.skip("this machine has a configuration of its own")
    monkeypatch.chdir(tmp_path)
    (problem,) = problems(None, {"HOME": str(tmp_path)})
    for place in (tmp_path / "docferry.toml", tmp_path / ".config/docferry/docferry.toml"):
        assert str(place) in problem
    assert "/etc/docferry/docferry.toml" in problem
    assert "docferry config init" in problem


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("workers = 8\nsettle == 3\n", "line 2"),
        ("workers = 8\n\nworkers = 9\n", "line 3"),
        ("x = [1,", "at its end"),
        ("x = 1" + "0" * 5000, "larger than any setting"),
        ("x = " + "[" * 5000, "larger than any setting"),
    ],
)
def test_broken_toml_is_told_with_file_and_line(text: str, place: str, tmp_path: Path) -> None:
    path = write(tmp_path / "docferry.toml", text)
    (problem,) = problems(path, {})
    assert str(path) in problem
    assert place in problem


def test_a_file_that_is_not_utf8_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "docferry.toml"
    path.write_bytes(b'workers = 8\nlog_level = "\xff"\n')
    assert "line 2" in problems(path, {})[0]
    path.write_bytes(b"\xef\xbb\xbfworkers = 7\n")
    assert load(path, {"HOME": "/home/u"}).workers == 7


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, {})
    assert "cannot be read" in problem


def test_the_environment_overrides_scalars_at_any_depth(tmp_path: Path) -> None:
    path = write(tmp_path / "docferry.toml")
    settings = load(
        path,
        {
            "DOCFERRY_CONFIG": "/nowhere",
            "DOCFERRY_WORKERS": "3",
            "DOCFERRY_SETTLE": "2",
            "DOCFERRY_RETRY__MAX": "2m",
            "DOCFERRY_CODAT__BASE_URL": "https://codat.example.com/",
            "DOCFERRY_CODAT__QUOTA_RESERVE": "7.5%",
            "DOCFERRY_UPLOAD__0__FOLDER": "/srv/other",
            "DOCFERRY_UPLOAD__0__POLL": "true",
            "DOCFERRY_UPLOAD__1__INCLUDE__0": "*.pdf",
            "DOCFERRY_UPLOAD__1__MAX_SIZE": "10MiB",
            "DOCFERRY_LOG_LEVEL": "",
            "OTHER_WORKERS": "99",
        },
    )
    assert (settings.workers, settings.settle, settings.retry.max) == (3, 2.0, 120.0)
    assert settings.codat.base_url == "https://codat.example.com"
    assert settings.codat.quota_reserve == pytest.approx(0.075)
    first, second = settings.uploads
    assert (first.folder, first.poll, second.include) == ("/srv/other", True, ("*.pdf",))
    assert second.max_size == 10 * 1024 * 1024
    assert settings.log_level == "info"


def test_the_environment_may_add_the_next_mapping_and_no_later_one(tmp_path: Path) -> None:
    path = write(tmp_path / "docferry.toml")
    mapping = {"NAME": "third", "FOLDER": "/srv/third", "TO": "wootiv"}
    added = load(path, {f"DOCFERRY_UPLOAD__2__{key}": value for key, value in mapping.items()})
    assert [upload.name for upload in added.uploads] == ["scans", "more", "third"]
    (problem,) = problems(path, {"DOCFERRY_UPLOAD__5__NAME": "x"})
    assert problem == "$DOCFERRY_UPLOAD__5__NAME: there are 2, counted from 0; number 5 is not among them"


def test_unknown_variables_are_told_with_the_nearest_key(tmp_path: Path) -> None:
    path = write(tmp_path / "docferry.toml")
    found = problems(path, {"DOCFERRY_WORKRES": "3", "DOCFERRY_UPLOAD__1__FOLDRE": "x", "DOCFERRY_WORKERS__X": "1"})
    text = "\n".join(found)
    assert "$DOCFERRY_WORKRES" in text
    assert 'did you mean "workers"?' in text
    assert "upload[1].foldre (from $DOCFERRY_UPLOAD__1__FOLDRE)" in text
    assert 'did you mean "folder"?' in text
    assert "$DOCFERRY_WORKERS__X" in text


def test_relative_paths_are_relative_to_the_file_and_tilde_is_home(tmp_path: Path) -> None:
    path = write(tmp_path / "etc" / "docferry.toml", PLAIN.replace('"/srv/more"', '"~/more/./x//y"'))
    settings = load(path, {"HOME": "/home/u"})
    assert [upload.root for upload in settings.uploads] == [tmp_path / "etc/scans", Path("/home/u/more/x/y")]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"STATE_DIRECTORY": "/var/lib/docferry:/var/lib/other", "XDG_STATE_HOME": "/x"}, "/var/lib/docferry"),
        ({"XDG_STATE_HOME": "/x", "HOME": "/home/u"}, "/x/docferry"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/home/u"}, "/home/u/.local/state/docferry"),
        ({"HOME": "/home/u"}, "/home/u/.local/state/docferry"),
    ],
)
def test_the_state_folder_has_a_default(environ: dict[str, str], expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "docferry.toml")
    assert load(path, environ).state_dir == Path(expected)
    written = write(tmp_path / "own.toml", 'state_dir = "/own"\n' + PLAIN)
    assert load(written, environ).state_dir == Path("/own")
