"""The JSON of a report by hand; what a test does not name has a plain value."""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

UNTIL = date(2026, 11, 24)
UNITS = {
    "core": ("hosts", "projects", "addresses", "development_addresses"),
    "cli": ("projects", "addresses"),
}
LISTS = {
    "core": {
        "versions": "hosts",
        "providers": "hosts",
        "browsers": "addresses",
        "operating_systems": "addresses",
    },
    "cli": dict.fromkeys(
        [
            *("commands", "operating_systems", "frameworks"),
            *("environments", "node_versions", "packages"),
        ],
        "projects",
    ),
}
Report = dict[str, Any]


def plain_report(
    *,
    days: int = 56,
    hosts: tuple[int | None, int | None] = (100, 80),
    versions: Mapping[Any, int] | None = None,
    weeks: list[dict[str, int]] | None = None,
    missing: tuple[int, ...] = (),  # days before the last
    **changes: Any,
) -> Report:
    """Return a report of apps and commands; `versions` are the hosts of 28 days.

    `core_addresses=(5, None)` changes active units, `core_browsers=[…]` a list.
    """
    last_days = [UNTIL - timedelta(days=n) for n in reversed(range(days))]
    without_file = {UNTIL - timedelta(days=ago) for ago in missing}
    times = weeks or [{"5.0": 60, "4.9": 40}] * (days // 7)
    firsts = [UNTIL - timedelta(days=7 * n + 6) for n in reversed(range(len(times)))]
    report: Report = {
        "framework": "Refine",
        "since": str(last_days[0]),
        "until": str(UNTIL),
        "unfinished": False,
        "missing_days": sorted(map(str, without_file)),
        "unreadable_lines": 0,
        "refused": [],
        "events": {"core": 5000, "cli": 1000},
        "with_project": {"core": 4900, "cli": 1000},
        "automated": {"events": 0, "hosts": 0, "names": []},
        "excluded": {"patterns": [], "events": 0},
        "masked": False,
        "files": {
            str(length): {
                which: length - sum(first <= ago < first + length for ago in missing)
                for which, first in (("now", 0), ("before", length))
            }
            for length in (7, 28)
        },
        "projects_in_development_only": 25,
        "active": {
            source: dict.fromkeys(units, windows(100, 80)) for source, units in UNITS.items()
        },
        "weeks": [week(first, without_file) for first in firsts],
        "adoption": [
            {"since": str(first), "until": str(first), "hosts": sum(n.values()), "versions": n}
            for first, n in zip(firsts, times, strict=True)
        ],
        "days": [
            {"date": str(day), "refused": 0, **figures(day not in without_file, 10)}
            for day in last_days
        ],
        **{source: {name: [] for name in lists} for source, lists in LISTS.items()},
    }
    report["active"]["core"]["hosts"] = windows(*hosts)
    named = versions or {"5.0.1": 60, "4.9.1": 40}
    report["core"]["versions"] = [row(name, "hosts", n) for name, n in named.items()]
    report["core"]["resource_count"] = {"p10": 2, "median": 7, "p90": 20, "max": 4321}
    for key, value in changes.items():
        source, _, name = key.partition("_")
        if name in UNITS.get(source, ()):
            report["active"][source][name] = windows(*value)
        elif name in LISTS.get(source, ()):
            report[source][name] = value
        else:
            report[key] = value
    return report


def windows(now: int | None, before: int | None) -> dict[str, dict[str, int | None]]:
    """Return both windows of a unit, of which a tenth is new."""
    found = dict.fromkeys(("now", "before", "stayed", "new", "gone")) | {"now": now}
    if now is not None and before is not None:
        new = max(now - before, now // 10)
        found |= {"before": before, "stayed": now - new, "new": new, "gone": before - now + new}
    return {"7": found, "28": found}


def week(first: date, without_file: set[date]) -> Report:
    files = sum(first + timedelta(days=n) not in without_file for n in range(7))
    last = first + timedelta(days=6)
    return {"since": str(first), "until": str(last), "files": files, **figures(files, 40)}


def figures(files: int, count: int) -> Report:
    return {
        source: dict.fromkeys(("events", *units), count if files else None)
        for source, units in UNITS.items()
    }


def row(value: str | None, unit: str, count: int | None, *versions: Report, **more: Any) -> Report:
    found = {"value": value, unit: count, "events": count} | more
    return found | ({"versions": list(versions)} if versions else {})
