"""Measure `flask report` against DuckDB: the same files, the same numbers.

    python bench/report.py --events 1000000 --days 30 --rounds 5
    python bench/report.py --gzip

Events are made up, the same ones each time: 200 apps and 200 projects, of which some
are used far more than others, and 100,000 addresses that each have one browser.
Both programs run as processes of their own and print the whole JSON of the report.
The first round, which is not timed, compares what they say and takes their memory
(the proportional set size of all their processes).  The others are pairs, either
program first in turn.  DuckDB lives in an environment of its own, bench/.venv.
"""

import argparse
import contextlib
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from driver import ROOT, bench_directory, bench_python, process_tree

UNTIL = date(2026, 11, 23)
SAMPLE_SECONDS = 0.02

# Making events.

ADDRESSES = 100_000
APPS = 200
CLI_SHARE = 0.25
REFUSED_SHARE = 0.005
SEED = 20261123

PROVIDERS = ["auth", "data", "router", "live", "notification", "auditLog", "i18n", "accessControl"]
VERSIONS = [
    f"{major}.{minor}.{patch}" for major in (4, 5) for minor in range(4) for patch in (0, 3, 9)
]
BROWSERS = [
    *(("Chrome", f"{n}.0.0.0") for n in range(120, 143)),
    *(("Edge", f"{n}.0.0.0") for n in range(130, 143)),
    *(("Firefox", f"{n}.0") for n in range(125, 146)),
    *(("Safari", f"{n}.{m}") for n in (17, 18, 26) for m in range(5)),
    *(("Mobile Safari", f"{n}.{m}") for n in (17, 18, 26) for m in range(4)),
    (None, None),
]  # fmt: skip
SYSTEMS = [("Windows", "10"), ("Mac OS X", "10.15.7"), ("Linux", None), ("Ubuntu", None)]
SYSTEMS += [("iOS", f"18.{n}") for n in range(6)] + [("Android", "10"), (None, None)]
MACHINES = [("Linux", "6.8.0"), ("Windows", "10.0.22631"), ("macOS", "14.6"), ("macOS", "15.1")]
COMMANDS = ["dev", "dev", "dev", "build", "start", "create-resource", "update", "whoami", None]
NODES = [f"v{major}.{minor}.0" for major in (18, 20, 22) for minor in range(4, 16)]
PACKAGES = ["core", "cli", "antd", "mui", "mantine", "react-router", "simple-rest", "devtools"]
REFUSALS = [
    ("core", "payload", "payload: want Base64 of JSON, got text."),
    ("core", "version", "version: want a string of 1 to 256 characters, got nothing."),
    ("core", "resourceCount", "resourceCount: want an integer from 0 to 1000000, got a string."),
    ("cli", "nodeVersion", "nodeVersion: want a string of 1 to 256 characters, got an integer."),
    ("cli", None, "Body over 65536 bytes."),
]


class Choice:
    """A random choice of values of which the first ones are taken most (Zipf)."""

    def __init__(self, values: Iterable[Any]) -> None:
        self.values = list(values)
        self.weights = list(accumulate(1 / rank for rank in range(1, len(self.values) + 1)))

    def of(self, chance: random.Random, count: int) -> list[Any]:
        return chance.choices(self.values, cum_weights=self.weights, k=count)


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


