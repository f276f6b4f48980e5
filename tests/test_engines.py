"""The browser's sender and the plain image in Chromium, Firefox and WebKit, without DevTools."""

import contextlib
import json
import os
import signal
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import CORE, PATIENCE_SECONDS, Server, program, wait_until
from web import Site

pytestmark = pytest.mark.slow


# How to start a browser, by the name under which its events are stored; {0} is an empty directory.
ENGINES = {
    "HeadlessChrome": "chromium --headless --no-sandbox --disable-gpu"
    " --disable-background-networking --user-data-dir={0}",
    "Firefox": "firefox-esr --headless --profile {0} --screenshot {0}/shot.png",
    "Safari": "cog -P headless",  # WebKit
}
# It refuses to start as root.
ENVIRON = {"WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1"}
FIREFOX_OPT_OUTS = """
    user_pref("privacy.globalprivacycontrol.enabled", true);
    user_pref("privacy.globalprivacycontrol.functionality.enabled", true);
    user_pref("privacy.donottrackheader.enabled", true);
"""

# An app that uses two copies of the module and the image, offers an opt-out, and reads what became
# of an event by a request that needs a preflight.  When its senders have had their turn, it tells.
PAGE = """<!doctype html>
<img src="SERVER/?payload=IMAGE">
<script type="module">
  import { sendTelemetry } from "/browser.js";
  import { sendTelemetry as copy } from "/copy.js";

  const options = { url: "SERVER/telemetry", payload: PAYLOAD };
  sendTelemetry(options);
  copy(options);
  sendTelemetry({ ...options, url: "SERVER/", disableTelemetry: true });
  addEventListener("load", () => (window.requestIdleCallback ?? setTimeout)(tell));

  async function tell() {
    const request = { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" };
    const response = await fetch("SERVER/cli", request);
    const outcome = response.headers.get("X-Telemetry-Outcome");
    const { globalPrivacyControl, doNotTrack } = navigator;
    const told = { status: response.status, outcome, globalPrivacyControl, doNotTrack };
    fetch("/done", { method: "POST", body: JSON.stringify(told) });
  }
</script>"""

# Firefox starts in half the time where it only takes a picture, and ends when all is loaded.
FRAME = b"""<!doctype html><iframe src="/page"></iframe><img src="/held">"""


def write_page(site: Site, server: Server) -> None:
    image = b64encode(json.dumps(CORE | {"version": "image"}).encode()).decode()
    page = PAGE.replace("IMAGE", image).replace("SERVER", f"http://127.0.0.1:{server.port}")
    site.files["/page"] = page.replace("PAYLOAD", json.dumps(CORE)).encode()
    site.files |= {"/copy.js": site.files["/browser.js"], "/frame": FRAME}
    site.held["/held"] = threading.Event()


@contextlib.contextmanager
def visiting(browser: str, site: Site, path: str, profile: Path) -> Iterator[None]:
    """Keep the page open in a browser until the block ends."""
    name, *arguments = ENGINES[browser].format(profile).split()
    process = subprocess.Popen(
        [program(name), *arguments, f"http://localhost:{site.port}{path}"],
        env={**os.environ, "HOME": str(profile), **ENVIRON},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that one signal reaches all of its processes
    )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)


def told(site: Site) -> dict[str, object]:
    """Return what the page has told, nothing before that."""
    bodies = [asked.body for asked in site.asked if asked.path == "/done"]
    what: dict[str, object] = json.loads(bodies[0]) if bodies else {}
    return what


@pytest.mark.parametrize("browser", ENGINES)
def test_a_page_load_is_one_event_of_each_sender(
    browser: str, site: Site, shared_server: Server, tmp_path: Path
) -> None:
    write_page(site, shared_server)
    with visiting(browser, site, "/frame", tmp_path):
        wait_until(lambda: told(site) and len(shared_server.events()) >= 2)

    events = shared_server.events()
    assert sorted(event["payload"]["version"] for event in events) == [CORE["version"], "image"]
    for event in events:
        assert event["hostname"] == "localhost"
        assert event["browser"] == browser
        assert event["os"] == "Linux"
        assert event["payload"]["providers"]["auth"] is True
    assert (told(site)["status"], told(site)["outcome"]) == (400, "refused")


def test_an_opt_out_in_the_browser_stops_every_event(
    site: Site, shared_server: Server, tmp_path: Path
) -> None:
    (tmp_path / "user.js").write_text(FIREFOX_OPT_OUTS)
    write_page(site, shared_server)
    with visiting("Firefox", site, "/frame", tmp_path):
        wait_until(lambda: told(site))

    assert (told(site)["globalPrivacyControl"], told(site)["doNotTrack"]) == (True, "1")
    assert told(site)["outcome"] == "opted-out"
    assert shared_server.events() == []


PRERENDER = b"""<!doctype html>
<script type="speculationrules">
    {"prerender": [{"urls": ["/page"], "eagerness": "immediate"}]}
</script>
<script>
    async function goWhenTold() {
        const word = await (await fetch("/word")).text();
        if (word === "go") location.href = "/page";
        else setTimeout(goWhenTold, 50);
    }
    goWhenTold();
</script>"""


def test_a_prerendered_page_sends_when_it_is_shown_and_not_before(
    site: Site, shared_server: Server, tmp_path: Path
) -> None:
    """Under DevTools Chromium does not prerender."""
    write_page(site, shared_server)
    site.files |= {"/start": PRERENDER, "/word": b"wait"}
    with visiting("HeadlessChrome", site, "/start", tmp_path):
        wait_until(lambda: told(site))
        (page,) = (asked for asked in site.asked if asked.path == "/page")
        assert page.headers["Sec-Purpose"] == "prefetch;prerender"
        wait_until(shared_server.events)
        (image,) = shared_server.events()
        site.files["/word"] = b"go"
        wait_until(lambda: len(shared_server.events()) == 2)

    assert image["payload"]["version"] == "image"
