"""clients/browser.js in a real Chromium, on a page of another origin than the server."""

import json
import socket
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from server import CORE, PATIENCE_SECONDS, wait_until
from web import Site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

pytestmark = pytest.mark.slow

PAYLOAD = CORE | {"projectId": "größe-😀"}
NEXT = {"providers": {}, "version": "the next", "resourceCount": 0}

# Chromium, and what it is without the two things that only it has.
BROWSERS = {
    "Chromium": "",
    "as in Safari": "delete window.fetchLater; delete window.requestIdleCallback;",
}
NEVER_IDLE = "window.requestIdleCallback = () => {};"

PAGE = """<!doctype html>
<title>An app</title>
<link rel="icon" href="data:,">
<script type="module">
  import { sendTelemetry } from "/browser.js";
  sendTelemetry(OPTIONS);
  sendTelemetry(OPTIONS);
</script>
"""


class App:
    """What an app that calls sendTelemetry twice does in its tab."""

    def __init__(self, page: "Page") -> None:
        self.page = page
        self.requests: list[str] = []
        self.ended: list[str] = []
        self.logged: list[ConsoleMessage] = []
        self.thrown: list[Exception] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("response", lambda response: self.ended.append(response.url))
        self.page.on("requestfailed", lambda request: self.ended.append(request.url))
        self.page.on("console", lambda message: self.logged.append(message))
        self.page.on("pageerror", lambda error: self.thrown.append(error))

    def call(self, **options: Any) -> None:
        """Call sendTelemetry once more, and let the page do what follows."""
        sender = "import('/browser.js').then(({ sendTelemetry }) => sendTelemetry(OPTIONS))"
        self.page.evaluate(sender.replace("OPTIONS", json.dumps(options)))
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Wait until all idle callbacks have run.  This reads the browser's messages, too."""
        self.page.evaluate("new Promise(done => (window.requestIdleCallback ?? setTimeout)(done))")

    def have_ended(self, urls: set[str]) -> bool:
        self.wait_until_idle()
        return urls <= set(self.ended)

    def errors(self) -> list[str]:
        """Return the errors in the console."""
        logged = [message.text for message in self.logged if message.type == "error"]
        return [*map(str, self.thrown), *logged]


OpenApp = Callable[..., App]


@pytest.fixture
def collector() -> Iterator[Site]:
    """A stand-in for the collector that records what is on the wire."""
    with Site(status=204) as recorder:
        yield recorder


@pytest.fixture(params=BROWSERS)
def features(request: pytest.FixtureRequest) -> str:
    return BROWSERS[request.param]


@pytest.fixture
def open_app(browser: "Browser", site: Site) -> Iterator[OpenApp]:
    """Open an app that sends to this port, in a browser without cookies."""
    contexts: list[BrowserContext] = []

    def build(port: int, script: str = "", until: Any = "load", **options: Any) -> App:
        options = {"url": telemetry(port), "payload": PAYLOAD} | options
        site.files["/app"] = PAGE.replace("OPTIONS", json.dumps(options)).encode()
        # A page from browser.new_page() would close its context, too, and abort its requests.
        contexts.append(browser.new_context())
        app = App(contexts[-1].new_page())
        app.page.add_init_script(script)
        app.page.goto(f"http://127.0.0.1:{site.port}/app", wait_until=until)
        return app

    yield build
    for context in contexts:
        context.close()


def telemetry(port: int) -> str:
    return f"http://127.0.0.1:{port}/telemetry"


def payloads(collector: Site) -> list[Any]:
    return [json.loads(b64decode(asked.body)) for asked in collector.asked]


def test_each_page_load_is_one_post_without_a_cookie(
    open_app: OpenApp, site: Site, collector: Site, features: str
) -> None:
    # One host, two ports: two origins, but cookies know no ports.
    app = open_app(collector.port, features + "document.cookie = 'who=me';")
    wait_until(lambda: collector.asked)
    app.page.evaluate("dispatchEvent(new Event('pagehide'))")
    app.page.reload()
    wait_until(lambda: len(collector.asked) == 2)
    app.wait_until_idle()

    asked, again = collector.asked
    assert (asked.method, asked.path) == ("POST", "/telemetry")
    assert asked.headers["Content-Type"] == "text/plain;charset=UTF-8"
    assert asked.headers["Origin"] == f"http://127.0.0.1:{site.port}"
    assert "/app" not in asked.headers.get("Referer", "")
    assert "Cookie" not in again.headers
    assert payloads(collector) == [PAYLOAD, PAYLOAD]
    assert app.page.evaluate("document.cookie") == "who=me"
    assert app.errors() == []


# Properties of `navigator`, and why nothing is sent.
OPT_OUTS = {
    ("globalPrivacyControl", True): "Global Privacy Control is on",
    ("doNotTrack", "1"): "Do Not Track is on",
    ("webdriver", True): "WebDriver controls the browser",
}
CALL_WITH_OPT_OUTS = """async ([cases, options]) => {
  const { sendTelemetry } = await import("/browser.js");
  for (const [property, value] of cases) {
    Object.defineProperty(navigator, property, { value, configurable: true });
    for (const debug of [true, false]) sendTelemetry({ ...options, debug });
    delete navigator[property];
  }
}"""


