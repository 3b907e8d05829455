"""Trust certificates, start TLS on a socket, and explain TLS errors to an operator."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Final

import anyio
import httpx

from docferry.endpoints import load_trust

#: OpenSSL's verify codes (x509_vfy.h), with the cause and the fix.
_CERTIFICATE: Final = {
    9: "its certificate is not valid yet; check the clock of this machine",
    10: "its certificate has expired; its operator must renew it (is the clock of this machine right?)",
    18: "its certificate is self-signed; set `ca_file` to the certificate, if it is the right server",
    19: "its certificate comes from an unknown authority; set `ca_file` to the authority's certificate",
    20: "its certificate comes from an unknown authority; set `ca_file` to the authority's certificate",
    21: "its certificate comes from an unknown authority; set `ca_file` to the authority's certificate",
    62: "its certificate is for another host name; use the name in the certificate",
    64: "its certificate is for another address; use the name in the certificate",
}
#: OpenSSL's reasons, by a part of their name.
_HANDSHAKE: Final = (
    ("WRONG_VERSION_NUMBER", "it does not speak TLS on this port; is it http, or another port?"),
    ("HTTP_REQUEST", "it does not speak TLS on this port; is it http, or another port?"),
    ("PACKET_LENGTH_TOO_LONG", "it does not speak TLS on this port; is it http, or another port?"),
    ("RECORD_LAYER_FAILURE", "it does not speak TLS on this port; is it http, or another port?"),
    ("UNSUPPORTED_PROTOCOL", "it supports no common TLS version: it must support TLS 1.2 or newer"),
    ("PROTOCOL_VERSION", "it supports no common TLS version: it must support TLS 1.2 or newer"),
    ("CERTIFICATE_REQUIRED", "it asks for a client certificate; set `cert_file` and `key_file`"),
    ("ALERT_BAD_CERTIFICATE", "it refuses the client certificate; check `cert_file`"),
    ("ALERT_CERTIFICATE", "it refuses the client certificate; check `cert_file`"),
    ("ALERT_UNKNOWN_CA", "it refuses the client certificate; check `cert_file`"),
    ("HANDSHAKE_FAILURE", "it supports no common TLS cipher, or asks for a client certificate"),
    ("UNRECOGNIZED_NAME", "it does not know the host name in its address"),
    ("INTERNAL_ERROR", "it does not serve TLS for this host name"),
)


class Trust:
    """Load the certificates of a client at the first use: loading takes 20 ms."""

    def __init__(
        self, ca_file: Path | None = None, cert_file: Path | None = None, key_file: Path | None = None
    ) -> None:
        self._files = ca_file, cert_file, key_file
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of all connections. Raises httpx.ConnectError for an unusable file."""
        if self._context is None:
            try:
                self._context = load_trust(*self._files)
            except ValueError as error:
                raise httpx.ConnectError(str(error)) from error
        return self._context


async def handshake(connected: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """Return the socket under TLS. Raises ssl.SSLError or OSError; the caller then closes the socket.

    A connection that ends without close_notify raises ssl.SSLEOFError: the data may be cut.
    """
    secured = context.wrap_socket(
        connected, server_hostname=host, do_handshake_on_connect=False, suppress_ragged_eofs=False
    )
    try:
        while True:
            try:
                secured.do_handshake()
            except ssl.SSLWantReadError:
                await anyio.wait_readable(secured)
            except ssl.SSLWantWriteError:
                await anyio.wait_writable(secured)
            else:
                return secured
    except BaseException:
        secured.close()
        raise


def explain_tls(error: ssl.SSLError) -> str:
    """Return cause and fix of a TLS error."""
    if isinstance(error, ssl.SSLCertVerificationError):
        known = _CERTIFICATE.get(error.verify_code)
        return f"{known} ({error.verify_message})" if known else f"its certificate is refused: {error.verify_message}"
    reason = str(getattr(error, "reason", "") or error).upper().replace(" ", "_")
    for part, sentence in _HANDSHAKE:
        if part in reason:
            return sentence
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or "EOF" in reason:
        return "it closed the connection during the TLS handshake; is it a TLS port?"
    return f"TLS failed ({reason.lower()})"


def find_tls_error(error: BaseException) -> ssl.SSLError | None:
    """Return the TLS error behind an exception, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
