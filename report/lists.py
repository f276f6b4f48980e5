"""What the report counts: each unit and each list stands here once.

A list states its title for people, the unit it counts, and how its values are read from
which part of a line.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

# The parts of a line, each by its keys.
AGENT = ("browser", "browser_version", "os", "os_version")
PAYLOAD = ("providers", "version", "resourceCount", "projectId")
MACHINE = ("nodeEnv", "nodeVersion", "os", "osVersion", "command")
PROJECT = ("packages", "projectFramework", "projectId")

# The units of each source, with their titles.
UNITS = {
    "core": {
        "hosts": "deployed hosts",
        "projects": "projects",
        "addresses": "addresses",
        "local_addresses": "on local hosts",
    },
    "cli": {"projects": "projects", "addresses": "addresses"},
}

HASHED_UNITS = ("addresses", "local_addresses")  # with TELEMETRY_IP=hashed

Values = dict[str, Any]  # of a part
Found = set[tuple[str | None, str | None]]  # values, each with a version
SERIES = re.compile(r"v?(\d+(?:\.\d+)?)", re.ASCII)
MAJOR = re.compile(r"v?(\d+)", re.ASCII)


def series(version: str | None) -> str | None:
    """Return the first two numeric parts: `5.0` for `5.0.12`, `22.11` for `v22.11.0`."""
    match = SERIES.match(version or "")
    return match[1] if match else version


def major(version: str | None) -> str | None:
    match = MAJOR.match(version or "")
    return match[1] if match else version


class List(NamedTuple):
    source: str
    name: str
    title: str
    unit: str
    part: tuple[str, ...]
    read: Callable[[Values], Found]
    has_versions: bool = False

    @property
    def value_key(self) -> str:
        return "name" if self.name == "packages" else "value"


def single(key: str) -> Callable[[Values], Found]:
    return lambda values: {(values[key], None)}


def read_providers(values: Values) -> Found:
    return {(name, None) for name, is_set in values["providers"].items() if is_set}


def read_browser(values: Values) -> Found:
    return {(values["browser"], major(values["browser_version"]))}


def read_system(values: Values) -> Found:
    return {(values["os"], values["os_version"])}


def read_node(values: Values) -> Found:
    return {(major(values["nodeVersion"]), series(values["nodeVersion"]))}


def read_packages(values: Values) -> Found:
    return {(package["name"], series(package["version"])) for package in values["packages"]}


LISTS = (
    List("core", "versions", "Exact versions", "hosts", PAYLOAD, single("version")),
    List("core", "providers", "Providers", "hosts", PAYLOAD, read_providers),
    List("core", "browsers", "Browsers", "addresses", AGENT, read_browser, True),
    List("core", "operating_systems", "Operating systems", "addresses", AGENT, read_system, True),
    List("cli", "packages", "Packages", "projects", PROJECT, read_packages, True),
    List("cli", "node_versions", "Node", "projects", MACHINE, read_node, True),
    List("cli", "commands", "Commands", "projects", MACHINE, single("command")),
    List("cli", "frameworks", "Frameworks", "projects", PROJECT, single("projectFramework")),
    List("cli", "operating_systems", "Operating systems", "projects", MACHINE, single("os")),
    List("cli", "environments", "Environments", "projects", MACHINE, single("nodeEnv")),
)
