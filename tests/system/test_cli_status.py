"""Test rare parts of the page of `docferry status`, from figures as `--json` gives them."""

from __future__ import annotations

from typing import Any

from docferry.cli import status_view
from docferry.cli.output import Table, count, line, size, span
from docferry.clock import iso
from docferry.model import Reason, State

NOW = 1_790_000_000.0


def _page(**changes: Any) -> str:
    """Return the page in plain text, of figures with one upload and these changes."""
    upload = {
        "mapping": "bank",
        "configured": True,
        "to": "codat",
        "folder": "/srv/bank",
        "documents": {state.value: 0 for state in State},
        "problem": None,
        "watch": "watching",
        "last_scan": iso(NOW - 20),
        "unsettled": [],
    }
    remote = dict.fromkeys(
        ("limit", "remaining", "reset", "clock_offset", "last_answer", "oldest_due", "projected_finish")
    )
    figures: dict[str, Any] = {
        "running": {"pid": 7, "since": iso(NOW - 7200)},
        "trouble": None,
        "uploads": [upload | changes.pop("upload", {})],
        "downloads": [],
        "held": [],
        "remotes": [{"remote": "codat", "in_flight": 0, **remote, **changes.pop("remote", {})}],
        "gates": [],
        "hosts": [],
    } | changes
    shown = []
    for block in status_view.blocks(figures, NOW):
        shown += block.lines() if isinstance(block, Table) else [str(block)]
    return "\n".join(shown)


def test_a_quiet_page_needs_no_look() -> None:
    page = _page()
    assert "docferry runs for 2 h (pid 7)" in page
    assert "watching, read 20 s ago" in page
    assert "needs a look" not in page


def test_a_file_that_never_comes_to_rest_is_shown() -> None:
    unsettled = [{"path": "big.pdf", "since": iso(NOW - 2400)}, {"path": "fresh.pdf", "since": iso(NOW - 3)}]
    page = _page(upload={"unsettled": unsettled})
    assert "still being written for 40 min  big.pdf" in page
    assert "fresh.pdf" not in page


def test_a_watch_that_is_not_there_says_why() -> None:
    page = _page(upload={"watch": "scanning every 5 s: raise fs.inotify.max_user_watches"})
    assert "raise fs.inotify.max_user_watches" in page
    assert "scanning every 5 s, read" in page


def test_what_the_remotes_said_is_shown() -> None:
    said = {"limit": 5000, "remaining": 0, "reset": iso(NOW + 7200), "last_answer": iso(NOW - 0.5), "clock_offset": 400}
    page = _page(remote=said)
    assert "0 of 5,000" in page
    assert "in 2 h" in page
    assert "just now" in page
    assert "this clock is 7 min behind it" in page


def test_the_oldest_due_document_and_the_projected_finish_are_shown() -> None:
    oldest = {"id": 12, "mapping": "bank", "path": "march.pdf", "since": iso(NOW - 7200)}
    page = _page(remote={"due": 1200, "oldest_due": oldest, "projected_finish": iso(NOW + 1200)})
    assert "1,200  due for 2 h  in 20 min   march.pdf (12)" in page
    assert "unknown" in _page(remote={"due": 1200, "oldest_due": oldest})


def test_a_closed_gate_says_since_when_why_and_when_it_is_probed() -> None:
    gate = {"gate": "codat/C", "reason": "company", "detail": "403", "probes": 4}
    page = _page(gates=[gate | {"since": iso(NOW - 1200), "next_probe": iso(NOW + 30)}])
    assert "codat/C" in page
    assert "closed for 20 min: company, next probe in 30 s" in page
    assert "give the key access" in page
    assert "probing now" in _page(gates=[gate | {"since": iso(NOW - 1200), "next_probe": iso(NOW)}])


def test_a_stopped_mapping_a_failed_download_and_a_full_disk_are_shown() -> None:
    download = {"mapping": "inbox", "configured": True, "from": "codat", "folder": "/srv/in", "brought": 3}
    page = _page(
        upload={"problem": "the folder is suddenly empty"},
        downloads=[download | {"problem": "no space", "last_round": None}],
        trouble="database or disk is full",
    )
    assert "the folder is suddenly empty" in page
    assert "no space" in page
    assert "database or disk is full" in page


def test_every_reason_for_holding_has_a_cure() -> None:
    gates = {"key", "account", "company", "connection", "quota", "rate", "unreachable", "failing", "redirected"}
    gates |= {"stranger", "storage", "antivirus"}
    assert set(status_view.CURES) == {reason.value for reason in Reason} - gates


def test_words_for_figures() -> None:
    assert [size(n) for n in (0, 999, 1500, 123_456, 5e9, 5e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "123 kB",
        "5.0 GB",
        "5000 GB",
    ]
    assert [span(n) for n in (-1, 0, 0.4, 59, 600, 10_000, 400_000)] == [
        "0 s",
        "0 s",
        "0.4 s",
        "59 s",
        "10 min",
        "3 h",
        "5 d",
    ]
    assert (count(1, "document"), count(2000, "document")) == ("1 document", "2,000 documents")
    assert str(line("a\x1b", b"\xff")) == "a\\x1b \\xff"
