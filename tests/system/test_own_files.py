"""Test docferry's own files inside a mapped folder: never sent, and no reason for another scan or exit code."""

from __future__ import annotations

import json

from app_env import COMPANY, CONNECTION, AppEnv, until


def everything(app_env: AppEnv, to: str) -> None:
    """Map the folder that holds the configuration, the key, the state folder and the log."""
    key = app_env.root / "codat.key"
    key.write_text(app_env.simulator.options.codat_key)
    key.chmod(0o600)
    app_env.codat["api_key_file"] = '"codat.key"'
    ids = f'company_id = "{COMPANY}"\nconnection_id = "{CONNECTION}"' if to == "codat" else ""
    app_env.sections.append(f'[[upload]]\nname = "all"\nfolder = "."\nto = "{to}"\n{ids}')
    heads = app_env.root / "heads.txt"
    app_env.sections.append(f'[receipts]\nanchor = ["log", "file:{heads}"]\n[metrics]\ntextfile = "docferry.prom"')
    heads.touch()


def last_scan(app_env: AppEnv) -> str | None:
    try:
        found = json.loads((app_env.state / "status.json").read_text())["mappings"]["all"]["last_scan"]
    except FileNotFoundError:
        return None
    return str(found)


def wait_for_documents(app_env: AppEnv, number: int) -> None:
    until(lambda: len(app_env.stored()) >= number, what="the document")


def wait_for_scan(app_env: AppEnv, before: str | None) -> None:
    until(lambda: last_scan(app_env) != before, what="one more scan")


def test_sync_sends_the_documents_beside_them_and_ends_with_0(app_env: AppEnv) -> None:
    for to in ("codat", "wootiv"):
        app_env.sections.clear()
        everything(app_env, to)
        (app_env.root / "a.pdf").write_bytes(to.encode())
        for uploaded in (1, 0):
            assert app_env.sync()["uploaded"] == uploaded
    assert [name for name, _ in app_env.stored()] == ["a.pdf", "a.pdf"]
    assert {row["path"] for row in app_env.rows()} == {str(app_env.root / "a.pdf")}
    dry = app_env.run("sync", "--dry-run")
    assert "codat.key" not in dry.stdout
    assert "docferry.toml" not in dry.stdout


def test_the_daemon_neither_sends_nor_plans_its_own_log(app_env: AppEnv) -> None:
    everything(app_env, "wootiv")
    with app_env.daemon() as daemon:
        for number in range(3):  # each document is logged, and each line would be a new version of the log
            (app_env.root / f"{number}.pdf").write_bytes(b"%d" % number)
            wait_for_documents(app_env, number + 1)
        for _ in range(2):
            wait_for_scan(app_env, last_scan(app_env))
        assert daemon.running.poll() is None
    assert sorted(name for name, _ in app_env.stored()) == ["0.pdf", "1.pdf", "2.pdf"]
    assert len(app_env.rows()) == 3
