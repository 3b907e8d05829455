"""Write pictures of every page of the status page to docs/img: `make screenshots`."""

from __future__ import annotations

import math
import random
import sqlite3
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from app_env import COMPANY, AppEnv, until
from docferry.simulator import Fault, Simulator, SimulatorOptions, SimulatorThread
from web.conftest import listening
from web.test_browser import ARGUMENTS, CHROMIUM

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: The same pictures each time.
CHANCE = random.Random(7)  # noqa: S311 - no cryptography
IMAGES = Path(__file__).parents[2] / "docs" / "img"
MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november"]
LOOKS = {
    "light": {"viewport": {"width": 1280, "height": 800}},
    "dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}


def fill(env: AppEnv) -> None:
    """Two busy folders with a past of two days, some held documents, and one that a person must look at."""
    bank, scans = env.upload("acme-bank"), env.upload("scans", "wootiv")
    env.upload("payroll", hold_for_approval="true") if "hold_for_approval" in supported() else env.upload("payroll")
    env.download("acme-inbox", company_id=f'"{COMPANY}"', every='"5s"')
    for year in (2024, 2025, 2026):
        for month in MONTHS:
            (bank / f"statement-{month}-{year}.pdf").write_bytes(f"%PDF-1.4 {month} {year} %%EOF".encode() * 2000)
    for number in range(120):
        (scans / f"receipt-{number:04}.jpg").write_bytes(b"receipt %d" % number * CHANCE.randint(100, 20_000))
    for number in range(4):
        env.simulator.put_company_file(COMPANY, f"from-the-customer-{number}.pdf", b"%%PDF-1.4 %d %%%%EOF" % number)


def supported() -> set[str]:
    from docferry.settings import Upload

    return set(Upload.model_fields)


def age(state: Path) -> None:
    """Spread the sent documents over the last two days, as working hours would."""
    database = sqlite3.connect(state / "docferry.db")
    now = time.time()
    for (number,) in database.execute("SELECT id FROM transfer WHERE state = 'sent'").fetchall():
        hours = CHANCE.choices(range(48), [1.2 + math.sin((hour + 3) / 24 * 2 * math.pi) for hour in range(48)])[0]
        sent = now - hours * 3600 - CHANCE.random() * 3000
        delay = CHANCE.expovariate(1 / 20)
        database.execute(
            "UPDATE transfer SET last_sent = ?, first_sent = ?, due_since = ?, updated = ? WHERE id = ?",
            (sent, sent, sent - delay, sent, number),
        )
    database.commit()
    database.close()


def shoot(browser: Browser, env: AppEnv) -> None:
    number = env.rows("--reason", "refused")[0]["id"]
    for look, settings in LOOKS.items():
        context = browser.new_context(**settings)  # type: ignore[arg-type]  # as the library has it
        page = context.new_page()
        page.goto(env.run("ui").stdout.strip())
        page.wait_for_url("**/")
        for name, path in (
            ("overview", "/"),
            ("documents", "/documents?state=held&state=waiting&state=sent"),
            ("document", f"/documents/{number}"),
            ("activity", "/activity"),
        ):
            page.goto(f"http://{listening(env, 'web')}{path}")
            page.wait_for_timeout(400)  # the script has told the times
            page.screenshot(path=str(IMAGES / f"{name}-{look}.png"), full_page=name == "overview" and look != "phone")
        context.close()


def main() -> int:
    """Run the real daemon against the simulator, and take the pictures."""
    from playwright.sync_api import sync_playwright

    IMAGES.mkdir(parents=True, exist_ok=True)
    options = SimulatorOptions(requests_per_minute=0)
    with TemporaryDirectory() as folder, SimulatorThread(Simulator(options)) as simulator_thread:
        env = AppEnv(Path(folder), simulator_thread)
        fill(env)
        env.sync()
        age(env.state)
        bank = Path(folder) / "acme-bank"
        (bank / "ledger.exe").write_bytes(b"MZ")
        (bank / "scan-of-everything.pdf").write_bytes(b"%PDF-1.4 " + b"x" * 11_000_000 + b" %%EOF")
        (bank / "statement-december.pdf").write_bytes(b"%PDF-1.4 december %%EOF")
        (Path(folder) / "payroll" / "2026-11.pdf").write_bytes(b"%PDF-1.4 payroll %%EOF")
        env.simulator.set_faults([Fault("status", "codat.upload", nth=1, params={"status": 400})])
        env.sections.append('[web]\nlisten = "127.0.0.1:0"')
        with env.daemon():
            until(lambda: env.rows("--reason", "refused"), what="the refused document")
            env.simulator.options.wootiv_key = "another"
            for number in range(200, 212):
                (Path(folder) / "scans" / f"receipt-{number:04}.jpg").write_bytes(b"receipt %d" % number * 900)
            time.sleep(5)  # new documents appear on the pages
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
                shoot(browser, env)
                browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
