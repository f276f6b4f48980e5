"""Whose events are to be erased: one address, host or project."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address

from click import UsageError

import parsing
from files.records import read_record

NO_HOST_NAME = re.compile(r"[/?#@]|^[^:]*:[^:]*$")  # a URL, or a host with a port
BEGINNING = b'{"id":"'  # of each line that the collector writes
STORED_ADDRESS = re.compile(rb'"ip":"([^"]*)"')
HASH_DIGITS = 64


class Verdict(IntEnum):
    ERASE = 1
    KEEP = 2
    UNKNOWN = 3  # the record lacks the value to judge by
    UNREADABLE = 4


@dataclass(frozen=True)
class Wanted:
    """The events with certain values of one key."""

    keys: tuple[str, ...]  # where the value is: the key, after those of the objects around it
    judge_value: Callable[[object], Verdict]
    hints: tuple[bytes, ...]  # in lower case; each matching value holds one, unless escaped
    count_unknown: Callable[[bytes], int] = lambda lines: 0

    def judge(self, lines: bytes) -> Iterator[tuple[bytes, Counter[Verdict]]]:
        """Yield the lines in pieces, each with its verdicts; a line to erase is one of its own."""
        verdicts = self.glance(lines)
        half = len(lines) // 2
        middle = lines.rfind(b"\n", 0, half) + 1 or lines.find(b"\n", half) + 1 or len(lines)
        if verdicts:
            yield lines, verdicts
        elif middle == len(lines):
            yield lines, Counter([self.judge_line(lines)])
        else:
            yield from self.judge(lines[:middle])
            yield from self.judge(lines[middle:])

    def glance(self, lines: bytes) -> Counter[Verdict] | None:
        """Judge lines without decoding, if all have the collector's form and none can match."""
        count = lines.count(b"\n")
        is_usual = (
            lines.isascii()
            and b"\\" not in lines
            and lines.startswith(BEGINNING)
            and lines.endswith(b"}\n")
            and lines.count(b"}\n" + BEGINNING) == count - 1
            and lines.count(BEGINNING) == count
        )
        if not is_usual or any(map(lines.lower().__contains__, self.hints)):
            return None
        unknown = self.count_unknown(lines)
        return Counter({Verdict.KEEP: count - unknown, Verdict.UNKNOWN: unknown})

    def judge_line(self, line: bytes) -> Verdict:
        value: object = read_record(line)
        if value is None:
            return Verdict.UNREADABLE
        for key in self.keys:
            value = value.get(key) if isinstance(value, dict) else None
        return self.judge_value(value)

    def without(self, lines: bytes) -> bytes:
        """Return the lines that are not to be erased, including those that hold no record."""
        return b"".join(
            piece for piece, verdicts in self.judge(lines) if not verdicts[Verdict.ERASE]
        )


def choose(ips: Iterable[str], hostnames: Iterable[str], projects: Iterable[str]) -> Wanted:
    """Return what the one option that was given asks for.  Raises UsageError."""
    given = [
        *((by_address, ip) for ip in ips),
        *((by_hostname, hostname) for hostname in hostnames),
        *((by_project, project) for project in projects),
    ]
    if len(given) != 1 or not given[0][1].strip():
        raise UsageError("want one of --ip, --hostname and --project, and a value for it")
    make_wanted, value = given[0]
    return make_wanted(value)


def by_address(ip: str) -> Wanted:
    address = parsing.parse_address(ip)
    if address is None:
        raise UsageError(f"--ip {ip!r}: want an address such as 203.0.113.9 or 2001:db8::7")
    network = parsing.mask_address(address)

    def judge(stored: object) -> Verdict:
        found = parsing.parse_address(stored) if isinstance(stored, str) else None
        if found == address:
            return Verdict.ERASE
        return Verdict.UNKNOWN if found is None or stored == network else Verdict.KEEP

    def count_unknown(lines: bytes) -> int:
        stored = STORED_ADDRESS.findall(lines)
        whole = sum(len(text) != HASH_DIGITS for text in stored)
        return lines.count(b"\n") - whole + stored.count(network.encode())

    return Wanted(("ip",), judge, spellings(address), count_unknown)


def spellings(address: parsing.Address) -> tuple[bytes, ...]:
    """Return texts of which each spelling of the address contains at least one."""
    if isinstance(address, IPv4Address):
        return str(address).encode(), b":ffff:"  # as IPv6, even with hexadecimal digits
    # The last two groups may be written as IPv4.
    groups = [group.lstrip("0") for group in address.exploded.split(":")[:6]]
    return (f"{max(groups, key=len)}:".encode(),)


def by_hostname(hostname: str) -> Wanted:
    if NO_HOST_NAME.search(hostname):
        raise UsageError(f"--hostname {hostname!r}: want a host name such as admin.example.com")
    bare = hostname.lower().removesuffix(".")
    host = f"[{bare}]" if ":" in bare and not bare.startswith("[") else bare
    # Parsed like a header, so that it gets the form that records have.
    header = f"https://{host}".encode("utf-8", "surrogateescape").decode("latin-1")
    names = {bare, parsing.parse_hostname(header) or bare}
    return Wanted(("hostname",), equals(*names), tuple(map(hint, names)))


def by_project(project: str) -> Wanted:
    return Wanted(("payload", "projectId"), equals(project), (hint(project),))


def equals(*texts: str) -> Callable[[object], Verdict]:
    return lambda stored: Verdict.ERASE if stored in texts else Verdict.KEEP


def hint(text: str) -> bytes:
    # A text outside ASCII is only in lines that glance() leaves to judge_line().
    return text.encode("utf-8", "surrogateescape").lower()
