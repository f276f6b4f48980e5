"""What is wrong with the files after a run, held against what everybody noted."""

import gzip
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, NamedTuple

from mixture.world import KEYS, MARKED, PAYLOAD_KEYS, World

GZIP_MAGIC = b"\x1f\x8b"
EVENT_FILE = re.compile(r"events-(\d{4}-\d\d-\d\d)\.jsonl.*")


class Stored(NamedTuple):
    path: Path
    record: dict[str, Any]


class Judgement:
    def __init__(self, world: World) -> None:
        self.world = world
        self.sent = {sent.event.project: sent for sent in world.sent}
        self.invalid: list[str] = []
        self.deleted: dict[str, float] = {}  # projects, and when
        for file, since in world.deleted:
            self.deleted |= dict.fromkeys(projects_in(os.pread(file, 2**30, 0)), since)
            os.close(file)
        self.stored = [
            stored
            for directory in (world.data, *world.aside.glob("**/"))
            for stored in self.read(directory)
        ]

    def read(self, directory: Path) -> Iterator[Stored]:
        """Yield the records in a directory; an archive beside its plain file holds the same."""
        lines: dict[Path, list[bytes]] = {}
        for path in sorted(directory.glob("events-*")):
            if EVENT_FILE.fullmatch(path.name):
                *whole, tail = self.content(path).split(b"\n")
                # Who moves a file moves what a kill has torn.
                if tail and path == self.world.data / f"events-{datetime.now(UTC):%F}.jsonl":
                    self.invalid.append(f"{path.name} is torn: {tail[:200]!r}")
                lines[path] = whole
        for path in list(lines):
            archive = path.with_name(f"{path.name}.gz")
            if archive in lines:
                contained, other = sorted((path, archive), key=lambda one: len(lines[one]))
                if set(lines[contained]) <= set(lines[other]):
                    del lines[contained]
        for path, whole in lines.items():
            for line in whole:
                if record := self.valid(line):
                    yield Stored(path, record)
                else:
                    self.invalid.append(f"{path.name}: {line[:200]!r}")

    def content(self, path: Path) -> bytes:
        content = path.read_bytes()
        try:
            return gzip.decompress(content) if content[:2] == GZIP_MAGIC else content
        except (OSError, EOFError, zlib.error) as exc:
            self.invalid.append(f"{path.name}: {exc}")
            return b""

    def valid(self, line: bytes) -> dict[str, Any] | None:
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

    def findings(self) -> list[str]:
        return [
            *summary("invalid", iter(self.invalid)),
            *summary("lost", self.lost()),
            *summary("twice", self.twice()),
            *summary("unlike what was sent", self.unlike()),
            *summary("in a file that was moved or deleted before", self.misplaced()),
            *summary("not forgotten", self.not_forgotten()),
        ]

    def lost(self) -> Iterator[str]:
        stored = {one.record["payload"]["projectId"] for one in self.stored}
        for project, sent in self.sent.items():
            is_excused = (
                project in self.deleted
                or sent.began <= self.world.truncated
                or (sent.event.hostname == MARKED and self.world.is_forgetting)
            )
            if sent.is_acknowledged and project not in stored and not is_excused:
                yield f"{project} ({sent.event.source})"

    def twice(self) -> Iterator[str]:
        for name in ("id", "projectId"):
            counts = Counter((one.record | one.record["payload"])[name] for one in self.stored)
            yield from (f"{name} {value}" for value, count in counts.items() if count > 1)

    def unlike(self) -> Iterator[str]:
        for path, record in self.stored:
            project = record["payload"]["projectId"]
            sent = self.sent.get(project)
            day = EVENT_FILE.fullmatch(path.name)
            if not sent or not day or day[1] != record["received_at"][:10]:
                yield f"{project} in {path.name}, received {record['received_at']}"
            elif record.get("hostname") != sent.event.hostname:
                yield f"{project}: hostname {record['hostname']}, not {sent.event.hostname}"
            elif not self.is_right_address(record["ip"], sent.event.address):
                yield f"{project}: ip {record['ip']} of {sent.event.address}"

    def is_right_address(self, stored: str | None, address: str | None) -> bool:
        if address is None or self.world.mixture.mode == "none":
            return stored is None
        if self.world.mixture.mode == "hashed":
            return stored is not None and re.fullmatch(r"[0-9a-f]{64}", stored) is not None
        if self.world.mixture.mode == "masked":
            network = ip_interface(f"{address}/{48 if ':' in address else 24}").network
            return stored == str(network.network_address)
        return stored == address

    def misplaced(self) -> Iterator[str]:
        """Yield what was stored where nobody looks any more, by a worker that did not notice."""
        for path, record in self.stored:
            sent = self.sent.get(record["payload"]["projectId"])
            for place, since in self.world.moved.items():
                if sent and sent.began > since and path.is_relative_to(place):
                    yield f"{sent.event.project} in {path.name}"
        for project, since in self.deleted.items():
            if project in self.sent and self.sent[project].began > since:
                yield f"{project} in a deleted file"

    def not_forgotten(self) -> Iterator[str]:
        for path, record in self.stored:
            sent = self.sent.get(record["payload"]["projectId"])
            is_known = sent and sent.is_acknowledged and sent.ended < self.world.forgotten
            is_here = path.is_relative_to(self.world.data)
            if sent and is_known and is_here and sent.event.hostname == MARKED:
                yield f"{sent.event.project} in {path.name}"


def projects_in(content: bytes) -> set[str]:
    return {found.decode() for found in re.findall(rb'"projectId":"([^"]+)"', content)}


def summary(kind: str, found: Iterator[str]) -> Iterator[str]:
    """Yield one line for what was found, if anything."""
    items = list(dict.fromkeys(found))
    if items:
        yield f"{kind}: {len(items)}: {', '.join(items[:3])}"
