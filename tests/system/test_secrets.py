"""Test that secrets that a remote quotes reach no screen, no log and no database."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest

from app_env import AppEnv
from docferry.simulator import Fault

KEY = "canary/Key+0123456789=="
COMMANDS = (
    *(("sync", "--timeout", "3"), ("check",), ("check", "--json"), ("status",), ("status", "--json")),
    *(("list",), ("list", "--json"), ("show", "1"), ("show", "--json", "1"), ("metrics",), ("config", "show")),
    *(("verify",), ("retry", "--all"), ("sync", "--timeout", "3")),
)
FORMS = {
    "plain": KEY,
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 of a user": base64.b64encode(f"{KEY}:".encode()).decode(),
    "escaped": quote(KEY, safe=""),
    "header": "Authorization: Basic " + base64.b64encode(KEY.encode()).decode(),
    "signed": "https://s3.test/b/k?X-Amz-Signature=canaryab12cd&X-Amz-Credential=canary-credential",
}
CANARIES = [
    *(FORMS[name] for name in ("plain", "base64", "base64 of a user", "escaped")),
    "canaryab12cd",
    "canary-cred",
]
#: A text of a remote is cut: no part of a secret may be left before the cut.
SAID = {"whole": " and ".join(FORMS.values()), "cut": "x" * 385 + " " + KEY}


@pytest.mark.parametrize("status", [400, 401, 500])
@pytest.mark.parametrize("length", SAID)
def test_what_codat_quotes_is_hidden(app_env: AppEnv, length: str, status: int) -> None:
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    app_env.simulator.options.codat_key = KEY
    app_env.simulator.set_faults([Fault("status", "*", params={"status": status, "code": f"you sent {SAID[length]}"})])
    said = "".join(output(app_env, words) for words in COMMANDS)
    stored = b"".join(path.read_bytes() for path in app_env.state.glob("docferry.db*"))
    for canary in (*CANARIES, KEY[:12]):
        assert canary not in said
        assert canary.encode() not in stored
    assert "you sent" in said  # the rest of its text is shown


def output(app_env: AppEnv, words: tuple[str, ...]) -> str:
    done = app_env.run(*words)
    assert done.returncode in (0, 1, 2, 75), (words, done)
    return done.stdout + done.stderr
