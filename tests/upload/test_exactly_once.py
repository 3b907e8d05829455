"""Test every network fault: each document arrives exactly once, with its bytes and name."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest

from app_env import COMPANY, CONNECTION
from docferry.model import State
from docferry.simulator import Fault
from docferry.store.statement import Sql
from upload.conftest import UploadEnv, names_of, once

pytestmark = pytest.mark.anyio

#: The faults of an upload, with their parameters.
FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("refuse", {"seconds": 0.2}),
    ("reset_before", {}),
    ("reset_inside", {}),
    ("reset_after", {}),
    ("lost_answer", {}),
    ("lost_answer", {"how": "close"}),
    ("lost_answer", {"late": 0.1}),
    ("stall", {"stored": True, "seconds": 1.5}),
    ("stall", {"stored": False, "seconds": 1.5}),
    ("truncated_answer", {}),
    ("stale_keepalive", {}),
    ("html_200", {"stored": True}),
    ("html_200", {"stored": False}),
    ("html_502", {"stored": True}),
    ("html_502", {"stored": False}),
    ("status", {"status": 500, "stored": True}),
    ("status", {"status": 500, "stored": False}),
    ("status", {"status": 503, "headers": {"Retry-After": "0"}}),
    ("status", {"status": 409}),
    ("status", {"status": 408}),
    ("too_many", {"seconds": 0.2, "retry_after": "past"}),
    ("too_many", {"retry_after": "garbage"}),
    ("early_401", {}),
    ("redirect", {}),
]
#: A wrong key and an address that redirects are the same at both; a stall costs Wootiv's whole timeout.
NOT_WOOTIVS = ("early_401", "redirect", "stall")


def named(case: object) -> str:
    if isinstance(case, dict):
        return "-".join(f"{key}_{value}" for key, value in case.items() if key != "headers") or "plain"
    return str(case)


@pytest.mark.parametrize("idempotency", [True, False], ids=["keyed", "keyless"])
@pytest.mark.parametrize(("kind", "params"), FAULTS, ids=named)
async def test_codat(env: UploadEnv, kind: str, params: dict[str, Any], idempotency: bool) -> None:
    env.simulator.options.idempotency = idempotency
    folder = env.app_env.upload("bank")
    names = names_of(5)
    env.write_documents(folder, *names)
    env.inject(Fault(kind, "codat.upload", first=2, params=params))
    if kind == "stall":
        env.app_env.codat["timeout"] = '"1s"'
    counts = await env.run_daemon()
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 5}
    assert env.at_codat() == once(*names)


@pytest.mark.parametrize("signed", ["put", "post"])
@pytest.mark.parametrize(("kind", "params"), [case for case in FAULTS if case[0] not in NOT_WOOTIVS], ids=named)
async def test_wootiv(env: UploadEnv, kind: str, params: dict[str, Any], signed: Any) -> None:
    env.simulator.options.signed = signed
    env.app_env.settings["workers"] = "2"
    folder = env.app_env.upload("scans", "wootiv", object_name='"in/{path}"')
    names = names_of(3)
    env.write_documents(folder, *names)
    env.inject(Fault(kind, "s3.*", first=2, params=params), Fault(kind, "wootiv.*", first=1, params=params))
    counts = await env.run_daemon()
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 3}
    objects = {(key, held.sha256) for (_, key), held in env.simulator.objects.items()}
    assert objects == {(f"in/{name}", digest) for name, digest in once(*names)}


async def test_a_list_that_lags_is_waited_for(env: UploadEnv) -> None:
    env.app_env.codat["list_lag"] = '"500ms"'
    env.simulator.options.list_lag = 0.4
    env.simulator.options.idempotency = False
    names = names_of(4)
    env.write_documents(env.app_env.upload("bank"), *names)
    env.inject(Fault("lost_answer", "codat.upload"))
    await env.run_daemon()
    assert env.at_codat() == once(*names)
    assert env.requests("codat.upload") == 4


async def test_what_is_stored_late_is_waited_for(env: UploadEnv) -> None:
    env.app_env.codat["list_lag"] = '"1s"'
    env.simulator.options.idempotency = False
    env.write_documents(env.app_env.upload("bank"), *names_of(3))
    env.inject(Fault("lost_answer", "codat.upload", params={"late": 1.2}))
    await env.run_daemon()
    assert env.at_codat() == once(*names_of(3))


async def test_other_documents_do_not_wait_for_a_doubt(env: UploadEnv) -> None:
    env.app_env.codat["list_lag"] = '"60s"'
    env.write_documents(env.app_env.upload("bank"), *names_of(20))
    env.inject(Fault("lost_answer", "codat.upload", first=1))
    await env.run_daemon(lambda counts: counts.get("sent") == 19 and counts["doubtful"] == 1)
    assert sum(env.at_codat().values()) == 20


async def test_a_name_with_a_token_is_decided_by_the_list_alone(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank", file_name='"{stem}~{token}{suffix}"')
    env.write_documents(folder, *names_of(3))
    env.inject(Fault("lost_answer", "codat.upload"))
    await env.run_daemon()
    assert env.requests("codat.download") == 0
    assert env.requests("codat.upload") == 3


async def test_files_of_one_name_are_separated_by_their_content(env: UploadEnv) -> None:
    """N13, N14: a.pdf of two folders, and a.pdf of another program while ours is in doubt."""
    folder = env.app_env.upload("bank")
    env.write_documents(folder, "x/a.pdf", "y/a.pdf")
    env.simulator.put_company_file(COMPANY, "a.pdf", b"a stranger's")
    env.inject(Fault("reset_after", "codat.upload", first=1), Fault("lost_answer", "codat.upload", first=1))
    await env.run_daemon()
    ours = Counter({("a.pdf", digest): count for (_, digest), count in once("x/a.pdf", "y/a.pdf").items()})
    stranger = Counter({("a.pdf", next(s.sha256 for s in env.simulator.stored if s.via == "page")): 1})
    assert env.at_codat() == ours + stranger


async def test_a_strangers_upload_of_that_name_is_not_taken_for_ours(env: UploadEnv) -> None:
    env.app_env.codat["list_lag"] = '"2s"'
    env.write_documents(env.app_env.upload("bank"), "a.pdf")
    env.inject(Fault("reset_after", "codat.upload", first=1))
    async with env.app() as app:
        await env.run_uploads(app, lambda counts: counts["doubtful"] + counts["asking"] == 1)
        env.simulator.put_company_file(COMPANY, "a.pdf", b"a stranger's")
    await env.run_daemon()
    assert [(s.via, s.content) for s in env.simulator.stored] == [("page", b"a stranger's"), ("api", b"a.pdf")]


@pytest.mark.parametrize("rename", ["quote", "nfc", "cut"])
async def test_names_that_the_server_changes_are_recognised(env: UploadEnv, rename: Any) -> None:
    env.simulator.options.rename = rename
    env.simulator.options.idempotency = False
    names = ['say "so".pdf', "cafe\u0301.pdf", "n" * 90 + ".pdf"]
    env.write_documents(env.app_env.upload("bank"), *names)
    env.inject(Fault("lost_answer", "codat.upload", first=3))
    await env.run_daemon()
    digests = Counter(digest for _, digest in env.at_codat().elements())
    assert digests == Counter(digest for _, digest in once(*names).elements())


@pytest.mark.parametrize("kind", ["status", "html_200", "truncated_answer", "lost_answer"])
async def test_a_list_that_cannot_be_read_decides_nothing(env: UploadEnv, kind: str) -> None:
    env.simulator.options.idempotency = False
    env.write_documents(env.app_env.upload("bank"), *names_of(2))
    params = {"at": 3} if kind == "truncated_answer" else {}
    env.inject(
        Fault("lost_answer", "codat.upload", nth=1),
        Fault("reset_after", "codat.upload", nth=2),
        Fault(kind, "codat.list", first=3, params=params),
    )
    await env.run_daemon()
    assert env.at_codat() == once(*names_of(2))


async def test_a_list_that_misses_what_is_surely_there_is_not_believed(env: UploadEnv) -> None:
    """The list lacks docferry's own uploads, so the dated ZIP decides."""
    folder = env.app_env.upload("bank")
    env.write_documents(folder, "before.pdf")
    await env.run_daemon()
    env.simulator.options.list_lag = 3600.0
    env.write_documents(folder, "doubt.pdf")
    env.inject(Fault("lost_answer", "codat.upload", first=1))
    await env.run_daemon()
    assert env.at_codat() == once("before.pdf", "doubt.pdf")
    assert env.requests("codat.upload") == 2


