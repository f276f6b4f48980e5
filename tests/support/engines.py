"""A small site for real browsers to visit, and the three engines to visit it with."""

import contextlib
import http.server
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from server import PATIENCE_SECONDS, program


class PageServer:
    """Serves pages by their path, and records the requests."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[str, str]] = {}  # content and type
        self.requests: list[tuple[str, str]] = []  # path, and why: the header Sec-Purpose
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                site.requests.append((self.path, self.headers.get("Sec-Purpose", "")))
                content, mimetype = site.pages.get(self.path, ("", "text/plain"))
                self.send_response(200)
                self.send_header("Content-Type", mimetype)
                self.send_header("Content-Length", str(len(content.encode())))
                self.end_headers()
                with contextlib.suppress(OSError):  # the browser may be gone
                    self.wfile.write(content.encode())

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://localhost:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def has_seen(self, path: str) -> bool:
        return any(seen == path for seen, _ in self.requests)

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join(PATIENCE_SECONDS)
        self.server.server_close()


class Engine(NamedTuple):
    """How to start a browser, and the names under which its events are stored."""

    program: str
    arguments: tuple[str, ...]  # {} is an empty directory
    environ: Mapping[str, str]
    browser: str


ENGINES = {
    "Chromium": Engine(
        "chromium",
        (
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
            "--user-data-dir={}",
        ),
        {},
        "HeadlessChrome",
    ),
    "Firefox": Engine(
        "firefox-esr",
        ("--headless", "--no-remote", "--profile", "{}", "--screenshot", "{}/shot.png"),
        {},
        "Firefox",
    ),
    "WebKit": Engine(
        "cog",
        ("-P", "headless"),
        {"WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1"},  # it refuses to start as root
        "Safari",
    ),
}

# The switches by which chromedriver and geckodriver take control.
UNDER_WEBDRIVER = {
    name: ENGINES[name]._replace(arguments=(*ENGINES[name].arguments, *switches))
    for name, switches in {
        "Chromium": ["--enable-automation"],
        "Firefox": ["--marionette"],
    }.items()
}


@contextlib.contextmanager
def visiting(engine: Engine, url: str, profile: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Keep the page open in a browser until the block ends."""
    arguments = [argument.format(profile) for argument in engine.arguments]
    process = subprocess.Popen(
        [program(engine.program), *arguments, url],
        env={**os.environ, "HOME": str(profile), **engine.environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that one signal reaches all of its processes
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)
