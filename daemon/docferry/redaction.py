"""Remove secrets from text, both where remote text enters and again in the log.

Redacted are the secrets passed to `hide`, with their encodings. Redacted are also authorization values, user and query
of URLs, and the parts of signed URLs.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final
from urllib.parse import quote, quote_plus

HIDDEN: Final = "[hidden]"

_QUERY: Final = re.compile(r"(https?://[^\s?\"'<>#]*)\?[^\s\"'<>]*", re.IGNORECASE)
_USER: Final = re.compile(r"(https?://)[^\s/?#\"'@]*@", re.IGNORECASE)
_AUTHORIZATION: Final = re.compile(r"(authorization\\?[\"']?\s*[:=,]\s*b?\\?[\"']?)[^\"'\\\n]+", re.IGNORECASE)
#: After "basic", prose continues in lower case; credentials contain a capital, a digit or a sign.
_SCHEME: Final = re.compile(r"\b((?i:basic|bearer))(?:\s+|%20|\+)(?=[\w+/=.~%-]*[A-Z0-9=+/])[\w+/=.~%-]{6,}")
_SIGNED: Final = re.compile(
    r"(X-Amz-(?:Signature|Credential|Security-Token)[\\\"']*\s*[:=]\s*[\\\"']*)[^&\s\"'\\,}]+", re.IGNORECASE
)


def hide(secret: str) -> None:
    """Redact a secret, and its encodings in HTTP, in all later texts."""
    global _known  # one process has one set of secrets
    if len(secret) >= 4:
        _secrets.update(_guises(secret))
        _known = re.compile("|".join(map(_however_escaped, sorted(_secrets, key=len, reverse=True))))


def redacted(text: str) -> str:
    """Return the text without secrets, authorization values, users in URLs, and queries of URLs."""
    folded = text.casefold()  # testing for a possible match costs a fraction of the pattern
    if "://" in folded:
        text = _QUERY.sub(rf"\1?{HIDDEN}", text)
        text = _USER.sub(rf"\1{HIDDEN}@", text)
    if _known is not None:
        text = _known.sub(HIDDEN, text)
    if "authorization" in folded:
        text = _AUTHORIZATION.sub(rf"\1{HIDDEN}", text)
    if "basic" in folded or "bearer" in folded:
        text = _SCHEME.sub(rf"\1 {HIDDEN}", text)
    return _SIGNED.sub(rf"\1{HIDDEN}", text) if "x-amz-" in folded else text


_secrets: set[str] = set()
_known: re.Pattern[str] | None = None


def _guises(secret: str) -> set[str]:
    """Return the encodings of a secret: plain, base64, and escaped for URLs."""
    plain = {secret}
    word, _, rest = secret.partition(" ")
    if rest and word.lower() in ("basic", "bearer"):
        plain.add(rest)
        plain.update(_decoded(rest))
    guises = set(plain)
    for each in plain:
        raw = each.encode("utf-8", "surrogateescape")
        for after in (b"", b":"):  # a key alone, and as the user of a user:password pair
            guises.add(base64.b64encode(raw + after).decode().rstrip("="))
            guises.add(base64.urlsafe_b64encode(raw + after).decode().rstrip("="))
        guises.update((quote(raw, safe=""), quote(raw), quote_plus(raw)))
    return {each for each in guises if len(each) >= 4}


def _however_escaped(secret: str) -> str:
    """Return a pattern that also matches the secret inside a repr, a JSON string, or both."""
    return "".join(r"\\+" if char == "\\" else rf"\\*{char}" if char in "\"'/" else re.escape(char) for char in secret)


def _decoded(text: str) -> set[str]:
    try:
        return {base64.b64decode(text, validate=True).decode()}
    except (binascii.Error, UnicodeDecodeError):
        return set()
