"""Check signed URLs and compute their headers. The query of a URL is a secret until it expires."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from docferry.errors import RemoteError
from docferry.remotes.http import PublicOnly, content_type

#: The signed headers that a request may contain. Others could change its meaning or its account.
_ALLOWED_HEADERS: Final = ("content-", "x-amz-", "x-goog-", "if-", "cache-control", "expires")
#: Headers that the request sets itself.
_OWN_HEADERS: Final = frozenset({"content-length"})
_DIGEST: Final = "content-md5"
#: The parameters of a signed URL that are read.
_SIGNATURE: Final = "X-Amz-Signature"
_SIGNED_HEADERS: Final = "X-Amz-SignedHeaders"
_READ: Final = frozenset({_SIGNATURE, _SIGNED_HEADERS})


class SignedUrlPolicy:
    """Decide which hosts a signed URL may name.

    Allowed are the host of `base_url`, the patterns of `storage_hosts`, and any public host. The scheme is `https`, or
    `http` if `base_url` has `http`. The client of the storage checks the addresses: `public_only`.
    """

    def __init__(self, base_url: str, storage_hosts: Sequence[str] = ()) -> None:
        base = urlsplit(base_url)
        self._is_plain = base.scheme == "http"
        self._base_host = (base.hostname or "").lower()
        self._hosts = tuple(pattern.lower() for pattern in storage_hosts)

    @property
    def public_only(self) -> PublicOnly:
        """Return the hosts that may have private addresses."""
        return PublicOnly(self._base_host, self._hosts)

    def check(self, url: object) -> str:
        """Return a URL to which documents may be sent. Raises RemoteError for any other."""
        parts, host = _split(url)
        if parts.scheme == "http" and not self._is_plain:
            raise unusable("Wootiv signed a URL without TLS")
        if self._hosts and host != self._base_host and not any(fnmatchcase(host, each) for each in self._hosts):
            raise unusable(f"Wootiv signed a URL for {host[:80]}, which storage_hosts in [wootiv] does not name")
        return str(url)


@dataclass(slots=True)
class SignedUpload:
    """Hold the permission to upload one object: a URL for a PUT, or a URL and fields for a POST."""

    url: str
    fields: Sequence[tuple[str, str]]
    query: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        query = dict[str, str]()
        for pair in self.url.partition("?")[2].partition("#")[0].split("&"):
            name, _, value = pair.partition("=")
            if unquote(name) in _READ:  # to decode all values would take most of the time
                query[unquote(name)] = unquote(value)
        self.query = query

    @property
    def is_put(self) -> bool:
        """Return whether the URL is signed for a PUT."""
        return _SIGNATURE in self.query

    @property
    def is_post(self) -> bool:
        """Return whether the fields are signed for a POST."""
        return not self.is_put and bool(dict(self.fields).get("Policy"))

    def headers(self, name: str, md5: str | None) -> dict[str, str]:
        """Return the headers of a PUT: the signed ones unchanged, and the MD5 of the bytes.

        The storage accepts an unsigned digest, and refuses other bytes with BadDigest. So damaged bytes are never
        stored under the name of the document. A digest signed by Wootiv has precedence.
        """
        given = {field.lower(): value for field, value in self.fields}
        signed = set(self.query.get(_SIGNED_HEADERS, "").lower().split(";"))
        headers = {each: given[each] for each in sorted(signed & given.keys()) if _may_be_sent(each)}
        if md5 is not None and _DIGEST not in given:
            headers[_DIGEST] = b64encode(bytes.fromhex(md5)).decode("ascii")
        return {"content-type": content_type(name), **headers}


def unusable(what: str) -> RemoteError:
    """Return the error for a response of Wootiv without a usable permission to upload."""
    return RemoteError(f"{what}; check base_url in [wootiv], and ask Wootiv", kind="not_ours")


def _may_be_sent(header: str) -> bool:
    return header not in _OWN_HEADERS and header.startswith(_ALLOWED_HEADERS)


def _split(url: object) -> tuple[SplitResult, str]:
    """Return the parts of a URL, and its host."""
    try:
        if isinstance(url, str) and url.isprintable() and " " not in url:
            parts = urlsplit(url)
            host = parts.hostname  # in lower case
            if parts.scheme in ("http", "https") and host and not parts.username and (parts.port or 1) > 0:
                return parts, host
    except ValueError:
        pass
    raise unusable("Wootiv's response has no usable URL")
