"""Send alerts by mail: SMTP over TLS, STARTTLS, or plain to a server on this machine."""

from __future__ import annotations

import smtplib
import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from ipaddress import ip_address
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

import anyio
import anyio.to_thread

from docferry import logs
from docferry.alerts.messages import Message
from docferry.alerts.receivers.base import ConfiguredReceiver, DeliveryError
from docferry.settings.alerts import ReceiverSettings

log = logs.get("alerts")

#: The time limit of one SMTP step, seconds.
STEP_TIMEOUT_S: Final = 15.0
#: The time limit of the whole SMTP session, seconds.
SMTP_TIMEOUT_S: Final = 60.0
_PORTS: Final = {"smtps": smtplib.SMTP_SSL_PORT, "smtp": smtplib.SMTP_PORT, "smtp+starttls": 587}


class Email(ConfiguredReceiver):
    """Deliver to a receiver of kind `email`."""

    async def send(self, message: Message) -> None:
        """Deliver a message to all recipients, or raise DeliveryError."""
        conversation = _Conversation(self._settings)
        mail = compose(message, self._settings, self._clock.now())
        try:
            with anyio.fail_after(SMTP_TIMEOUT_S):
                await anyio.to_thread.run_sync(conversation.hold, mail, abandon_on_cancel=True)
        except TimeoutError:
            raise DeliveryError(f"the mail server did not take the message within {SMTP_TIMEOUT_S:.0f} s") from None
        finally:
            conversation.abort()  # an abandoned thread ends at once


def compose(message: Message, settings: ReceiverSettings, now: float) -> EmailMessage:
    """Return the mail. Its headers contain only configured values and one line without control characters."""
    mail = EmailMessage(policy=SMTP)
    mail["From"] = settings.sender or ""
    mail["To"] = ", ".join(settings.to)
    mail["Subject"] = message.subject
    mail["Date"] = format_datetime(datetime.fromtimestamp(now, UTC))
    mail["Message-ID"] = f"<{message.id}@{(settings.sender or '').rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"  # suppresses vacation replies
    if message.severity == "critical":
        mail["Importance"] = "high"
    mail.set_content(message.text, cte="quoted-printable")
    return mail


class _Cut:
    """Close a connection from another thread: a thread that waits for a reply cannot be cancelled."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._done = False

    def guard(self, connected: socket.socket) -> None:
        """Close this connection when `now` is called, or at once if `now` was called before."""
        self._socket = connected.dup()
        if self._done:
            self.now()

    def now(self) -> None:
        """Close the connection."""
        self._done = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()


class _Connection(smtplib.SMTP):
    """Hold an SMTP connection that another thread can close, over TLS if a context is given."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None, cut: _Cut) -> None:
        self._context = context
        self._cut = cut
        super().__init__(host, port, timeout=STEP_TIMEOUT_S)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:  # like smtplib.SMTP_SSL
        connected = socket.create_connection((host, port), timeout)
        self._cut.guard(connected)
        return connected if self._context is None else self._context.wrap_socket(connected, server_hostname=host)


class _Conversation:
    """Run one session with the mail server, in a thread."""

    def __init__(self, settings: ReceiverSettings) -> None:
        self._settings = settings
        self._cut = _Cut()
        self.abort = self._cut.now  # called from another thread

    def hold(self, mail: EmailMessage) -> None:
        """Deliver the mail, or raise DeliveryError."""
        server = urlsplit(self._settings.smtp or "")
        password = self._settings.secret()
        if password.problem:
            raise DeliveryError(password.problem)
        if password.value:
            logs.hide(password.value)
        try:
            self._deliver(mail, server, password.value)
        except smtplib.SMTPRecipientsRefused as error:
            raise DeliveryError(f"the mail server refused every recipient: {_said(error.recipients)}") from error
        except smtplib.SMTPResponseException as error:
            raise DeliveryError(f"the mail server said {error.smtp_code} {_text(error.smtp_error)}") from error
        except (OSError, smtplib.SMTPException, ValueError) as error:
            raise DeliveryError(f"mail server {server.hostname}: {error}") from error

    def _deliver(self, mail: EmailMessage, server: SplitResult, password: str | None) -> None:
        context = ssl.create_default_context(cafile=self._settings.ca_file)
        implicit = context if server.scheme == "smtps" else None
        connection = _Connection(server.hostname or "", server.port or _PORTS[server.scheme], implicit, self._cut)
        try:
            self._log_in(connection, server, context, password)
            refused = connection.send_message(mail, self._settings.sender, list(self._settings.to))
            with suppress(smtplib.SMTPException, OSError):  # the server has accepted the message, whatever happens next
                connection.quit()
        finally:
            connection.close()
        if refused:
            log.warning("alert_recipients_refused", _said(refused), receiver=self._settings.name)

    def _log_in(
        self, connection: smtplib.SMTP, server: SplitResult, context: ssl.SSLContext, password: str | None
    ) -> None:
        encrypted = server.scheme == "smtps" or self._starttls(connection, server, context)
        if server.username and password:
            if not encrypted and not _is_local(server.hostname or ""):
                raise DeliveryError("the mail server offers no TLS, and a password is not sent without it")
            connection.login(unquote(server.username), password)

    @staticmethod
    def _starttls(connection: smtplib.SMTP, server: SplitResult, context: ssl.SSLContext) -> bool:
        """Start TLS if the server offers it; raise DeliveryError if TLS is required and not offered."""
        connection.ehlo()
        if connection.has_extn("starttls"):
            connection.starttls(context=context)
            connection.ehlo()
            return True
        if server.scheme == "smtp+starttls":
            raise DeliveryError("the mail server offers no STARTTLS")
        return False


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _said(refused: dict[str, tuple[int, bytes]]) -> str:
    return "; ".join(f"{address}: {code} {_text(text)}" for address, (code, text) in list(refused.items())[:5])


def _text(raw: bytes | str) -> str:
    return (raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw))[:200]
