"""Test that TLS errors name their cause and fix, with certificates as real servers have them."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.streams.tls
import pytest
import trustme
from anyio.abc import SocketStream
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from contract.raw_server import OK, head_of, http_client, saying, serving
from contract.upload_items import item
from docferry.errors import RemoteError
from docferry.remotes.http import PlainBody

pytestmark = pytest.mark.anyio
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
Context = Callable[..., ssl.SSLContext]


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    made = trustme.CA()
    made.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return made


def server_context(certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate is not None:
        certificate.configure_cert(context)
    return context


def self_signed(folder: Path, *, san: bool) -> ssl.SSLContext:
    """Create a self-signed certificate for 127.0.0.1; without subjectAltName its name is only in CN."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    made = builder.sign(key, hashes.SHA256())
    (folder / "own.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "own.key").write_bytes(private)
    context = server_context()
    context.load_cert_chain(folder / "own.pem", folder / "own.key")
    return context


def over_tls(context: ssl.SSLContext) -> Callable[[SocketStream], Any]:
    async def speak(client: SocketStream) -> None:
        try:
            tls = await anyio.streams.tls.TLSStream.wrap(client, server_side=True, ssl_context=context)
            await tls.receive()
            await tls.send(OK)
        except ssl.SSLError:
            pass

    return speak


async def failure(speak: Callable[[SocketStream], Any], host: str = "localhost", **options: Any) -> RemoteError:
    async with serving(speak) as server, http_client(**options) as http:
        with pytest.raises(RemoteError) as found:
            await http.call("PUT", server.url.replace("http://127.0.0.1", f"https://{host}"), body=document())
    assert (found.value.kind, found.value.body_complete) == ("unreachable", False)
    return found.value


def document() -> PlainBody:
    return PlainBody(item("a.pdf"))


@contextmanager
def openssl_server(context: ssl.SSLContext) -> Iterator[str]:
    """Serve on a blocking socket, because OpenSSL sends its alerts there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    accepted, _ = listener.accept()
                except OSError:
                    return
                with accepted, suppress(OSError), context.wrap_socket(accepted, server_side=True) as secured:
                    secured.recv(65536)
                    secured.sendall(OK)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://localhost:{listener.getsockname()[1]}/"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("begins", "ends", "said"),
    [(-3 * DAY, -2 * DAY, "has expired"), (2 * DAY, 3 * DAY, "not valid yet; check the clock")],
)
async def test_the_time_of_a_certificate(
    authority: trustme.CA, tmp_path: Path, begins: datetime.timedelta, ends: datetime.timedelta, said: str
) -> None:
    made = authority.issue_cert("localhost", not_before=NOW + begins, not_after=NOW + ends)
    error = await failure(over_tls(server_context(made)), ca_file=tmp_path / "ca.pem")
    assert said in str(error)
    assert "ca_file" not in str(error)


@pytest.mark.parametrize(("host", "kind"), [("localhost", "host name"), ("127.0.0.1", "address")])
async def test_a_certificate_for_another_name(authority: trustme.CA, tmp_path: Path, host: str, kind: str) -> None:
    made = server_context(authority.issue_cert("elsewhere.test"))
    error = await failure(over_tls(made), host, ca_file=tmp_path / "ca.pem")
    assert f"for another {kind}" in str(error)
    assert "ca_file" not in str(error)


async def test_an_unknown_authority(authority: trustme.CA) -> None:
    error = await failure(over_tls(server_context(authority.issue_cert("localhost"))))
    assert "unknown authority; set `ca_file`" in str(error)


async def test_a_certificate_that_signs_itself(tmp_path: Path) -> None:
    context = self_signed(tmp_path, san=True)
    assert "self-signed; set `ca_file`" in str(await failure(over_tls(context)))
    async with serving(over_tls(context)) as server, http_client(ca_file=tmp_path / "own.pem") as http:
        url = server.url.replace("http://127.0.0.1", "https://localhost")
        assert (await http.call("GET", url)).content == b"ok"


async def test_a_name_in_cn_alone_does_not_count(tmp_path: Path) -> None:
    error = await failure(over_tls(self_signed(tmp_path, san=False)), ca_file=tmp_path / "own.pem")
    assert "for another host name" in str(error)


async def test_no_tls_on_this_port() -> None:
    async def speak(client: SocketStream) -> None:
        await client.receive()
        await client.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    assert "does not speak TLS on this port" in str(await failure(speak))


async def test_a_server_that_hangs_up_in_the_handshake() -> None:
    async def speak(client: SocketStream) -> None:
        await client.receive()

    assert "TLS handshake" in str(await failure(speak))


async def test_a_server_that_says_nothing_in_the_handshake() -> None:
    async def speak(_client: SocketStream) -> None:
        await anyio.sleep_forever()

    assert "the TLS handshake was not complete after 0.3 s" in str(await failure(speak, connect_timeout=0.3))


async def test_no_shared_version(authority: trustme.CA, tmp_path: Path) -> None:
    context = server_context(authority.issue_cert("localhost"))
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with http_client(ca_file=tmp_path / "ca.pem") as http:
        with openssl_server(context) as url, pytest.raises(RemoteError, match="no common TLS version") as found:
            await http.call("PUT", url, body=document())
    assert found.value.kind == "unreachable"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_certificate(authority: trustme.CA, tmp_path: Path, version: ssl.TLSVersion) -> None:
    context = server_context(authority.issue_cert("localhost"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = version
    authority.configure_trust(context)
    ours = authority.issue_cert("us")
    ours.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "us.pem"))
    with openssl_server(context) as url:
        async with http_client(ca_file=tmp_path / "ca.pem") as http:
            with pytest.raises(RemoteError, match="client certificate") as found:
                await http.call("PUT", url, body=document())
            assert found.value.kind == "unreachable"
        async with http_client(ca_file=tmp_path / "ca.pem", cert_file=tmp_path / "us.pem") as http:
            assert (await http.call("GET", url)).content == b"ok"


@pytest.mark.parametrize("content", [None, b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nxx\n"])
async def test_a_ca_file_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    async with serving(saying(OK)) as server, http_client(ca_file=path) as http:
        with pytest.raises(RemoteError, match=r"ca_file .*ca\.pem cannot be used") as failed:
            await http.call("GET", server.url.replace("http:", "https:"))
        assert failed.value.kind == "unreachable"


async def test_a_request_is_answered_over_tls_when_all_is_well(authority: trustme.CA, tmp_path: Path) -> None:
    context = server_context(authority.issue_cert("localhost"))

    async def speak(client: SocketStream) -> None:
        tls = await anyio.streams.tls.TLSStream.wrap(client, server_side=True, ssl_context=context)
        for _ in range(2):
            await head_of(tls)  # type: ignore[arg-type] # it reads bytes all the same
            await tls.send(OK)

    async with serving(speak) as server, http_client(ca_file=tmp_path / "ca.pem") as http:
        for _ in range(2):
            await http.call("GET", server.url.replace("http://127.0.0.1", "https://localhost"))
        assert server.connections == 1
