"""clients/browser.js in a real Chromium, on a page of another origin than the server."""

import contextlib
import json
import socket
import subprocess
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chromium import Chromium, Site, Tab
from server import CORE, PATIENCE_SECONDS, ROOT, Server, program, wait_until

pytestmark = pytest.mark.slow

CLIENT = (ROOT / "clients/browser.js").read_text(encoding="utf-8")
PAYLOAD = CORE | {"projectId": "größe-😀"}
NEXT = {"providers": {}, "version": "the next", "resourceCount": 0}

# Chromium, and what it is without the two things that only it has.
BROWSERS = {
    "Chromium": "",
    "as in Safari": "delete window.fetchLater; delete window.requestIdleCallback;",
}
NEVER_IDLE = "window.requestIdleCallback = () => {};"
ENDS = ("Network.responseReceived", "Network.loadingFailed")

PAGE = """<!doctype html>
<title>An app</title>
<link rel="icon" href="data:,">
<script type="module">
  import { sendTelemetry } from "/browser.js";
  sendTelemetry(OPTIONS);
  sendTelemetry(OPTIONS);
</script>
"""

OpenApp = Callable[..., Tab]


@pytest.fixture
def site() -> Iterator[Site]:
    """The web server of the app."""
    app_site = Site()
    app_site.files["/browser.js"] = ("text/javascript", CLIENT.encode())
    yield app_site
    app_site.close()


@pytest.fixture
def collector() -> Iterator[Site]:
    """A stand-in for the collector that records what is on the wire."""
    recorder = Site(status=204)
    yield recorder
    recorder.close()


@pytest.fixture(params=BROWSERS)
def features(request: pytest.FixtureRequest) -> str:
    return BROWSERS[request.param]


@pytest.fixture
def open_app(browser: Chromium, site: Site) -> Iterator[OpenApp]:
    """Open, in a tab of its own, an app that calls sendTelemetry twice."""
    tabs: list[Tab] = []

    def build(port: int, script: str = "", host: str = "admin.localhost", **options: Any) -> Tab:
        options = {"url": telemetry(port), "payload": PAYLOAD} | options
        page = PAGE.replace("OPTIONS", json.dumps(options))
        site.files["/app"] = ("text/html", page.encode())
        tabs.append(browser.open_tab(script))
        tabs[-1].go(f"http://{host}:{site.port}/app")
        return tabs[-1]

    yield build
    for tab in tabs:
        tab.close()


def telemetry(port: int) -> str:
    return f"http://127.0.0.1:{port}/telemetry"


def payloads(collector: Site) -> list[Any]:
    return [json.loads(b64decode(asked.body)) for asked in collector.asked]


def wait_until_loaded(tab: Tab) -> None:
    """Wait until the page has loaded, and done what it does when it is idle."""
    tab.wait_for("Page.loadEventFired")
    tab.wait_until_idle()


def test_a_page_load_is_one_event_that_tells_browser_system_and_host(
    browser: Chromium, open_app: OpenApp, server: Server, features: str
) -> None:
    tab = open_app(server.port, features)
    tab.wait_for("Network.loadingFinished")
    wait_until_loaded(tab)
    wait_until(server.events)

    (event,) = server.events()
    assert event["payload"]["projectId"] == "größe-😀"
    assert event["payload"]["version"] == "5.0.12"
    assert (event["source"], event["hostname"]) == ("core", "admin.localhost")
    assert event["browser"] == "HeadlessChrome"
    assert event["browser_version"].split(".")[0] == browser.version.split(".")[0]
    assert event["os"] == "Linux"
    assert len(tab.requests(telemetry(server.port))) == 1
    assert tab.errors() == []


def test_each_load_of_a_page_is_counted(open_app: OpenApp, server: Server) -> None:
    tab = open_app(server.port)
    wait_until(lambda: len(server.events()) == 1)
    tab.call("Page.reload")
    wait_until(lambda: len(server.events()) == 2)


@pytest.mark.parametrize(
    ("script", "options"),
    [
        pytest.param("", {"disableTelemetry": True}, id="disableTelemetry"),
        pytest.param(
            "Object.defineProperty(Navigator.prototype, 'globalPrivacyControl', {value: true})",
            {},
            id="Global Privacy Control",
        ),
        pytest.param(
            "Object.defineProperty(Navigator.prototype, 'doNotTrack', {value: '1'})",
            {},
            id="Do Not Track",
        ),
        pytest.param("", {"debug": True}, id="debug"),
    ],
)
def test_an_opt_out_or_debug_sends_nothing(
    open_app: OpenApp, collector: Site, script: str, options: dict[str, bool]
) -> None:
    tab = open_app(collector.port, script, **options)
    wait_until_loaded(tab)
    tab.evaluate("dispatchEvent(new Event('pagehide'))")
    tab.wait_until_idle()

    assert tab.requests(telemetry(collector.port)) == []
    assert collector.asked == []


