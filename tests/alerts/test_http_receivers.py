"""Test webhooks, ntfy and pings with an HTTP server that has faults."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from alerts.conftest import Authority
from alerts.servers import Hook
from alerts.test_messages import item, message
from docferry import logs
from docferry.alerts.heartbeat import Heartbeat, with_suffix
from docferry.alerts.receivers import DeliveryError, Receiver, http, open_receiver
from docferry.clock import TurnableClock
from docferry.settings import alerts as settings_of
from docferry.settings.keys import Key

pytestmark = pytest.mark.anyio

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def receiver(kind: str, **more: Any) -> Receiver:
    settings = settings_of.ReceiverSettings.model_validate({"name": "ops", "kind": kind, **more})
    return open_receiver(settings, TurnableClock())


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


async def test_a_webhook_is_signed_as_standard_webhooks_are(hook: Hook, tmp_path: Path) -> None:
    secret_file = private(tmp_path / "secret", SECRET + "\n")
    said = message(item())
    await receiver("webhook", url=f"{hook.url}/in?key=1", secret_file=secret_file).send(said)
    (taken,) = hook.taken
    assert taken.path == "/in?key=1"
    assert json.loads(taken.body) == said.webhook()
    identity, sent = taken.headers["webhook-id"], taken.headers["webhook-timestamp"]
    assert identity == said.id
    assert int(sent) == int(TurnableClock().now())
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    expected = hmac.new(key, f"{identity}.{sent}.".encode() + taken.body, hashlib.sha256).digest()
    assert taken.headers["webhook-signature"] == "v1," + base64.b64encode(expected).decode()


def test_the_signature_of_the_specification() -> None:
    """Sign the example of the reference libraries."""
    found = http.sign(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_a_webhook_without_a_secret_is_not_signed(hook: Hook) -> None:
    await receiver("webhook", url=hook.url).send(message(item()))
    assert "webhook-signature" not in hook.taken[0].headers


async def test_a_secret_that_is_none_is_said(hook: Hook, tmp_path: Path) -> None:
    for text, problem in (("not base64!", "not Base64"), ("", "is empty")):
        secret_file = private(tmp_path / "secret", text)
        with pytest.raises(DeliveryError, match=problem):
            await receiver("webhook", url=hook.url, secret_file=secret_file).send(message(item()))
    with pytest.raises(DeliveryError, match="cannot be read"):
        await receiver("webhook", url=hook.url, secret_file=tmp_path / "none").send(message(item()))
    assert hook.taken == []


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_an_answer_but_2xx_is_no_delivery(hook: Hook, status: int) -> None:
    hook.status, hook.answer = status, b"over quota\r\n" + b"x" * 10_000_000
    with pytest.raises(DeliveryError, match=f"answered {status} over quota") as caught:
        await receiver("webhook", url=hook.url).send(message(item()))
    assert len(str(caught.value)) < 400


async def test_a_redirect_is_not_followed(hook: Hook) -> None:
    hook.status, hook.location = 307, f"{hook.url}/elsewhere"
    with pytest.raises(DeliveryError, match="redirects"):
        await receiver("webhook", url=hook.url).send(message(item()))
    assert [taken.path for taken in hook.taken] == ["/"]


async def test_a_server_that_hangs_is_left(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HTTP_TIMEOUT_S", 0.3)
    hook.delay = 60
    with pytest.raises(DeliveryError, match=r"did not answer within|[Tt]imeout"):
        await receiver("webhook", url=hook.url).send(message(item()))


async def test_nobody_is_there_and_the_proxies_of_the_environment_are_ignored(
    hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, hook.url)
    with pytest.raises(DeliveryError, match=r"127\.0\.0\.1:1"):
        await receiver("webhook", url="http://127.0.0.1:1/x").send(message(item()))
    assert hook.taken == []


@pytest.mark.parametrize("kind", ["webhook", "alertmanager", "ntfy"])
async def test_alerts_go_through_the_proxy(hook: Hook, kind: str) -> None:
    """A proxy for plain HTTP gets the whole address, with a name that this machine cannot resolve."""
    proxy = hook.url.replace("http://", "http://user:canary-proxy-p@ss/w#rd@")
    await receiver(kind, url="http://alerts.invalid/topic", proxy=proxy).send(message(item()))
    (taken,) = hook.taken
    assert taken.path.startswith("http://alerts.invalid/topic")
    credentials = base64.b64encode(b"user:canary-proxy-p@ss/w#rd").decode()
    assert taken.headers["proxy-authorization"] == f"Basic {credentials}"
    assert "canary" not in logs.redacted("user:canary-proxy-p@ss/w#rd")
    assert credentials not in logs.redacted(credentials)


async def test_heartbeats_go_through_the_proxy(hook: Hook) -> None:
    settings = settings_of.HeartbeatSettings.model_validate({"url": "http://ping.invalid/x", "proxy": hook.url})
    assert await Heartbeat(settings).ping("/fail", "text")
    assert hook.taken[0].path == "http://ping.invalid/x/fail"


async def test_a_proxy_that_refuses_is_named(hook: Hook) -> None:
    hook.status = 407
    with pytest.raises(DeliveryError, match="407"):
        await receiver("webhook", url="http://alerts.invalid/", proxy=hook.url).send(message(item()))
    with pytest.raises(DeliveryError, match="through the proxy"):
        await receiver("webhook", url="https://alerts.invalid/", proxy="http://127.0.0.1:1").send(message(item()))


def test_mail_and_programs_have_no_proxy() -> None:
    with pytest.raises(ValueError, match="kind command has no proxy"):
        receiver("command", command=["true"], proxy="http://127.0.0.1:1")


async def test_a_secret_address_is_in_no_log() -> None:
    with pytest.raises(DeliveryError) as caught:
        await receiver("webhook", url="http://127.0.0.1:1/services/T00/canary-path?canary=query").send(message(item()))
    assert "canary" not in str(caught.value)
    assert "canary" not in logs.redacted("POST /services/T00/canary-path failed")


async def test_https_is_verified(authority: Authority) -> None:
    hook = Hook()
    hook.server.socket = authority.context.wrap_socket(hook.server.socket, server_side=True)
    hook.url = hook.url.replace("http:", "https:")
    with hook.running():
        with pytest.raises(DeliveryError, match="certificate"):
            await receiver("webhook", url=hook.url).send(message(item()))
        await receiver("webhook", url=hook.url, ca_file=authority.ca_file).send(message(item()))
    assert len(hook.taken) == 1


async def test_ntfy_gets_text_title_and_token(hook: Hook, tmp_path: Path) -> None:
    token_file = private(tmp_path / "token", "tk_canary123456")
    topic = receiver("ntfy", url=f"{hook.url}/docferry", token_file=token_file)
    await topic.send(message(item(summary="büro is missing", key="queue")))
    (taken,) = hook.taken
    assert taken.path == "/docferry"
    assert "- büro is missing" in taken.body.decode()
    assert taken.headers["authorization"] == "Bearer tk_canary123456"
    assert taken.headers["title"].isascii()
    assert taken.headers["priority"] == "high"
    await topic.send(message(*(item(key=f"held/m{number}/empty", summary="ü" * 200) for number in range(50))))
    assert len(hook.taken[1].body) < 4096
    hook.taken[1].body.decode()


async def test_pings(hook: Hook) -> None:
    heartbeat = Heartbeat(settings_of.HeartbeatSettings(url=f"{hook.url}/ping/uuid"))
    assert await heartbeat.ping("", "all is well")
    assert await heartbeat.ping("/75", "2 due")
    hook.status = 503
    assert not await heartbeat.ping("/start", "")
    assert [(taken.path, taken.body) for taken in hook.taken] == [
        ("/ping/uuid", b"all is well"),
        ("/ping/uuid/75", b"2 due"),
        ("/ping/uuid/start", b""),
    ]


def test_a_suffix_goes_before_the_query() -> None:
    assert with_suffix(Key(value="https://h/p/?a=1"), "/fail").value == "https://h/p/fail?a=1"
    assert with_suffix(Key(value="https://h"), "/0").value == "https://h/0"
    assert with_suffix(Key(), "/0").value is None
