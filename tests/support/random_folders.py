"""Folders of daily files as bad as they come: gaps, archives, both forms of a day, broken lines.

Few different values make ties frequent. The same seed makes the same folders.
"""

import gzip
import hashlib
import json
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

from files.records import PROVIDERS
from naive_report import days_between
from records import cli, core

LAST_DAY = date(2026, 11, 24)  # two days after the `until` that tests use
HASH = hashlib.sha256(b"a hash that comes on several days").hexdigest()
IN_DEVELOPMENT = [
    *("localhost", "intranet", "app.localhost", "nas.local", "a.test", "b.example", "c.invalid"),
    *("d.internal", "e.home.arpa", "f.lan", "g.corp", "10.0.0.1.nip.io", "10-0-0-1.sslip.io"),
    *("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.1.1", "::1", "fd00::1", "fe80::1"),
    *("x1-3000.csb.app", "a.github.dev", "a--3000.webcontainer.io", "1.a.cloudworkstations.dev"),
    *("a.ngrok-free.app", "a.trycloudflare.com", "a-3000.euw.devtunnels.ms"),
    *("deploy-preview-7--a.netlify.app", "a--main-x1.web.app", "a-git-main-b.vercel.app"),
    *("1a2b.a.pages.dev", "a-pr-12.onrender.com"),
]
DEPLOYED = [
    *("a.com", "test.com", "local.com", "example.com", "mylocalhost.com", "8.8.8.8", "xtest.de"),
    *("2606:4700:4700::1111", "home.arpa", "a.locals", "a.b.example.org", "csb.app", "1.2.3.256"),
    *("a.netlify.app", "a-b.web.app", "a-git-b.vercel.app", "git-main-b.vercel.app"),
    *("a.pages.dev", "1.2.a.pages.dev", "a-pr-x.onrender.com", "pr-12.onrender.com"),
]
FEW_HOSTNAMES = ["a.com", "localhost", "b.com", "c.example.org"]
HOSTNAMES = [*FEW_HOSTNAMES, *IN_DEVELOPMENT, *DEPLOYED, 'b.com","payload":{', "hostname"]
# What may be given as --exclude-host, in one run of the report.
EXCLUSIONS: list[list[str]] = [
    *([], [], ["a.com"], ["*.Example.org", "B.*"], ["?.com"], ["[!a]*"], ["*"]),
    *(["com", "*.netlify.app", "127.*"], ["a.co"]),
]
ADDRESSES = [*(f"192.0.2.{n}" for n in range(5)), "2001:db8::1", "192.0.2.9", "\u00e4", HASH[:-1]]
NETWORKS = [*(f"192.0.{n}.0" for n in range(4)), "2001:db8::", "2001:db8:1::", "192.0.9.0"]
# How the addresses of a day stand: a directory uses each of its ways on random days.
WAYS = [
    *(["full"], ["full"], ["full"], ["masked"], ["masked"], ["hashed"], ["none"], ["mixed"]),
    *(["full", "masked"], ["full"] * 29 + ["none"], ["full"] * 29 + ["hashed"]),
    *(["masked"] * 29 + ["full"], ["full"] * 29 + ["masked"]),
]
PROJECTS = ["p", "q", HASH, "\u00fc", '"}', "\\", "\u2028", "\ud83d\ude00", "\ud800"]
VERSIONS = [
    *("5.0.1", "5.0.0-beta.1", "5.0.2", "5.0", "5", "v5.1.0", "v6.0.0-rc.1", "5.1-0", "5.1.x-0"),
    *("4.57.9", "4.57.10", "10.0.0-rc.1", "10.0", "next", "v", "v.1", "", "5.x", "5-1.2"),
    *("1.2.3.4", "\u00e9", "5.0.1 ", " 5.0.1"),
]
BROWSERS = ["Firefox", "Chrome", "Chrome Mobile", "\u00c4dge"]
ROBOTS = ["Googlebot", "HeadlessChrome", "GoogleOther/InspectionTool", "CRAWLER", "robot"]
SYSTEMS = ["Linux", "Mac OS X", "Windows"]
COMMANDS = ["dev", "build", "start", '{"source":"core"}', "\u0085"]
PACKAGES = ["@x/core", "cli", "antd", "\u00fcber", "packages"]
# What stands in a line, and other JSON for it; of a key that comes twice the last one counts.
SPELLINGS = [
    ("\\u00fc", "\\u00FC"),
    ("/", "\\/"),
    (".com", "\\u002ecom"),
    ("ersion", "\\u0065rsion"),
    ('{"', '{"ip":[],"hostname":"d.com","'),
    ("}", ',"hostname":null}'),
    ('"payload"', '"payload":[],"payload"'),
    ('"version"', '"version":7,"version"'),
]
NUMBERS = [0, 1, 2, 9, 10, 11, 99, 100, 1_000_000, -1, 10**19]
DETAILS = ["must be a string, not a number", "is missing", "\u00fc", ""]
ANYTHING = [
    *(True, False, 0, 7, 1.5, -0.0, 1e300, "", "text", [], [None], {}, {"a": 1}),
    *([{"name": "core"}], [{"name": 1}], {"auth": True}, {"auth": 1}, {"auth": None}, {"x": False}),
]
NO_EVENTS = [
    *(b"", b" ", b"\r", b"\x00" * 100, b"null", b"[]", b"7", b'"text"', b"{}"),
    b'{"source":"core"}',
    b'{"source":"cli","payload":[]}',
    b'{"source":"api","payload":{}}',
    b'{"source":"core","payload":null}',
    b'{"payload":{}}',
    b'{"source":"core","payload":{}',
    b'{"source":"core","payload":{}}}',
    b'{"source":"core","payload":{}}{"source":"core","payload":{}}',
    b'{"source":"core","payload":{},}',
    b'{"source":"core","payload":{}} // comment',
    b'{"source":"core","ip":"\xff","payload":{}}',
    b'{"source":"core","ip":"\xed\xa0\x80","payload":{}}',
    b'{"source":"core","x":"\xfc","payload":{}}',
    b'{"source":"core","ip":"\x1f","payload":{}}',
    b'{"source":"core","ip":"a\rb","payload":{}}',
    b'{"source":"core","ip":"\\x","payload":{}}',
    b'{"source":"core","payload":{"resourceCount":NaN}}',
    b'{"source":"core","payload":{"resourceCount":03}}',
    b'{"source":"core","payload":{"resourceCount":3.0}}',
    b'{"source":"core","payload":{"resourceCount":true}}',
    b'{"source":"core","payload":{},"x":-Infinity}',
    b'{"source":"core","payload":{"providers":[true]}}',
    b'{"source":"cli","payload":{"packages":["core"]}}',
    b'\x0b{"source":"core","payload":{}}',
    b'{"source":"core","payload":{}}\xc2\xa0',
]
HEAD = b'{"id":"52971fbc-e1f8-4355-9838-184230824615","received_at":"2026-11-05T04:05:06.123Z",'
ODD_EVENTS = [
    b'\xef\xbb\xbf{"source":"core","payload":{}}',
    b'{"source":"cli","payload":{}}\r',
    b'\t{ "source" : "cli" , "payload" : { } } ',
    b'{"payload":{},"source":"cli"}',
    b'{"source":"cli","source":"core","payload":{"version":"1"},"payload":{"version":"2"}}',
    b'{"source":"core","hostname":5,"hostname":"a.com","payload":{"version":"5.0.1"}}',
    b'{"source":"core","hostname":"a.com","payload":{"resourceCount":-0,"version":"5.0.1"}}',
    b'{"source":"core","hostname":"\\u0061.com","payload":{"version":"5\\u002E0.1","x":1e999}}',
    b'{"\\u0073ource":"core","hostname":"a.com","payload":{"ver\\u0073ion":"4.57.9"}}',
    b'{"source":"cli","payload":{"packages":[{},{"name":null},{"version":"1"},{"x":1}]}}',
    b'{"source":"cli","hostname":5,"browser":[],"payload":{"version":5,"providers":7}}',
    b'{"source":"core","payload":{"packages":5,"command":[]},"x":{"hostname":"d.com","ip":"i"}}',
    b'{"source":"core","hostname":"a.com","payload":{"providers":{"data":true,"x":true}}}',
    HEAD + b'"source":"cli","ip":"192.0.2.0","payload":{}}',
    HEAD + b'"source":"core","ip":null,"hostname":"a.com","browser":null,"browser_version":null,'
    b'"os":null,"os_version":null,"payload":{}}',
    b'{"source":"core","ip":"\xc2\x85","hostname":"\xe2\x80\xa8","payload":{}}',
    b'{"source":"cli","ip":"\\ud83d","payload":{"projectId":"\\ude00\\ud83d"}}',
    b'{"source":"cli","ip":"' + HASH.upper().encode() + b'","payload":{}}',
    b'{"source":"core","x":' + b"[" * 90 + b"]" * 90 + b',"payload":{}}',
    b'{"source":"core","x":"' + b"y" * 3000 + b'","hostname":"b.com","payload":{}}',
]