class World:
    """The apps, projects, people and machines that send events."""

    def __init__(self) -> None:
        self.chance = chance = random.Random(SEED)
        self.apps = Choice(range(APPS))
        self.app_ids = [f"{chance.getrandbits(40):010x}" if n % 5 else None for n in range(APPS)]
        self.providers = [
            {name: name in ("auth", "data") or chance.random() < 0.4 for name in PROVIDERS}
            for _ in range(APPS)
        ]
        agents = Choice(chance.sample(BROWSERS, len(BROWSERS))).of(chance, ADDRESSES)
        systems = Choice(SYSTEMS).of(chance, ADDRESSES)
        self.people = [
            (f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", self.agent(browser, system))
            for n, browser, system in zip(range(ADDRESSES), agents, systems, strict=True)
        ]
        self.machines = [
            compact({"nodeEnv": env, "nodeVersion": node, "os": name, "osVersion": version})[1:-1]
            for env in (None, "development", "ci")
            for node in NODES
            for name, version in MACHINES
        ]
        chance.shuffle(self.machines)

    def agent(self, browser: tuple[str, str], system: tuple[str, str]) -> str:
        return (
            f'"browser":{compact(browser[0])},"browser_version":{compact(browser[1])},'
            f'"os":{compact(system[0])},"os_version":{compact(system[1])}'
        )

    def core_payload(self, app: int, day: int) -> str:
        """An app moves to another version, and grows, now and then."""
        return compact(
            {
                "providers": self.providers[app],
                "version": VERSIONS[(app * 7 + (day + app) // 20) % len(VERSIONS)],
                "resourceCount": app * 13 % 40 + (day + app) // 9,
                "projectId": self.app_ids[app],
            }
        )

    def project(self, app: int, day: int) -> str:
        names = PACKAGES[: 1 + app % 8]
        version = VERSIONS[(app * 7 + (day + app) // 20) % len(VERSIONS)]
        packages = [{"name": f"@refinedev/{name}", "version": version} for name in names]
        framework = ("vite", "nextjs", "remix-vite", "craco")[app % 4]
        sent = {"packages": packages, "projectFramework": framework, "projectId": self.app_ids[app]}
        return compact(sent)[1:-1]

    def lines(self, day: int, count: int) -> Iterator[str]:
        chance, noon = self.chance, UNTIL - timedelta(days=day)
        apps = self.apps.of(chance, count)
        cores = [self.core_payload(app, -day % 400) for app in range(APPS)]
        projects = [self.project(app, -day % 400) for app in range(APPS)]
        start = datetime(noon.year, noon.month, noon.day, tzinfo=UTC).replace(tzinfo=None)
        for n, app in enumerate(apps):
            at = (start + timedelta(days=n / count)).isoformat(timespec="milliseconds")
            number = f"{chance.getrandbits(128):032x}"
            number = f"{number[:8]}-{number[8:12]}-4{number[13:16]}-a{number[17:20]}-{number[20:]}"
            address, agent = self.people[int(chance.random() * ADDRESSES)]
            head = f'{{"id":"{number}","received_at":"{at}Z","source":'
            if chance.random() < CLI_SHARE:
                machine = self.machines[int(chance.random() ** 3 * len(self.machines))]
                command = compact(COMMANDS[int(chance.random() * len(COMMANDS))])
                yield (
                    f'{head}"cli","ip":"{address}","payload":{{{machine},"command":{command},'
                    f"{projects[app]}}}}}\n"
                )
            else:
                yield (
                    f'{head}"core","ip":"{address}","hostname":"admin.app{app}.example.com",'
                    f'{agent},"payload":{cores[app]}}}\n'
                )

    def refusals(self, count: int) -> Iterator[str]:
        for source, field, detail in Choice(REFUSALS).of(self.chance, count):
            refusal = {"source": source, "status": 400, "field": field, "detail": detail}
            yield compact({"received_at": f"{UNTIL}T12:00:00.000Z"} | refusal) + "\n"


def make_files(directory: Path, events: int, days: int, packed: bool) -> int:
    """Write the files of that many days, and return their size in bytes."""
    world = World()
    for day in range(days):
        count = events * (day + 1) // days - events * day // days
        kinds = {
            "events": world.lines(day, count),
            "refused": world.refusals(int(count * REFUSED_SHARE)),
        }
        for kind, lines in kinds.items():
            path = directory / f"{kind}-{UNTIL - timedelta(days=day)}.jsonl"
            if packed and day:  # today's is plain
                with gzip.open(f"{path}.gz", "wt", compresslevel=6, encoding="ascii") as file:
                    file.writelines(lines)
            else:
                with path.open("w", encoding="ascii") as file:
                    file.writelines(lines)
    return sum(path.stat().st_size for path in directory.iterdir())


# The same report by DuckDB.

EVENTS = """
CREATE TEMP TABLE events AS SELECT
    received_at[:10]::DATE AS day, source, ip, hostname, browser, browser_version, os, os_version,
    payload, payload.projectId AS project
FROM read_json($files, format = 'newline_delimited', columns = {
    received_at: 'VARCHAR', source: 'VARCHAR', ip: 'VARCHAR', hostname: 'VARCHAR',
    browser: 'VARCHAR', browser_version: 'VARCHAR', os: 'VARCHAR', os_version: 'VARCHAR',
    payload: 'STRUCT(
        providers STRUCT(auth BOOLEAN, data BOOLEAN, router BOOLEAN, live BOOLEAN,
            notification BOOLEAN, auditLog BOOLEAN, i18n BOOLEAN, accessControl BOOLEAN),
        version VARCHAR, resourceCount INTEGER, projectId VARCHAR, nodeEnv VARCHAR,
        nodeVersion VARCHAR, os VARCHAR, osVersion VARCHAR, command VARCHAR,
        packages STRUCT(name VARCHAR, version VARCHAR)[], projectFramework VARCHAR)'})
"""
REFUSED = """
SELECT source, field, detail, count(*) AS events
FROM read_json($files, format = 'newline_delimited',
    columns = {source: 'VARCHAR', field: 'VARCHAR', detail: 'VARCHAR'})
GROUP BY ALL ORDER BY events DESC, source NULLS LAST, field NULLS LAST, detail NULLS LAST
"""
DISTINCT = "count(DISTINCT ip), count(DISTINCT hostname), count(DISTINCT project)"
DAYS = f"SELECT day, source, count(*), {DISTINCT} FROM events GROUP BY ALL"
ACTIVE = f"SELECT source, {DISTINCT} FROM events WHERE day > $after GROUP BY ALL"
SPREAD = """
SELECT min(n) AS min, quantile_disc(n, 0.5) AS median, quantile_disc(n, 0.9) AS p90, max(n) AS max
FROM (SELECT payload.resourceCount AS n FROM events WHERE source = 'core')
"""
PROVIDER = """
SELECT '{name}' AS value, count(*) AS events, count(DISTINCT project) AS projects
FROM events WHERE source = 'core' AND payload.providers.{name} HAVING count(*) > 0
"""
BY_PROVIDER = (
    " UNION ALL ".join(PROVIDER.format(name=name) for name in PROVIDERS)
    + "ORDER BY events DESC, value"
)
LISTS = {
    "core": {
        "versions": ["payload.version AS value", "project"],
        "browsers": ["browser AS value", "browser_version AS version"],
        "operating_systems": ["os AS value", "os_version AS version"],
    },
    "cli": {
        "commands": ["payload.command AS value"],
        "node_versions": ["payload.nodeVersion AS value"],
        "operating_systems": ["payload.os AS value", "payload.osVersion AS version"],
        "frameworks": ["payload.projectFramework AS value"],
        "environments": ["payload.nodeEnv AS value"],
    },
}
PACKAGE = """
SELECT package.name AS name, package.version AS version, count(*) AS events
FROM (SELECT unnest(payload.packages) AS package FROM events WHERE source = 'cli')
GROUP BY ALL ORDER BY events DESC, name, version NULLS LAST
"""


def list_query(source: str, columns: list[str]) -> str:
    shown = [column for column in columns if column != "project"]
    projects = ", count(DISTINCT project) AS projects" if "project" in columns else ""
    order = ", ".join(f"{column.split(' AS ')[1]} NULLS LAST" for column in shown)
    return (
        f"SELECT {', '.join(shown)}, count(*) AS events{projects} FROM events "
        f"WHERE source = '{source}' GROUP BY ALL ORDER BY events DESC, {order}"
    )


def report_by_duckdb(directory: Path, since: date, until: date) -> dict[str, Any]:
    import duckdb

    database = duckdb.connect()

    def rows(query: str, **parameters: Any) -> list[dict[str, Any]]:
        cursor = database.execute(query, parameters or None)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def counts(source: str, numbers: Iterable[int]) -> dict[str, int]:
        addresses, hostnames, projects = numbers
        found = {"addresses": addresses, "hostnames": hostnames, "projects": projects}
        return {key: n for key, n in found.items() if source == "core" or key != "hostnames"}

    database.execute(EVENTS, {"files": str(directory / "events-*.jsonl*")})
    found = {(day, source): n for day, source, *n in database.execute(DAYS).fetchall()}
    active: dict[str, Any] = {}
    for days in (1, 7, 30):
        after = until - timedelta(days=days)
        by_source = {s: n for s, *n in database.execute(ACTIVE, {"after": after}).fetchall()}
        active[str(days)] = {s: counts(s, by_source.get(s, (0, 0, 0))) for s in ("core", "cli")}
    every_day = []
    for n in range((until - since).days + 1):
        row: dict[str, Any] = {"date": str(since + timedelta(days=n))}
        for source in ("core", "cli"):
            events, *distinct = found.get((since + timedelta(days=n), source), (0, 0, 0, 0))
            row[source] = {"events": events} | counts(source, distinct)
        every_day.append(row)
    lists: dict[str, Any] = {
        source: {name: rows(list_query(source, columns)) for name, columns in queries.items()}
        for source, queries in LISTS.items()
    }
    lists["core"] |= {"providers": rows(BY_PROVIDER), "resource_count": rows(SPREAD)[0]}
    lists["cli"]["packages"] = rows(PACKAGE)
    return {
        "since": str(since),
        "until": str(until),
        "events": {s: sum(day[s]["events"] for day in every_day) for s in ("core", "cli")},
        "unreadable_lines": 0,  # it raises an error at one
        "refused": rows(REFUSED, files=str(directory / "refused-*.jsonl*")),
        "days": every_day,
        "active": active,
    } | lists


# Measuring.


class Run(NamedTuple):
    answer: dict[str, Any]
    wall_seconds: float
    cpu_seconds: float
    peak_mb: float  # 0 where it was not measured


def run(command: list[str], directory: Path, with_memory: bool) -> Run:
    environ = os.environ | {"TELEMETRY_DATA_DIR": str(directory)}
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=output)
        peak = Peak(process.pid) if with_memory else None
        _, status, usage = os.wait4(process.pid, 0)
        wall_seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
        output.seek(0)
        answer = json.load(output)
    peak_mb = peak.stop() if peak else 0
    return Run(answer, wall_seconds, usage.ru_utime + usage.ru_stime, peak_mb)


class Peak:
    """Watches the memory of a process and all below it."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak_mb = pid, 0.0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self) -> None:
        while not self.stopping.wait(SAMPLE_SECONDS):
            with contextlib.suppress(OSError):  # one of them has ended
                now = sum(process.pss_mb for process in process_tree(self.pid))
                self.peak_mb = max(self.peak_mb, now)

    def stop(self) -> float:
        self.stopping.set()
        self.thread.join()
        return self.peak_mb


def differences(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        for key in ours:
            yield from differences(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for n, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(*pair, f"{where}[{n}]")
    elif ours != theirs:
        yield f"{where}: flask report {ours!r:.60}, DuckDB {theirs!r:.60}"


def compare(directory: Path, days: int, rounds: int) -> None:
    period = [f"--since={UNTIL - timedelta(days=days - 1)}", f"--until={UNTIL}"]
    flask = str(Path(sys.executable).with_name("flask"))
    commands = {
        "flask report": [flask, "report", *period, "--format=json"],
        "DuckDB": [str(bench_python()), __file__, *period, "--duckdb"],
    }
    first = {name: run(command, directory, True) for name, command in commands.items()}
    if wrong := list(differences(*(found.answer for found in first.values()))):
        raise SystemExit("The answers differ:\n" + "\n".join(wrong[:20]))
    print("the answers are equal")
    timed: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(rounds):
        for name in sorted(commands, reverse=bool(number % 2)):
            timed[name].append(run(commands[name], directory, False))
    print(f"{'':14}{'wall':>10}{'CPU':>10}{'peak memory':>14}")
    for name, runs in timed.items():
        wall, cpu = (
            median(getattr(r, f"{kind}_seconds") for r in runs) for kind in ("wall", "cpu")
        )
        print(f"{name:14}{wall:8.2f} s{cpu:8.2f} s{first[name].peak_mb:11.0f} MB")
    pairs = list(zip(*timed.values(), strict=True))
    for kind in ("wall", "cpu"):
        ratios = [getattr(a, f"{kind}_seconds") / getattr(b, f"{kind}_seconds") for a, b in pairs]
        shown = " ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"flask report / DuckDB, {kind}: median {median(ratios):.2f} of {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description="flask report against DuckDB")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--gzip", action="store_true", help="all files but today's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="make the files here, or use those that are here")
    for name in ("--since", "--until"):
        parser.add_argument(name, type=date.fromisoformat, help=argparse.SUPPRESS)
    parser.add_argument("--duckdb", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.duckdb:
        directory = Path(os.environ["TELEMETRY_DATA_DIR"])
        print(json.dumps(report_by_duckdb(directory, options.since, options.until)))
        return
    with contextlib.nullcontext(options.keep) if options.keep else bench_directory() as directory:
        if not (directory.exists() and any(directory.iterdir())):
            directory.mkdir(parents=True, exist_ok=True)
            size = make_files(directory, options.events, options.days, options.gzip)
            kept = "gzip" if options.gzip else "plain"
            print(f"{options.events:,} events, {options.days} days, {size / 1e6:,.0f} MB {kept}")
        compare(directory, options.days, options.rounds)


if __name__ == "__main__":
    main()
