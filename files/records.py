"""The records, one in each line: their keys, how they are written and how they are read."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

PROVIDERS = ("auth", "data", "router", "live", "notification", "auditLog", "i18n", "accessControl")

AGENT_KEYS = ("browser", "browser_version", "os", "os_version")

# By source, in their order.
RECORD_KEYS = {
    "core": ("id", "received_at", "source", "ip", "hostname", *AGENT_KEYS, "payload"),
    "cli": ("id", "received_at", "source", "ip", "payload"),
}
PAYLOAD_KEYS = {
    "core": ("providers", "version", "resourceCount", "projectId"),
    "cli": (
        "nodeEnv",
        "nodeVersion",
        "os",
        "osVersion",
        "command",
        "packages",
        "projectFramework",
        "projectId",
    ),
}

# Keys that older lines lack, because they were added later; there they are read as null.
ADDED_KEYS: frozenset[str] = frozenset()

encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def utc_now() -> datetime:
    return datetime.now(UTC)


def timestamp(now: datetime) -> str:
    """Return an aware UTC time as `2026-11-23T04:05:06.123Z`."""
    return f"{now.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def make_record(source: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with all keys of its source, in their order; what is missing is null."""
    return {key: values.get(key) for key in RECORD_KEYS[source]}


def read_record(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object in a line, None if there is none."""
    try:
        record = decode(line.decode(json.detect_encoding(line)))
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def decode(text: str) -> Any:
    """Parse JSON (RFC 8259).  Raises ValueError that says what was seen instead."""
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as exc:
        raise ValueError(f"text that is not JSON at character {exc.pos}") from exc
    except RecursionError as exc:
        raise ValueError("nesting too deep") from exc


def refuse_constant(_: str) -> NoReturn:
    raise ValueError("a constant that JSON does not have")


def short_integer(digits: str) -> int:
    """Parse at most 20 digits: more are out of range anyway, and slow to parse."""
    return int(digits[:20])


decoder = json.JSONDecoder(parse_constant=refuse_constant, parse_int=short_integer)
