"""Test anchors: their receivers, their failures, and the recognition of an old database."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha512
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import anyio
import pytest
from rfc3161_client import decode_timestamp_response

from alerts.servers import Hook, Mailbox, mail_server
from docferry import settings as settings_of
from docferry.app.anchors import AnchorError, FileAnchor, TsaAnchor
from docferry.app.receipts import ReceiptKeeper
from docferry.clock import TurnableClock
from docferry.errors import ConfigError
from docferry.receipts.heads import parse_notes, read_notes
from docferry.store.opening import open_database
from docferry.store.receipt_log import StoredHead
from receipts.conftest import Store

pytestmark = pytest.mark.anyio


async def head_of(store: Store) -> StoredHead:
    async with store.open() as queue:
        return await queue.log.take_head()


async def test_heads_are_appended_to_a_file_once(store: Store, tmp_path: Path) -> None:
    anchor, heads = FileAnchor(tmp_path / "heads.txt"), []
    for name in ("a.pdf", "b.pdf"):
        await store.send(name)
        heads.append(await head_of(store))
        await anchor.put(heads[-1])
        await FileAnchor(tmp_path / "heads.txt").put(heads[-1])  # as the next process does
    assert list(parse_notes(anchor.path.read_text())) == [each.signed for each in heads]
    assert list(await anchor.newest()) == [each.signed for each in heads]


@pytest.mark.parametrize("broken", ["docferry/h/1\n5\nAA", "docferry/h/1\n", "\x00\xff", "no head\n"])
async def test_an_append_that_broke_off_does_not_spoil_the_next(store: Store, tmp_path: Path, broken: str) -> None:
    await store.send("a.pdf")
    anchor, head = FileAnchor(tmp_path / "heads.txt"), await head_of(store)
    anchor.path.write_text(broken)
    await anchor.put(head)
    assert (await anchor.newest())[-1] == head.signed


async def test_a_file_that_cannot_be_written_is_named(store: Store, tmp_path: Path) -> None:
    await store.send("a.pdf")
    anchor = FileAnchor(tmp_path / "missing" / "heads.txt")
    with pytest.raises(AnchorError, match=r"missing/heads.txt cannot be written: No such file"):
        await anchor.put(await head_of(store))
    assert list(await anchor.newest()) == []


def keeper_settings(tmp_path: Path, *anchors: str) -> settings_of.Settings:
    config = tmp_path / "docferry.toml"
    listed = ", ".join(f'"{each}"' for each in anchors)
    config.write_text(f'state_dir = "{tmp_path}"\n[receipts]\nanchor = [{listed}]\n')
    return settings_of.load(config, {})


async def test_trouble_with_one_anchor_is_told_and_stops_no_other(store: Store, tmp_path: Path) -> None:
    await store.send("a.pdf")
    good, bad = tmp_path / "good.txt", tmp_path / "bad" / "heads.txt"
    settings = keeper_settings(tmp_path, f"file:{bad}", f"file:{good}")
    async with open_database(store.path) as database:
        keeper = ReceiptKeeper(settings, database, store.clock)
        await keeper.anchor()
        assert "bad/heads.txt cannot be written" in keeper.notices["unanchored"]
        assert len(list(parse_notes(good.read_text()))) == 1
        bad.parent.mkdir()
        await keeper.anchor()
        assert keeper.notices == {}
    assert good.read_text() == bad.read_text()


async def test_an_empty_log_is_not_anchored(store: Store, tmp_path: Path) -> None:
    async with open_database(store.path) as database:
        keeper = ReceiptKeeper(keeper_settings(tmp_path, f"file:{tmp_path / 'heads.txt'}"), database, store.clock)
        assert await keeper.anchor() is None
    assert not (tmp_path / "heads.txt").exists()


async def test_the_head_of_a_digest(store: Store, tmp_path: Path) -> None:
    await store.send("a.pdf")
    async with open_database(store.path) as database:
        lines = await ReceiptKeeper(keeper_settings(tmp_path, "log"), database, store.clock).digest_lines()
    assert list(parse_notes("\n".join(lines))) == [(await head_of(store)).signed]


async def test_a_line_of_the_log_is_read_as_a_head(store: Store) -> None:
    await store.send("a.pdf")
    head = (await head_of(store)).signed
    for line in (f"12:00 INFO head head={head.one_line()!r}", f'{{"action":"head","head":"{head.one_line()}"}}'):
        assert list(parse_notes(f"other\n{line}\nother")) == [head]


class TestOldCopies:
    """Compare the newest external head with the database, before anything is sent."""

    @pytest.fixture
    def anchor(self, tmp_path: Path) -> Path:
        return tmp_path / "heads.txt"

    async def start(self, store: Store, anchor: Path, *, at_stop: bool = True) -> str | None:
        """Start docferry once, and return its message about the copy."""
        async with open_database(store.path) as database:
            keeper = ReceiptKeeper(keeper_settings(anchor.parent, f"file:{anchor}"), database, store.clock)
            await keeper.check_copy()
            if at_stop:
                await keeper.finish()
            return keeper.notices.get("old_copy")

    async def test_the_same_database_is_no_copy(self, store: Store, anchor: Path) -> None:
        await store.send("a.pdf")
        assert await self.start(store, anchor) is None
        await store.send("b.pdf")  # killed before it could anchor
        assert await self.start(store, anchor) is None

    async def test_an_older_copy_asks_before_it_sends(self, store: Store, anchor: Path) -> None:
        async with store.open() as queue:
            await queue.enqueue("waits.pdf", "held.pdf")
        store.sql("UPDATE transfer SET state = 'held', reason = 'approval' WHERE remote_name = 'held.pdf'")
        copy = store.copy("copy.db")
        await store.send("b.pdf")
        assert await self.start(store, anchor) is None
        store.restore(copy)
        store.clock.turn(60)
        problem = await self.start(store, anchor)
        assert problem is not None
        assert "has a head of 2 receipts that the database (with 0) does not know" in problem
        created = store.clock.now() - 62
        assert store.sql("SELECT state, reason, first_sent FROM transfer") == [
            ("doubtful", "old_copy", pytest.approx(created, abs=2)),
            ("held", "approval", pytest.approx(created, abs=2)),
        ]
        async with store.open() as queue:
            await queue.transfers.retry(everything=True)
            await queue.transfers.retry(reason="approval")  # only a release by name sends it
        assert store.sql("SELECT DISTINCT state FROM transfer") == [("doubtful",)]

    async def test_a_forked_copy_is_recognised(self, store: Store, anchor: Path) -> None:
        await store.send("a.pdf")
        copy = store.copy("copy.db")
        await store.send("b.pdf")
        await self.start(store, anchor)
        store.restore(copy)
        await store.send("c.pdf", "d.pdf")
        assert "does not know" in str(await self.start(store, anchor))
        assert await self.start(store, anchor) is None  # its own head is the newest now

    async def test_a_new_database_of_the_same_host_is_recognised(self, store: Store, anchor: Path) -> None:
        await store.send("a.pdf")
        await self.start(store, anchor)
        store.path.unlink()
        assert "heads of another database of this host" in str(await self.start(store, anchor))

    async def test_files_from_before_are_taken_for_sent_perhaps_over_restarts(self, store: Store, anchor: Path) -> None:
        await store.send("a.pdf")
        await self.start(store, anchor)
        store.path.unlink()
        await self.start(store, anchor)
        found = store.clock.now()
        store.clock.turn(3600)
        async with open_database(store.path) as database:
            keeper = ReceiptKeeper(keeper_settings(anchor.parent, "log"), database, store.clock)
            await keeper.check_copy()
            assert keeper.adopt_before == found

    async def test_a_file_that_cannot_be_read_is_told_and_stops_nothing(self, store: Store, tmp_path: Path) -> None:
        anchor = tmp_path  # a folder
        async with open_database(store.path) as database:
            keeper = ReceiptKeeper(keeper_settings(tmp_path, f"file:{anchor}"), database, store.clock)
            await keeper.check_copy()
            assert "cannot be compared" in keeper.notices["unanchored"]


# -- time stamps -------------------------------------------------------------------------------------------------------

TSA_CONFIG = """
[tsa]
default_tsa = tsa1
[tsa1]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256, sha512
accuracy = secs:1
[req]
distinguished_name = name
x509_extensions = stamping
[name]
[stamping]
extendedKeyUsage = critical,timeStamping
basicConstraints = critical,CA:false
"""


@dataclass(frozen=True)
class Authority:
    """Access a running time stamp authority."""

    url: str
    certificate: Path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    """Run a time stamp authority: OpenSSL's own, behind HTTP."""
    folder = tmp_path_factory.mktemp("tsa")
    (folder / "openssl.cnf").write_text(TSA_CONFIG.format(folder=folder))
    (folder / "serial").write_text("01\n")
    words = ["req", "-config", "openssl.cnf", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=tsa"]
    subprocess.run(["openssl", *words, "-keyout", "tsa.key", "-out", "tsa.pem"], cwd=folder, check=True)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            (folder / "query.tsq").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            words = [
                "openssl",
                "ts",
                "-reply",
                "-config",
                "openssl.cnf",
                "-queryfile",
                "query.tsq",
                "-out",
                "reply.tsr",
            ]
            subprocess.run(words, cwd=folder, check=True)
            body = b"nonsense" if self.path == "/broken" else (folder / "reply.tsr").read_bytes()
            if self.path == "/replay":  # an old answer, to another question
                body = (folder / "old.tsr").read_bytes()
            shutil.copy(folder / "reply.tsr", folder / "old.tsr")
            self.send_response(503 if self.path == "/down" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield Authority(f"http://127.0.0.1:{server.server_port}", folder / "tsa.pem")
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_head_is_stamped_once_and_the_stamp_is_kept(store: Store, authority: Authority, tmp_path: Path) -> None:
    await store.send("a.pdf")
    async with open_database(store.path) as database:
        keeper = ReceiptKeeper(keeper_settings(tmp_path, f"tsa:{authority.url}/"), database, store.clock)
        await keeper.anchor()
        assert keeper.notices == {}
        (head,) = await keeper.log.heads()
        await keeper.anchor()
        assert await keeper.log.heads() == [head]
    assert head.timestamp is not None
    stamped = decode_timestamp_response(head.timestamp).tst_info.message_imprint.message
    assert stamped == sha512(head.signed.note().encode()).digest()
    (tmp_path / "head.tsr").write_bytes(head.timestamp)
    (tmp_path / "head.txt").write_text(head.signed.note())
    words = ["openssl", "ts", "-verify", "-in", "head.tsr", "-data", "head.txt", "-CAfile", str(authority.certificate)]
    assert (await anyio.run_process(words, cwd=tmp_path, check=False)).returncode == 0


@pytest.mark.parametrize(
    ("path", "said"),
    [("/down", "answered with 503"), ("/broken", "is no time stamp"), ("/replay", "stamped something else")],
)
async def test_an_authority_that_stamps_nothing_is_named(
    store: Store, authority: Authority, path: str, said: str
) -> None:
    await store.send("a.pdf")
    head = await head_of(store)
    await TsaAnchor(authority.url, TurnableClock()).put(head)  # so that there is an old answer
    with pytest.raises(AnchorError, match=said):
        await TsaAnchor(authority.url + path, TurnableClock()).put(head)


# -- receivers of alerts -----------------------------------------------------------------------------------------------


async def test_heads_go_to_receivers_by_mail_and_webhook_once(store: Store, tmp_path: Path) -> None:
    await store.send("a.pdf")
    mailbox = Mailbox()
    with mail_server(mailbox) as port, Hook().running() as hook:
        config = tmp_path / "docferry.toml"
        config.write_text(
            f'state_dir = "{tmp_path}"\n[receipts]\nanchor = ["email", "webhook"]\n'
            f'[[alerts.to]]\nname = "ops"\nkind = "email"\nsmtp = "smtp://127.0.0.1:{port}"\nfrom = "a@example.com"\n'
            f'to = ["b@example.com"]\n[[alerts.to]]\nname = "hook"\nkind = "webhook"\nurl = "{hook.url}/"\n'
        )
        settings = settings_of.load(config, {})
        async with open_database(store.path) as database:
            keeper = ReceiptKeeper(settings, database, store.clock)
            for _ in range(2):
                head = await keeper.anchor()
                assert keeper.notices == {}
        assert head is not None
        (mail,) = mailbox.mails
        assert read_notes(bytes(mail)) == [head.signed]
        (taken,) = hook.taken
        text = json.loads(taken.body)["alerts"][0]["annotations"]["description"]
        assert list(parse_notes(text)) == [head.signed]


async def test_a_receiver_that_is_down_is_told(store: Store, tmp_path: Path) -> None:
    await store.send("a.pdf")
    with Hook().running() as hook:
        hook.status = 500
        config = tmp_path / "docferry.toml"
        config.write_text(
            f'state_dir = "{tmp_path}"\n[receipts]\nanchor = ["webhook"]\n'
            f'[[alerts.to]]\nname = "hook"\nkind = "webhook"\nurl = "{hook.url}/"\n'
        )
        async with open_database(store.path) as database:
            keeper = ReceiptKeeper(settings_of.load(config, {}), database, store.clock)
            await keeper.anchor()
            assert "not copied to webhook" in keeper.notices["unanchored"]
            hook.status = 200
            await keeper.anchor()
            assert keeper.notices == {}


def test_an_anchor_without_its_receiver_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'has "email" and no \[\[alerts.to\]\] is of this kind'):
        keeper_settings(tmp_path, "email")
    for wrong in ("file:relative", "tsa:nowhere", "ftp://x", "log:x"):
        with pytest.raises(ConfigError, match="is no a"):
            keeper_settings(tmp_path, wrong)
