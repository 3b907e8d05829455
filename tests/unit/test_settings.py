"""Test values, unknown keys and cross checks: all problems at once, each with key and fix."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from docferry.errors import ConfigError
from docferry.settings import Settings, load, problems, sources, units

COMPANY = "8a210b68-6988-11ed-a1eb-0242ac120002"
CONNECTION = "2e9d2c44-f675-40ba-8049-353bfcb5e171"
IDS = f'company_id = "{COMPANY}"\nconnection_id = "{CONNECTION}"\n'
WOOTIV = '[wootiv]\nbase_url = "https://w.example.com"\n'


def loaded(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "docferry.toml"
    path.write_text(text)
    return load(path, {"HOME": "/home/u"})


def refused(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    return list(caught.value.problems)


def upload(extra: str = "", *, to: str = "wootiv", name: str = "a", folder: str = "/srv/a") -> str:
    return f'[[upload]]\nname = "{name}"\nfolder = "{folder}"\nto = "{to}"\n{extra}\n'


def download(extra: str = "", *, source: str = "codat", folder: str = "/srv/in") -> str:
    return f'[[download]]\nname = "d"\nfrom = "{source}"\nfolder = "{folder}"\n{extra}\n'


def test_everything_has_the_defaults_of_the_contract(tmp_path: Path) -> None:
    found = loaded(tmp_path, WOOTIV + upload(IDS, to="codat") + download(f'company_id = "{COMPANY.upper()}"'))
    assert (found.workers, found.settle, found.rescan, found.stop_grace) == (8, 5.0, 300.0, 30.0)
    assert (found.log_level, found.log_format) == ("info", "auto")
    retry = found.retry
    assert (retry.initial, retry.factor, retry.max, retry.give_up_after) == (0.5, 1.5, 60.0, 604_800.0)
    codat = found.codat
    assert (codat.base_url, codat.requests_per_minute, codat.concurrent_per_company) == (
        "https://api.codat.io",
        1000,
        10,
    )
    assert (codat.batch, codat.list_lag, codat.quota_reserve, codat.timeout) == (1, 30.0, 0.05, 60.0)
    first = found.uploads[0]
    assert (first.dedupe, first.after_upload, first.poll, first.file_name) == ("content", "keep", False, "{name}")
    assert (first.include, first.exclude, first.max_size, first.settle) == (("*",), (), None, 5.0)
    assert found.downloads[0].companies == (COMPANY,)
    assert (found.downloads[0].layout, found.downloads[0].include_own) == ("{date}/{source}/{name}", False)
    assert found.warnings == ()
    assert found.remotes == {"codat"}


def test_a_mapping_has_its_own_settle_or_everybodys(tmp_path: Path) -> None:
    found = loaded(tmp_path, 'settle = "9s"\n' + WOOTIV + upload('settle = "200ms"') + upload(name="b", folder="/b"))
    assert [each.settle for each in found.uploads] == [0.2, 9.0]


@pytest.mark.parametrize(
    ("written", "number"),
    [("500ms", 0.5), ("2s", 2), ("15m", 900), ("1h30m", 5400), ("7d", 604_800), (3, 3), (0.25, 0.25), ("4", 4)],
)
def test_durations(written: object, number: float) -> None:
    assert units.seconds(written) == pytest.approx(number)


@pytest.mark.parametrize(
    "written", ["", "s", "5x", "-1s", "1h 30", True, None, float("nan"), float("inf"), -1, "9" * 20]
)
def test_what_is_no_duration(written: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        units.seconds(written)


@pytest.mark.parametrize(
    ("written", "number"),
    [("10MB", 10**7), ("10MiB", 10 * 2**20), ("1.5 kb", 1500), (7, 7), ("512", 512), ("2 GiB", 2**31)],
)
def test_sizes(written: object, number: int) -> None:
    assert units.octets(written) == number


@pytest.mark.parametrize("written", ["", "ten", "10XB", "10M", -1, True, "1e400", float("inf")])
def test_what_is_no_size(written: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        units.octets(written)


@pytest.mark.parametrize(("written", "number"), [("5%", 0.05), (0.2, 0.2), ("0.5", 0.5), (0, 0), ("100%", 1), (1, 1)])
def test_shares(written: object, number: float) -> None:
    assert units.share(written) == pytest.approx(number)


@pytest.mark.parametrize("written", ["101%", 1.1, -0.1, "x", "%", True])
def test_what_is_no_share(written: object) -> None:
    with pytest.raises(ValueError, match="is not a share"):
        units.share(written)


@given(st.integers(min_value=0, max_value=10**10))
def test_a_duration_reads_back_as_it_was_written(milliseconds: int) -> None:
    assert units.seconds(units.duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = """
        worker = 3
        _env_file = "x"
        workers = 0
        settle = "5 parsecs"
        [codat]
        settle = 4
        batch = 21
        [[upload]]
        nam = "a"
        folder = "/srv/{custom}/x"
        to = "codatt"
        [[upload]]
        name = "b"
        folder = "/srv/b"
        to = "codat"
        max_size = "ten"
        [[upload]]
        name = "b"
        folder = "/srv/w"
        to = "wootiv"
        after_upload = "archive"
        [[upload]]
        name = "c"
        folder = "/srv/c"
        to = "wootiv"
        foldre = "x"
    """
    found = refused(tmp_path, text)
    expected = [
        'worker: unknown key; did you mean "workers"?',
        "_env_file: unknown key; remove it",
        "workers = 0: must be at least 1",
        'settle = "5 parsecs": is not a duration',
        "codat.settle: unknown key; it belongs at the top of the file",
        "codat.batch = 21: must be at most 20",
        'upload[0].nam: unknown key; did you mean "name"?',
        "upload[0].name: is missing",
        'upload[0].folder = "/srv/{custom}/x": has the unknown placeholder "{custom}"; allowed are {company_id}, ',
        'upload[0].to = "codatt": must be "codat" or "wootiv"',
        'upload[1].max_size = "ten": is not a size',
        "upload[1].company_id: is missing",
        "upload[1].connection_id: is missing",
        'upload[2].name: "b" is the name of upload[1] too',
        "upload[2].archive_folder: is missing",
        'upload[3].foldre: unknown key; did you mean "folder"?',
        "wootiv.base_url: is missing and a mapping uses it",
    ]
    for sentence in expected:
        assert sum(problem.startswith(sentence) for problem in found) == 1, (sentence, found)
    assert len(found) == len(expected), found


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ('[wootiv]\nenvironment = "staging"\n', 'wootiv.environment = "staging": must be'),
        (WOOTIV + 'cert_file = "/nowhere.pem"\n', "wootiv: cert_file /nowhere.pem cannot be used"),
        ('[retry]\ninitial = "soon"\nmax = "100ms"\n' + WOOTIV, 'retry.initial = "soon": is not a duration'),
    ],
)
def test_a_wrong_value_is_the_only_problem_of_its_table(tmp_path: Path, section: str, sentence: str) -> None:
    """Without the value a key of its table would seem to be missing, or would contradict a default."""
    (problem,) = refused(tmp_path, upload() + section)
    assert problem.startswith(sentence)


def test_a_misplaced_key_is_sent_to_its_section(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, "quota_reserve = 0.1\n")
    assert problem == "quota_reserve: unknown key; it belongs under [codat]"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("workers = true", "workers = true: must be a whole number"),
        ("workers = 1.5", "workers = 1.5: must be a whole number"),
        ("workers = 1001", "at most 1000"),
        ("settle = 0", "settle = 0: must be more than 0"),
        ('log_level = "loud"', 'must be "debug", "info", "warning" or "error"'),
        ("state_dir = 5", "must be text, in quotes"),
        ('state_dir = "/a\\u0000b"', "must be a path"),
        ("codat = 5", "codat = 5: must be a table"),
        ("[retry]\nfactor = 0.5", "retry.factor = 0.5: must be at least 1"),
        ("[retry]\nfactor = nan", "retry.factor"),
        ('[retry]\nmax = "100ms"', "retry.max: must not be shorter than retry.initial"),
        ('[codat]\nca_file = "/nowhere.pem"', "not a readable file"),
        ('[codat]\nproxy = "proxy:3128"', "codat.proxy: is not the address of a proxy"),
        ('[codat]\napi_key_file = ""', "codat.api_key_file"),
        ("[upload]\nname = 'a'", "must be written with two brackets: [[upload]]"),
        ("upload = [1]", "upload[0] = 1: must be a table"),
        (upload('include = "*.pdf"') + WOOTIV, "upload[0].include"),
        (upload('exclude = ["!"]') + WOOTIV, 'upload[0].exclude: has "!", which is not a gitignore-style pattern'),
        (upload(name="") + WOOTIV, "upload[0].name"),
        (upload(name="a\\nb") + WOOTIV, "upload[0].name"),
        (upload(folder="") + WOOTIV, "upload[0].folder"),
        (upload(folder="/srv/x-{company_id}", to="codat"), "a placeholder takes a whole path segment"),
        (upload(folder="/srv/{company_id}/{company_id}", to="codat"), "has a placeholder twice"),
        (upload(folder="/srv/{company_id", to="codat"), "unpaired brace"),
        (upload(folder="/srv/{company_id}") + WOOTIV, "upload[0].folder: has placeholders, which only Codat takes"),
        (upload(IDS.replace(COMPANY, "123"), to="codat"), "upload[0].company_id = \"123\": is not a UUID"),
        (upload(IDS, folder="/srv/{company_id}", to="codat"), "upload[0].company_id: is given twice"),
        (upload(f'company_id = "{COMPANY}"') + WOOTIV, "upload[0].company_id: is for Codat"),
        (upload('object_name = "{nam}"') + WOOTIV, "{path}, {sha256}, {date}"),
        (upload('object_name = "fixed.pdf"') + WOOTIV, "every document the same name"),
        (upload('object_name = "/{name}"') + WOOTIV, "upload[0].object_name"),
        (upload('object_name = "../{name}"') + WOOTIV, "upload[0].object_name"),
        (upload('max_size = 0') + WOOTIV, "upload[0].max_size = 0: must be more than 0"),
        (download(), "download[0].company_id: is missing"),
        (download('company_id = "x"'), 'download[0].company_id[0] = "x": is not a UUID'),
        (download(f'company_id = ["{COMPANY}", "{CONNECTION}"]'), "download[0].folder: is shared by several companies"),
        (download(f'company_id = ["{COMPANY}", "{COMPANY}"]', folder="/i/{company_id}"), "one company twice"),
        (download(f'company_id = "{COMPANY}"\nobjects = ["a"]'), "download[0].objects: is for wootiv"),
        (download(f'company_id = "{COMPANY}"\nsince = "soon"'), "is not a date"),
        (download(f'company_id = "{COMPANY}"\nevery = 0'), "download[0].every"),
        (download(f'company_id = "{COMPANY}"\nlayout = "{{date}}"'), "every document the same name"),
        (download(f'company_id = "{COMPANY}"\nlayout = "../{{name}}"'), "below the folder"),
        (download(f'company_id = "{COMPANY}"\nlayout = "{{foo}}/{{name}}"'), "{date}, {source}, {name}"),
        (download(source="wootiv") + WOOTIV, "download[0].objects: is missing"),
        (download('objects = ["../x"]', source="wootiv") + WOOTIV, "is not an object name"),
        (download('objects = ["x"]', source="wootiv", folder="/i/{company_id}") + WOOTIV, "has a placeholder"),
        (download('objects = ["x"]', source="wootiv"), "wootiv.base_url: is missing"),
        (upload() + upload(name="b") + WOOTIV, "upload[1].folder: upload[0] uploads the same documents already"),
        (upload('after_upload = "archive"\narchive_folder = "/srv/a/sent"') + WOOTIV, "lies inside the mapping's"),
        (upload('after_upload = "archive"\narchive_folder = "/srv/a"') + WOOTIV, "lies inside the mapping's"),
        (upload('after_upload = "archive"\narchive_folder = "/srv"') + WOOTIV, "has the mapping's folder inside it"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_key(text: str, sentence: str, tmp_path: Path) -> None:
    found = refused(tmp_path, text)
    assert len(found) == 1, found
    assert sentence in found[0]


@pytest.mark.parametrize(
    "url", ["api.codat.io", "ftp://x", "https://", "https://u:CANARY@x", "https://x/?k=CANARY", "https://x:99999"]
)
def test_an_address_must_be_bare_and_is_never_repeated(url: str, tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, f'[codat]\nbase_url = "{url}"\n')
    assert problem.startswith("codat.base_url: ")
    assert "CANARY" not in problem


def test_no_sentence_speaks_of_the_library(tmp_path: Path) -> None:
    text = 'workers = []\nsettle = {}\nretry = 1\n[codat]\nbatch = "x"\nproxy = 3\n[[upload]]\npoll = "perhaps"\n'
    for problem in refused(tmp_path, text):
        assert not any(word in problem.lower() for word in ("pydantic", "http", "input", "validation", "type="))


def test_an_archive_may_lie_inside_if_the_scan_does_not_go_there(tmp_path: Path) -> None:
    hidden = upload('after_upload = "archive"\narchive_folder = "/srv/a/.sent"')
    excluded = upload(
        'after_upload = "archive"\narchive_folder = "/srv/b/sent/x"\nexclude = ["/sent/"]', name="b", folder="/srv/b"
    )
    assert len(loaded(tmp_path, WOOTIV + hidden + excluded).uploads) == 2


def test_a_download_may_land_inside_an_upload_folder(tmp_path: Path) -> None:
    text = upload(IDS, to="codat") + download(f'company_id = "{COMPANY}"', folder="/srv/a/inbox")
    assert loaded(tmp_path, text).downloads[0].folder == "/srv/a/inbox"


@pytest.mark.parametrize("written", ['"2026-01-31"', "2026-01-31", "2026-01-31T10:00:00Z"])
def test_since_is_a_date_in_any_form(written: str, tmp_path: Path) -> None:
    found = loaded(tmp_path, download(f'company_id = "{COMPANY}"\nsince = {written}'))
    assert found.downloads[0].since == date(2026, 1, 31)


def test_one_download_for_several_companies(tmp_path: Path) -> None:
    text = download(f'company_id = ["{COMPANY}", "{CONNECTION}"]', folder="/in/{company_id}/x")
    (found,) = loaded(tmp_path, text).downloads
    assert found.folder_of(CONNECTION) == Path(f"/in/{CONNECTION}/x")


def test_what_is_unwise_is_a_warning(tmp_path: Path) -> None:
    text = (
        '[codat]\nbase_url = "http://codat.example.com"\n'
        '[wootiv]\nbase_url = "http://127.0.0.1:8080"\n'
        + upload('object_name = "{name}"\nfile_name = "{name}"\nafter_upload = "delete"')
        + upload(to="wootiv", name="b", folder="/srv/a/b")
        + upload(IDS, to="codat", name="c", folder="/srv/c")
    )
    found = loaded(tmp_path, text).warnings
    assert len(found) == 4, found
    for start in (
        "codat.base_url is http",
        "upload[0].object_name: documents of one name",
        "upload[0].file_name is not used",
        "upload[0] deletes files that upload[1] may still have to send",
    ):
        assert any(warning.startswith(start) for warning in found), (start, found)
    assert any("there is nothing to do" in warning for warning in loaded(tmp_path, "").warnings)


def test_senders_are_auto_or_a_number(tmp_path: Path) -> None:
    assert loaded(tmp_path, "").senders == "auto"
    assert loaded(tmp_path, "senders = 4").senders == 4
    for wrong in ("33", "-1", "true", '"many"'):
        assert "senders" in refused(tmp_path, f"senders = {wrong}")[0]


@pytest.mark.parametrize(
    ("file_name", "warned"),
    [
        ("{stem}~{token}", True),
        ("{token}", True),
        ("{stem}~{token}{suffix}", False),
        ("{name}", False),
        ("{stem}.pdf", False),
    ],
)
def test_a_name_without_a_suffix_is_a_warning(tmp_path: Path, file_name: str, warned: bool) -> None:
    text = upload(f'{IDS}\nfile_name = "{file_name}"', to="codat")
    assert any("drops the suffix" in warning for warning in loaded(tmp_path, text).warnings) == warned


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    found = loaded(tmp_path, "")
    with pytest.raises(ValueError, match="frozen"):
        found.workers = 3


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-5, 2000), st.floats(), st.text(max_size=8), st.sampled_from(["codat", "5s"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "to", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        *("WORKERS", "SETTLE", "UPLOAD", "DOWNLOAD", "CODAT", "RETRY__MAX", "CODAT__BATCH", "CODAT__X", "UPLOAD__0"),
        *("UPLOAD__0__NAME", "UPLOAD__0__TO", "UPLOAD__0__FOLDER", "UPLOAD__0__INCLUDE__0", "UPLOAD__1__FROM"),
        *("DOWNLOAD__0__FROM", "DOWNLOAD__0__COMPANY_ID", "_X", "X__0__Y"),
    ]
)
WORDS = st.text(min_size=1, max_size=6).filter(lambda text: "\0" not in text)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(variables=st.dictionaries(KEYS, WORDS, max_size=6))
def test_whatever_the_environment_says_it_is_settings_or_problems(variables: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "docferry.toml"
    path.write_text(WOOTIV + upload())
    written = sources.collect(path, {f"DOCFERRY_{key}": value for key, value in variables.items()})
    found, told = problems.validate(Settings, written)
    assert found is not None or told
    assert all(problem.strip() for problem in told)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["workers", "codat", "wootiv", "retry", "upload", "download", "state_dir", "_x", "self"]),
        VALUES,
    )
)
def test_whatever_the_file_says_it_is_settings_or_problems(values: dict[str, object]) -> None:
    written = sources.Written(Path("/x"), {"state_dir": "/s"} | values)
    found, told = problems.validate(Settings, written)
    assert found is not None or told


@pytest.mark.parametrize(
    ("section", "server"),
    [
        ('environment = "environment_1"', "https://dev.wootiv.com"),
        ('environment = "production"', "http://localhost:3001"),
        ('environment = "production"\nbase_url = "https://wootiv.example.com"', "https://wootiv.example.com"),
    ],
)
def test_the_environment_selects_the_server_of_the_sdk(tmp_path: Path, section: str, server: str) -> None:
    path = tmp_path / "docferry.toml"
    mapping = f'[[upload]]\nname = "scans"\nfolder = "{tmp_path}/scans"\nto = "wootiv"\n'
    path.write_text(f'state_dir = "{tmp_path}/state"\n[wootiv]\n{section}\n{mapping}')
    found = load(path, {})
    assert found.wootiv.base_url == server
    assert any("an address of this machine" in each for each in found.warnings) == (server == "http://localhost:3001")
