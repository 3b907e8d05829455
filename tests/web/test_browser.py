"""Test the status page in a real browser: use, hostile pages, accessibility."""

from __future__ import annotations

import http.server
import importlib.util
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from app_env import AppEnv, until
from docferry.simulator import Fault
from web.conftest import listening

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

CHROMIUM = Path("/usr/bin/chromium")
#: Nothing that asks another host, and no sandbox, which root cannot have.
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP evil.example 127.0.0.1",
]
HOSTILE = "<img src=x onerror=alert(1)>{{7*7}}'\"&amp;.exe"

pytestmark = [
    pytest.mark.skipif(not CHROMIUM.is_file(), reason="needs Debian's chromium: apt-get install chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="needs playwright"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Browser, app_env: AppEnv) -> Iterator[Callable[..., Page]]:
    """Log in through a one-time link; errors of the browser and requests to other hosts fail the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def opened(**settings: Any) -> Page:
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        address = listening(app_env, "web")
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if is_complaint(said) else None)
        page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: complaints.append(request.url) if address not in request.url else None)
        page.goto(app_env.run("ui").stdout.strip())
        page.wait_for_url(f"http://{address}/")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


def is_complaint(said: ConsoleMessage) -> bool:
    """Tell errors of the page from failed requests: the daemon of a test ends before its pages do."""
    return said.type == "error" and "net::ERR_" not in said.text


def wait_for_status(page: Page, text: str) -> None:
    """Wait for the page that says this of an action."""
    page.locator("[role=status]", has_text=text).wait_for()


def with_page(app_env: AppEnv) -> None:
    app_env.sections.append('[web]\nlisten = "127.0.0.1:0"')


def test_a_held_document_is_seen_retried_and_disappears(app_env: AppEnv, open_page: Callable[..., Page]) -> None:
    folder = app_env.upload("bank")
    app_env.simulator.set_faults([Fault("status", "codat.upload", nth=1, params={"status": 400})])
    (folder / "march.pdf").write_bytes(b"%PDF-1.4 march %%EOF")
    with_page(app_env)
    with app_env.daemon():
        until(lambda: app_env.rows("--state", "held"), what="the held document")
        page = open_page()
        item = page.locator("#attention li")
        item.get_by_role("heading", name="1 document is refused by the remote").wait_for()
        assert "1 thing needs you" in page.inner_text("h1")
        item.get_by_role("link").click()
        page.get_by_role("link", name="march.pdf").click()
        assert "Held: refused by the remote" in page.inner_text("#why")
        page.get_by_role("link", name="Overview").click()
        item.get_by_role("button", name="Retry").click()
        wait_for_status(page, "1 document made due now.")
        # The script brings the news: nobody reloads the page.
        page.locator("h1", has_text="All is well").wait_for(timeout=30_000)
        page.locator("#attention").wait_for(state="detached")
        # The document left the list when it became due, which is before it is sent.
        until(lambda: sum(app_env.stored().values()) == 1, what="the document at the remote")


def test_it_works_without_a_script(app_env: AppEnv, open_page: Callable[..., Page]) -> None:
    folder = app_env.upload("bank")
    app_env.simulator.set_faults([Fault("status", "codat.upload", nth=1, params={"status": 400})])
    (folder / "march.pdf").write_bytes(b"%PDF-1.4 march %%EOF")
    with_page(app_env)
    with app_env.daemon():
        until(lambda: app_env.rows("--state", "held"), what="the held document")
        page = open_page(java_script_enabled=False)
        page.get_by_role("link", name="Documents", exact=True).click()
        page.locator("label", has_text="Held").click()
        page.get_by_role("searchbox").fill("march")
        page.get_by_role("button", name="Filter").click()
        page.wait_for_url("**q=march**")
        assert "state=held" in page.url
        page.get_by_role("button", name="Retry all that match").click()
        wait_for_status(page, "1 document made due now.")
        until(lambda: app_env.rows("--state", "sent"), what="the document")


def test_hostile_names_are_text(app_env: AppEnv, open_page: Callable[..., Page]) -> None:
    folder = app_env.upload("bank")
    (folder / HOSTILE).write_bytes(b"MZ")
    (folder / "\u202egpj.exe").write_bytes(b"MZ")
    (folder / "new\nline.exe").write_bytes(b"MZ")
    with_page(app_env)
    with app_env.daemon():
        until(lambda: len(app_env.rows("--state", "held")) == 3, what="the held documents")
        page = open_page()
        for path in ("/documents", "/activity"):
            page.goto(page.url.partition("/documents")[0].rstrip("/").partition("/activity")[0] + path)
            page.get_by_text(HOSTILE, exact=True).first.wait_for()
            assert "\u202e" not in page.inner_text("main")
            assert page.locator("main img").count() == 0
        page.goto(page.url.partition("/activity")[0] + "/documents")
        page.get_by_role("link", name=HOSTILE, exact=True).click()
        page.wait_for_url("**/documents/*")
        assert page.inner_text("h1") == HOSTILE
        assert page.title() == f"{HOSTILE} · docferry"


def test_another_name_for_this_machine_is_refused(app_env: AppEnv, browser: Browser) -> None:
    app_env.upload("bank")
    with_page(app_env)
    with app_env.daemon():
        port = listening(app_env, "web").rpartition(":")[2]
        context = browser.new_context()
        reply = context.new_page().goto(f"http://evil.example:{port}/")
        assert reply is not None
        assert reply.status == 421
        context.close()


@contextmanager
def attacker(target: str, body: str) -> Iterator[int]:
    """Serve a page that posts to the status page, by a form and by a script; yields its port."""
    page = f"""<!doctype html><form method="post" action="{target}">{body}</form>
    <script>const body = new URLSearchParams("all=1");
    fetch("{target}", {{method: "POST", mode: "no-cors", credentials: "include", body}})
      .finally(() => document.forms[0].submit());</script>"""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "evil.example"], ids=["another port", "another site"])
def test_another_page_cannot_change_anything(host: str, app_env: AppEnv, open_page: Callable[..., Page]) -> None:
    folder = app_env.upload("bank")
    app_env.simulator.set_faults([Fault("status", "codat.upload", nth=1, params={"status": 400})])
    (folder / "march.pdf").write_bytes(b"%PDF-1.4 march %%EOF")
    with_page(app_env)
    with app_env.daemon():
        until(lambda: app_env.rows("--state", "held"), what="the held document")
        page = open_page()
        target = f"http://{listening(app_env, 'web')}/actions/retry"
        with attacker(target, '<input name="mapping" value="bank">') as port:
            other = page.context.new_page()  # it has the session's cookie
            replies: list[int] = []
            other.on("response", lambda reply: replies.append(reply.status) if reply.url == target else None)
            other.goto(f"http://{host}:{port}/")
            other.wait_for_url(target)
        assert set(replies) == {403}
        assert app_env.rows("--state", "held")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(scheme: str, app_env: AppEnv, open_page: Callable[..., Page]) -> None:
    from axe_playwright_python.sync_playwright import Axe

    bank, scans = app_env.upload("bank"), app_env.upload("scans", "wootiv")
    app_env.download("inbox", "wootiv", objects='["a.pdf"]')
    for number in range(3):
        (bank / f"{number}.pdf").write_bytes(b"%%PDF-1.4 %d %%%%EOF" % number)
        (scans / f"{number}.png").write_bytes(b"%d" % number)
    (bank / "no.exe").write_bytes(b"MZ")
    with_page(app_env)
    with app_env.daemon():
        until(lambda: len(app_env.rows("--state", "sent")) == 6, what="the documents")
        until(lambda: app_env.rows("--state", "held"), what="the held document")
        page = open_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        root = page.url.rstrip("/")
        number = app_env.rows("--state", "held")[0]["id"]
        for path in ("/", "/documents", "/documents?state=held&q=no", f"/documents/{number}", "/activity", "/login"):
            for width in (1280, 360):
                page.set_viewport_size({"width": width, "height": 900})
                if path == "/login":  # it answers 401, which the browser tells as an error
                    continue
                page.goto(root + path)
                found = Axe().run(page).response["violations"]
                serious = [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in BAD]
                assert not serious, (path, width)
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, (path, width)
        page.goto(root + "/")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"


BAD = {"serious", "critical"}