class Habits(NamedTuple):
    """What one folder is like: how likely each oddity is."""

    ways: list[str]  # how the addresses of a day stand
    gap: float = 0
    archive: float = 0.3
    both_forms: float = 0
    odd_line: float = 0
    missing: float = 0.05
    has_projects: bool = True
    robots: float = 0.1
    odd_form: float = 0
    least_events: int = 1
    most_events: int = 20
    few: int = 6  # different values of a kind


def write_folders(root: Path, seed: int) -> list[Path]:
    """Write one or two directories of daily files below `root`; some are returned twice."""
    chance = Random(seed)
    length = chance.choice([4, 9, 20, 40, 57, 58, 59, 75, 75, 100, 100])
    days = days_between(LAST_DAY - timedelta(days=length), LAST_DAY)
    directories = [root / "a", root / "b"][: chance.choice([1, 2])]
    ours = habits(chance)
    for directory in directories:
        write_directory(directory, days, chance, ours)
        for name in ("events-2026-02-31.jsonl", "events-20261120.jsonl", "other.jsonl"):
            (directory / name).write_bytes(b'{"source":"core","payload":{}}\n')
        ours = ours if chance.random() < 0.5 else habits(chance)
    if chance.random() < 0.3:
        link = root / "link"
        link.symlink_to(chance.choice(directories), target_is_directory=True)
        directories += [link, directories[0] / ".." / directories[0].name]
        chance.shuffle(directories)
    return directories


