"""Create S3's POST policies, and check forms against them."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from docferry.simulator.sigv4 import ALGORITHM, Credentials, S3Error, amz_date, check_scope, mismatch

#: Fields that need no condition.
_FREE = frozenset({"x-amz-signature", "policy", "file"})


def sign_policy(
    credentials: Credentials, fields: Mapping[str, str], conditions: list[object], *, now: float, lifetime: float
) -> dict[str, str]:
    """Return all fields of a form whose `fields` and `conditions` hold for `lifetime` seconds."""
    stamp = amz_date(now)
    signed = {
        **fields,
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{credentials.access_key}/{credentials.scope(stamp[:8])}",
        "X-Amz-Date": stamp,
    }
    ends = datetime.fromtimestamp(now + lifetime, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    document = {"expiration": ends, "conditions": [{name: value} for name, value in signed.items()] + conditions}
    policy = base64.b64encode(json.dumps(document).encode()).decode()
    return {**signed, "Policy": policy, "X-Amz-Signature": credentials.sign(stamp[:8], policy)}


def check_policy(credentials: Credentials, fields: Mapping[str, str], size: int, now: float) -> None:
    """Raise S3Error unless the form (names in lower case) is signed, in time, and matches its policy."""
    policy = fields.get("policy")
    if not policy:
        raise S3Error(403, "AccessDenied", "Access Denied")
    stamp = fields.get("x-amz-date", "")
    check_scope(credentials, fields.get("x-amz-algorithm", ""), fields.get("x-amz-credential", ""), stamp)
    if not hmac.compare_digest(
        credentials.sign(stamp[:8], policy).encode(), fields.get("x-amz-signature", "").encode()
    ):
        raise mismatch()
    document = _decode(policy)
    if now > _expiration(document):
        raise S3Error(403, "AccessDenied", "Invalid according to Policy: Policy expired.")
    covered = {name for condition in document["conditions"] for name in _check_condition(condition, fields, size)}
    extra = [name for name in fields if name not in covered | _FREE and not name.startswith("x-ignore-")]
    if extra:
        raise _policy_error(f"Extra input fields: {', '.join(extra)}")


def _decode(policy: str) -> dict[str, Any]:
    try:
        document = json.loads(base64.b64decode(policy, validate=True))
    except (ValueError, binascii.Error):
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("conditions"), list):
        raise S3Error(400, "InvalidPolicyDocument", "The content of the form does not meet the conditions of a policy.")
    return document


def _expiration(document: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(document["expiration"]).timestamp()
    except (KeyError, TypeError, ValueError):
        raise S3Error(400, "InvalidPolicyDocument", "Invalid Policy: Invalid 'expiration' value") from None


def _check_condition(condition: object, fields: Mapping[str, str], size: int) -> list[str]:
    """Return the names of the fields that a condition covers. Raises S3Error if the condition is not met."""
    match condition:
        case ["content-length-range", int(low), int(high)]:
            if size < low:
                raise S3Error(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
            if size > high:
                raise S3Error(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
            return []
        case [("eq" | "starts-with") as how, str(name), value]:
            return [_check_field(str(how), name.removeprefix("$").lower(), str(value), fields)]
        case dict():
            return [_check_field("eq", name.lower(), str(value), fields) for name, value in condition.items()]
    raise S3Error(400, "InvalidPolicyDocument", f"Invalid Policy: Invalid condition {condition}")


def _check_field(how: str, name: str, value: str, fields: Mapping[str, str]) -> str:
    found = fields.get(name, "")
    if not (found == value if how == "eq" else found.startswith(value)):
        raise _policy_error(f'Policy Condition failed: ["{how}", "${name}", "{value}"]')
    return name


def _policy_error(why: str) -> S3Error:
    return S3Error(403, "AccessDenied", f"Invalid according to Policy: {why}")