def test_an_opt_out_or_debug_sends_nothing_and_debug_says_why(
    open_app: OpenApp, collector: Site
) -> None:
    app = open_app(collector.port, disableTelemetry=True)
    options = {"url": telemetry(collector.port), "payload": {"version": "1.2.3"}}
    app.page.evaluate(CALL_WITH_OPT_OUTS, [list(OPT_OUTS), options])
    app.call(**options, debug=True, disableTelemetry=True)
    app.call(**options, debug=True)
    app.page.evaluate("dispatchEvent(new Event('pagehide'))")
    app.wait_until_idle()

    *why_not, would_send = [[arg.json_value() for arg in one.args] for one in app.logged]
    reasons = [*OPT_OUTS.values(), "the app sets disableTelemetry"]
    assert why_not == [["[telemetry]", f"would not send: {reason}"] for reason in reasons]
    event = {"version": "1.2.3", "providers": {}, "resourceCount": 0}
    assert would_send == ["[telemetry]", "would send", event, "to", options["url"]]
    assert options["url"] not in app.requests
    assert collector.asked == []


def test_each_url_gets_one_event_of_a_page_load_also_after_later_consent(
    open_app: OpenApp, collector: Site
) -> None:
    app = open_app(collector.port, disableTelemetry=True)
    urls = [telemetry(collector.port), f"http://localhost:{collector.port}/telemetry"]
    for url, payload in zip(urls, (PAYLOAD, NEXT), strict=True):
        for _ in range(2):
            app.call(url=url, payload=payload, disableTelemetry=False)
    wait_until(lambda: len(collector.asked) == 2)

    assert sorted(payload["version"] for payload in payloads(collector)) == ["5.0.12", "the next"]
    assert [app.requests.count(url) for url in urls] == [1, 1]


def test_nothing_is_sent_before_the_load_event(
    open_app: OpenApp, site: Site, collector: Site
) -> None:
    site.held["/slow.png"] = threading.Event()
    slow_image = "addEventListener('DOMContentLoaded', () => new Image().src = '/slow.png');"

    app = open_app(collector.port, slow_image, until="domcontentloaded")
    wait_until(lambda: site.asked[-1].path == "/slow.png")
    app.wait_until_idle()

    assert app.page.evaluate("document.readyState") == "interactive"
    assert telemetry(collector.port) not in app.requests
    site.held["/slow.png"].set()
    wait_until(lambda: collector.asked)


def test_a_failing_server_leaves_no_trace_in_the_app(
    open_app: OpenApp, mute: socket.socket, features: str
) -> None:
    with Site(status=503) as failing, socket.socket() as down:
        down.bind(("127.0.0.1", 0))  # and never listens
        urls = {telemetry(port) for port in (failing.port, down.getsockname()[1])}
        app = open_app(mute.getsockname()[1], features)
        for url in urls:
            app.call(url=url, payload=PAYLOAD)
        if features:  # fetch gives up after three seconds
            urls.add(telemetry(mute.getsockname()[1]))
        wait_until(lambda: app.have_ended(urls))
    app.wait_until_idle()

    # Of what fetch sends, Chromium itself logs the failure; no script can prevent that.
    unavoidable = "Failed to load resource: " if features else "nothing"
    assert [error for error in app.errors() if not error.startswith(unavoidable)] == []


def test_nothing_is_sent_while_the_browser_is_busy_unless_the_tab_is_closed(
    open_app: OpenApp, collector: Site, features: str
) -> None:
    app = open_app(collector.port, features + NEVER_IDLE)
    app.page.evaluate("new Promise(done => setTimeout(done))")
    assert telemetry(collector.port) not in app.requests
    app.page.close()
    wait_until(lambda: collector.asked)
    open_app(collector.port, payload=NEXT)
    wait_until(lambda: payloads(collector)[-1] == NEXT)

    assert payloads(collector) == [PAYLOAD, NEXT]


def test_a_page_that_is_left_before_the_server_is_reached_is_counted(
    open_app: OpenApp, features: str
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        listener.settimeout(PATIENCE_SECONDS)
        with ExitStack() as full_queue:
            for _ in range(3):
                waiting = full_queue.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.1", port))
            app = open_app(port, features)
            app.wait_until_idle()
            assert telemetry(port) in app.requests
            app.page.goto("about:blank")
        request = b""
        while not request:
            with listener.accept()[0] as connection:
                request = connection.recv(4096)

    assert request.startswith(b"POST /telemetry ")


def test_an_error_in_the_client_stays_there(open_app: OpenApp, collector: Site) -> None:
    app = open_app(collector.port, "window.btoa = () => { throw new Error('no Base64'); };")
    app.wait_until_idle()

    assert telemetry(collector.port) not in app.requests
    assert app.errors() == []
