"""Test alerts by mail with a real mail server."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import anyio
import pytest

from alerts.conftest import Authority
from alerts.servers import PASSWORD, Mailbox, mail_server
from alerts.test_messages import item, message
from docferry.alerts.receivers import DeliveryError, open_receiver
from docferry.clock import TurnableClock
from docferry.settings.alerts import ReceiverSettings

pytestmark = pytest.mark.anyio


async def send(tmp_path: Path, smtp: str, summary: str = "why", **more: Any) -> None:
    if "password" in more:
        password = tmp_path / "password"
        password.write_text(more.pop("password"))
        password.chmod(0o600)
        more["password_file"] = password
    given = {"from": "docferry@example.com", "to": ["ops@example.com", "night@example.com"], **more}
    settings = ReceiverSettings.model_validate({"name": "ops", "kind": "email", "smtp": smtp, **given})
    await open_receiver(settings, TurnableClock()).send(message(item(summary=summary)))


async def test_over_tls_with_a_password(tmp_path: Path, authority: Authority) -> None:
    mailbox = Mailbox()
    with mail_server(mailbox, tls=authority.context, login=True) as port:
        await send(tmp_path, f"smtps://me%40example.com@127.0.0.1:{port}", password=PASSWORD, ca_file=authority.ca_file)
    assert mailbox.logins == [("me@example.com", PASSWORD)]  # and this server speaks nothing but TLS
    (mail,) = mailbox.mails
    assert mail["Subject"] == "docferry on sftp-1: why"
    assert mail["From"] == "docferry@example.com"
    assert mail["To"] == "ops@example.com, night@example.com"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Message-ID"].startswith("<msg_")
    assert "- why" in mail.get_content()  # type: ignore[attr-defined]  # the modern policy's
    assert mailbox.envelopes == [("docferry@example.com", ["ops@example.com", "night@example.com"])]


@pytest.mark.parametrize("scheme", ["smtp", "smtp+starttls"])
async def test_starttls_is_used_where_it_is_offered(tmp_path: Path, authority: Authority, scheme: str) -> None:
    mailbox = Mailbox()
    with mail_server(mailbox, starttls=authority.context) as port:
        await send(tmp_path, f"{scheme}://127.0.0.1:{port}", ca_file=authority.ca_file)
    assert mailbox.encrypted == [True]


async def test_a_relay_on_this_machine_needs_no_tls(tmp_path: Path) -> None:
    mailbox = Mailbox()
    with mail_server(mailbox) as port:
        await send(tmp_path, f"smtp://127.0.0.1:{port}")
        with pytest.raises(DeliveryError, match="offers no STARTTLS"):
            await send(tmp_path, f"smtp+starttls://127.0.0.1:{port}")
    assert mailbox.encrypted == [False]


async def test_a_certificate_that_is_not_trusted_ends_it(tmp_path: Path, authority: Authority) -> None:
    mailbox = Mailbox()
    server = mail_server(mailbox, tls=authority.context, login=True)
    with server as port, pytest.raises(DeliveryError, match="certificate"):
        await send(tmp_path, f"smtps://me@127.0.0.1:{port}", password=PASSWORD)
    assert (mailbox.mails, mailbox.logins) == ([], [])


async def test_a_wrong_password_is_said_and_not_shown(tmp_path: Path, authority: Authority) -> None:
    mailbox = Mailbox()
    server = mail_server(mailbox, tls=authority.context, login=True)
    with server as port, pytest.raises(DeliveryError, match="said 535") as caught:
        await send(tmp_path, f"smtps://me@127.0.0.1:{port}", password="canary-wrong", ca_file=authority.ca_file)
    assert "canary" not in str(caught.value)
    assert mailbox.mails == []


async def test_what_the_server_refuses_is_no_delivery(tmp_path: Path) -> None:
    mailbox = Mailbox(refuse="550 no such user")
    with mail_server(mailbox) as port:
        with pytest.raises(DeliveryError, match=r"refused every recipient.*550 no such user"):
            await send(tmp_path, f"smtp://127.0.0.1:{port}")
        mailbox.refuse, mailbox.after_data = None, "452 disk full"
        with pytest.raises(DeliveryError, match="said 452 disk full"):
            await send(tmp_path, f"smtp://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "hostile", ["a\r\nBcc: thief@example.com", "a\n.\nMAIL FROM:<x>", "\x00\x1b[2J", "\u202e", "\udcff"]
)
async def test_hostile_text_makes_no_header_and_no_command(tmp_path: Path, hostile: str) -> None:
    mailbox = Mailbox()
    with mail_server(mailbox) as port:
        await send(tmp_path, f"smtp://127.0.0.1:{port}", summary=hostile)
    (mail,) = mailbox.mails
    assert mail["Bcc"] is None
    assert str(mail["Subject"]).isprintable()
    assert mailbox.envelopes[0][1] == ["ops@example.com", "night@example.com"]


async def test_nobody_is_there(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(DeliveryError, match=r"mail server 127\.0\.0\.1.*refused"):
            await send(tmp_path, f"smtp://127.0.0.1:{closed.getsockname()[1]}")


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
async def test_a_server_that_says_nothing_holds_up_no_stop(tmp_path: Path, scheme: str) -> None:
    """Cancelled, the connection ends and with it the thread: the program would wait for it at its end."""
    with socket.socket() as silent_host:
        silent_host.bind(("127.0.0.1", 0))
        silent_host.listen()
        silent_host.settimeout(60)
        async with anyio.create_task_group() as group:
            group.start_soon(send, tmp_path, f"{scheme}://127.0.0.1:{silent_host.getsockname()[1]}")
            peer, _ = await anyio.to_thread.run_sync(silent_host.accept)
            group.cancel_scope.cancel()
        with peer:
            peer.settimeout(60)
            while peer.recv(4096):  # the beginning of TLS; then the end, or a timeout that fails the test
                pass
