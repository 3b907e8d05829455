"""Test routes, patterns and remote names of upload mappings."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from docferry.model import Target
from docferry.settings import Upload

COMPANY = "8a210b68-6988-11ed-a1eb-0242ac120002"
CONNECTION = "2e9d2c44-f675-40ba-8049-353bfcb5e171"
IDS = f"{COMPANY}/{CONNECTION}/".encode()


def scans(**more: object) -> Upload:
    return Upload.model_validate({"name": "a", "folder": "/srv/scans", "to": "wootiv", **more})


def customers(folder: str = "/srv/{company_id}/{connection_id}", **more: object) -> Upload:
    return Upload.model_validate({"name": "a", "folder": folder, "to": "codat", **more})


def test_a_plain_folder_has_one_target() -> None:
    route = scans().route(b"a/b.pdf")
    assert (route.target, route.inner, route.problem) == (Target("wootiv"), b"a/b.pdf", None)
    fixed = customers("/srv/x", company_id=COMPANY.upper(), connection_id=CONNECTION).route(b"b.pdf")
    assert fixed.target == Target("codat", COMPANY, CONNECTION)


def test_placeholders_say_the_target_in_lower_case() -> None:
    mapping = customers()
    assert (mapping.root, mapping.placeholders) == (Path("/srv"), ("company_id", "connection_id"))
    route = mapping.route(IDS.upper() + b"2026/x.pdf")
    assert route.target == Target("codat", COMPANY, CONNECTION)
    assert (route.inner, route.ignored) == (b"2026/x.pdf", False)


def test_a_placeholder_and_a_given_id_go_together() -> None:
    mapping = customers("/srv/{connection_id}", company_id=COMPANY)
    assert mapping.route(f"{CONNECTION}/x.pdf".encode()).target == Target("codat", COMPANY, CONNECTION)


@pytest.mark.parametrize("segment", [b"acme", b"\xff", COMPANY.encode() + b" ", b"{company_id}", COMPANY[:-1].encode()])
def test_a_segment_that_is_no_uuid_goes_nowhere(segment: bytes) -> None:
    route = customers().route(segment + b"/" + CONNECTION.encode() + b"/x.pdf")
    assert route.target is None
    assert route.problem is not None
    assert "{company_id}" in route.problem
    assert not route.ignored


@pytest.mark.parametrize("path", [b"x.pdf", COMPANY.encode() + b"/x.pdf"])
def test_a_file_above_the_placeholders_goes_nowhere_and_is_told(path: bytes) -> None:
    route = customers().route(path)
    assert (route.target, route.ignored) == (None, True)
    assert route.problem is not None
    assert customers().wanted(path)


def test_plain_segments_after_a_placeholder_must_be_met() -> None:
    mapping = customers("/srv/{company_id}/bank/{connection_id}")
    path = f"{COMPANY}/bank/{CONNECTION}/x.pdf".encode()
    assert mapping.route(path).target == Target("codat", COMPANY, CONNECTION)
    assert mapping.wanted(path)
    other = path.replace(b"/bank/", b"/other/")
    assert mapping.route(other).target is None
    assert not mapping.wanted(other)
    assert mapping.enters(COMPANY.encode())
    assert mapping.enters(COMPANY.encode() + b"/bank")
    assert not mapping.enters(COMPANY.encode() + b"/other")


@pytest.mark.parametrize(
    "name",
    [
        ".hidden", "~$report.docx", ".~lock.report.odt#", "a.tmp", "a.TMP", "a.part", "a.partial", "a.filepart",
        "a.crdownload", "a.swp", "a.pdf~", "Thumbs.db", "thumbs.db", ".DS_Store", "a\n.tmp",
    ],
)  # fmt: skip
def test_built_in_excludes(name: str) -> None:
    for mapping in (scans(), scans(include=["*"], exclude=["zzz"]), scans(include=["*.tmp", ".*", "*"])):
        assert not mapping.wanted(name.encode())
        assert not mapping.wanted(b"deep/er/" + name.encode())
    assert not customers().wanted(IDS + name.encode())
    assert not scans().wanted(b"a/.git/x.pdf")
    assert not scans().wanted(b".git/x.pdf")
    assert not customers().wanted(name.encode())


@pytest.mark.parametrize("name", ["a.pdf", "tmp", "a.tmp.pdf", "~a", "a~b", "thumbs.db.pdf", "part", "$~x", "swp.csv"])
def test_what_only_looks_like_it_is_wanted(name: str) -> None:
    assert scans().wanted(name.encode())
    assert scans().wanted(b"tmp/" + name.encode())


def test_patterns_are_gitignores_and_relative_to_the_folder() -> None:
    mapping = scans(include=["*.pdf", "/top/*.csv"], exclude=["drafts/", "secret-*", "/old/**"])
    wanted = [b"a.pdf", b"x/y/a.pdf", b"top/a.csv", b"x/old/a.pdf", b"\xff.pdf"]
    unwanted = [b"a.csv", b"x/top/a.csv", b"drafts/a.pdf", b"x/drafts/y/a.pdf", b"x/secret-1.pdf", b"old/x/a.pdf"]
    assert [path for path in wanted + unwanted if mapping.wanted(path)] == wanted


def test_patterns_apply_below_the_placeholders() -> None:
    mapping = customers(include=["/in/*"], exclude=["/in/x.pdf"])
    assert mapping.wanted(IDS + b"in/y.pdf")
    assert not mapping.wanted(IDS + b"in/x.pdf")
    assert not mapping.wanted(IDS + b"y.pdf")


def test_folders_that_are_hidden_or_excluded_are_not_entered() -> None:
    mapping = scans(exclude=["drafts/", "/old/sub"])
    assert [folder for folder in (b"", b"a", b"a/b", b"old", b"old/x") if not mapping.enters(folder)] == []
    refused = [b".git", b"a/.git", b"a/.git/b", b"drafts", b"a/drafts", b"drafts/x", b"old/sub"]
    assert [folder for folder in refused if mapping.enters(folder)] == []
    assert not customers(exclude=["drafts/"]).enters(IDS + b"drafts")
    assert customers(exclude=["drafts/"]).enters(IDS.rstrip(b"/"))
    assert not customers().enters(b".git")


def test_an_excluded_folder_is_entered_if_something_in_it_is_brought_back() -> None:
    mapping = scans(exclude=["drafts/**", "!drafts/final.pdf"])
    assert mapping.enters(b"drafts")
    assert mapping.wanted(b"drafts/final.pdf")
    assert not mapping.wanted(b"drafts/first.pdf")


def test_whatever_is_wanted_lies_in_folders_that_are_entered() -> None:
    mapping = scans(exclude=["drafts/", "tmp*", "!tmp-keep/"])
    for path in (b"a/b/c.pdf", b"drafts/x.pdf", b"tmp-keep/x.pdf", b"a/drafts/b/x.pdf"):
        folders = path.split(b"/")[:-1]
        entered = all(mapping.enters(b"/".join(folders[: depth + 1])) for depth in range(len(folders)))
        assert entered or not mapping.wanted(path)


@pytest.mark.parametrize(
    ("template", "path", "name"),
    [
        ("{path}", b"a/b c.pdf", "a/b c.pdf"),
        ("in/{path}", b"x/y.pdf", "in/x/y.pdf"),
        ("{name}", b"a/b.tar.gz", "b.tar.gz"),
        ("{stem}~{token}{suffix}", b"a/b.tar.gz", "b.tar~7f3a9c2e.gz"),
        ("{stem}~{token}{suffix}", b"README", "README~7f3a9c2e"),
        ("{date}/{sha256}{suffix}", b"a/b.PDF", "2026-11-21/" + "ab" * 32 + ".PDF"),
        ("{path}", b"a/\xff\xfeb\x1b\n.pdf", "a/__b__.pdf"),
        ("{path}", "ä/€.pdf".encode(), "ä/€.pdf"),
        ("{path}", b"{name}/{sha256}.pdf", "{name}/{sha256}.pdf"),
        ("{stem}~{token}{suffix}", b"a" * 251 + b".pdf", "a" * 242 + "~7f3a9c2e.pdf"),
        ("{stem}~{token}{suffix}", "ä".encode() * 125 + b".pdf", "ä" * 121 + "~7f3a9c2e.pdf"),
        ("in/{token}-{name}", b"a" * 251 + b".pdf", "in/7f3a9c2e-" + "a" * 242 + ".pdf"),
        ("{path}", b"a" * 255, "a" * 255),
    ],
)
def test_remote_names(template: str, path: bytes, name: str) -> None:
    facts = {"token": "7f3a9c2e", "sha256": "ab" * 32, "now": 1_795_305_599.0}  # 2026-11-21T23:59:59Z
    assert scans(object_name=template).remote_name(path, **facts) == name  # type: ignore[arg-type] # a plain dict
    assert customers(file_name=template).remote_name(IDS + path, **facts) == name  # type: ignore[arg-type] # a plain dict


@pytest.mark.alone
def test_wanted_is_fast_enough_for_a_million_files() -> None:
    plain, patterned = scans(), scans(include=["*.pdf", "*.csv"], exclude=["drafts/"])
    names = [b"folder/%d/document-%d.pdf" % (n % 100, n) for n in range(20_000)]
    for mapping, allowed in ((plain, 20e-6), (patterned, 200e-6)):
        best = min(_seconds(mapping, names) for _ in range(3))
        assert best / len(names) < allowed


def _seconds(mapping: Upload, names: list[bytes]) -> float:
    """Return the processor seconds: other programs do not count."""
    started = time.process_time()
    assert all(mapping.wanted(name) for name in names)
    return time.process_time() - started
