"""Web servers for the senders and for browsers to visit."""

import contextlib
import mimetypes
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from server import PATIENCE_SECONDS, ROOT


class Asked(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int


class Site(ThreadingHTTPServer):
    """A web server of `files` by path, with the browser's sender, that keeps what it is asked for.

    Every other path is answered with the next of `statuses`, or with `status`; where that is 0,
    the connection is only closed.  A path in `held` waits for its event.
    """

    def __init__(self, status: int = 404) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.port = self.server_port
        self.status = status
        self.statuses: list[int] = []
        self.files = {"/browser.js": (ROOT / "clients/browser.js").read_bytes()}
        self.held: dict[str, threading.Event] = {}
        self.asked: list[Asked] = []
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()

    def server_close(self) -> None:
        for event in self.held.values():
            event.set()
        self.shutdown()
        super().server_close()


class Answering(BaseHTTPRequestHandler):
    server: Site

    def answer(self) -> None:
        site = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path in site.files:
            status = 200
        else:
            status = site.statuses.pop(0) if site.statuses else site.status
        site.asked.append(Asked(self.command, self.path, dict(self.headers), body, status))
        if self.path in site.held:
            site.held[self.path].wait(PATIENCE_SECONDS)
        if status == 0:
            return
        self.send_response(status)
        self.send_header("Content-Type", mimetypes.guess_type(self.path)[0] or "text/html")
        self.end_headers()
        with contextlib.suppress(OSError):  # the browser may be gone
            self.wfile.write(site.files.get(self.path, b""))

    do_GET = do_POST = do_OPTIONS = answer

    def log_message(self, *_: object) -> None:
        pass
