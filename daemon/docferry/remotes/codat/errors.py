"""Interpret Codat's responses: receipts, errors with their scope, and the daily quota."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from docferry.errors import ErrorDetails, RemoteError
from docferry.model import Target
from docferry.policy import MAX_QUOTA_RESET_S
from docferry.remotes.http import MAX_PAUSE_S, Response, parse_time, retry_after, safe_text, should_retry
from docferry.remotes.protocol import Health

#: The keys of Codat's error object; two of them identify it.
_ERROR_KEYS: Final = frozenset(
    {"statusCode", "service", "error", "correlationId", "validation", "canBeRetried", "detailedErrorCode"}
)


def is_receipt(response: Response) -> bool:
    """Return whether a 200 comes from Codat: its body is empty or one JSON object, perhaps cut off."""
    if response.status != 200 or response.is_html or response.body_error == "large":
        return False
    text = response.content.strip()
    return (
        not text
        or bool(response.json_object())
        or text == b"{}"
        or (response.body_error == "cut" and text.startswith(b"{"))
    )


def refusal(response: Response, target: Target, now: float) -> RemoteError:
    """Return the error for a response other than 2xx, with its scope."""
    status = response.status
    if 300 <= status < 400:
        return _redirected(response)
    said = response.json_object()
    is_text = not said and response.content.strip() and response.body_error is None
    if status != 429 and (response.is_html or is_text):
        return not_codat(response, retry_after(response, now))
    scope, cure = _verdict(status, target, str(said.get("error", "")))
    id_ = correlation(response, said)
    wish = should_retry(response)
    return RemoteError(
        _sentence(status, said, cure, id_),
        status=status,
        body_complete=response.maybe_complete,
        scope=scope,
        details=ErrorDetails(
            retry_after=_pause(response, now),
            should_retry=wish,
            correlation_id=id_,
            about_document=scope is None and _is_about_document(status, said, wish),
        ),
    )


def not_codat(response: Response, pause: float | None = None) -> RemoteError:
    """Return the error for a response that Codat never gives."""
    return RemoteError(
        f"another server than Codat answered with {response.status}{_excerpt(response)}; "
        "check base_url in [codat] and proxies in between",
        kind="not_ours",
        status=response.status,
        body_complete=response.maybe_complete,
        details=ErrorDetails(retry_after=pause),
    )


def correlation(response: Response, said: Mapping[str, Any]) -> str | None:
    """Return the id that Codat's support asks for."""
    names = ("x-correlation-id", "correlation-id", "x-request-id", "request-id")
    found = said.get("correlationId") or next(filter(None, map(response.headers.get, names)), None)
    return safe_text(found)[:100] if isinstance(found, str) and found else None


def quota(response: Response, now: float) -> Health | None:
    """Return the rate headers, None if there are none."""
    limit, remaining = _count(response, "x-rate-limit-limit"), _count(response, "x-rate-limit-remaining")
    return None if limit is None and remaining is None else Health(limit, remaining, _reset(response, now))


def _redirected(response: Response) -> RemoteError:
    host = safe_text(_host(response.headers.get("location", ""))) or "another address"
    return RemoteError(
        f"Codat's address redirects to {host} ({response.status}), without the key; correct base_url in [codat]",
        kind="redirect",
        status=response.status,
        body_complete=response.maybe_complete,
    )


def _is_about_document(status: int, said: Mapping[str, Any], wish: bool | None) -> bool:
    """Return whether a structured error of Codat refuses this document permanently, so that a repetition is useless."""
    if wish is True or len(_ERROR_KEYS & said.keys()) < 2:
        return False
    return status in {400, 413, 415} or (wish is False and 400 <= status < 500 and status not in {408, 409})


def _excerpt(response: Response) -> str:
    """Return the title or the first words of a page, for a quotation."""
    text = response.content[:4096].decode("utf-8", "replace")
    title = re.search(r"<title[^>]*>([^<]*)", text, re.IGNORECASE)
    words = safe_text(title[1] if title else re.sub(r"<[^>]*>", " ", text))[:80]
    return f' ("{words}")' if words else ""


def _host(location: str) -> str:
    try:
        return urlsplit(location).hostname or ""
    except ValueError:
        return ""


def _verdict(status: int, target: Target, error: str) -> tuple[str | None, str]:
    """Return the scope of a status, None for the document alone, and the advice."""
    company, connection = target.company_id, target.connection_id
    of_company = f"codat/{company}"
    if status == 401:
        return "codat", "Codat does not accept the API key: set a valid one"
    if status == 402:
        return "codat", "Codat's account is at its limit or has expired: settle it with Codat"
    if status == 403:
        return of_company, f"the API key has no access to company {company}: use another key, or correct the mapping"
    if status == 404:
        error = error.lower()
        if connection is None or ("company" in error and "connection" not in error):
            return of_company, f"Codat does not know company {company}: correct the mapping"
        return target.lane, f"Codat does not know connection {connection}: correct the mapping"
    if status == 429:
        return "codat", "Codat requests a pause"
    if status >= 500:
        return None, "Codat reports an internal error"
    return None, "Codat refused the request"


def _sentence(status: int, said: Mapping[str, Any], cure: str, correlation: str | None) -> str:
    words = [safe_text(said["error"])] if said.get("error") else []
    validation = said.get("validation")
    errors = validation.get("errors") if isinstance(validation, dict) else None
    for each in errors if isinstance(errors, list) else ():
        if isinstance(each, dict) and each.get("message"):
            words.append(f"{safe_text(each.get('itemId', ''))}: {safe_text(each['message'])}".removeprefix(": "))
    reply = f" — {'; '.join(words[:6])}" if words else ""
    return f"{cure} ({status}){reply}" + (f" [correlation id {correlation}]" if correlation else "")


def _pause(response: Response, now: float) -> float | None:
    """Return Retry-After in seconds, at least the time until the reset if the daily quota is spent."""
    pause = retry_after(response, now)
    if response.status != 429 or _count(response, "x-rate-limit-remaining") != 0:
        return pause
    remote_now = parse_time(response.headers.get("date", "")) or now
    until = (_reset(response, now) or _midnight(remote_now)) - remote_now
    return min(max(until, pause or 0.0, 0.0), MAX_PAUSE_S)


def _count(response: Response, name: str) -> int | None:
    said = response.headers.get(name, "").strip()
    return int(said) if said.isascii() and said.isdigit() and len(said) < 16 else None


def _reset(response: Response, now: float) -> float | None:
    """Return the wall time of the quota's reset, at most 25 hours from now.

    Codat documents "a date"; seconds since 1970 are accepted too.
    """
    said = response.headers.get("x-rate-limit-reset", "").strip()
    seconds = _count(response, "x-rate-limit-reset")
    if seconds is not None and seconds > 1_000_000_000:
        return min(float(seconds), now + MAX_QUOTA_RESET_S)
    found = parse_time(said) if said else None
    return None if found is None else min(found, now + MAX_QUOTA_RESET_S)


def _midnight(now: float) -> float:
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (day + timedelta(days=1)).timestamp()
