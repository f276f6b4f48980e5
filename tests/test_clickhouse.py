"""deploy/clickhouse.sql, run by the embedded ClickHouse on the files of two collectors.

Its answers are those of `flask report` on the same events.
"""

import gzip
import json
import os
import random
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dayfiles import encode
from parsing import PROVIDERS
from report import make_report
from server import ROOT
from storage import timestamp

SINCE, UNTIL = date(2026, 11, 1), date(2026, 11, 30)
SQL = (ROOT / "deploy/clickhouse.sql").read_text(encoding="utf-8")


def statements() -> list[tuple[str, str]]:
    """Return each statement with the last line of comment before it."""
    found = []
    for part in re.split(r";\n", SQL):
        comments = re.findall(r"^-- (.+)$", part.split("\nSELECT")[0], re.MULTILINE)
        if part.strip():
            found.append((comments[-1] if comments else "", part))
    return found


QUESTIONS = {title: text for title, text in statements() if re.fullmatch(r"[a-z_.]+", title)}


def some_events(random_: random.Random, day: date, count: int) -> list[dict[str, Any]]:
    """Return events as the collector stores them, with nulls and text of every kind."""

    def one_of(*values: Any) -> Any:
        return random_.choice(values)

    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    events: list[dict[str, Any]] = []
    for _ in range(count):
        received_at = noon + timedelta(milliseconds=random_.randrange(-43_200_000, 43_200_000))
        event = {
            "id": f"{random_.getrandbits(128):032x}",
            "received_at": timestamp(received_at),
            "source": one_of("core", "cli"),
            "ip": one_of(None, f"203.0.113.{random_.randrange(9)}", "2001:db8::1"),
        }
        event["id"] = re.sub(r"^(.{8})(.{4})(.{4})(.{4})", r"\1-\2-\3-\4-", event["id"])
        project = one_of(None, "a", "größe-😀", 'say "hi" \\ bye', "Z")
        if event["source"] == "core":
            event |= {
                "hostname": one_of(None, "admin.example.com", "localhost"),
                "browser": one_of(None, "Chrome", "Firefox"),
                "browser_version": one_of(None, "156.0.0", "99"),
                "os": one_of(None, "Linux", "Windows"),
                "os_version": one_of(None, "10", "9"),
                "payload": {
                    "providers": {name: one_of(True, False) for name in PROVIDERS},
                    "version": one_of("5.0.12", "5.0.9", "4.0.0", "é"),
                    "resourceCount": random_.randrange(100_000),
                    "projectId": project,
                },
            }
        else:
            packages = [
                {"name": one_of("core", "cli", "ä"), "version": one_of(None, "1", "2")}
                for _ in range(random_.randrange(4))
            ]
            event["payload"] = {
                "nodeEnv": one_of(None, "development", "Production"),
                "nodeVersion": one_of("v20.20.2", "v22.1.0"),
                "os": one_of(None, "Linux", "macOS"),
                "osVersion": one_of(None, "6.18", "15"),
                "command": one_of(None, "dev", "build"),
                "packages": packages,
                "projectFramework": one_of("vite", "nextjs", "unknown"),
                "projectId": project,
            }
        events.append(event)
    return events


def lines(events: list[dict[str, Any]]) -> bytes:
    return "".join(f"{encode(event)}\n" for event in events).encode("ascii")


@pytest.fixture
def collectors(tmp_path: Path) -> Path:
    """Two data directories: plain files, compressed ones, and a day in two of them."""
    random_ = random.Random(1)
    for name in ("a", "b"):
        directory = tmp_path / "collectors" / name
        directory.mkdir(parents=True)
        for age in (0, 1, 5, 6, 7, 20, 29, 30):
            path = directory / f"events-{UNTIL - timedelta(days=age)}.jsonl"
            content = lines(some_events(random_, UNTIL - timedelta(days=age), 60))
            cut = content.index(b"\n", len(content) // 2) + 1
            if age >= 7:  # what came late is a second member
                members = gzip.compress(content[:cut]) + gzip.compress(content[cut:])
                path.with_name(f"{path.name}.gz").write_bytes(members)
            elif age == 6:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content[:cut]))
                path.write_bytes(content[cut:])
            else:
                path.write_bytes(content)
        with (directory / f"events-{UNTIL}.jsonl").open("ab") as today:
            today.write(lines(some_events(random_, UNTIL, 1))[:-30])  # copied while it was written
        (directory / f"refused-{UNTIL}.jsonl").write_text('{"status":400}\n')
    return tmp_path / "collectors"


class Database:
    """The embedded ClickHouse; one in a process is all there can be."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def run(self, text: str) -> list[dict[str, Any]]:
        result = self.session.query(text, "JSONEachRow").bytes() or b""
        return [json.loads(line) for line in result.splitlines()]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    if "CI" not in os.environ:
        pytest.importorskip("chdb")
    from chdb.session import Session

    session = Session(str(tmp_path / "warehouse"))
    yield Database(session)
    session.close()


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """`{"core": {"events": 1}}` as `{"core_events": 1}`."""
    found = {}
    for key, value in row.items():
        inner = flat(value) if isinstance(value, dict) else None
        found |= {f"{key}_{k}": v for k, v in inner.items()} if inner else {key: value}
    return found


def expected(report: dict[str, Any], title: str) -> list[dict[str, Any]]:
    """Return a place in the report as the rows of a table."""
    if title == "active":
        return [flat({"days": int(days)} | counts) for days, counts in report["active"].items()]
    found = report
    for key in title.split("."):
        found = found[key]
    return [flat(row) for row in (found if isinstance(found, list) else [found])]


def test_the_answers_are_those_of_the_report(collectors: Path, database: Database) -> None:
    report, errors = make_report(sorted(collectors.iterdir()), SINCE, UNTIL)
    assert errors == []
    assert report["events"]["core"] > 300

    answers = {}
    for title, text in statements():
        text = text.replace("'collectors/", f"'{collectors}/")
        answers[title] = database.run(text)
        if "INSERT" in text:
            database.run(text)  # a second time adds nothing

    for title in QUESTIONS:
        assert answers[title] == expected(report, title), title


def test_every_place_of_the_report_has_its_question() -> None:
    asked = {*QUESTIONS}
    report, _ = make_report([Path(__file__).parent], SINCE, UNTIL)
    lists = {f"{source}.{name}" for source in ("core", "cli") for name in report[source]}

    # What was refused is a matter of each collector.
    assert asked == {"events", "days", "active"} | lists
