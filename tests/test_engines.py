"""The browser's sender and the plain image in Chromium, Firefox and WebKit."""

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines import ENGINES, UNDER_WEBDRIVER, Engine, PageServer, visiting
from server import CORE, ROOT, Server, wait_until

pytestmark = pytest.mark.slow

FIREFOX_OPT_OUTS = {
    "Global Privacy Control": {
        "privacy.globalprivacycontrol.enabled": True,
        "privacy.globalprivacycontrol.functionality.enabled": True,
    },
    "Do Not Track": {"privacy.donottrackheader.enabled": True},
}
# The page tells that its script has run, and when nothing more is to come: after the longest wait
# for an idle moment, or when it is left.  A browser that only takes a picture leaves it at once,
# and may end before it has told that.
TELL_WHEN_DONE = """
    const ran = new XMLHttpRequest();
    ran.open("GET", "/ran", false);
    ran.send();
    const tell = () => navigator.sendBeacon("/done");
    addEventListener("pagehide", tell);
    addEventListener("load", () => setTimeout(tell, 2500));
"""


@pytest.fixture
def site() -> Iterator[PageServer]:
    site = PageServer()
    site.pages["/browser.js"] = ((ROOT / "clients/browser.js").read_text(), "text/javascript")
    yield site
    site.close()


def sender_page(server: Server, **options: Any) -> str:
    url = f"http://127.0.0.1:{server.port}/telemetry"
    call = json.dumps({"url": url, "payload": CORE, **options})
    return f"""<!doctype html><script type="module">
        import {{ sendTelemetry }} from "/browser.js";
        sendTelemetry({call});
        {TELL_WHEN_DONE}
    </script>"""


def image_page(server: Server) -> str:
    payload = b64encode(json.dumps(CORE).encode()).decode()
    image = f'<img src="http://127.0.0.1:{server.port}/?payload={payload}">'
    return f"<!doctype html>{image}<script>{TELL_WHEN_DONE}</script>"


def visit(engine: Engine, site: PageServer, page: str, profile: Path) -> None:
    site.pages["/page"] = (page, "text/html")
    profile.mkdir(exist_ok=True)
    with visiting(engine, f"{site.origin}/page", profile) as browser:
        wait_until(lambda: site.has_seen("/done") or browser.poll() is not None)
    assert site.has_seen("/ran")


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("make_page", [sender_page, image_page], ids=["sender", "image"])
def test_a_page_load_is_one_event(
    engine: Engine, make_page: Any, site: PageServer, server: Server, tmp_path: Path
) -> None:
    visit(engine, site, make_page(server), tmp_path / "profile")
    wait_until(server.events)

    (event,) = server.events()
    assert event["hostname"] == "localhost"
    assert event["browser"] == engine.browser
    assert event["os"] == "Linux"
    assert event["payload"]["version"] == CORE["version"]
    assert event["payload"]["providers"]["auth"] is True


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_an_app_that_offers_an_opt_out_sends_nothing(
    engine: Engine, site: PageServer, server: Server, tmp_path: Path
) -> None:
    visit(engine, site, sender_page(server, disableTelemetry=True), tmp_path / "profile")

    assert server.events() == []


@pytest.mark.parametrize("preferences", FIREFOX_OPT_OUTS.values(), ids=FIREFOX_OPT_OUTS)
@pytest.mark.parametrize("make_page", [sender_page, image_page], ids=["sender", "image"])
def test_an_opt_out_in_the_browser_stops_every_event(
    preferences: dict[str, bool], make_page: Any, site: PageServer, server: Server, tmp_path: Path
) -> None:
    profile = tmp_path / "profile"
    profile.mkdir()
    lines = [f"user_pref({json.dumps(k)}, {json.dumps(v)});\n" for k, v in preferences.items()]
    (profile / "user.js").write_text("".join(lines))
    visit(ENGINES["Firefox"], site, make_page(server), profile)

    assert server.events() == []


def test_two_copies_of_the_module_on_one_page_are_one_event(
    site: PageServer, server: Server, tmp_path: Path
) -> None:
    page = sender_page(server)
    site.pages["/copy.js"] = site.pages["/browser.js"]
    both = page + page.replace("/browser.js", "/copy.js")
    visit(ENGINES["Chromium"], site, both, tmp_path / "profile")
    wait_until(server.events)

    assert len(server.events()) == 1


PRERENDER = """<!doctype html>
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
    site: PageServer, server: Server, tmp_path: Path
) -> None:
    """Without DevTools, under which Chromium does not prerender."""
    site.pages["/page"] = (sender_page(server), "text/html")
    site.pages["/start"] = (PRERENDER, "text/html")
    site.pages["/word"] = ("wait", "text/plain")
    with visiting(ENGINES["Chromium"], f"{site.origin}/start", tmp_path):
        wait_until(lambda: site.has_seen("/done"))  # the page ran, and has waited long enough
        assert ("/page", "prefetch;prerender") in site.requests
        assert server.events() == []
        site.pages["/word"] = ("go", "text/plain")
        wait_until(server.events)

    assert len(server.events()) == 1


@pytest.mark.parametrize("engine", UNDER_WEBDRIVER.values(), ids=UNDER_WEBDRIVER)
def test_a_browser_under_webdriver_sends_nothing(
    engine: Engine, site: PageServer, server: Server, tmp_path: Path
) -> None:
    tell = """<script>navigator.sendBeacon(`/webdriver-${navigator.webdriver}`);</script>"""
    visit(engine, site, tell + sender_page(server), tmp_path / "profile")

    assert site.has_seen("/webdriver-true")
    assert server.events() == []


FETCH = """<!doctype html><script type="module">
    const request = { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" };
    const response = await fetch("URL", request);
    const outcome = response.headers.get("X-Telemetry-Outcome");
    await fetch(`/${response.status}/${outcome}`);
    navigator.sendBeacon("/ran");
    navigator.sendBeacon("/done");
</script>"""


def test_a_pages_own_script_can_read_what_became_of_its_event(
    site: PageServer, server: Server, tmp_path: Path
) -> None:
    """The type needs a preflight, and the header has to be exposed."""
    page = FETCH.replace("URL", f"http://127.0.0.1:{server.port}/cli")
    visit(ENGINES["Chromium"], site, page, tmp_path / "profile")

    assert site.has_seen("/400/refused")
