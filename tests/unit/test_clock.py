"""Test the machine's clocks and the boot of the steady clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from docferry import clock


@pytest.fixture
def kernel() -> str:
    """Return the UUID of this boot as written by the kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_the_unit_and_the_kernel_name_the_boot_alike(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """An interactive `sync` and the service share one queue, and must agree on the boot."""
    monkeypatch.delenv("SYSTEMD_BOOT_ID", raising=False)
    assert clock.boot_id() == kernel
    monkeypatch.setenv("SYSTEMD_BOOT_ID", kernel.replace("-", ""))  # as systemd's %b has it
    assert clock.boot_id() == kernel


@pytest.mark.parametrize("wrong", ["", "%b", "0" * 31])
def test_a_boot_that_is_named_wrongly_is_not_taken(monkeypatch: pytest.MonkeyPatch, kernel: str, wrong: str) -> None:
    monkeypatch.setenv("SYSTEMD_BOOT_ID", wrong)
    assert clock.boot_id() == kernel
