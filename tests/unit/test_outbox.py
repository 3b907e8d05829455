"""Test the outbox of a mapping: its target and its rules."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from docferry.files import outbox
from docferry.settings import Upload
from docferry.settings.outbox import Outbox, outboxes


def mapping(**more: object) -> Upload:
    """Return a mapping to Wootiv."""
    return Upload.model_validate({"name": "scans", "folder": "/srv/scans", "to": "wootiv", **more})


def test_an_outbox_belongs_to_one_host_also_where_all_share_the_mapping(tmp_path: Path) -> None:
    own, shared = (Outbox.of(each, tmp_path, "sftp-1") for each in (mapping(), mapping(shared=True)))
    assert (own.name, shared.name, shared.shared) == ("scans (put)", "scans@sftp-1 (put)", False)
    of_host = Outbox.of(mapping().of_host("sftp-1"), tmp_path, "sftp-1")
    assert (of_host.name, of_host.origin.configured_name) == ("scans@sftp-1 (put)", "scans")


def test_two_mappings_have_two_outboxes_below_the_state_folder(tmp_path: Path) -> None:
    names = ["a/b", "a b", "{x}", "x" * 300]
    boxes = outboxes([mapping(name=name) for name in names], tmp_path, "here")
    roots = {box.root for box in boxes.values()}
    assert len(roots) == len(names)
    assert {root.parent for root in roots} == {tmp_path / "outbox"}


def test_the_rules_of_the_mapping_hold_behind_the_folder_of_each_document(tmp_path: Path) -> None:
    box = Outbox.of(mapping(include=["2026/*.pdf"], object_name="{mapping}/{path}"), tmp_path, "here")
    assert box.wanted(b"0123-01/2026/a.pdf")
    assert not box.wanted(b"0123-01/a.pdf")
    assert not box.wanted(b"a.pdf")
    assert box.enters(b"")
    assert box.enters(b"0123-01")
    assert not box.enters(b".docferry-put-1")
    assert box.remote_name(b"0123-01/2026/a.pdf", token="t", sha256="s", now=0.0) == "scans/2026/a.pdf"


@pytest.mark.parametrize(("template", "replaces"), [("{path}", True), ("{token}/{name}", False), ("{sha256}", False)])
def test_a_later_document_replaces_an_earlier_one_where_they_are_one_object(
    tmp_path: Path, template: str, replaces: bool
) -> None:
    assert Outbox.of(mapping(object_name=template), tmp_path, "here").replaces == replaces


def test_a_name_with_a_similar_digest_replaces_no_other_document(tmp_path: Path) -> None:
    """The SHA-256 of both names begins with the same 48 bits; such a name is found within a minute."""
    first, second = PurePosixPath("10635334.pdf"), PurePosixPath("27607913.pdf")
    outbox.store(tmp_path, first, [b"1"])
    made = outbox.store(tmp_path, second, [b"2"])
    assert outbox.replace_older(tmp_path, made) == []
    outbox.remove_replaced(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.pdf")) == [str(first), str(second)]
    later = outbox.store(tmp_path, first, [b"3"])
    assert len(outbox.replace_older(tmp_path, later)) == 1
    assert [path.read_bytes() for path in sorted(tmp_path.rglob("*.pdf"), key=lambda path: path.name)] == [b"3", b"2"]
