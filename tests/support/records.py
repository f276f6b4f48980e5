"""Records by hand, and files of them; what a test does not name has a plain value."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

from files.records import PAYLOAD_KEYS, PROVIDERS, encode, make_record

UNTIL = date(2026, 11, 22)
TODAY = date(2026, 11, 23)
SINCE = date(2026, 9, 28)  # 8 weeks
HASH = "0123456789abcdef" * 4

Record = dict[str, Any]
Days = dict[int, list[Record]]


def core(hostname: str | None = "a.com", ip: str | None = "192.0.2.1", **others: Any) -> Record:
    values = {"hostname": hostname, "ip": ip, "version": "5.0.1", "resourceCount": 3}
    providers = dict.fromkeys(PROVIDERS, False) | others.pop("providers", {})
    return record("core", values | {"providers": providers} | others)


def cli(project: str | None = "p", ip: str | None = "192.0.2.1", **others: Any) -> Record:
    return record("cli", {"projectId": project, "ip": ip, "packages": []} | others)


def record(source: str, others: Record) -> Record:
    """Return a record as the collector writes it; no name stands in both record and payload."""
    values = {
        "id": "52971fbc-e1f8-4355-9838-184230824615",
        "received_at": f"{UNTIL}T04:05:06.123Z",
        "source": source,
        **others,
    }
    payload = {key: values.get(key) for key in PAYLOAD_KEYS[source]}
    return make_record(source, values | {"payload": payload})


def packages(*versions: str) -> list[dict[str, str]]:
    """Turn `name@version` into the entries of a payload."""
    return [dict(zip(("name", "version"), text.split("@"), strict=True)) for text in versions]


def write_days(directory: Path, days: Days) -> None:
    """Write a file for each day, which is a number of days before `UNTIL`."""
    directory.mkdir(parents=True, exist_ok=True)
    for days_ago, records in days.items():
        path = directory / f"events-{UNTIL - timedelta(days=days_ago)}.jsonl"
        path.write_text("".join(f"{encode(record)}\n" for record in records))


def write_lines(path: Path, lines: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
