"""The report's JSON by DuckDB, from the same files: what `flask report` is measured against.

    python bench/duckdb_report.py DIRECTORY SINCE UNTIL [--struct]

Payloads stay text, and each different one is parsed once, as `flask report` does it.  With
--struct every payload is parsed when it is read, as a query is usually written.
Only what the collector writes is read: one odd line is an error.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb

DAY = timedelta(days=1)
UNITS = {
    "core": ("hosts", "projects", "addresses", "local_addresses"),
    "cli": ("projects", "addresses"),
}

TABLES = r"""
CREATE MACRO is_local(host) AS NOT contains(host, '.') OR regexp_matches(
    host, '\.(localhost|local|test|example|invalid|internal|home\.arpa)$');
CREATE MACRO series(v) AS coalesce(nullif(regexp_extract(v, '^v?(\d+(\.\d+)?)', 1), ''), v);
CREATE MACRO major(v) AS coalesce(nullif(regexp_extract(v, '^v?(\d+)', 1), ''), v);

CREATE TEMP TABLE events AS SELECT
    date_diff('day', getvariable('first'), received_at[:10]::DATE) AS day,
    source, ip, hostname, browser, browser_version, os, os_version, payload
FROM read_json(getvariable('files'), format = 'newline_delimited', columns = {
    received_at: 'VARCHAR', source: 'VARCHAR', ip: 'VARCHAR', hostname: 'VARCHAR',
    browser: 'VARCHAR', browser_version: 'VARCHAR', os: 'VARCHAR', os_version: 'VARCHAR',
    payload: 'STORED_PAYLOAD'});

CREATE TEMP TABLE payloads AS SELECT payload, source, unnest(PARSED_PAYLOAD)
FROM (SELECT DISTINCT source, payload FROM events);

-- What each unit sent on each day.
CREATE TEMP TABLE sent AS
    SELECT 'core' AS source, 'hosts' AS unit, hostname AS member, day, payload, count(*) AS events
    FROM events WHERE source = 'core' AND NOT is_local(hostname) GROUP BY ALL
    UNION ALL
    SELECT source, 'projects', projectId, day, payload, count(*)
    FROM events JOIN payloads USING (source, payload) WHERE projectId IS NOT NULL GROUP BY ALL;

CREATE TEMP TABLE active AS SELECT source, unit, member, bit_or(1::UBIGINT << day) AS days FROM (
    SELECT source, unit, member, day FROM sent
    UNION ALL SELECT source, 'addresses', ip, day FROM events WHERE ip IS NOT NULL
    UNION ALL SELECT source, 'local_addresses', ip, day FROM events
    WHERE ip IS NOT NULL AND source = 'core' AND is_local(hostname)
) GROUP BY ALL;

-- What each unit was last seen with on each of its days.
CREATE TEMP TABLE last_sent AS SELECT source, unit, member, day, payload FROM sent QUALIFY
    row_number() OVER (PARTITION BY source, unit, member, day
        ORDER BY events DESC, payload DESC) = 1;

CREATE TEMP TABLE listed AS SELECT source, unit, member, p.* EXCLUDE (source)
    FROM last_sent JOIN payloads p USING (source, payload)
    WHERE day >= getvariable('first_listed') QUALIFY
    row_number() OVER (PARTITION BY source, unit, member ORDER BY day DESC) = 1;

-- Of the days that the lists cover: each payload and each agent, with its events.
CREATE TEMP TABLE payload_counts AS SELECT row_number() OVER () AS key, p.*, events FROM payloads p
    JOIN (SELECT source, payload, count(*) AS events FROM events
        WHERE day >= getvariable('first_listed') GROUP BY ALL) USING (source, payload);
CREATE TEMP TABLE agent_counts AS SELECT row_number() OVER () AS key, * FROM (
    SELECT browser, browser_version, os, os_version, count(*) AS events FROM events
    WHERE source = 'core' AND day >= getvariable('first_listed') GROUP BY ALL);
CREATE TEMP TABLE address_agents AS SELECT DISTINCT ip, browser, browser_version, os, os_version
    FROM events WHERE source = 'core' AND ip IS NOT NULL AND day >= getvariable('first_listed');
