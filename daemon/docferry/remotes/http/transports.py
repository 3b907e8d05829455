"""Open the transport for given options."""

from __future__ import annotations

import httpx

from docferry.remotes.http.exchange import Transport
from docferry.remotes.http.options import HttpOptions
from docferry.remotes.http.proxy import ProxyTransport
from docferry.remotes.http.tls import Trust
from docferry.remotes.http.transport import DirectTransport


def open_transport(options: HttpOptions) -> Transport:
    """Return a transport for direct or proxied connections. Raises httpx.ConnectError."""
    trust = Trust(options.ca_file, options.cert_file, options.key_file)
    if options.proxy is None:
        return DirectTransport(trust, local_address=options.local_address, public_only=options.public_only)
    try:
        return ProxyTransport(
            options.proxy, trust, local_address=options.local_address, public_only=options.public_only
        )
    except ValueError as error:
        raise httpx.ConnectError(f"the address of the proxy {error}") from None
