"""Test signed URLs: allowed hosts and headers."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from docferry.clock import SystemClock
from docferry.errors import RemoteError
from docferry.remotes.http import HttpClient, HttpOptions
from docferry.remotes.http.connect import resolve
from docferry.remotes.wootiv.signed_url import SignedUpload, SignedUrlPolicy

pytestmark = pytest.mark.anyio

BASE = "https://8.8.8.8"


@pytest.mark.parametrize(
    "url",
    [
        "http://8.8.4.4/k?X-Amz-Signature=a",
        "HTTP://8.8.4.4/k?X-Amz-Signature=a",
        "hTTp://8.8.8.8/k",
        "ftp://8.8.4.4/k",
        "https://user:password@8.8.4.4/k",
        "https://8.8.4.4:99999/k",
        "https://[::1/k",
        "https://.s3.eu/k\n",
        "https:///k",
        "",
        None,
        7,
    ],
)
def test_a_url_that_no_document_is_sent_to(url: object) -> None:
    with pytest.raises(RemoteError) as failure:
        SignedUrlPolicy(BASE).check(url)
    assert failure.value.kind == "not_ours"
    assert "X-Amz-Signature=a" not in str(failure.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/k",
        "HTTPS://127.0.0.1/k",
        "https://2130706433/k",
        "https://localhost/k",
        "https://LOCALHOST/k",
        "https://[::1]/k",
        "https://[::ffff:127.0.0.1]/k",
        "https://[::7f00:1]/k",
        "https://[64:ff9b::7f00:1]/k",
        "https://[2002:a9fe:a9fe::]/k",
        "https://10.1.2.3/k",
        "https://192.168.1.1/k",
        "https://169.254.169.254/latest/meta-data",
        "https://[fe80::1]/k",
        "https://[fd00::1]/k",
        "https://0.0.0.0/k",
        "https://100.64.0.1/k",
        "https://224.0.0.1/k",
    ],
)
@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9"], ids=["direct", "proxy"])
async def test_an_address_that_no_document_is_sent_to(url: str, proxy: str | None) -> None:
    policy = SignedUrlPolicy(BASE)
    http = HttpClient("S3", SystemClock(), HttpOptions(timeout=5.0, proxy=proxy, public_only=policy.public_only))
    with pytest.raises(RemoteError, match="storage_hosts") as failure:
        await http.call("PUT", policy.check(f"{url}?X-Amz-Signature=a"), body=b"x")
    assert failure.value.kind == "not_ours"
    assert not failure.value.body_complete
    assert "X-Amz-Signature" not in str(failure.value)


async def test_a_public_host_is_allowed() -> None:
    policy = SignedUrlPolicy(BASE)
    for url in ("https://8.8.4.4/k?X-Amz-Signature=a", "HTTPS://8.8.8.8:8443/k"):
        assert policy.check(url) == url
    for host in ("8.8.4.4", "2a00:1450:4001:80e::200e", "64:ff9b::808:808", "::ffff:8.8.8.8"):
        await policy.public_only.require(host, await resolve(host, 443))


async def test_a_private_base_url_allows_private_hosts_and_a_plain_one_plain_urls() -> None:
    for base, host in (("http://127.0.0.1:8000", "127.0.0.1"), ("https://10.0.0.5", "10.0.0.6")):
        policy = SignedUrlPolicy(base)
        assert policy.check(f"{base.partition(':')[0]}://{host}:9000/k")
        await policy.public_only.require(host, await resolve(host, 9000))
    with pytest.raises(RemoteError, match="without TLS"):
        SignedUrlPolicy("https://10.0.0.5").check("http://10.0.0.6/k")


async def test_storage_hosts_name_the_only_hosts() -> None:
    policy = SignedUrlPolicy(BASE, ["*.Storage.internal", "127.0.0.1"])
    for allowed in ("https://a.storage.internal/k", "https://A.STORAGE.INTERNAL/k", "https://127.0.0.1/k", f"{BASE}/k"):
        assert policy.check(allowed) == allowed
        host = urlsplit(allowed).hostname or ""
        await policy.public_only.require(host, await resolve("127.0.0.1", 443))
    for refused in ("https://8.8.4.4/k", "https://storage.internal.example.com/k", "http://a.storage.internal/k"):
        with pytest.raises(RemoteError):
            policy.check(refused)


def test_signed_headers_that_could_change_the_request_are_left_out() -> None:
    dangerous = ["authorization", "cookie", "transfer-encoding", "host", "connection", "content-length"]
    metadata = ["metadata-flavor", "x-aws-ec2-metadata-token"]
    harmless = ["content-type", "content-disposition", "x-amz-meta-a", "x-goog-meta-b"]
    harmless += ["if-none-match", "cache-control", "expires"]
    names = [*dangerous, *metadata, *harmless]
    query = f"https://8.8.4.4/k?X-Amz-Signature=a&X-Amz-SignedHeaders={'%3B'.join(names)}"
    signed = SignedUpload(query, [(name, "x") for name in names])
    assert signed.headers("a.pdf", None).keys() == set(harmless)
