"""Deliver alerts to a program of the operator, which reads the message on its standard input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import anyio
import anyio.to_thread
from anyio.abc import Process

from docferry.alerts.messages import Message
from docferry.alerts.receivers.base import ConfiguredReceiver, DeliveryError

#: The time limit of the program, seconds.
PROGRAM_TIMEOUT_S: Final = 30.0
#: The length of its standard error kept for the error message, bytes.
STDERR_LIMIT: Final = 2_000
#: The environment of the program: without API keys, credentials and systemd's variables.
_PASSED_ON: Final = frozenset({"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR"})


class Command(ConfiguredReceiver):
    """Deliver to a receiver of kind `command`. Exit code 0 means delivered."""

    async def send(self, message: Message) -> None:
        """Run the program with Alertmanager's JSON on its standard input.

        Raises DeliveryError unless it exits with 0.
        """
        body = await anyio.to_thread.run_sync(_body, message)
        stderr = bytearray()
        try:
            process = await anyio.open_process(
                self._settings.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=_environment(os.environ),
                start_new_session=True,
            )
        except OSError as error:
            raise DeliveryError(f"{self._settings.command[0]} cannot be started: {error.strerror}") from error
        try:
            with anyio.fail_after(PROGRAM_TIMEOUT_S):
                async with anyio.create_task_group() as group:
                    group.start_soon(_write, process, body)
                    group.start_soon(_read, process, stderr)
                    code = await process.wait()
                    group.cancel_scope.cancel()  # a remaining child process may hold the pipes open
        except TimeoutError:
            raise DeliveryError(
                f"{self._settings.command[0]} did not end within {PROGRAM_TIMEOUT_S:.0f} s and was killed"
            ) from None
        finally:
            await _end(process)
        if code != 0:
            detail = " ".join(stderr.decode("utf-8", "replace").split())[:200]
            raise DeliveryError(f"{self._settings.command[0]} ended with {code}{': ' if detail else ''}{detail}")


def _body(message: Message) -> bytes:
    """Return the JSON of the webhook and, for simple programs, the message for people."""
    said = message.webhook() | {"subject": message.subject, "text": message.text}
    return json.dumps(said, ensure_ascii=False).encode() + b"\n"


async def _write(process: Process, body: bytes) -> None:
    if process.stdin is not None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # the program may end without reading
            await process.stdin.send(body)
        with suppress(anyio.BrokenResourceError, OSError):
            await process.stdin.aclose()


async def _read(process: Process, into: bytearray) -> None:
    """Return the beginning of the stream, and discard the rest so that the program does not block."""
    if process.stderr is None:
        return
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async for chunk in process.stderr:
            into += chunk[: max(0, STDERR_LIMIT - len(into))]


async def _end(process: Process) -> None:
    """Kill the process group if the program still runs, and close its pipes."""
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.aclose()


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name in _PASSED_ON or name.startswith("LC_")}