async def test_several_connections_of_one_company_are_counted_together(env: UploadEnv) -> None:
    root = env.app_env.root / "customers"
    other = CONNECTION.replace("2e9d2c44", "2e9d2c45")
    (root / COMPANY / CONNECTION).mkdir(parents=True)
    (root / COMPANY / other).mkdir(parents=True)
    env.app_env.upload("customers", folder="customers/{company_id}/{connection_id}")
    for connection in (CONNECTION, other):
        # The same names at both, and other bytes: neither list nor ZIP tells which connection a file came by.
        env.write_documents(root / COMPANY / connection, *names_of(4), content=partial(_bytes_for, connection))
    env.inject(Fault("lost_answer", "codat.upload", rate=0.4), Fault("reset_after", "codat.upload", rate=0.5))
    await env.run_daemon()
    found = Counter((s.connection, s.name) for s in env.simulator.stored)
    assert found == Counter((c, n) for c in (CONNECTION, other) for n in names_of(4))


async def test_a_mixed_storm(env: UploadEnv) -> None:
    """Half of all requests fail, some uploads are large, both remotes at once."""
    names = names_of(40)
    env.write_documents(env.app_env.upload("bank"), *names)
    large = {name: name.encode() * 100_000 for name in names_of(4, "large")}
    env.write_documents(env.app_env.root / "bank", *large, content=lambda name: large[name])
    scans = names_of(20, "s")
    env.write_documents(env.app_env.upload("scans", "wootiv"), *scans)
    kinds = ["reset_before", "reset_inside", "reset_after", "lost_answer", "html_502", "status", "truncated_answer"]
    env.inject(*(Fault(kind, rate=0.08) for kind in kinds))
    counts = await env.run_daemon()
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 64}
    assert Counter(name for name, _ in env.at_codat().elements()) == Counter([*names, *large])
    assert len(env.simulator.objects) == 20


def _bytes_for(connection: str, name: str) -> bytes:
    return f"{connection}{name}".encode()


@pytest.mark.parametrize("when", [State.LEASED, State.SENDING])
async def test_a_lost_lease_leaves_nobody_of_its_request_behind(env: UploadEnv, when: State) -> None:
    """Other transfers of the request continue: while the process lives, no other one reclaims them."""
    env.app_env.codat["batch"] = "3"
    env.write_documents(env.app_env.upload("bank"), *names_of(3))
    env.inject(Fault("status", "codat.upload", params={"status": 503, "headers": {"Retry-After": "0"}}, first=1))
    thief = (
        "CREATE TRIGGER thief AFTER UPDATE ON transfer WHEN new.id = 1 AND new.lease = 1 AND new.state = '{when}' "
        "BEGIN UPDATE transfer SET lease = 7 WHERE id = 1; END"
    )
    async with env.app() as app:
        await app.batch_trials.record(f"codat/{COMPANY}/{CONNECTION}", True)
        await app.database.execute(Sql(thief.format(when=when)))
        await env.run_uploads(app, lambda counts: counts.get(State.SENT) == 2 and counts.get(when) == 1)
    assert sorted(env.at_codat().values()) == [1, 1]
