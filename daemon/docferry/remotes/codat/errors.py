"""What Codat's answers mean: receipts, refusals and whom they concern, and the daily quota."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from docferry.errors import RemoteError
from docferry.model import Target
from docferry.remotes.http import MAX_PAUSE_S, Response, parse_time, retry_after, safe_text, should_retry
from docferry.remotes.protocol import Health


def is_receipt(answer: Response) -> bool:
    """Codat's 200 has an empty body. A cut one is as good; HTML, or more than an object, is somebody else's."""
    if answer.status != 200 or answer.is_html or answer.body_error == "large":
        return False
    text = answer.content.strip()
    return (
        not text
        or bool(answer.json_object())
        or text == b"{}"
        or (answer.body_error == "cut" and text.startswith(b"{"))
    )


def refusal(answer: Response, target: Target, now: float) -> RemoteError:
    """What an answer other than 2xx means, and whom it concerns."""
    status = answer.status
    if 300 <= status < 400:
        return _redirected(answer)
    if answer.is_html and status in (401, 402, 403, 404):
        return strange(answer)
    said = answer.json_object()
    scope, cure = _verdict(status, target, str(said.get("error", "")))
    id_ = correlation(answer, said)
    return RemoteError(
        _sentence(status, said, cure, id_),
        status=status,
        body_complete=answer.maybe_complete,
        retry_after=_pause(answer, now),
        should_retry=should_retry(answer),
        scope=scope,
        correlation_id=id_,
    )


def strange(answer: Response) -> RemoteError:
    """An answer that Codat never gives."""
    return RemoteError(
        f"something that is not Codat answered with {answer.status}; check base_url in [codat], and proxies in between",
        kind="not_ours",
        status=answer.status,
        body_complete=answer.maybe_complete,
    )


def correlation(answer: Response, said: Mapping[str, Any]) -> str | None:
    """What Codat's support asks for."""
    names = ("x-correlation-id", "correlation-id", "x-request-id", "request-id")
    found = said.get("correlationId") or next(filter(None, map(answer.headers.get, names)), None)
    return safe_text(found)[:100] if isinstance(found, str) and found else None


def quota(answer: Response) -> Health | None:
    """What the rate headers say, if they say anything."""
    limit, remaining = _count(answer, "x-rate-limit-limit"), _count(answer, "x-rate-limit-remaining")
    return None if limit is None and remaining is None else Health(limit, remaining, _reset(answer))


def _redirected(answer: Response) -> RemoteError:
    host = safe_text(_host(answer.headers.get("location", ""))) or "another address"
    return RemoteError(
        f"Codat's address redirects to {host} ({answer.status}), without the key; mend base_url in [codat]",
        kind="redirect",
        status=answer.status,
        body_complete=answer.maybe_complete,
    )


def _host(location: str) -> str:
    try:
        return urlsplit(location).hostname or ""
    except ValueError:
        return ""


def _verdict(status: int, target: Target, error: str) -> tuple[str | None, str]:
    """The gate that a status closes, if it is not about the document; and what to do."""
    company, connection = target.company_id, target.connection_id
    of_company = f"codat/{company}"
    if status == 401:
        return "codat", "Codat does not accept the API key: set a valid one"
    if status == 402:
        return "codat", "Codat's account is at its limit or has expired: settle it with Codat"
    if status == 403:
        return of_company, f"the API key has no access to company {company}: use another key, or mend the mapping"
    if status == 404:
        error = error.lower()
        if connection is None or ("company" in error and "connection" not in error):
            return of_company, f"Codat does not know company {company}: mend the mapping"
        return target.lane, f"Codat does not know connection {connection}: mend the mapping"
    if status == 429:
        return "codat", "Codat asks for a pause"
    if status >= 500:
        return None, "Codat has a problem of its own"
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


def _pause(answer: Response, now: float) -> float | None:
    """Retry-After; and when the day's quota is gone, nothing less than its reset."""
    pause = retry_after(answer, now)
    if answer.status != 429 or _count(answer, "x-rate-limit-remaining") != 0:
        return pause
    remote_now = parse_time(answer.headers.get("date", "")) or now
    until = (_reset(answer) or _midnight(remote_now)) - remote_now
    return min(max(until, pause or 0.0, 0.0), MAX_PAUSE_S)


def _count(answer: Response, name: str) -> int | None:
    said = answer.headers.get(name, "").strip()
    return int(said) if said.isascii() and said.isdigit() and len(said) < 16 else None


def _reset(answer: Response) -> float | None:
    """When the quota starts anew: "a date", says Codat; seconds since 1970 are understood too."""
    said = answer.headers.get("x-rate-limit-reset", "").strip()
    seconds = _count(answer, "x-rate-limit-reset")
    if seconds is not None and seconds > 1_000_000_000:
        return float(seconds)
    return parse_time(said) if said else None


def _midnight(now: float) -> float:
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (day + timedelta(days=1)).timestamp()
