"""docs/senders.md, command by command: a framework called Sprout, from nothing to its report."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from documented import examples, run_here, without_what_varies
from npm import APPS
from server import ROOT, Server, program, wait_until

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/senders.md").read_text(encoding="utf-8")
PACKAGE = {
    *("browser.js", "browser.d.ts", "cli.mjs", "cli.d.mts"),
    *("package.json", "README.md", "LICENSE"),
}


def block(language: str) -> str:
    """Return the one block of code in this language."""
    code: str
    (code,) = re.findall(rf"^```{language}\n(.+?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return code


def test_every_command_of_the_page_prints_what_is_shown(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dict(re.findall(r"TELEMETRY_(\w+)=('[^']+'|\S+)", PAGE))
    assert settings.keys() == {"FRAMEWORK", "CONTACT", "OPT_OUT"}
    server = serve(**{name: value.strip("'") for name, value in settings.items()})
    sprout = tmp_path / "sprout"
    sprout.mkdir()
    (sprout / "package.json").write_text('{"name": "sprout"}')
    script = block("js").replace("localhost:8000", f"localhost:{server.port}")
    (sprout / "sprout.mjs").write_text(script)
    (tmp_path / "telemetry").symlink_to(ROOT)
    monkeypatch.setenv("TELEMETRY_DATA_DIR", str(server.data_dir))
    monkeypatch.setenv("TELEMETRY_FRAMEWORK", "Sprout")
    for name in ("curl", "node", "npm"):
        program(name)
    environ = {"PATH": os.environ["PATH"], "HOME": str(sprout)}
    for command, expected in examples(PAGE):
        ran = subprocess.run(
            ["bash", "-c", f"exec 2>&1; {command}".replace(":8000", f":{server.port}")],
            cwd=sprout,
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        assert without_what_varies(ran.stdout.strip()) == without_what_varies(expected.strip())
    wait_until(lambda: len(server.events()) == 3)

    app, direct, tool = server.events()
    assert app["payload"]["version"] == "1.2.3"
    assert direct["payload"]["nodeVersion"] == "v24.1.0"
    assert tool["payload"]["command"] == "dev"
    package = sprout / "node_modules/telemetry-senders"
    assert {path.name for path in package.iterdir()} == PACKAGE
    (report,) = re.findall(r"^    (\.venv/bin/flask .+)$", PAGE, re.MULTILINE)
    figures = json.loads(run_here(f"{report} --format json", sprout))
    assert (figures["framework"], figures["unfinished"]) == ("Sprout", True)
    assert figures["events"] == {"core": 1, "cli": 2}


def test_the_component_of_the_page_is_the_one_that_is_built() -> None:
    assert block("jsx") == (APPS / "telemetry.jsx").read_text()


@pytest.mark.parametrize("types", ["browser.d.ts", "cli.d.mts"])
def test_the_page_names_every_option(types: str) -> None:
    declared = (ROOT / "clients" / types).read_text().partition("interface TelemetryOptions")[2]
    options = re.findall(r"^  (\w+)\??:", declared.partition("\n}")[0], re.MULTILINE)
    rows = "".join(re.findall(r"^\| (`.+?) \|", PAGE, re.MULTILINE))

    assert len(options) >= 4
    assert [option for option in options if f"`{option}`" not in rows] == []
