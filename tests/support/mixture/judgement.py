"""What is wrong with the files after a run, held against what everybody noted."""

import gzip
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from mixture.world import World

LINE = re.compile(r'\{"id":"([^"]{36})","received_at":"([\d-]{10})T[\d:]{8}\.\d{3}Z",(.*)')
PROJECT = re.compile(r'"projectId":"([^"]+)"')
A_HASH = '"ip":"a hash"'
HASH = re.compile(r'"ip":"[0-9a-f]{64}"')


def judge(world: World) -> list[str]:
    """Return a line for each kind of fault."""
    found: dict[str, list[str]] = defaultdict(list)
    sent = {one.event.project: one for one in world.sent}
    counts: Counter[str] = Counter()  # of ids and projects
    for path, day, text in stored_lines(world):
        line, project = LINE.fullmatch(text), PROJECT.search(text)
        one = sent.get(project[1]) if project else None
        wanted = one and one.event.line(world.mixture.mode)
        if one is None or line is None or (line[2], HASH.sub(A_HASH, line[3])) != (day, wanted):
            found["invalid"].append(f"{path.name}: {text[:500]}")
            continue
        counts.update((line[1], one.event.project))
        if any(one.began > since for place, since in world.moved.items() if is_in(path, place)):
            found["in a file that was moved before"].append(f"{text} in {path.name}")
        is_known = one.is_acknowledged and one.ended < world.forgotten
        if is_known and one.event.is_marked and is_in(path, world.data):
            found["not forgotten"].append(f"{text} in {path.name}")
    found["twice"] = [value for value, count in counts.items() if count > 1]
    for one in sent.values():
        is_forgotten = one.event.is_marked and world.is_forgetting
        if one.is_acknowledged and one.event.project not in counts and not is_forgotten:
            found["lost"].append(f"{one.event}")
    return [f"{kind}: {len(all_)}: {', '.join(all_[:3])}" for kind, all_ in found.items() if all_]


def is_in(path: Path, place: Path) -> bool:
    return path.is_relative_to(place)


def stored_lines(world: World) -> Iterator[tuple[Path, str, str]]:
    """Yield each line and its file's day; an archive and its plain file may hold the same."""
    live = world.data / f"events-{datetime.now(UTC):%F}.jsonl"
    for directory in (world.data, *world.aside.glob("**/")):
        contents: dict[Path, list[bytes]] = {}
        for path in sorted(directory.glob("events-*.jsonl*")):
            content = path.read_bytes()
            if path.suffix == ".gz":
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
            yield from ((path, path.name[7:17], line.decode("latin-1")) for line in lines)
