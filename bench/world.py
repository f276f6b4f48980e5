"""Make daily files of believable events, the same ones each time.

    python bench/world.py DIRECTORY --events 200000 --days 91 --until 2026-11-24

Apps and projects come and go, and there are a tenth more of them each month.  Each moves to a
release some days after it is out.  Some are used far more than others.
"""

import argparse
import json
import random
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

SEED = 20261123
CLI_SHARE = 0.25
REFUSED_SHARE = 0.005
LOCAL_SHARE = 0.15  # of an app's events: people who develop it
GROWTH_A_DAY = 1.1 ** (1 / 30)

PROVIDERS = ("auth", "data", "router", "live", "notification", "auditLog", "i18n", "accessControl")
AGENT_KEYS = ("browser", "browser_version", "os", "os_version")
PROVIDER_CHANCES = (0.8, 1.0, 0.97, 0.12, 0.9, 0.06, 0.34, 0.42)
# Releases, and how many days before the last day each came out.
RELEASES = (("4.54", 400), ("4.55", 120), ("4.56", 88), ("4.57", 60), ("5.0", 36))
BROWSERS = [
    *(("Chrome", f"{n}.0.0.0") for n in (142, 142, 141, 140)),
    *(("Edge", "142.0.0.0"), ("Firefox", "145.0"), ("Firefox", "144.0")),
    *(("Chrome Mobile", "142.0.0.0"), ("Safari", "18.6"), ("Safari", "26.1"), (None, None)),
]
SYSTEMS: list[tuple[str | None, str | None]] = [
    *(("Windows", "10"), ("Mac OS X", "10.15.7"), ("Linux", None), ("iOS", "18.6")),
    *(("Android", "10"), (None, None)),
]
MACHINES = [("Linux", "6.8.0"), ("Windows", "10.0.22631"), ("macOS", "14.6"), ("macOS", "15.1")]
NODES = ["v22.11.0", "v22.9.0", "v22.11.0", "v20.18.1", "v20.9.0", "v24.1.0", "v18.20.4"]
ENVIRONMENTS = ["development", "development", "production", "ci", None]
COMMANDS = ["dev", "dev", "dev", "build", "start", "create-resource", "update", "whoami", None]
PACKAGES = ["core", "cli", "antd", "chakra-ui", "mui", "mantine", "react-router", "devtools"]
FRAMEWORKS = ["vite", "vite", "nextjs", "remix-vite", "craco"]
REFUSALS = [
    ("core", "version", "version: want a string of 1 to 256 characters, got nothing."),
    ("core", "resourceCount", "resourceCount: want an integer from 0 to 1000000, got a string."),
    ("cli", "nodeVersion", "nodeVersion: want a string of 1 to 256 characters, got an integer."),
    ("cli", None, "body: want at most 65536 bytes, got more."),
]


Json = dict[str, Any]


