"""Test that a URL is split as httpx would send it."""

import time

import httpx
import pytest

from docferry.endpoints import parse_url, split_url

SIGNED = "https://s3.example.com:8443/bucket/a%20b.pdf?X-Amz-Credential=AK%2Feu&X-Amz-Signature=" + "ab" * 32


@pytest.mark.parametrize(
    "text",
    [
        SIGNED,
        "http://[::1]:8080/a/b?x=(1)&y='2'",
        "https://api.example.com/companies/8a21/connections/2e9d/files",
        "https://api.example.com",
        "https://api.example.com?x=1",
        "https://müller.example/ä?q=ö",
        "https://host/a b?c={d}|e",
        "https://host/100%?x=%zz",
        "https://host/a/../b/./c?x=/./",
        "https://host/a?b#c",
        "https://user:pass@host/a",
    ],
)
def test_a_split_url_has_the_target_that_httpx_sends(text: str) -> None:
    url, origin, target = split_url(text)
    whole, same_origin = parse_url(text)
    assert origin == same_origin
    assert (target or url.raw_path) == whole.raw_path
    assert url.host == whole.host


def test_only_a_plain_url_has_a_target_of_its_own() -> None:
    assert split_url(SIGNED)[0] == httpx.URL("https://s3.example.com:8443")
    assert split_url("https://host/a b")[2] is None


@pytest.mark.parametrize("text", ["ftp://host/a", "https:///a", "https://ho st/a", "https://host:99999/a", "nothing"])
def test_what_is_no_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is |a host name"):
        split_url(text)


def test_a_long_url_that_is_not_plain_costs_little() -> None:
    began = time.process_time()
    split_url("https://host/" + "a" * 50_000 + "{")
    assert time.process_time() - began < 2.0
