"""Test that every change of the log is found and located."""

from __future__ import annotations

import pytest

from docferry.errors import StateError
from docferry.receipts.audit import NAMED_PROBLEMS, NamedHead
from docferry.receipts.merkle import leaf_hash
from receipts.conftest import Store

pytestmark = pytest.mark.anyio
NAMES = [f"{letter}.pdf" for letter in "abcdefghijklm"]


@pytest.fixture
async def sent(store: Store) -> Store:
    """Thirteen receipts, with a head stored after five."""
    await store.send(*NAMES[:5])
    await store.head()
    await store.send(*NAMES[5:])
    return store


async def test_what_nobody_touched_is_right(sent: Store) -> None:
    head = await sent.head()
    report = await sent.audit(NamedHead("the head in x.txt", head))
    assert (report.receipts, report.problems, report.problem_count, report.heads) == (13, (), 0, 3)


async def test_an_empty_log_is_right(store: Store) -> None:
    assert await store.problems(NamedHead("the head in x.txt", await store.head())) == []


async def test_a_truncated_tail(sent: Store) -> None:
    sent.sql("DELETE FROM receipt WHERE idx >= 11")
    found = await sent.problems()
    assert "receipts 11 to 12 (2) are missing: the end of the log was cut off" in found
    assert [each for each in found if each.startswith("transfer ")] == [
        f"transfer {number} was sent and has no receipt: it was removed" for number in (12, 13)
    ]


async def test_a_truncated_tail_with_everything_made_to_fit(sent: Store) -> None:
    """Transfers and the log's row are adapted, too: only a head stored elsewhere reveals it."""
    head = await sent.head()
    sent.sql("DELETE FROM receipt WHERE idx >= 11")
    sent.sql("UPDATE transfer SET state = 'waiting' WHERE id > 11")
    sent.sql("DELETE FROM receipt_head WHERE size > 11")
    sent.rewrite()
    assert await sent.problems() == []
    assert await sent.problems(NamedHead("the head in x.txt", head)) == [
        "the head in x.txt counts 13 receipts and the log has 11: its end was cut off, or the database is an older copy"
    ]


async def test_a_removed_row(sent: Store) -> None:
    sent.sql("DELETE FROM receipt WHERE idx = 7")
    assert await sent.problems() == [
        "receipt 7 is missing: removed from the database",
        "transfer 8 was sent and has no receipt: it was removed",
    ]


async def test_a_removed_row_and_the_others_moved_up(sent: Store) -> None:
    sent.sql("DELETE FROM receipt WHERE idx = 7")
    for index in range(8, 13):
        body = sent.sql("SELECT body FROM receipt WHERE idx = ?", index)[0][0]
        body = body.replace(f'"index":{index},', f'"index":{index - 1},')
        sent.sql("UPDATE receipt SET idx = ?, body = ? WHERE idx = ?", index - 1, body, index)
    sent.rewrite()
    assert await sent.problems() == ["transfer 8 was sent and has no receipt: it was removed"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"path":"c.pdf"', '"path":"d.pdf"'),
        ('"size":5', '"size":6'),
        ('"status":200', '"status":201'),
        ('"time":"2026', '"time":"2025'),
        ('"host":"sftp-1"', '"host":"x"'),
    ],
)
async def test_a_changed_row(sent: Store, old: str, new: str) -> None:
    (body,) = sent.sql("SELECT body FROM receipt WHERE idx = 2")[0]
    changed = body.replace(old, new)
    assert changed != body
    sent.sql("UPDATE receipt SET body = ? WHERE idx = 2", changed)
    found = await sent.problems()
    assert found[0] == "receipt 2 was changed: its text has another hash than its leaf"
    assert found[1:] in ([], ["receipt 2 and transfer 3 of the queue differ: one was changed"])


async def test_a_changed_leaf(sent: Store) -> None:
    sent.sql("UPDATE receipt SET leaf = zeroblob(32) WHERE idx = 2")
    assert await sent.problems() == ["receipt 2 was changed: its text has another hash than its leaf"]


async def test_a_changed_row_with_its_leaf(sent: Store) -> None:
    """The next head limits the change to the range between two heads."""
    head = (await sent.head()).head
    sent.sql("UPDATE receipt SET body = replace(body, '\"status\":200', '\"status\":201') WHERE idx = 8")
    body = sent.sql("SELECT body FROM receipt WHERE idx = 8")[0][0]
    sent.sql("UPDATE receipt SET leaf = ? WHERE idx = 8", leaf_hash(body.encode()))
    (found,) = await sent.problems()
    assert head.size == 13
    assert "has another root: at least one receipt from 5 to 12 is not the one that was there" in found


async def test_a_changed_row_with_the_whole_tree(sent: Store) -> None:
    """Only an external head shows the change, if the heads in the database are changed, too."""
    head = await sent.head()
    sent.sql("UPDATE receipt SET body = replace(body, '\"status\":200', '\"status\":201') WHERE idx = 8")
    sent.rewrite()
    sent.sql("DELETE FROM receipt_head")
    assert await sent.problems() == []
    (found,) = await sent.problems(NamedHead("the head in x.txt", head))
    assert found.startswith("the head in x.txt has another root: at least one receipt from 0 to 12 ")
    assert "forked" in found


