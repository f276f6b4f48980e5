"""What the report counts: each unit and each list stands here once.

A list states its title for people, the unit it counts, and how its values are read from which
keys.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from report.values import Values, value_of

# The units of each source, with their titles.
UNITS = {
    "core": {
        "hosts": "deployed hosts",
        "projects": "projects",
        "addresses": "addresses",
        "development_addresses": "in development",
    },
    "cli": {"projects": "projects", "addresses": "addresses"},
}

Found = tuple[str | None, ...]  # a value, or a value and its version
SERIES = re.compile(r"v?(\d+)(?:(\.\d+)(?:\.\d+)*(-)?)?", re.ASCII)


def series(version: str | None) -> str | None:
    """Return the first two numeric parts: `5.0` for `5.0.12`, `5.0-pre` for `5.0.0-beta.1`."""
    match = SERIES.match(version or "")
    if not match:
        return version
    return match[1] + (match[2] or "") + ("-pre" if match[3] else "")


def major(version: str | None) -> str | None:
    match = SERIES.match(version or "")
    return match[1] if match else version


class List(NamedTuple):
    source: str
    name: str
    title: str
    unit: str
    keys: tuple[str, ...]  # that its values are read from
    read: Callable[..., set[Found]]
    has_versions: bool = False

    @property
    def value_key(self) -> str:
        return "name" if self.name == "packages" else "value"

    def found_in(self, values: Values) -> set[Found]:
        """Return what the list has a row for, in the values of its keys."""
        found = self.read(*map(value_of, values))
        return {one[:1] for one in found} | found


def single(value: str | None) -> set[Found]:
    return {(value,)}


def read_providers(providers: dict[str, bool]) -> set[Found]:
    return {(name,) for name, is_set in providers.items() if is_set}


def read_browser(name: str | None, version: str | None) -> set[Found]:
    return {(name, major(version))}


def read_system(name: str | None, version: str | None) -> set[Found]:
    return {(name, version)}


def read_node(version: str | None) -> set[Found]:
    return {(major(version), series(version))}


def read_packages(packages: list[dict[str, Any]]) -> set[Found]:
    return {(package["name"], series(package["version"])) for package in packages}


BROWSER, SYSTEM = ("browser", "browser_version"), ("os", "os_version")
LISTS = (
    List("core", "versions", "Exact versions", "hosts", ("version",), single),
    List("core", "providers", "Providers", "hosts", ("providers",), read_providers),
    List("core", "browsers", "Browsers", "addresses", BROWSER, read_browser, True),
    List("core", "operating_systems", "Operating systems", "addresses", SYSTEM, read_system, True),
    List("cli", "packages", "Packages", "projects", ("packages",), read_packages, True),
    List("cli", "node_versions", "Node", "projects", ("nodeVersion",), read_node, True),
    List("cli", "commands", "Commands", "projects", ("command",), single),
    List("cli", "frameworks", "Frameworks", "projects", ("projectFramework",), single),
    List("cli", "operating_systems", "Operating systems", "projects", ("os",), single),
    List("cli", "environments", "Environments", "projects", ("nodeEnv",), single),
)