def compact(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"))


class Life(NamedTuple):
    """An app or a project: its days, counted from the first one, and how it follows releases."""

    number: int
    begins: int
    ends: int
    lag_days: float
    weight: float

    def version(self, day: int, days: int) -> str:
        """Return the release that it runs on that day."""
        age = days - 1 - day
        out = [name for name, days_ago in RELEASES if days_ago - age >= self.lag_days]
        return f"{out[-1] if out else RELEASES[0][0]}.{(day + self.number) // 20 % 4}"


class World:
    """The apps, projects, people and machines that send events over some days."""

    def __init__(self, days: int, until: date, apps: int, addresses: int) -> None:
        self.chance, self.days, self.until = random.Random(SEED), days, until
        self.apps, self.projects = self.lives(apps), self.lives(apps * 2 // 3)
        self.payloads = [self.payload(life) for life in self.apps]
        self.people = [self.person(n) for n in range(addresses)]
        self.machines = [
            [self.machine() for _ in range(self.chance.choice((1, 1, 1, 2)))] for _ in self.projects
        ]

    def lives(self, count: int) -> list[Life]:
        """Return as many lives as run on the last day, and those that have ended before."""
        chance, found = self.chance, []
        for number in range(int(count * 1.9)):
            begins = self.days - int(chance.expovariate(1 / 170))
            ends = begins + 1 + int(chance.expovariate(1 / 170))
            lag = 500.0 if chance.random() < 0.04 else chance.expovariate(1 / 9)
            if ends > 0:
                found.append(Life(number, begins, ends, lag, 1 / (1 + number % count)))
        return found

    def payload(self, life: Life) -> Json:
        providers = {
            name: self.chance.random() < share
            for name, share in zip(PROVIDERS, PROVIDER_CHANCES, strict=True)
        }
        project = f"{self.chance.getrandbits(40):010x}" if life.number % 50 else None
        return {
            "providers": providers,
            "version": "",
            "resourceCount": int(self.chance.lognormvariate(2, 0.8)),
            "projectId": project,
        }

    def person(self, number: int) -> tuple[str, list[Json]]:
        agents = []
        for _ in range(self.chance.choice((1, 1, 1, 2))):
            browser, system = self.chance.choice(BROWSERS), self.chance.choice(SYSTEMS)
            agents.append(dict(zip(AGENT_KEYS, (*browser, *system), strict=True)))
        return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", agents

    def machine(self) -> Json:
        system, version = self.chance.choice(MACHINES)
        environment, node = self.chance.choice(ENVIRONMENTS), self.chance.choice(NODES)
        return {"nodeEnv": environment, "nodeVersion": node, "os": system, "osVersion": version}

    def project(self, life: Life, day: int) -> Json:
        version = life.version(day, self.days)
        names = [*PACKAGES[:2], PACKAGES[2 + life.number % 6]][: 3 if life.number % 3 else 2]
        return {
            "packages": [{"name": f"@refinedev/{name}", "version": version} for name in names],
            "projectFramework": FRAMEWORKS[life.number % len(FRAMEWORKS)],
            "projectId": f"project-{life.number}",
        }

    def date_of(self, day: int) -> date:
        return self.until - timedelta(days=self.days - 1 - day)

    def lines(self, day: int, count: int) -> Iterator[str]:
        chance, start = self.chance, datetime.combine(self.date_of(day), time())
        apps = [n for n, life in enumerate(self.apps) if life.begins <= day < life.ends]
        projects = [n for n, life in enumerate(self.projects) if life.begins <= day < life.ends]
        from_apps = chance.choices(
            apps, cum_weights=list(accumulate(self.apps[n].weight for n in apps)), k=count
        )
        for n, app in enumerate(from_apps):
            at = (start + timedelta(days=n / count)).isoformat(timespec="milliseconds")
            number = f"{chance.getrandbits(128):032x}"
            number = f"{number[:8]}-{number[8:12]}-4{number[13:16]}-a{number[17:20]}-{number[20:]}"
            address, agents = self.people[int(chance.random() * len(self.people))]
            record = {"id": number, "received_at": f"{at}Z", "source": "cli", "ip": address}
            if chance.random() < CLI_SHARE:
                project = projects[int(chance.random() * len(projects))]
                machine = self.machines[project][n % len(self.machines[project])]
                command = COMMANDS[int(chance.random() * len(COMMANDS))]
                sent = self.project(self.projects[project], day)
                payload = machine | {"command": command} | sent
            else:
                is_local = chance.random() < LOCAL_SHARE
                host = "localhost" if is_local else f"admin.app{app}.example.com"
                record |= {"source": "core", "hostname": host} | agents[n % len(agents)]
                version = self.apps[app].version(day, self.days)
                payload = self.payloads[app] | {"version": version}
            yield compact(record | {"payload": payload}) + "\n"

    def refusals(self, day: int, count: int) -> Iterator[str]:
        for source, field, detail in self.chance.choices(REFUSALS, weights=(9, 3, 2, 1), k=count):
            refusal = {"source": source, "status": 400, "field": field, "detail": detail}
            yield compact({"received_at": f"{self.date_of(day)}T12:00:00.000Z"} | refusal) + "\n"


def make_files(directory: Path, world: World, events: int, skipped: date | None = None) -> None:
    """Write the files of the world's days."""
    growth = [GROWTH_A_DAY**day for day in range(world.days)]
    for day in range(world.days):
        date_of = world.date_of(day)
        count = int(events * growth[day] / sum(growth))
        lines = {
            "events": world.lines(day, count),
            "refused": world.refusals(day, int(count * REFUSED_SHARE)),
        }
        for kind in lines if date_of != skipped else ():
            with (directory / f"{kind}-{date_of}.jsonl").open("w", encoding="ascii") as file:
                file.writelines(lines[kind])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--days", type=int, default=91)
    parser.add_argument("--until", type=date.fromisoformat, default=date(2026, 11, 24))
    parser.add_argument("--skip-day", type=date.fromisoformat, help="a day without a file")
    parser.add_argument("--apps", type=int, default=600)
    parser.add_argument("--addresses", type=int, default=2_500)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    world = World(options.days, options.until, options.apps, options.addresses)
    make_files(options.directory, world, options.events, options.skip_day)


if __name__ == "__main__":
    main()
