"""Test files with times that no clock gives today."""

from __future__ import annotations

import os
import tempfile

import pytest

from docferry.model import MAX_INTEGER, State, clamped
from upload.conftest import UploadEnv

pytestmark = pytest.mark.anyio
#: Seconds since 1970 of 1601, 1901, 2400 and 9999, and the largest date that tmpfs stores.
DATES = {"1601": -11_644_473_600, "1901": -2_177_452_800, "2400": 13_569_465_600, "9999": 253_402_214_400, "max": 2**62}


async def test_files_of_any_date_are_sent_once(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shm:
        folder.rmdir()
        folder.symlink_to(shm)
        for name, seconds in DATES.items():
            (folder / f"{name}.pdf").write_bytes(name.encode())
            os.utime(folder / f"{name}.pdf", (seconds, seconds))
        for _ in range(2):
            async with env.app() as app:
                assert await env.run_uploads(app) == {State.SENT: len(DATES)}
    assert sorted(env.at_codat().values()) == [1] * len(DATES)


def test_a_date_beyond_any_database_is_clamped() -> None:
    assert [clamped(number) for number in (5, -5, 10**20, -(10**20))] == [5, -5, MAX_INTEGER, -MAX_INTEGER]