def call(tab: Tab, **options: Any) -> None:
    """Call sendTelemetry once more on the page that is open, and let the page do what follows."""
    sender = "import('/browser.js').then(({ sendTelemetry }) => sendTelemetry(OPTIONS))"
    tab.evaluate(sender.replace("OPTIONS", json.dumps(options)))
    tab.wait_until_idle()


def test_a_version_is_payload_enough(open_app: OpenApp, server: Server) -> None:
    open_app(server.port, payload={"version": "1.2.3"})
    wait_until(server.events)

    (event,) = server.events()
    assert not any(event["payload"].pop("providers").values())
    assert event["payload"] == {"version": "1.2.3", "resourceCount": 0, "projectId": None}


def test_consent_that_is_given_later_on_the_same_page_is_counted_once(
    open_app: OpenApp, collector: Site
) -> None:
    tab = open_app(collector.port, disableTelemetry=True)
    wait_until_loaded(tab)
    options = {"url": telemetry(collector.port), "payload": PAYLOAD}
    for _ in range(2):
        call(tab, **options, disableTelemetry=False)
    wait_until(lambda: collector.asked)
    call(tab, **options | {"url": f"http://127.0.0.1:{collector.port}/", "payload": NEXT})
    wait_until(lambda: payloads(collector)[-1] == NEXT)

    assert payloads(collector) == [PAYLOAD, NEXT]


def test_two_frameworks_on_a_page_are_an_event_each(open_app: OpenApp, collector: Site) -> None:
    tab = open_app(collector.port)
    other = f"http://localhost:{collector.port}/telemetry"
    for _ in range(2):
        call(tab, url=other, payload=NEXT)
    wait_until_loaded(tab)
    wait_until(lambda: len(collector.asked) == 2)

    assert sorted(payload["version"] for payload in payloads(collector)) == ["5.0.12", "the next"]
    assert len(tab.requests(telemetry(collector.port))) == len(tab.requests(other)) == 1


def logged(tab: Tab) -> list[list[Any]]:
    """Return the arguments of each call of the console, of objects their text."""
    calls = tab.events("Runtime.consoleAPICalled")
    return [[arg.get("value", arg.get("preview")) for arg in call["args"]] for call in calls]


def test_debug_tells_what_would_be_sent_or_why_nothing_would_be(
    open_app: OpenApp, collector: Site
) -> None:
    tab = open_app(collector.port, payload={"version": "1.2.3"}, debug=True)
    wait_until_loaded(tab)
    tab.wait_for("Runtime.consoleAPICalled")
    call(tab, url="https://x", payload={"version": "1"}, debug=True, disableTelemetry=True)

    (tag, would_send, event, _, url), why_not = logged(tab)
    assert (tag, would_send, url) == ("[telemetry]", "would send", telemetry(collector.port))
    properties = {each["name"]: each["value"] for each in event["properties"]}
    assert properties == {"version": "1.2.3", "providers": "Object", "resourceCount": "0"}
    assert why_not == ["[telemetry]", "would not send: the app sets disableTelemetry"]


def test_one_post_without_a_cookie_is_the_only_request(
    open_app: OpenApp, site: Site, collector: Site, features: str
) -> None:
    # One host, two ports: two origins, but cookies know no ports.
    tab = open_app(collector.port, features + "document.cookie = 'who=me';", host="127.0.0.1")
    wait_until(lambda: collector.asked)
    wait_until_loaded(tab)

    (asked,) = collector.asked
    assert (asked.method, asked.path) == ("POST", "/telemetry")
    assert asked.headers["Content-Type"] == "text/plain;charset=UTF-8"
    assert asked.headers["Origin"] == f"http://127.0.0.1:{site.port}"
    assert "/app" not in asked.headers.get("Referer", "")
    assert "Cookie" not in asked.headers
    assert json.loads(b64decode(asked.body)) == PAYLOAD
    assert tab.evaluate("document.cookie") == "who=me"


def test_nothing_is_sent_before_the_load_event(
    open_app: OpenApp, site: Site, collector: Site, features: str
) -> None:
    site.held["/slow.png"] = threading.Event()
    slow_image = "addEventListener('DOMContentLoaded', () => new Image().src = '/slow.png');"

    tab = open_app(collector.port, features + slow_image)
    wait_until(lambda: "/slow.png" in [asked.path for asked in site.asked])
    tab.wait_until_idle()

    assert tab.events("Page.loadEventFired") == []
    assert tab.requests(telemetry(collector.port)) == []
    site.held["/slow.png"].set()
    wait_until(lambda: collector.asked)


