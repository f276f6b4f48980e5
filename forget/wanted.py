"""Whose events are to be erased: one address, host or project."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

import click

import parsing
from files.lines import split_lines
from files.records import read_record

NO_HOST_NAME = re.compile(r"[/?#@]|^[^:]*:[^:]*$")  # a URL, or a host with a port
MAX_KNOWN = 2**17  # cached addresses: the same ones come again


class BadOption(click.ClickException):
    exit_code = 2


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

    def judge(self, line: bytes) -> Verdict:
        verdict = self.glance(line)
        if verdict in (Verdict.KEEP, Verdict.UNKNOWN):
            return verdict
        record = read_record(line)
        return Verdict.UNREADABLE if record is None else self.judge_value(self.value_in(record))

    def glance(self, line: bytes) -> Verdict | None:
        """Judge a line in the collector's form without decoding it; None if that cannot tell."""
        if not line.isascii() or b"\\" in line or line.rfind(b'{"id":"') or line[-2:] != b"}\n":
            return None
        # Without a backslash, each quote begins or ends a text, so the key stands here as it is.
        _, *rest = line.split(b'"%b"' % self.keys[-1].encode())
        if not rest:
            return self.judge_value(None)
        if len(rest) == 1 and rest[0].startswith(b':"'):
            return self.judge_value(rest[0][2 : rest[0].index(b'"', 2)].decode())
        return self.judge_value(None) if len(rest) == 1 and rest[0].startswith(b":null") else None

    def value_in(self, record: dict[str, Any]) -> object:
        value: object = record
        for key in self.keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def without(self, lines: bytes) -> bytes:
        """Return the lines that are not to be erased, including those that hold no record."""
        return b"".join(
            line for line in split_lines(lines) if self.judge(line) is not Verdict.ERASE
        )


def choose(ips: Iterable[str], hostnames: Iterable[str], projects: Iterable[str]) -> Wanted:
    """Return what the one option that was given asks for.  Raises BadOption."""
    given = [
        *((by_address, ip) for ip in ips),
        *((by_hostname, hostname) for hostname in hostnames),
        *((by_project, project) for project in projects),
    ]
    if len(given) != 1 or not given[0][1].strip():
        raise BadOption("want one of --ip, --hostname and --project, and a value for it")
    make_wanted, value = given[0]
    return make_wanted(value)


def by_address(ip: str) -> Wanted:
    address = parsing.parse_address(ip)
    if address is None:
        raise BadOption(f"--ip {ip!r}: want an address such as 203.0.113.9 or 2001:db8::7")
    network = parsing.mask_address(address)

    @lru_cache(MAX_KNOWN)
    def judge(stored: str) -> Verdict:
        found = parsing.parse_address(stored)
        if found == address:
            return Verdict.ERASE
        return Verdict.UNKNOWN if found is None or stored == network else Verdict.KEEP

    return Wanted(
        ("ip",), lambda stored: judge(stored) if isinstance(stored, str) else Verdict.UNKNOWN
    )


def by_hostname(hostname: str) -> Wanted:
    if NO_HOST_NAME.search(hostname):
        raise BadOption(f"--hostname {hostname!r}: want a host name such as admin.example.com")
    bare = hostname.lower().removesuffix(".")
    host = f"[{bare}]" if ":" in bare and not bare.startswith("[") else bare
    # In the form of a header, to get the form that a record has.
    header = f"https://{host}".encode("utf-8", "surrogateescape").decode("latin-1")
    names = (bare, parsing.parse_hostname(header))
    return Wanted(
        ("hostname",),
        lambda stored: Verdict.ERASE if stored and stored in names else Verdict.KEEP,
    )


def by_project(project: str) -> Wanted:
    return Wanted(
        ("payload", "projectId"),
        lambda stored: Verdict.ERASE if stored == project else Verdict.KEEP,
    )
