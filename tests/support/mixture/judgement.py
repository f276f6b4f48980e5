"""What is wrong with the files after a run, held against what everybody noted."""

import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixture.world import KEYS, MARKED, PAYLOAD_KEYS, Event, World

EVENT_FILE = re.compile(r"events-(\d{4}-\d\d-\d\d)\.jsonl(.*)")


def judge(world: World) -> list[str]:
    """Return a line for each kind of fault."""
    found: dict[str, list[str]] = defaultdict(list)
    sent = {one.event.project: one for one in world.sent}
    counts: Counter[str] = Counter()  # of ids and projects
    for path, line in stored_lines(world):
        record = parse(line)
        if record is None:
            found["invalid"].append(f"{path.name}: {line[:200]!r}")
            continue
        project = record["payload"]["projectId"]
        counts.update((record["id"], project))
        one = sent.get(project)
        if one is None or not is_as_sent(record, path, one.event, world.mixture.mode):
            found["unlike what was sent"].append(f"{line!r} in {path.name}")
            continue
        for place, since in world.moved.items():
            if one.began > since and path.is_relative_to(place):
                found["in a file that was moved before"].append(f"{project} in {path.name}")
        is_known = one.is_acknowledged and one.ended < world.forgotten
        if is_known and one.event.hostname == MARKED and path.is_relative_to(world.data):
            found["not forgotten"].append(f"{project} in {path.name}")
    found["twice"] = [value for value, count in counts.items() if count > 1]
    for project, one in sent.items():
        is_forgotten = one.event.hostname == MARKED and world.is_forgetting
        if one.is_acknowledged and project not in counts and not is_forgotten:
            found["lost"].append(f"{project} ({one.event.source})")
    return [f"{kind}: {len(all_)}: {', '.join(all_[:3])}" for kind, all_ in found.items() if all_]


def stored_lines(world: World) -> Iterator[tuple[Path, bytes]]:
    """Yield each line; of a plain file and its archive one may hold what the other holds."""
    live = world.data / f"events-{datetime.now(UTC):%F}.jsonl"
    for directory in (world.data, *world.aside.glob("**/")):
        contents: dict[Path, list[bytes]] = {}
        for path in sorted(directory.glob("events-*")):
            if match := EVENT_FILE.fullmatch(path.name):
                content = path.read_bytes()
                if match[2] == ".gz":
                    content = gzip.decompress(content)
                *contents[path], tail = content.split(b"\n")
                if tail and path == live:  # who moves a file moves what a kill has torn
                    contents[path].append(tail)
        for archive in [path for path in contents if path.suffix == ".gz"]:
            plain = archive.with_suffix("")
            contained, other = sorted((plain, archive), key=lambda one: len(contents.get(one, [])))
            if set(contents.get(contained, [])) <= set(contents[other]):
                contents.pop(contained, None)
        for path, lines in contents.items():
            yield from ((path, line) for line in lines)


def parse(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line, None unless it is written as the contract says."""
    try:
        record: dict[str, Any] = json.loads(line)
        source, payload = record["source"], record["payload"]
        is_valid = (
            json.dumps(record, separators=(",", ":")).encode() == line
            and " ".join(record) == KEYS[source]
            and " ".join(payload) == PAYLOAD_KEYS[source]
        )
    except (ValueError, KeyError, TypeError):
        return None
    return record if is_valid else None


def is_as_sent(record: dict[str, Any], path: Path, event: Event, mode: str) -> bool:
    day = EVENT_FILE.fullmatch(path.name)
    is_in_its_day = day is not None and day[1] == record["received_at"][:10]
    is_from_its_host = record.get("hostname") == event.hostname
    address = str(event.address)
    if event.address and mode == "hashed":
        address = "[0-9a-f]{64}"
    is_its_address = re.fullmatch(address, str(record["ip"])) is not None
    return is_in_its_day and is_from_its_host and is_its_address
