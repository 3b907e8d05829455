"""Test alerts with a real Alertmanager: it shows, keeps and resolves conditions."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from alerts.servers import Hook
from alerts.test_messages import item
from app_env import reserved_port, until
from debian_tools import tool
from docferry.alerts.messages import Message
from docferry.alerts.receivers import DeliveryError, Receiver, open_receiver
from docferry.alerts.tracker import Kind
from docferry.clock import SystemClock
from docferry.settings import alerts as settings_of

pytestmark = pytest.mark.anyio

CONFIG = """
route: {{ receiver: hook, group_by: [alertname, mapping], group_wait: 0s, group_interval: 1s, repeat_interval: 1h }}
receivers:
  - name: hook
    webhook_configs: [{{ url: "{url}", send_resolved: true }}]
"""


@dataclass
class Alertmanager:
    """Run Alertmanager, and the webhook that it calls."""

    url: str
    hook: Hook

    def alerts(self) -> list[dict[str, Any]]:
        with urlopen(f"{self.url}/api/v2/alerts", timeout=5) as answer:  # noqa: S310 - our own address
            found: list[dict[str, Any]] = json.load(answer)
        return found

    def told(self) -> list[tuple[str, str]]:
        """Return status and mapping of every alert that it passed on."""
        bodies = [json.loads(taken.body) for taken in self.hook.taken]
        return [(alert["status"], alert["labels"].get("mapping", "")) for body in bodies for alert in body["alerts"]]


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def alertmanager(tmp_path: Path, hook: Hook, opened: ExitStack) -> Iterator[Alertmanager]:
    program = started_with_its_share(tool("prometheus-alertmanager", "prometheus-alertmanager"))
    config = tmp_path / "alertmanager.yml"
    config.write_text(CONFIG.format(url=hook.url))
    port = opened.enter_context(reserved_port())
    words = [f"--config.file={config}", f"--storage.path={tmp_path / 'data'}", "--cluster.listen-address="]
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(
            [*program, *words, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log, cwd=tmp_path
        )
    try:
        found = Alertmanager(f"http://127.0.0.1:{port}", hook)
        until(lambda: is_ready(found.url, running), what="Alertmanager being ready")
        yield found
    finally:
        running.terminate()
        running.wait(10)


def started_with_its_share(program: str) -> list[str]:
    """Return the command. An unpacked package of Debian gets its own folder mounted at /usr/share."""
    share = Path(program).parents[1] / "share"
    if share == Path("/usr/share"):
        return [program]
    entered = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        'mount --bind "$0" /usr/share && exec "$@"',
        str(share),
    ]
    done = subprocess.run([*entered, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this user may make no mount namespace: {done.stderr.strip()}")
    return [*entered, program]


def is_ready(url: str, running: subprocess.Popen[bytes]) -> bool:
    assert running.poll() is None
    try:
        with urlopen(f"{url}/-/ready", timeout=5) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except OSError:
        return False


def receiver(url: str) -> Receiver:
    settings = settings_of.ReceiverSettings.model_validate({"name": "am", "kind": "alertmanager", "url": url})
    return open_receiver(settings, SystemClock())


async def test_it_shows_what_lasts_and_learns_of_its_end(alertmanager: Alertmanager) -> None:
    now = time.time()
    held = item(summary="3 documents are held", since=now - 600)
    folder = item(key="folder/acme", summary="missing", since=now - 600)
    queue = item(key="queue", summary="disk full", since=now - 600)
    to = receiver(alertmanager.url)
    await to.send(Message("am", "sftp-1", [held, folder, queue]))
    until(lambda: len(alertmanager.told()) == 3, what="three alerts passed on")
    shown = {alert["labels"]["alertname"]: alert for alert in alertmanager.alerts()}
    assert set(shown) == {"held", "folder", "queue"}
    assert shown["held"]["labels"]["mapping"] == "scans"
    assert shown["held"]["annotations"]["summary"] == "3 documents are held"
    assert shown["held"]["status"]["state"] == "active"

    # A refresh with another text is the same alert.
    await to.send(
        Message("am", "sftp-1", [item(Kind.REMINDER, summary="4 documents are held", since=now - 600), queue])
    )
    assert len(alertmanager.alerts()) == 3

    ended = item(Kind.RESOLVED, summary="4 documents are held", since=now - 600, ended=time.time() - 1)
    await to.send(Message("am", "sftp-1", [ended]))
    until(lambda: ("resolved", "scans") in alertmanager.told(), what="the end passed on")
    assert {alert["labels"]["alertname"] for alert in alertmanager.alerts()} == {"folder", "queue"}
    assert sorted(set(alertmanager.told())) == [
        ("firing", ""),
        ("firing", "acme"),
        ("firing", "scans"),
        ("resolved", "scans"),
    ]


async def test_what_it_refuses_is_no_delivery(alertmanager: Alertmanager) -> None:
    with pytest.raises(DeliveryError, match="answered 404"):
        await receiver(f"{alertmanager.url}/elsewhere").send(Message("am", "sftp-1", [item()]))