def habits(chance: Random) -> Habits:
    return Habits(
        ways=chance.choice(WAYS),
        gap=chance.choice([0, 0, 0.1, 0.5, 0.9]),
        archive=chance.choice([0, 0.3, 0.9]),
        both_forms=chance.choice([0, 0.2]),
        odd_line=chance.choice([0, 0, 0.02, 0.2]),
        missing=chance.choice([0, 0, 0.05, 0.5]),
        has_projects=chance.random() < 0.9,
        robots=chance.choice([0, 0.1, 0.5]),
        odd_form=chance.choice([0, 0, 0.1, 1]),
        least_events=0,
        most_events=chance.choice([1, 4, 12, 20]),
        few=chance.choice([1, 2, 4, 20]),
    )


def write_directory(directory: Path, days: list[date], chance: Random, ours: Habits) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for day in days:
        for kind, gap, line in (("events", ours.gap, event), ("refused", 0.7, refusal)):
            if chance.random() >= gap:
                way = chance.choice(ours.ways)
                size = chance.randint(ours.least_events, ours.most_events)
                lines = [line(chance, ours, way, day) for _ in range(size)]
                write_day(directory / f"{kind}-{day}.jsonl", lines, chance, ours)


def write_day(path: Path, lines: list[bytes], chance: Random, ours: Habits) -> None:
    content = b"".join(line + b"\n" for line in lines)
    if chance.random() < ours.odd_line:
        content += chance.choice([b"{", b"\x00\x00", b'{"source":"core","payload":{}}', b"\xff"])
    if chance.random() < ours.both_forms:
        path.write_bytes(content)
        lines = content.splitlines(keepends=True)
        odd = [b'{"source":"cli","payload":{}}\n']
        others = [lines[:1], lines + odd, lines[1:], sorted(lines), [*lines[::2], content[:5]], odd]
        begun = content[: chance.randint(0, len(content))]
        pack(path, chance.choice([content, begun, *map(b"".join, others)]), chance)
    elif chance.random() < ours.archive:
        pack(path, content, chance)
    else:
        path.write_bytes(content)


def pack(path: Path, content: bytes, chance: Random) -> None:
    """Write an archive, often of several members, which may end anywhere in a line."""
    cuts = sorted(chance.randint(0, len(content)) for _ in range(chance.choice([0, 0, 1, 3])))
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    archive = b"".join(gzip.compress(piece, 1, mtime=0) for piece in pieces)
    path.with_name(f"{path.name}.gz").write_bytes(archive)


# Lines


def event(chance: Random, ours: Habits, way: str, day: date) -> bytes:
    if chance.random() < ours.odd_line:
        return odd_line(chance, ours, way, day)
    return write(good_event(chance, ours, way, day), chance, ours)