"""
FROM_TEXT = """from_json(payload, '{
    "providers": {"auth": "BOOLEAN", "data": "BOOLEAN", "router": "BOOLEAN", "live": "BOOLEAN",
        "notification": "BOOLEAN", "auditLog": "BOOLEAN", "i18n": "BOOLEAN",
        "accessControl": "BOOLEAN"},
    "version": "VARCHAR", "resourceCount": "INTEGER", "projectId": "VARCHAR",
    "nodeEnv": "VARCHAR", "nodeVersion": "VARCHAR", "os": "VARCHAR", "command": "VARCHAR",
    "packages": [{"name": "VARCHAR", "version": "VARCHAR"}], "projectFramework": "VARCHAR"}')"""
STRUCT = """STRUCT(providers STRUCT(auth BOOLEAN, "data" BOOLEAN, router BOOLEAN, live BOOLEAN,
    notification BOOLEAN, auditLog BOOLEAN, i18n BOOLEAN, accessControl BOOLEAN),
    version VARCHAR, resourceCount INTEGER, projectId VARCHAR, nodeEnv VARCHAR, nodeVersion VARCHAR,
    os VARCHAR, command VARCHAR, packages STRUCT(name VARCHAR, version VARCHAR)[],
    projectFramework VARCHAR)"""
WINDOW = """
SELECT source, unit,
    count(*) FILTER (days & $now > 0) AS now, count(*) FILTER (days & $before > 0) AS before,
    count(*) FILTER (days & $now > 0 AND days & $before > 0) AS stayed,
    count(*) FILTER (days & $now > 0 AND days & $before = 0) AS new,
    count(*) FILTER (days & $now = 0 AND days & $before > 0) AS gone
FROM active GROUP BY ALL
"""
COUNT = "SELECT source, unit, count(*) FROM active WHERE days & $mask > 0 GROUP BY ALL"
EVENTS = "SELECT day, source, count(*) FROM events GROUP BY ALL"
ADOPTION = """
SELECT series(version), count(*) FROM (SELECT * FROM last_sent
    WHERE unit = 'hosts' AND day BETWEEN $first AND $last
    QUALIFY row_number() OVER (PARTITION BY member ORDER BY day DESC) = 1)
JOIN payloads USING (source, payload) GROUP BY ALL
"""
REFUSED = """
SELECT source, field, detail, count(*) AS events
FROM read_json($files, format = 'newline_delimited',
    columns = {source: 'VARCHAR', field: 'VARCHAR', detail: 'VARCHAR'})
GROUP BY ALL ORDER BY events DESC, source NULLS LAST, field NULLS LAST, detail NULLS LAST
"""
SPREAD = """
SELECT min(resourceCount) AS min, quantile_disc(resourceCount, 0.5) AS median,
    quantile_disc(resourceCount, 0.9) AS p90, max(resourceCount) AS max
FROM listed WHERE unit = 'hosts'
"""
PROVIDERS = ("auth", "data", "router", "live", "notification", "auditLog", "i18n", "accessControl")

# A value, its version and its unit's events, each once: COUNTED joins both for the columns asked.
COUNTED = """
WITH found AS ({events}), owners AS ({members}),
    e AS (SELECT {columns}, sum(events)::BIGINT AS events
        FROM (SELECT DISTINCT key, {columns}, events FROM found) GROUP BY {columns}),
    m AS (SELECT {columns}, count(DISTINCT member) AS units FROM owners GROUP BY {columns})
SELECT {shown}, coalesce(units, 0), events FROM e LEFT JOIN m ON {condition}
"""


def simple(value: str, version: str, source: str, unit: str) -> tuple[str, str]:
    """Return the queries for a list whose values are columns of the payload."""
    columns = f"{value} AS value, {version} AS version"
    return (
        f"SELECT member, {columns} FROM listed WHERE source = '{source}' AND unit = '{unit}'",
        f"SELECT key, events, {columns} FROM payload_counts WHERE source = '{source}'",
    )


def agent(value: str, version: str) -> tuple[str, str]:
    columns = f"{value} AS value, {version} AS version"
    return (
        f"SELECT ip AS member, {columns} FROM address_agents",
        f"SELECT key, events, {columns} FROM agent_counts",
    )