def test_nothing_is_sent_while_the_browser_is_busy(open_app: OpenApp, collector: Site) -> None:
    tab = open_app(collector.port, NEVER_IDLE)
    tab.wait_for("Page.loadEventFired")
    tab.evaluate("new Promise(done => setTimeout(done))")

    assert tab.requests(telemetry(collector.port)) == []


@contextlib.contextmanager
def failing_server(kind: str) -> Iterator[int]:
    """Yield the port of a server that is down, does not respond, or cannot store events."""
    if kind == "503":
        with contextlib.closing(Site(status=503)) as site:
            yield site.port
    else:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            if kind == "mute":
                taken.listen()
            yield taken.getsockname()[1]


@pytest.mark.parametrize("kind", ["down", "mute", "503"])
def test_a_failing_server_leaves_no_trace_in_the_app(
    open_app: OpenApp, kind: str, features: str
) -> None:
    with failing_server(kind) as port:
        tab = open_app(port, features)
        wait_until_loaded(tab)
        (request,) = tab.requests(telemetry(port))
        if kind != "mute":
            tab.wait_for(*ENDS, requestId=request["requestId"])
            tab.wait_until_idle()

    # Of what fetch sends, Chromium itself logs the failure; no script can prevent that.
    unavoidable = "network" if features else None
    assert [error for error in tab.errors() if error[0] != unavoidable] == []


def test_without_fetch_later_a_mute_server_is_given_up_after_three_seconds(
    open_app: OpenApp,
) -> None:
    with failing_server("mute") as port:
        tab = open_app(port, BROWSERS["as in Safari"])
        wait_until_loaded(tab)
        (request,) = tab.requests(telemetry(port))
        end = tab.wait_for(*ENDS, requestId=request["requestId"])
        tab.wait_until_idle()

    assert end["canceled"]
    assert 2.9 < end["timestamp"] - request["timestamp"] < 10
    assert tab.errors() == []


@pytest.mark.parametrize("script", ["", NEVER_IDLE], ids=["idle soon", "never idle"])
def test_a_tab_that_is_closed_right_after_load_is_counted_once(
    open_app: OpenApp, collector: Site, features: str, script: str
) -> None:
    tab = open_app(collector.port, features + script)
    tab.wait_for("Page.loadEventFired")
    tab.close()
    wait_until(lambda: collector.asked)
    open_app(collector.port, payload=NEXT)
    wait_until(lambda: payloads(collector)[-1] == NEXT)

    assert payloads(collector) == [PAYLOAD, NEXT]


def test_a_tab_that_is_closed_before_the_server_is_reached_is_counted(
    open_app: OpenApp, features: str
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        listener.settimeout(PATIENCE_SECONDS)
        with full_queue(port):
            tab = open_app(port, features)
            wait_until_loaded(tab)
            assert len(tab.requests(telemetry(port))) == 1
            tab.close()
        request = b""
        while not request:
            with listener.accept()[0] as connection:
                request = connection.recv(4096)

    assert request.startswith(b"POST /telemetry ")


@contextlib.contextmanager
def full_queue(port: int) -> Iterator[None]:
    """Fill the queue of connections to be accepted."""
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield


def test_an_error_in_the_client_stays_there(
    open_app: OpenApp, collector: Site, features: str
) -> None:
    no_json = "Object.prototype.toJSON = () => { throw new Error('no JSON'); };"

    tab = open_app(collector.port, features + no_json)
    wait_until_loaded(tab)

    assert tab.requests(telemetry(collector.port)) == []
    assert tab.errors() == []


@pytest.mark.parametrize(
    "call", ["sendTelemetry({ url: 'http://127.0.0.1:1/' })", "sendTelemetry()"]
)
@pytest.mark.parametrize("shim", ["", "globalThis.document = {};"])
def test_a_user_agent_that_is_no_browser_is_no_error(shim: str, call: str) -> None:
    """As in server-side rendering, with only some of a browser's names defined."""
    client = (ROOT / "clients/browser.js").as_uri()
    script = f"{shim} import({json.dumps(client)}).then(({{ sendTelemetry }}) => {call});"
    ran = subprocess.run(
        [program("node"), "--eval", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )

    assert (ran.returncode, ran.stdout) == (0, "")
    assert "Error" not in ran.stderr
