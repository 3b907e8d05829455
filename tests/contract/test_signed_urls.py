"""Test signed URLs: allowed hosts and headers."""

from __future__ import annotations

import pytest

from docferry.errors import RemoteError
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
        "https://127.0.0.1/k",
        "HTTPS://127.0.0.1/k",
        "https://localhost/k",
        "https://[::1]/k",
        "https://[::ffff:127.0.0.1]/k",
        "https://10.1.2.3/k",
        "https://192.168.1.1/k",
        "https://169.254.169.254/latest/meta-data",
        "https://[fe80::1]/k",
        "https://[fd00::1]/k",
        "https://0.0.0.0/k",
        "https://100.64.0.1/k",
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
async def test_a_url_that_no_document_is_sent_to(url: object) -> None:
    with pytest.raises(RemoteError) as failure:
        await SignedUrlPolicy(BASE).check(url)
    assert failure.value.kind == "not_ours"
    assert "X-Amz-Signature=a" not in str(failure.value)


@pytest.mark.parametrize("url", ["https://8.8.4.4/k?X-Amz-Signature=a", "HTTPS://8.8.8.8:8443/k"])
async def test_a_public_host_is_allowed(url: str) -> None:
    assert await SignedUrlPolicy(BASE).check(url) == url


async def test_a_private_base_url_allows_private_hosts_and_a_plain_one_plain_urls() -> None:
    assert await SignedUrlPolicy("http://127.0.0.1:8000").check("http://127.0.0.1:9000/k")
    assert await SignedUrlPolicy("https://10.0.0.5").check("https://10.0.0.6/k")
    with pytest.raises(RemoteError, match="without TLS"):
        await SignedUrlPolicy("https://10.0.0.5").check("http://10.0.0.6/k")


async def test_storage_hosts_name_the_only_hosts() -> None:
    policy = SignedUrlPolicy(BASE, ["*.Storage.internal", "127.0.0.1"])
    for allowed in ("https://a.storage.internal/k", "https://A.STORAGE.INTERNAL/k", "https://127.0.0.1/k", f"{BASE}/k"):
        assert await policy.check(allowed) == allowed
    for refused in ("https://8.8.4.4/k", "https://storage.internal.example.com/k", "http://a.storage.internal/k"):
        with pytest.raises(RemoteError):
            await policy.check(refused)


def test_signed_headers_that_could_change_the_request_are_left_out() -> None:
    dangerous = ["authorization", "cookie", "transfer-encoding", "host", "connection", "content-length"]
    metadata = ["metadata-flavor", "x-aws-ec2-metadata-token"]
    harmless = ["content-type", "content-disposition", "x-amz-meta-a", "x-goog-meta-b"]
    harmless += ["if-none-match", "cache-control", "expires"]
    names = [*dangerous, *metadata, *harmless]
    query = f"https://8.8.4.4/k?X-Amz-Signature=a&X-Amz-SignedHeaders={'%3B'.join(names)}"
    signed = SignedUpload(query, [(name, "x") for name in names])
    assert signed.headers("a.pdf", None).keys() == set(harmless)