def nested(source: str, unit: str, values: str, version: str) -> tuple[str, str]:
    """Return the queries for a list whose values are in a list of the payload."""
    columns = f"found.name AS value, {version} AS version"
    return (
        f"SELECT member, {columns} FROM (SELECT member, unnest({values}) AS found FROM listed "
        f"WHERE source = '{source}' AND unit = '{unit}')",
        f"SELECT key, events, {columns} FROM (SELECT key, events, unnest({values}) AS found "
        f"FROM payload_counts WHERE source = '{source}')",
    )


NAMED = ", ".join(f"{{name: '{name}', is_set: providers.{name}}}" for name in PROVIDERS)
LISTS: dict[str, dict[str, tuple[str, str]]] = {
    "core": {
        "versions": simple("version", "NULL", "core", "hosts"),
        "providers": nested("core", "hosts", f"list_filter([{NAMED}], lambda p: p.is_set)", "NULL"),
        "browsers": agent("browser", "major(browser_version)"),
        "operating_systems": agent("os", "os_version"),
    },
    "cli": {
        "packages": nested("cli", "projects", "packages", "series(found.version)"),
        "node_versions": simple("major(nodeVersion)", "series(nodeVersion)", "cli", "projects"),
        "commands": (
            "SELECT projectId AS member, command AS value, NULL AS version FROM payload_counts "
            "WHERE source = 'cli' AND projectId IS NOT NULL",
            simple("command", "NULL", "cli", "projects")[1],
        ),
        "frameworks": simple("projectFramework", "NULL", "cli", "projects"),
        "operating_systems": simple("os", "NULL", "cli", "projects"),
        "environments": simple("nodeEnv", "NULL", "cli", "projects"),
    },
}
LIST_UNITS = {
    ("core", "versions"): "hosts",
    ("core", "providers"): "hosts",
    ("core", "browsers"): "addresses",
    ("core", "operating_systems"): "addresses",
}
WITH_VERSIONS = (
    ("core", "browsers"),
    ("core", "operating_systems"),
    ("cli", "packages"),
    ("cli", "node_versions"),
)


