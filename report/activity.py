"""Add up the days of a week: which units were active, and what each was last seen with.

Weeks are counted back from the last day of the report, and its windows and lists consist of whole
weeks.  So the weeks, each counted by itself, answer all questions.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from itertools import chain, compress
from operator import not_

from files.records import AGENT_KEYS, PAYLOAD_KEYS
from report.counting import Tally, agent_of, holds_hash
from report.hosts import is_in_development, is_network
from report.lists import LISTS, UNITS, Found
from report.period import LIST_WEEKS, WINDOW_WEEKS
from report.values import NULL, Values

MIN_MASKED = 3  # different addresses of a day that can be told to be networks

Units = dict[str, dict[str, set[bytes]]]  # by source and unit
Seen = dict[bytes, bytes]  # each unit with its payload
ListRow = tuple[str, Found]  # of a list, by its name

PROJECT_AT = {source: keys.index("projectId") for source, keys in PAYLOAD_KEYS.items()}
VERSION_AT = PAYLOAD_KEYS["core"].index("version")
COMMAND_AT = PAYLOAD_KEYS["cli"].index("command")
AGENT_LISTS = [one for one in LISTS if one.unit == "addresses"]
# The places of the keys in payloads that the other lists are read from.
LISTED = {
    source: {
        key: keys.index(key)
        for one in LISTS
        for key in one.keys
        if one.source == source and one not in AGENT_LISTS
    }
    for source, keys in PAYLOAD_KEYS.items()
}


@dataclass(frozen=True)
class Day:
    """The figures of a day, and what tells which of them were recorded."""

    events: dict[str, int]  # by source
    with_project: dict[str, int]
    units: dict[str, dict[str, int]]
    refused: int
    hashed: Counter[tuple[str, str]]  # directories with hashed addresses, by source and unit
    without_address: set[str]  # sources that have events, and none of them an address
    is_masked: bool | None  # None where the addresses do not tell


class Sent:
    """What a source sent in a day: the columns of a table of different payloads."""

    def __init__(
        self, source: str, payloads: Iterable[bytes], times: Iterable[int], tally: Tally
    ) -> None:
        self.payloads, self.times = list(payloads), list(times)
        self.values = [tally.values[source][payload] for payload in self.payloads]
        self.projects = [values[PROJECT_AT[source]] for values in self.values]

    def with_project(self) -> int:
        return sum(compress(self.times, map(NULL.__ne__, self.projects)))


@dataclass
class Week:
    """The counts of one week."""

    number: int  # counted back from the last one, which is 0
    days: dict[date, Day] = field(default_factory=dict)
    units: Units = field(
        default_factory=lambda: {
            source: {unit: set() for unit in UNITS[source]} for source in UNITS
        }
    )
    hosts_seen: Seen = field(default_factory=dict)
    versions_seen: Counter[bytes] = field(default_factory=Counter)  # of `hosts_seen`
    refusals: Counter[tuple[str | None, ...]] = field(default_factory=Counter)
    unreadable_lines: int = 0
    # Of the days from `since` on.
    hosts: set[bytes] = field(default_factory=set)
    automated_hosts: set[bytes] = field(default_factory=set)
    automated: Counter[bytes] = field(default_factory=Counter)  # by browser
    excluded: int = 0
    # Of the weeks that the lists cover.
    projects_seen: Seen = field(default_factory=dict)
    events: defaultdict[tuple[str, str], Counter[bytes]] = field(  # by source and key
        default_factory=lambda: defaultdict(Counter)
    )
    agents: Counter[bytes] = field(default_factory=Counter)
    agent_addresses: set[tuple[bytes, bytes]] = field(default_factory=set)
    commands_run: set[tuple[bytes, bytes]] = field(default_factory=set)  # command and project
    projects_in_development: set[bytes] = field(default_factory=set)
    projects_elsewhere: set[bytes] = field(default_factory=set)
    # Of the whole week, once it is condensed.
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # of `units`
    packed_units: dict[tuple[str, str], bytes] = field(default_factory=dict)
    packed_addresses: dict[ListRow, bytes] = field(default_factory=dict)

    @property
    def has_lists(self) -> bool:
        return self.number < LIST_WEEKS

    def add(self, day: date, tally: Tally, *, is_in_period: bool) -> None:
        """Add a day, with all its events at once.  The newest day comes first."""
        self.unreadable_lines += tally.unreadable_lines
        self.refusals += tally.refusals
        hosts = [host for host, _ in tally.core]
        payloads = [payload for _, payload in tally.core]
        core = Sent("core", payloads, tally.core.values(), tally)
        cli = Sent("cli", tally.cli, tally.cli.values(), tally)
        units = units_of(tally, hosts, core, cli)
        for source, kinds in units.items():
            for unit, members in kinds.items():
                self.units[source][unit] |= members
        self.days[day] = day_of(tally, units, {"core": core, "cli": cli})
        deployed = units["core"]["hosts"]
        fresh = last_seen(hosts, core, deployed - self.hosts_seen.keys())
        self.hosts_seen |= fresh
        values = tally.values["core"]
        self.versions_seen.update(values[payload][VERSION_AT] for payload in fresh.values())
        if is_in_period:
            self.hosts |= deployed
            self.add_set_aside(tally)
        if self.has_lists:
            self.add_to_lists(tally, hosts, core, cli)

    def add_set_aside(self, tally: Tally) -> None:
        self.excluded += tally.excluded
        for (agent, host), times in tally.automated.items():
            self.automated[agent_of(agent)[0]] += times
            if host != NULL and not is_in_development(host):
                self.automated_hosts.add(host)

    def add_to_lists(self, tally: Tally, hosts: list[bytes], core: Sent, cli: Sent) -> None:
        self.agents += tally.agents
        self.agent_addresses |= tally.agent_addresses
        for source, sent in (("core", core), ("cli", cli)):
            for key, place in LISTED[source].items():
                events = self.events[source, key]
                for values, times in zip(sent.values, sent.times, strict=True):
                    events[values[place]] += times
        are_in_development = list(map(is_in_development, hosts))
        self.projects_in_development.update(compress(core.projects, are_in_development))
        self.projects_elsewhere.update(compress(core.projects, map(not_, are_in_development)))
        commands = [values[COMMAND_AT] for values in cli.values]
        self.commands_run.update(zip(commands, cli.projects, strict=True))
        fresh = {*cli.projects} - {NULL} - self.projects_seen.keys()
        self.projects_seen |= last_seen(cli.projects, cli, fresh)

    def condense(self) -> None:
        """Keep what the report needs once all days are added, in a form that is small to pass."""
        self.counts = {
            source: {unit: len(members) for unit, members in kinds.items()}
            for source, kinds in self.units.items()
        }
        if self.number < WINDOW_WEEKS:
            for source, kinds in self.units.items():
                for unit, members in kinds.items():
                    self.packed_units[source, unit] = pack(members)
        if self.has_lists:
            for row, addresses in addresses_by_row(self.agent_addresses).items():
                self.packed_addresses[row] = pack(addresses)
        else:
            self.hosts_seen.clear()
        self.units.clear()
        self.agent_addresses.clear()


def units_of(tally: Tally, hosts: Iterable[bytes], core: Sent, cli: Sent) -> Units:
    deployed = {host for host in {*hosts} - {NULL} if not is_in_development(host)}
    units: Units = {
        "core": {"hosts": deployed, "projects": {*core.projects} - {NULL}},
        "cli": {"projects": {*cli.projects} - {NULL}},
    }
    for (source, unit, _), addresses in tally.addresses.items():
        known = units[source].get(unit)
        units[source][unit] = known | addresses if known else addresses
    return units


def day_of(tally: Tally, units: Units, sent: dict[str, Sent]) -> Day:
    events = {source: sum(table.times) for source, table in sent.items()}
    addresses = {source: units[source].get("addresses", set()) for source in units}
    return Day(
        events=events,
        with_project={source: table.with_project() for source, table in sent.items()},
        units={
            source: {unit: len(units[source].get(unit, ())) for unit in UNITS[source]}
            for source in UNITS
        },
        refused=tally.refusals.total(),
        hashed=Counter(
            (source, unit)
            for (source, unit, _), members in tally.addresses.items()
            if holds_hash(members)
        ),
        without_address={source for source, n in events.items() if n and not addresses[source]},
        is_masked=are_masked(addresses["core"], addresses["cli"]),
    )


def are_masked(*addresses: set[bytes]) -> bool | None:
    """Tell whether these are networks in place of addresses; None if they are too few to tell."""
    if not all(map(is_network, chain(*addresses))):
        return False
    return True if len(set().union(*addresses)) >= MIN_MASKED else None


def last_seen(units: list[bytes], sent: Sent, wanted: set[bytes]) -> Seen:
    """Return each wanted unit with its most frequent payload, or the greater of two as frequent."""
    best: dict[bytes, tuple[int, bytes]] = {}
    for unit, payload, times in zip(units, sent.payloads, sent.times, strict=True):
        if unit in wanted and (unit not in best or best[unit] < (times, payload)):
            best[unit] = times, payload
    return {unit: payload for unit, (_, payload) in best.items()}


def addresses_by_row(agent_addresses: Iterable[tuple[bytes, bytes]]) -> dict[ListRow, set[bytes]]:
    """Return the addresses that each row of the lists of browsers and systems came with."""
    by_agent: defaultdict[bytes, set[bytes]] = defaultdict(set)
    for agent, ip in agent_addresses:
        by_agent[agent].add(ip)
    rows: defaultdict[ListRow, set[bytes]] = defaultdict(set)
    for agent, addresses in by_agent.items():
        for one in AGENT_LISTS:
            for found in one.found_in(agent_values(agent, one.keys)):
                rows[one.name, found] |= addresses - {NULL}
    return rows


def agent_values(agent: bytes, keys: Iterable[str]) -> Values:
    values = agent_of(agent)
    return tuple(values[AGENT_KEYS.index(key)] for key in keys)


def pack(units: Iterable[bytes]) -> bytes:
    """Join units to one text: much smaller than a set, and given to another process at once."""
    return b"\n".join(units)


def unpack(packed: bytes) -> list[bytes]:
    return packed.split(b"\n") if packed else []
