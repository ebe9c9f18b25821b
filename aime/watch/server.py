"""The page over HTTP, on this machine's loopback address alone."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from aime.evaluation.report.style import STYLE
from aime.evaluation.run_directory import RunDirectory
from aime.watch.curves import curves
from aime.watch.pictures import Pictures

ADDRESS = "127.0.0.1"
REFRESH_SECONDS = 2.0
SECTIONS = {"pictures": "What the newest checkpoint sees", "curves": "Training"}
#: nothing is loaded from anywhere else, and no other page may show this one
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; img-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
SCRIPT = """\
"use strict";
const versions = {};
async function refresh(name) {
  const answer = await fetch(`/${name}?since=${versions[name] ?? ""}`, {cache: "no-store"});
  if (answer.status === 200) {
    document.getElementById(name).innerHTML = await answer.text();
    versions[name] = answer.headers.get("ETag");
  }
}
async function follow() {
  const state = document.getElementById("state");
  try {
    for (const section of document.querySelectorAll("section > div")) await refresh(section.id);
    state.textContent = `live, looked at ${new Date().toLocaleTimeString()}`;
  } catch {
    state.textContent = "aime watch has ended: what is shown is the last it saw";
  }
  setTimeout(follow, SECONDS * 1000);
}
follow();
""".replace("SECONDS", str(REFRESH_SECONDS))


@dataclass
class Fragment:
    """A part of the page, and a version that changes with it."""

    html: str = ""
    version: str = ""


@dataclass
class Watched:
    """The run as the page shows it.

    Args:
        run: the run directory.
        pictures: of its checkpoints, drawn by a thread of their own.
    """

    run: Path
    pictures: Pictures
    _curves: Fragment = field(default_factory=Fragment)

    def fragment(self, name: str) -> Fragment:
        """A section of the page as it is now."""
        if name == "pictures":
            return Fragment(self.pictures.html, f"step-{self.pictures.step}")
        log = self.run / "metrics.jsonl"
        version = f"size-{log.stat().st_size}-{log.stat().st_mtime_ns}" if log.is_file() else "none"
        if version != self._curves.version:
            history = RunDirectory(self.run, self.run / "weights").history()
            self._curves = Fragment(curves(history), version)
        return self._curves

    def page(self) -> str:
        """The whole page, its sections empty: the script fills them."""
        name = escape(self.run.resolve().name)
        sections = "".join(
            f'<section><h2>{title}</h2><div id="{key}"></div></section>' for key, title in SECTIONS.items()
        )
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>AIME: {name}</title><style>{STYLE}</style></head><body><main><h1>{name}</h1>"
            f'<p class="facts" id="state">loading</p>{sections}</main><script src="/watch.js"></script></body></html>\n'
        )


class Server(ThreadingHTTPServer):
    """Serves one run on the loopback address.

    Args:
        watched: the run.
        port: to listen on; 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, watched: Watched, port: int = 0) -> None:
        super().__init__((ADDRESS, port), Handler)
        self.watched = watched
        self._stop = threading.Event()
        self._drawing = threading.Thread(target=self._draw, name="aime-watch", daemon=True)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve until `shutdown`, and draw the pictures of each new checkpoint."""
        self._drawing.start()
        try:
            super().serve_forever(poll_interval)
        finally:
            self._stop.set()
            self._drawing.join()

    def _draw(self) -> None:
        while not self._stop.is_set():
            self.watched.pictures.refresh()
            self._stop.wait(REFRESH_SECONDS)


class Handler(BaseHTTPRequestHandler):
    """Answers GET for the page, its script and its sections, and nothing else: no path leads to a file."""

    server: Server
    server_version = "aime"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer."""
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in (ADDRESS, "localhost"):  # a name of somebody else's that leads here
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", "not from here\n")
            return
        place = urlsplit(self.path)
        name = place.path.removeprefix("/")
        if name == "":
            self._answer(HTTPStatus.OK, "text/html", self.server.watched.page())
        elif name == "watch.js":
            self._answer(HTTPStatus.OK, "text/javascript", SCRIPT)
        elif name in SECTIONS:
            fragment = self.server.watched.fragment(name)
            known = parse_qs(place.query).get("since", [""])[0] == fragment.version
            if known:
                self._answer(HTTPStatus.NO_CONTENT, "text/html", "", fragment.version)
            else:
                self._answer(HTTPStatus.OK, "text/html", fragment.html, fragment.version)
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "no such page\n")

    def _answer(self, status: HTTPStatus, kind: str, text: str, version: str | None = None) -> None:
        body = text.encode()
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
        }
        headers |= {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        headers |= {} if version is None else {"ETag": version}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
        """Keep quiet: a line for every request is no news."""