class Report:
    def __init__(self, directory: Path, since: date, until: date, as_struct: bool) -> None:
        self.since, self.until = since, until
        self.first = min(since, until - 55 * DAY)
        if (until - self.first).days > 63:
            sys.exit("want at most 64 days: one bit each")
        self.database = duckdb.connect()
        self.set("first", self.first)
        self.set("first_listed", self.index(until - 27 * DAY))
        self.set("files", self.files(directory, "events"))
        self.refused_files = self.files(directory, "refused")
        self.days_with_file = {date.fromisoformat(Path(p).name[7:17]) for p in self.event_files}
        stored, parsed = (STRUCT, "payload") if as_struct else ("JSON", FROM_TEXT)
        tables = TABLES.replace("STORED_PAYLOAD", stored).replace("PARSED_PAYLOAD", parsed)
        self.database.execute(tables)

    def files(self, directory: Path, kind: str) -> list[str]:
        found = [str(path) for path in sorted(directory.glob(f"{kind}-*.jsonl*"))]
        if kind == "events":
            self.event_files = found
        return found

    def set(self, name: str, value: Any) -> None:
        self.database.execute(f"SET VARIABLE {name} = $value", {"value": value})

    def rows(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        return self.database.execute(query, parameters or None).fetchall()

    def index(self, day: date) -> int:
        return (day - self.first).days

    def mask(self, first: date, last: date) -> int:
        return (1 << self.index(last) + 1) - (1 << self.index(first))

    def json(self) -> dict[str, Any]:
        days = [self.since + n * DAY for n in range((self.until - self.since).days + 1)]
        last_days = [self.until - 7 * n * DAY for n in range(len(days) // 7)]
        weeks = [(last - 6 * DAY, last) for last in reversed(last_days)]
        events: defaultdict[tuple[int, str], int] = defaultdict(int)
        for day, source, times in self.rows(EVENTS):
            events[day, source] = times
        every_day = [{"date": str(day)} | self.figures(day, day, events) for day in days]
        return {
            "since": str(self.since),
            "until": str(self.until),
            "unfinished": False,
            "missing_days": [str(day) for day in days if day not in self.days_with_file],
            "unreadable_lines": 0,
            "refused": self.refused(),
            "events": {
                source: sum(day[source]["events"] or 0 for day in every_day) for source in UNITS
            },
            "active": self.active(),
            "weeks": [
                {"since": str(a), "until": str(b)} | self.figures(a, b, events) for a, b in weeks
            ],
            "adoption": [self.adoption(a, b) for a, b in weeks],
            "days": every_day,
            **{source: self.lists(source) for source in UNITS},
        }

    def refused(self) -> list[dict[str, Any]]:
        names = ("source", "field", "detail", "events")
        rows = self.rows(REFUSED, files=self.refused_files)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def active(self) -> dict[str, Any]:
        found: dict[str, Any] = {source: {unit: {} for unit in UNITS[source]} for source in UNITS}
        names = ("now", "before", "stayed", "new", "gone")
        for length in (7, 28):
            first = self.until - (length - 1) * DAY
            masks = {
                "now": self.mask(first, self.until),
                "before": self.mask(first - length * DAY, first - DAY),
            }
            for source, unit, *counts in self.rows(WINDOW, **masks):
                found[source][unit][str(length)] = dict(zip(names, counts, strict=True))
        return found

    def figures(
        self, first: date, last: date, events: dict[tuple[int, str], int]
    ) -> dict[str, dict[str, int | None]]:
        days = [first + n * DAY for n in range((last - first).days + 1)]
        if not any(day in self.days_with_file for day in days):
            return {source: dict.fromkeys(("events", *UNITS[source])) for source in UNITS}
        found: dict[str, dict[str, int | None]] = {
            source: {
                "events": sum(events[self.index(day), source] for day in days),
                **dict.fromkeys(UNITS[source], 0),
            }
            for source in UNITS
        }
        for source, unit, count in self.rows(COUNT, mask=self.mask(first, last)):
            found[source][unit] = count
        return found

    def adoption(self, first: date, last: date) -> dict[str, Any]:
        week: dict[str, Any] = {"since": str(first), "until": str(last)}
        rows = self.rows(ADOPTION, first=self.index(first), last=self.index(last))
        return week | {
            "hosts": sum(count for _, count in rows),
            "versions": {series: count for series, count in rows if series is not None},
        }

    def lists(self, source: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            name: self.list_of(source, name, queries) for name, queries in LISTS[source].items()
        }
        if source == "core":
            names = ("min", "median", "p90", "max")
            found["resource_count"] = dict(zip(names, self.rows(SPREAD)[0], strict=True))
        return found

    def list_of(self, source: str, name: str, queries: tuple[str, str]) -> list[dict[str, Any]]:
        unit = LIST_UNITS.get((source, name), "projects")
        key = "name" if name == "packages" else "value"
        rows = ranked(self.counted(("value",), queries), unit, key)
        if (source, name) in WITH_VERSIONS:
            by_value: defaultdict[Any, list[tuple[Any, ...]]] = defaultdict(list)
            for value, *version in self.counted(("value", "version"), queries):
                by_value[value].append(tuple(version))
            for row in rows:
                row["versions"] = ranked(by_value[row[key]], unit, "value")
        return rows

    def counted(self, columns: tuple[str, ...], queries: tuple[str, str]) -> list[tuple[Any, ...]]:
        """Return the columns, units and events of each value; an event counts once for it."""
        members, events = queries
        return self.rows(
            COUNTED.format(
                members=members,
                events=events,
                columns=", ".join(columns),
                shown=", ".join(f"e.{name}" for name in columns),
                condition=" AND ".join(f"e.{n} IS NOT DISTINCT FROM m.{n}" for n in columns),
            )
        )


def ranked(rows: Iterable[tuple[Any, ...]], unit: str, name: str) -> list[dict[str, Any]]:
    made = [{name: value, unit: units or 0, "events": events} for value, units, events in rows]
    return sorted(
        made, key=lambda row: (-row[unit], -row["events"], row[name] is None, row[name] or "")
    )


if __name__ == "__main__":
    directory, since, until, *options = sys.argv[1:]
    days = date.fromisoformat(since), date.fromisoformat(until)
    report = Report(Path(directory), *days, as_struct="--struct" in options)
    print(json.dumps(report.json()))
