"""Records by hand, and files of them; what a test does not name has a plain value."""

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

UNTIL = date(2026, 11, 22)
TODAY = date(2026, 11, 23)
SINCE = date(2026, 9, 28)  # 8 weeks
HASH = "0123456789abcdef" * 4

Record = dict[str, Any]
Days = dict[int, list[Record]]


def core(hostname: str | None = "a.com", ip: str | None = "192.0.2.1", **others: Any) -> Record:
    payload = {"providers": {}, "version": "5.0.1", "resourceCount": 3, "projectId": None}
    record = {"browser": None, "browser_version": None, "os": None, "os_version": None}
    return {
        "source": "core",
        "ip": ip,
        "hostname": hostname,
        **{name: others.get(name, value) for name, value in record.items()},
        "payload": {name: others.get(name, value) for name, value in payload.items()},
    }


def cli(project: str | None = "p", ip: str | None = "192.0.2.1", **payload: Any) -> Record:
    return {"source": "cli", "ip": ip, "payload": {"projectId": project, **payload}}


def packages(*versions: str) -> list[dict[str, str]]:
    """Turn `name@version` into the entries of a payload."""
    return [dict(zip(("name", "version"), text.split("@"), strict=True)) for text in versions]


def write_days(directory: Path, days: Days) -> None:
    """Write a file for each day, which is a number of days before `UNTIL`."""
    directory.mkdir(parents=True, exist_ok=True)
    for days_ago, records in days.items():
        path = directory / f"events-{UNTIL - timedelta(days=days_ago)}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_lines(path: Path, lines: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