async def test_a_changed_transfer(sent: Store) -> None:
    sent.sql("UPDATE transfer SET sha256 = ? WHERE id = 4", "0" * 64)
    assert await sent.problems() == ["receipt 3 and transfer 4 of the queue differ: one was changed"]


async def test_swapped_texts(sent: Store) -> None:
    bodies = dict(sent.sql("SELECT idx, body FROM receipt WHERE idx IN (4, 9)"))
    sent.sql("UPDATE receipt SET body = ? WHERE idx = 4", bodies[9])
    sent.sql("UPDATE receipt SET body = ? WHERE idx = 9", bodies[4])
    assert "receipts 4 and 9 were swapped" in await sent.problems()


async def test_swapped_rows(sent: Store) -> None:
    for old, new in ((4, -1), (9, 4), (-1, 9)):
        sent.sql("UPDATE receipt SET idx = ? WHERE idx = ?", new, old)
    assert await sent.problems() == ["receipts 4 and 9 were swapped"]


async def test_a_row_that_was_inserted_again_in_its_place(sent: Store) -> None:
    (row,) = sent.sql("SELECT idx, transfer_id, kind, body, leaf FROM receipt WHERE idx = 3")
    sent.sql("DELETE FROM receipt WHERE idx = 3")
    sent.sql("INSERT INTO receipt VALUES (?, ?, ?, ?, ?)", *row[:3], row[3].replace("d.pdf", "z.pdf"), row[4])
    assert (await sent.problems())[0] == "receipt 3 was changed: its text has another hash than its leaf"


@pytest.mark.parametrize("fits", [False, True])
async def test_a_row_that_was_inserted_again_at_the_end(sent: Store, fits: bool) -> None:
    (row,) = sent.sql("SELECT transfer_id, kind, body, leaf FROM receipt WHERE idx = 3")
    body = row[2].replace('"index":3,', '"index":13,') if fits else row[2]
    sent.sql("INSERT INTO receipt VALUES (13, ?, ?, ?, ?)", *row[:2], body, row[3])
    if fits:
        sent.rewrite()
    found = await sent.problems()
    assert "receipt 13 is a second one for transfer 4: it was inserted again" in found
    if not fits:
        assert "receipt 13 is added, but not by docferry" in found
        assert "receipt 13 has the text of receipt 3: it was moved or inserted again" in found


async def test_a_forked_append(sent: Store) -> None:
    """An old copy was restored and extended with other documents beyond the external head."""
    copy = sent.copy("old.db")
    await sent.send("n.pdf", "o.pdf")
    head = await sent.head()
    sent.restore(copy)
    await sent.send("p.pdf", "q.pdf", "r.pdf")
    assert await sent.problems() == []
    (found,) = await sent.problems(NamedHead("the head in x.txt", head))
    assert found.startswith("the head in x.txt has another root: at least one receipt from 5 to 14 ")


async def test_an_old_copy(sent: Store) -> None:
    copy = sent.copy("old.db")
    await sent.send("n.pdf", "o.pdf")
    head = await sent.head()
    sent.restore(copy)
    (found,) = await sent.problems(NamedHead("the head in x.txt", head))
    assert found.endswith("its end was cut off, or the database is an older copy")


async def test_a_head_of_another_log(sent: Store) -> None:
    sent.sql("UPDATE receipt_log SET origin = 'docferry/other/1'")
    assert any("is of another log: docferry/" in each for each in await sent.problems())


async def test_a_changed_stored_head(sent: Store) -> None:
    sent.sql("UPDATE receipt_head SET note = 'nonsense'")
    async with sent.open() as queue:
        with pytest.raises(StateError, match="receipt_head was changed"):
            await queue.log.audit()


@pytest.mark.parametrize("change", ["DELETE FROM receipt_log", "UPDATE receipt_log SET frontier = x'00'"])
async def test_a_log_without_its_row(sent: Store, change: str) -> None:
    sent.sql(change)
    async with sent.open() as queue:
        with pytest.raises(StateError, match="receipt_log"):
            await queue.log.audit()


async def test_a_transfer_that_was_called_sent(sent: Store) -> None:
    async with sent.open() as queue:
        await queue.enqueue("never.pdf")
    sent.sql("UPDATE transfer SET state = 'sent' WHERE id = 14")
    assert await sent.problems() == ["transfer 14 was sent and has no receipt: it was removed"]


async def test_a_transfer_that_is_sent_no_more(sent: Store) -> None:
    sent.sql("UPDATE transfer SET state = 'waiting' WHERE id = 5")
    sent.sql("UPDATE transfer SET state = 'gone' WHERE id = 6")
    sent.sql("DELETE FROM transfer WHERE id = 7")
    assert await sent.problems() == [
        "receipt 4 says that transfer 5 was sent; it is waiting",
        "receipt 6 is about transfer 7, which the queue does not have",
        "receipt 5 says that transfer 6 was sent; the queue says it is gone",
    ]


async def test_much_that_is_wrong_is_counted(store: Store) -> None:
    await store.send(*(f"{number}.pdf" for number in range(NAMED_PROBLEMS + 50)))
    store.sql("UPDATE receipt SET body = replace(body, '200', '201')")
    report = await store.audit()
    assert len(report.problems) == NAMED_PROBLEMS
    assert report.problem_count >= NAMED_PROBLEMS + 50
