"""A real Chromium without a window, driven over the DevTools protocol; and web servers for it.

https://chromedevtools.github.io/devtools-protocol/ says what the methods and events mean.
"""

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from server import PATIENCE_SECONDS

SWITCHES = [
    "--headless",
    "--no-sandbox",  # it is not to be had everywhere, and every page here is our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--remote-debugging-pipe",
    # DevTools turn on navigator.webdriver.  Tests are about users, who do not have it.
    "--disable-blink-features=AutomationControlled",
]


class Chromium:
    """A running browser, with a profile of its own in an empty directory."""

    def __init__(self, program: str, profile: Path) -> None:
        self.messages: list[dict[str, Any]] = []
        self.last_id = 0
        ours, theirs = socket.socketpair()
        with theirs, (profile / "log").open("w") as log:
            # The pipe is file descriptors 3 and 4: messages in JSON, each ended by a NUL.
            both = f'exec "$0" "$@" 3<&{theirs.fileno()} 4>&{theirs.fileno()}'
            switches = [*SWITCHES, f"--user-data-dir={profile / 'data'}"]
            self.process = subprocess.Popen(
                ["bash", "-c", both, program, *switches], pass_fds=[theirs.fileno()], stderr=log
            )
        ours.settimeout(PATIENCE_SECONDS)
        self.pipe = ours.makefile("rwb")
        ours.close()  # once the file is closed, too
        self.version = self.call("Browser.getVersion")["product"].partition("/")[2]

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        self.pipe.write(json.dumps(message).encode() + b"\0")
        self.pipe.flush()
        while (answer := self._read()).get("id") != self.last_id:
            self.messages.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        raw = bytearray()
        while (byte := self.pipe.read(1)) != b"\0":
            if not byte:
                raise EOFError("Chromium has ended; its profile's log may say why")
            raw += byte
        message: dict[str, Any] = json.loads(raw)
        return message

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first message that is `wanted`, received already or to come."""
        while not (found := next(filter(wanted, self.messages), None)):
            self.messages.append(self._read())
        return found

    def open_tab(self, script: str = "") -> "Tab":
        """Open an empty tab, in a session without cookies; each page in it runs `script` first."""
        return Tab(self, script)

    def close(self) -> None:
        with contextlib.suppress(EOFError):
            self.call("Browser.close")
        self.process.wait(PATIENCE_SECONDS)
        self.pipe.close()


class Tab:
    """A tab, and the browser's messages about it."""

    def __init__(self, browser: Chromium, script: str) -> None:
        self.browser = browser
        context = browser.call("Target.createBrowserContext")["browserContextId"]
        self.target = browser.call(
            "Target.createTarget", url="about:blank", browserContextId=context
        )["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def events(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of the events of this name, in the order they came."""
        return [
            message["params"]
            for message in self.browser.messages
            if message.get("sessionId") == self.session and message["method"] == method
        ]

    def wait_for(self, *methods: str, **wanted: Any) -> dict[str, Any]:
        """Return the parameters of the first event of these names, with these parameters."""
        found = self.browser.wait_for(
            lambda message: (
                message.get("sessionId") == self.session
                and message["method"] in methods
                and wanted.items() <= message["params"].items()
            )
        )
        params: dict[str, Any] = found["params"]
        return params

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, or of the promise that it returns."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        return answer["result"].get("value")

    def wait_until_idle(self) -> None:
        """Wait until all idle callbacks have run."""
        self.evaluate("new Promise(done => (window.requestIdleCallback ?? setTimeout)(done))")

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is closed
            self.browser.call("Target.closeTarget", targetId=self.target)
        self.browser.wait_for(
            lambda message: (
                message.get("method") == "Target.detachedFromTarget"
                and message["params"]["sessionId"] == self.session
            )
        )

    def requests(self, url: str) -> list[dict[str, Any]]:
        """Return the details of each request to this address."""
        requests = self.events("Network.requestWillBeSent")
        return [request for request in requests if request["request"]["url"] == url]

    def errors(self) -> list[tuple[str, str]]:
        """Return source and text of the errors in the console."""
        thrown = self.events("Runtime.exceptionThrown")
        logged = [event["entry"] for event in self.events("Log.entryAdded")]
        called = self.events("Runtime.consoleAPICalled")
        return [
            *(("exception", event["exceptionDetails"]["text"]) for event in thrown),
            *((entry["source"], entry["text"]) for entry in logged if entry["level"] == "error"),
            *(("console", str(event["args"])) for event in called if event["type"] == "error"),
        ]


class Asked(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Site(ThreadingHTTPServer):
    """A web server of `files` (type and content by path) that keeps what it is asked for.

    Every other path is answered with `status`.  A path in `held` waits for its event.
    """

    def __init__(self, status: int = 404) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.port = self.server_port
        self.status = status
        self.files: dict[str, tuple[str, bytes]] = {}
        self.held: dict[str, threading.Event] = {}
        self.asked: list[Asked] = []
        self.thread = threading.Thread(target=self.serve_forever, args=[0.01], daemon=True)
        self.thread.start()

    def close(self) -> None:
        for event in self.held.values():
            event.set()
        self.shutdown()
        self.thread.join()
        self.server_close()


class Answering(BaseHTTPRequestHandler):
    server: Site

    def answer(self) -> None:
        site = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        site.asked.append(Asked(self.command, self.path, dict(self.headers), body))
        if self.path in site.held:
            site.held[self.path].wait(PATIENCE_SECONDS)
        kind, content = site.files.get(self.path, ("text/plain", b""))
        self.send_response(200 if self.path in site.files else site.status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_OPTIONS = answer

    def log_message(self, *_: object) -> None:
        pass
