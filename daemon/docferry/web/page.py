"""Serve the status page: routes, access, and the fragment of a page that a script refreshes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import anyio.to_thread
from jinja2 import Environment, PackageLoader, select_autoescape
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from docferry import __version__
from docferry.app.running import RunningDaemon
from docferry.settings.listeners import address
from docferry.store.pages import Pages
from docferry.web import actions, attention, text
from docferry.web.activity import ActivityLog
from docferry.web.filters import STATES, asked_filter, filter_query
from docferry.web.overview import Plots, overview
from docferry.web.patience import Patience
from docferry.web.security import HostCheck, OriginCheck, SecureHeaders, allowed_hosts
from docferry.web.sessions import SESSION_S, Sessions, use_link_token

PER_PAGE: Final = 100


class StatusPage:
    """Serve the page of one daemon. Sessions and activity are passed in, because they survive a reload."""

    def __init__(self, daemon: RunningDaemon, sessions: Sessions, activity: ActivityLog) -> None:
        self._daemon = daemon
        self._settings = daemon.app.settings
        self._sessions = sessions
        self._activity = activity
        self._pages = Pages(daemon.app.database)
        self._plots = Plots(daemon.app)
        self._actions = actions.Actions(daemon)
        where = address(self._settings.web.listen or "unix:/")
        self._needs_login = where.path is None  # the mode of a Unix socket protects it
        self._templates = _environment()

    def application(self) -> Starlette:
        """Return the application with its protections."""
        listen = self._settings.web.listen or ""
        routes = [
            Route("/", self._overview),
            Route("/documents", self._documents),
            Route("/documents/{id:int}", self._document),
            Route("/activity", self._recent),
            Route("/status.json", self._status),
            Route("/login", self._login),
            Route("/logout", self._logout, methods=["POST"]),
            Route("/actions/{what}", self._act, methods=["POST"]),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
        ]
        middleware = [
            Middleware(SecureHeaders),
            Middleware(HostCheck, allowed=allowed_hosts(listen, self._settings.web.hosts)),
            Middleware(OriginCheck),
            Middleware(Patience, database=self._daemon.app.database),
        ]
        handlers: dict[Any, Any] = {HTTPException: self._problem, Exception: self._bug}
        return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)

    # -- pages -----------------------------------------------------------------------------------------------------

    async def _overview(self, request: Request) -> Response:
        if (refused := self._refuse(request)) is not None:
            return refused
        everything = request.query_params.get("all") == "1"
        values = await overview(self._daemon, self._plots, everything=everything)
        return await self._page(request, "overview.html", values)

    async def _documents(self, request: Request) -> Response:
        if (refused := self._refuse(request)) is not None:
            return refused
        wanted = asked_filter(request.query_params.multi_items())
        page = await self._pages.documents(wanted, below=_number(request.query_params.get("below")), limit=PER_PAGE)
        queue = await self._daemon.queue.snapshot()
        configured = [upload.name for upload in self._settings.uploads]
        names = dict.fromkeys([*configured, *sorted(queue.documents)])
        reasons = sorted({reason for _, reason, _ in queue.held} | ({wanted.reason} if wanted.reason else set()))
        query = filter_query(wanted)
        values = {
            "wanted": wanted,
            "page": page,
            "mappings": list(names),
            "reasons": reasons,
            "states": STATES,
            "query": query,
            "next": "" if page.below is None else "?" + urlencode([*query, ("below", page.below)]),
            "is_first": "below" not in request.query_params,
            "may_retry": any(row.state in ("held", "waiting", "doubtful") for row in page.rows),
        }
        return await self._page(request, "documents.html", values)

    async def _document(self, request: Request) -> Response:
        if (refused := self._refuse(request)) is not None:
            return refused
        number = request.path_params["id"]
        row = await self._daemon.app.reports.by_id(number) if number < 2**63 else None
        if row is None:
            raise HTTPException(404, f"There is no document {number}.")
        attempts = await self._daemon.app.reports.attempts(number)
        called, fix = attention.HELD.get(row.reason or "", ("", ""))
        values = {"row": row, "attempts": list(reversed(attempts)), "called": called, "fix": fix}
        return await self._page(request, "document.html", values)

    async def _recent(self, request: Request) -> Response:
        if (refused := self._refuse(request)) is not None:
            return refused
        values = {"events": list(self._activity.events()), "since": self._daemon.started}
        return await self._page(request, "activity.html", values)

    async def _status(self, request: Request) -> Response:
        if self._needs_login and not self._sessions.has(self._cookie(request)):
            return JSONResponse({"error": "log in with `docferry ui`"}, 401)
        return JSONResponse(await self._daemon.figures())

    # -- access ----------------------------------------------------------------------------------------------------

    async def _login(self, request: Request) -> Response:
        token = request.query_params.get("token", "")
        good = request.method == "GET" and await anyio.to_thread.run_sync(
            use_link_token, self._settings.state_dir, token
        )
        if not good:
            return await self._render("login.html", {"expired": bool(token)}, 401)
        # A page, not a redirect: the cookie is sent only with a request from one of docferry's own pages.
        response = await self._render("welcome.html", {}, 200)
        is_tls = request.headers.get("x-forwarded-proto") == "https"
        response.set_cookie(
            self._cookie_name, self._sessions.begin(), int(SESSION_S), httponly=True, samesite="strict", secure=is_tls
        )
        return response

    async def _logout(self, request: Request) -> Response:
        self._sessions.end(self._cookie(request))
        response = RedirectResponse("/login", 303)
        response.delete_cookie(self._cookie_name)
        return response

    @property
    def _cookie_name(self) -> str:
        """Return a cookie name for each port, because browsers send cookies of a host to all its ports."""
        return f"docferry_{self._daemon.listening.get('web', '').rpartition(':')[2]}"

    def _cookie(self, request: Request) -> str | None:
        return request.cookies.get(self._cookie_name)

    def _actor(self, request: Request) -> str:
        """Return the name of a browser for receipts: its session, or the Unix socket if the page needs no login."""
        session = self._sessions.name(self._cookie(request)) if self._needs_login else None
        return f"page session {session}" if session else f"status page at {self._settings.web.listen}"

    def _is_in(self, request: Request) -> bool:
        return not self._needs_login or self._sessions.has(self._cookie(request))

    def _refuse(self, request: Request) -> Response | None:
        """Return the login page for a stranger, None for a logged-in browser."""
        if self._is_in(request):
            return None
        return self._rendered("login.html", {"expired": False}, 401)

    # -- changes ---------------------------------------------------------------------------------------------------

    async def _act(self, request: Request) -> Response:
        if not self._is_in(request):
            raise HTTPException(401, "Log in with `docferry ui` first.")
        if not self._settings.web.actions:
            raise HTTPException(403, "Nothing can be changed from this page: web.actions is false.")
        form = await actions.form(request)
        done, number = await self._actions.do(request.path_params["what"], form, self._actor(request))
        self._daemon.queue.outdate()
        back = actions.local_path(dict(form).get("back", "/"))
        joint = "&" if "?" in back else "?"
        return RedirectResponse(f"{back}{joint}{urlencode({'done': done, 'n': number})}", 303)

    # -- rendering -------------------------------------------------------------------------------------------------

    async def _page(self, request: Request, name: str, values: Mapping[str, Any]) -> Response:
        """Return a page, or only its changing part for the script, or status 304 if the ETag is unchanged."""
        fragment = request.headers.get("x-fragment") == "1"
        shown = {
            **values,
            "layout": "fragment.html" if fragment else "layout.html",
            "here": request.url.path,
            "back": _without_notice(request),
            "notice": actions.notice(request.query_params.get("done"), request.query_params.get("n")),
            "alive": self._daemon.is_alive,
            "started": self._daemon.started,
            "may_act": self._settings.web.actions,
            "needs_login": self._needs_login,
        }
        response = await self._render(name, shown, 200)
        etag = f'"{hashlib.sha256(response.body).hexdigest()[:20]}"'
        if fragment and request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers={"etag": etag})
        response.headers["etag"] = etag
        return response

    async def _render(self, name: str, values: Mapping[str, Any], status: int) -> HTMLResponse:
        return await anyio.to_thread.run_sync(self._rendered, name, values, status)

    def _rendered(self, name: str, values: Mapping[str, Any], status: int) -> HTMLResponse:
        template = self._templates.get_template(name)
        return HTMLResponse(template.render({"layout": "layout.html", "version": __version__, **values}), status)

    async def _problem(self, request: Request, error: HTTPException) -> Response:
        is_in = self._is_in(request)
        values = {"status": error.status_code, "detail": error.detail, "is_in": is_in}
        return await self._render("problem.html", values, error.status_code)

    async def _bug(self, _request: Request, error: Exception) -> Response:
        detail = f"This should not have happened: {type(error).__name__}. See the log for details."
        return await self._render("problem.html", {"status": 500, "detail": detail, "is_in": True}, 500)


def _number(written: str | None) -> int | None:
    is_number = written is not None and written.isascii() and written.isdecimal() and len(written) < 19
    return int(written) if is_number and written is not None else None


def _without_notice(request: Request) -> str:
    kept = [(name, value) for name, value in request.query_params.multi_items() if name not in ("done", "n")]
    return request.url.path + ("?" + urlencode(kept) if kept else "")


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("docferry.web"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "size": text.size,
        "duration": text.duration,
        "moment": text.moment,
        "state_name": text.state_name,
        "path": text.path_text,
        "number": lambda number: f"{number:,}",
    }
    made.globals["plural"] = text.plural
    return made
