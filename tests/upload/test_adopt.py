"""Test `sync --adopt` after the loss of the database: earlier uploads are recognised."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from app_env import COMPANY, CONNECTION, AppEnv
from docferry.model import State
from upload.conftest import UploadEnv, names_of, once

pytestmark = pytest.mark.anyio


def lose_database(app_env: AppEnv) -> None:
    shutil.rmtree(app_env.state)


async def adopt(env: UploadEnv) -> dict[str, int]:
    async with env.app(adopt=True) as app:
        return {state: count for state, count in (await env.run_uploads(app)).items() if count}


@pytest.mark.parametrize("date", [None, 0, 1_000_000_000, 4_000_000_000], ids=["today", "1970", "2001", "2096"])
async def test_files_restored_with_any_date_are_not_sent_again(env: UploadEnv, date: int | None) -> None:
    folder = env.app_env.upload("bank")
    env.write_documents(folder, *names_of(6))
    await env.run_daemon()
    lose_database(env.app_env)
    copies = folder.with_name("copies")
    shutil.copytree(folder, copies, copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    copies.rename(folder)
    for path in folder.iterdir():
        if date is not None:
            os.utime(path, (date, date))
    assert await adopt(env) == {State.SENT: 6}
    assert env.at_codat() == once(*names_of(6))


async def test_what_is_new_is_sent_once(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank")
    env.write_documents(folder, *names_of(3))
    await env.run_daemon()
    lose_database(env.app_env)
    env.write_documents(folder, "new.pdf")
    assert await adopt(env) == {State.SENT: 4}
    assert env.at_codat() == once(*names_of(3), "new.pdf")


async def test_a_file_of_1970_that_two_connections_have_costs_few_requests(env: UploadEnv) -> None:
    """34,000 requests, again at each pass, before the dates of the list limited them."""
    other = CONNECTION.replace("2e9d2c44", "2e9d2c45")
    env.app_env.upload("customers", folder="customers/{company_id}/{connection_id}")
    for connection in (CONNECTION, other):
        folder = env.app_env.root / "customers" / COMPANY / connection
        folder.mkdir(parents=True)
        env.write_documents(folder, "a.pdf")
        os.utime(folder / "a.pdf", (0, 0))
    await env.run_daemon()
    before = Counter(env.simulator.requests)
    lose_database(env.app_env)
    counts = await adopt(env)
    assert set(counts) <= {State.SENT, State.HELD}
    assert (env.simulator.requests - before).total() < 50
    again = Counter(env.simulator.requests)
    await env.run_daemon()
    assert (env.simulator.requests - again).total() < 50
    assert len(env.simulator.stored) == 2


async def test_objects_are_put_again_and_stay_one(env: UploadEnv) -> None:
    folder: Path = env.app_env.upload("scans", "wootiv")
    env.write_documents(folder, *names_of(3))
    await env.run_daemon()
    lose_database(env.app_env)
    assert await adopt(env) == {State.SENT: 3}
    assert len(env.simulator.objects) == 3
