"""Test that mappings which could misroute or return a document are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from docferry.errors import ConfigError
from docferry.settings import Settings, load

A = ("8a210b68-6988-11ed-a1eb-0242ac120002", "2e9d2c44-f675-40ba-8049-353bfcb5e171")
B = ("11111111-6988-11ed-a1eb-0242ac120002", "22222222-f675-40ba-8049-353bfcb5e171")
WOOTIV = '[wootiv]\nbase_url = "https://wootiv.example.com"\n'


def codat(name: str, folder: object, ids: tuple[str, str] | None = A, extra: str = "") -> str:
    own = f'company_id = "{ids[0]}"\nconnection_id = "{ids[1]}"\n' if ids else ""
    return f'[[upload]]\nname = "{name}"\nfolder = "{folder}"\nto = "codat"\n{own}{extra}\n'


def wootiv(name: str, folder: object, extra: str = "") -> str:
    return f'[[upload]]\nname = "{name}"\nfolder = "{folder}"\nto = "wootiv"\n{extra}\n'


def loaded(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "conf" / "docferry.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'state_dir = "{tmp_path}/state"\n' + WOOTIV + text)
    return load(path, {})


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (codat("one", "{0}/a"), codat("two", "{0}/a", B)),
        (codat("one", "{0}/a"), codat("two", "{0}/a/../a/.", B)),
        (codat("one", "{0}/a"), codat("two", "{0}/a/deep/er", B)),
        (codat("one", "{0}/a"), codat("two", "{0}/link", B)),
        (codat("one", "{0}/a"), codat("two", "{0}/link/in", B)),
        (codat("one", "{0}/a"), wootiv("two", "{0}/a")),
        (wootiv("one", "{0}"), codat("two", "{0}/a")),
        (codat("one", "{0}/{{company_id}}/{{connection_id}}", None), codat("two", f"{{0}}/{A[0]}/{A[1]}", B)),
        (codat("one", "{0}/{{company_id}}/{{connection_id}}", None), codat("two", f"{{0}}/{B[0]}", A)),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_folders_of_two_targets_that_overlap_are_refused(
    tmp_path: Path, outer: str, inner: str, *, swapped: bool
) -> None:
    base = tmp_path / "srv"
    (base / "a" / "in").mkdir(parents=True)
    (base / "link").symlink_to(base / "a")
    outer, inner = outer.format(base).replace("}}", "}"), inner.format(base)
    problem = refused(tmp_path, inner + outer if swapped else outer + inner)
    assert '"one"' in problem
    assert '"two"' in problem


@pytest.mark.parametrize(
    "text",
    [
        codat("one", "{0}/a") + codat("two", "{0}/a/b"),
        codat("one", "{0}/a", extra='include = ["*.pdf"]') + codat("two", "{0}/a", extra='include = ["*.csv"]'),
        wootiv("one", "{0}/a") + wootiv("two", "{0}/a/b"),
        codat("one", "{0}/a", extra='exclude = ["b/"]') + codat("two", "{0}/a/b", B),
        codat("one", "{0}/ab") + codat("two", "{0}/a", B),
        codat("one", "{0}/{{company_id}}/{{connection_id}}", None) + codat("two", f"{{0}}/{A[0]}/{A[1]}", A),
        codat("one", "{0}/{{company_id}}/{{connection_id}}", None) + codat("two", "{0}/elsewhere", B),
    ],
)
def test_nested_folders_of_one_target_and_separate_folders_are_allowed(tmp_path: Path, text: str) -> None:
    assert len(loaded(tmp_path, text.format(tmp_path / "srv")).uploads) == 2


ARCHIVE = 'after_upload = "archive"\narchive_folder = "{0}/b/done"'


def test_an_archive_in_the_folder_of_another_target_is_refused(tmp_path: Path) -> None:
    text = codat("one", "{0}/a", extra=ARCHIVE) + codat("two", "{0}/b", B)
    problem = refused(tmp_path, text.format(tmp_path))
    assert '"one"' in problem
    assert '"two"' in problem
    same = codat("one", "{0}/a", extra=ARCHIVE) + codat("two", "{0}/b")
    assert loaded(tmp_path, same.format(tmp_path)).uploads
    excluded = codat("one", "{0}/a", extra=ARCHIVE) + codat("two", "{0}/b", B, extra='exclude = ["done/"]')
    assert loaded(tmp_path, excluded.format(tmp_path)).uploads


@pytest.mark.parametrize(("company", "fine"), [(A[0], True), (B[0], False)])
def test_a_download_into_the_folder_of_another_company_is_refused(tmp_path: Path, company: str, *, fine: bool) -> None:
    text = codat("up", "{0}/a") + (
        f'[[download]]\nname = "down"\nfrom = "codat"\ncompany_id = "{company}"\nfolder = "{{0}}/a/in"\n'
    )
    if fine:
        assert loaded(tmp_path, text.format(tmp_path)).downloads
    else:
        problem = refused(tmp_path, text.format(tmp_path))
        assert '"up"' in problem
        assert '"down"' in problem


def test_our_own_files_are_never_documents(tmp_path: Path) -> None:
    """The state folder, the configuration and the key are in the mapped folder; none of them is read."""
    key = tmp_path / "codat.key"
    key.touch(0o600)
    key.write_text("secret")
    path = tmp_path / "docferry.toml"
    path.write_text(f'state_dir = "state"\n[codat]\napi_key_file = "codat.key"\n{codat("all", ".")}')
    (upload,) = load(path, {}).uploads
    assert [upload.wanted(name) for name in (b"docferry.toml", b"codat.key", b"state/docferry.db")] == [False] * 3
    assert not upload.enters(b"state")
    assert upload.wanted(b"docferry.pdf")
    assert upload.enters(b"states")


def test_a_folder_in_the_state_folder_is_refused(tmp_path: Path) -> None:
    assert "state folder" in refused(tmp_path, codat("one", tmp_path / "state" / "spool"))