def odd_line(chance: Random, ours: Habits, way: str, day: date) -> bytes:
    """Return a line that is not as it should be; some such lines can be read all the same."""
    kind = chance.randrange(5)
    if kind < 2:
        return chance.choice([NO_EVENTS, ODD_EVENTS][kind])
    record = good_event(chance, ours, way, day)
    if kind == 2:
        line = bytearray(write(record, chance, ours))
        line[chance.randrange(len(line))] = chance.choice(b'\x00\x0b\r "{}[]:,\\0tn\x7f\x80\xff')
        return bytes(line)
    if kind == 3 and chance.random() < 0.1:
        return b'{"source":"core","payload":{},"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    inside = chance.choice([record, record["payload"]])
    inside[chance.choice(list(inside))] = chance.choice(ANYTHING)
    return write(record, chance, ours)


def good_event(chance: Random, ours: Habits, way: str, day: date) -> dict[str, Any]:
    def one(values: list[Any]) -> Any:
        return None if chance.random() < ours.missing else chance.choice(values[: ours.few])

    def package() -> dict[str, Any]:
        return {"name": one(PACKAGES), "version": one(VERSIONS)}

    if way == "mixed":
        way = chance.choice(["full", "masked", "hashed", "none"])
    address = one(NETWORKS if way == "masked" else ADDRESSES)
    if way == "none":
        address = None
    if way == "hashed" and address:
        text = f"{day}{address}"
        address = HASH if chance.random() < 0.1 else hashlib.sha256(text.encode()).hexdigest()
    project = one(PROJECTS) if ours.has_projects else None
    head = {
        "id": str(UUID(int=chance.getrandbits(128), version=4)),
        "received_at": f"{day}T04:05:06.123Z",
    }
    if chance.random() < 0.6:
        hostnames = HOSTNAMES if ours.few > 4 else FEW_HOSTNAMES
        on = chance.choice([(), (), ("auth",), ("auth", "i18n"), PROVIDERS])
        return core(
            None if chance.random() < ours.missing else chance.choice(hostnames),
            address,
            browser=chance.choice(ROBOTS) if chance.random() < ours.robots else one(BROWSERS),
            browser_version=one(VERSIONS),
            os=one(SYSTEMS),
            os_version=one(VERSIONS),
            providers=dict.fromkeys(on, True),
            version=one(VERSIONS),
            resourceCount=one(chance.choice([NUMBERS, NUMBERS[3:]])),
            projectId=project,
            **head,
        )
    return cli(
        project,
        address,
        nodeEnv=one(["ci", "test"]),
        nodeVersion=one(VERSIONS),
        os=one(SYSTEMS),
        osVersion=one(VERSIONS),
        command=one(COMMANDS),
        packages=[package() for _ in range(chance.choice([0, 1, 1, 2, 4]))],
        projectFramework=one(["vite", "next", "remix"]),
        **head,
    )


def refusal(chance: Random, ours: Habits, way: str, day: date) -> bytes:
    if chance.random() < ours.odd_line:
        return chance.choice([*NO_EVENTS, *ODD_EVENTS, b'{"source":"core","field":1}'])
    record = {
        "received_at": "2026-11-23T04:05:06.123Z",
        "source": chance.choice(["core", "cli"]),
        "status": 400,
        "field": chance.choice(["version", "packages[3].version", None]),
        "detail": chance.choice(DETAILS),
    }
    return write(record, chance, ours)


def write(record: dict[str, Any], chance: Random, ours: Habits) -> bytes:
    """Return the record as we write it, or as something else could have."""
    if chance.random() >= ours.odd_form:
        return json.dumps(record, separators=(",", ":")).encode()
    if chance.random() < 0.7:
        record = in_another_form(record, chance)
    separators = chance.choice([(",", ":"), (", ", ": "), (" ,\t", " : ")])
    text = json.dumps(record, separators=separators, ensure_ascii=chance.random() < 0.5)
    for old, new in chance.sample(SPELLINGS, chance.choice([0, 0, 1, 2])):
        text = text.replace(old, new)
    # A lone surrogate has no UTF-8: it stays an escape.
    return text.encode("utf-8", "backslashreplace")


def in_another_form(record: dict[str, Any], chance: Random) -> dict[str, Any]:
    """Put the keys in another order, leave some out and add others."""
    record = record | {"x": chance.choice(ANYTHING), "extra": {"source": "cli", "ip": "i"}}
    if isinstance(record.get("payload"), dict):
        record["payload"] = in_another_form(record["payload"], chance)
    kept = [name for name in record if name in ("source", "payload") or chance.random() < 0.8]
    return {name: record[name] for name in chance.sample(kept, len(kept))}
