"""Add up the days of a week: which units were active, and what each was last seen with.

Weeks are counted back from the last day of the report, and its windows and lists consist of whole
weeks.  So the weeks, each counted by itself, answer all questions.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date

from files.records import PAYLOAD_KEYS
from report.counting import NULL, Tally, Values, agent_of, values_of
from report.hosts import is_in_development, is_network
from report.lists import LISTS, UNITS
from report.period import LIST_WEEKS, WINDOW_WEEKS, Period

MIN_MASKED = 3  # different addresses of a day that can be told to be networks

Seen = dict[bytes, Values]  # each unit with its payload

CORE, CLI = PAYLOAD_KEYS["core"], PAYLOAD_KEYS["cli"]
CORE_PROJECT, CLI_PROJECT = CORE.index("projectId"), CLI.index("projectId")
VERSION, COMMAND = CORE.index("version"), CLI.index("command")
# The keys of payloads that lists are read from, by source.
LISTED = {
    source: [key for one in LISTS if one.source == source for key in one.keys if key in keys]
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


@dataclass
class Week:
    """The counts of one week; condensed, what the report needs of it."""

    number: int  # counted back from the last one, which is 0
    days: dict[date, Day] = field(default_factory=dict)
    units: dict[str, dict[str, set[bytes]]] = field(
        default_factory=lambda: {
            source: {unit: set() for unit in UNITS[source]} for source in UNITS
        }
    )
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # of `units`
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
    events: dict[str, dict[str, Counter[bytes]]] = field(
        default_factory=lambda: {
            source: {key: Counter() for key in keys} for source, keys in LISTED.items()
        }
    )
    agents: Counter[bytes] = field(default_factory=Counter)
    agent_addresses: dict[bytes, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    commands_run: set[tuple[bytes, bytes]] = field(default_factory=set)  # command and project
    projects_in_development: set[bytes] = field(default_factory=set)
    projects_elsewhere: set[bytes] = field(default_factory=set)

    @property
    def has_lists(self) -> bool:
        return self.number < LIST_WEEKS

    def add(self, day: date, tally: Tally, period: Period) -> None:
        """Add a day, with all its events at once.  The days come in their order."""
        self.unreadable_lines += tally.unreadable_lines
        self.refusals += tally.refusals
        core = core_payloads(tally)
        cli = [(values_of(CLI, part), times) for part, times in tally.cli.items()]
        units = units_of(tally, core, cli)
        for source, kinds in units.items():
            for unit, members in kinds.items():
                self.units[source][unit] |= members
        self.days[day] = day_of(tally, units, core, cli)
        deployed = units["core"]["hosts"]
        self.hosts_seen |= last_seen(
            (host, payload, times) for (host, payload), times in core.items() if host in deployed
        )
        if day >= period.since:
            self.hosts |= deployed
            self.add_set_aside(tally)
        if self.has_lists:
            self.add_to_lists(tally, core, cli)

    def add_set_aside(self, tally: Tally) -> None:
        self.excluded += tally.excluded
        for (agent, host), times in tally.automated.items():
            self.automated[agent_of(agent)[0]] += times
            if is_deployed(host):
                self.automated_hosts.add(host)

    def add_to_lists(
        self,
        tally: Tally,
        core: Counter[tuple[bytes, Values]],
        cli: list[tuple[Values, int]],
    ) -> None:
        self.agents += tally.agents
        for agent, ip in tally.agent_addresses:
            if ip != NULL:
                self.agent_addresses[agent].add(ip)
        self.count_keys("core", ((payload, times) for (_, payload), times in core.items()))
        self.count_keys("cli", cli)
        for host, payload in core:
            is_elsewhere = not is_in_development(host)
            places = self.projects_elsewhere if is_elsewhere else self.projects_in_development
            places.add(payload[CORE_PROJECT])
        for payload, _ in cli:
            self.commands_run.add((payload[COMMAND], payload[CLI_PROJECT]))
        self.projects_seen |= last_seen(
            (payload[CLI_PROJECT], payload, times)
            for payload, times in cli
            if payload[CLI_PROJECT] != NULL
        )

    def count_keys(self, source: str, counted: Iterable[tuple[Values, int]]) -> None:
        places = [(PAYLOAD_KEYS[source].index(key), key) for key in LISTED[source]]
        events = self.events[source]
        for payload, times in counted:
            for index, key in places:
                events[key][payload[index]] += times

    def condense(self) -> None:
        """Drop what no figure needs once all days of the week are added."""
        self.counts = {
            source: {unit: len(members) for unit, members in kinds.items()}
            for source, kinds in self.units.items()
        }
        self.versions_seen.update(payload[VERSION] for payload in self.hosts_seen.values())
        if self.number >= WINDOW_WEEKS:
            self.units.clear()
        if not self.has_lists:
            self.hosts_seen.clear()


def core_payloads(tally: Tally) -> Counter[tuple[bytes, Values]]:
    """Return how often each host sent each payload."""
    counted: Counter[tuple[bytes, Values]] = Counter()
    for (host, part), times in tally.core.items():
        counted[host, values_of(CORE, part)] += times
    return counted


def units_of(
    tally: Tally, core: Iterable[tuple[bytes, Values]], cli: list[tuple[Values, int]]
) -> dict[str, dict[str, set[bytes]]]:
    return {
        "core": {
            "hosts": {host for host, _ in core if is_deployed(host)},
            "projects": {payload[CORE_PROJECT] for _, payload in core} - {NULL},
            **{
                unit: tally.addresses["core", unit]
                for unit in ("addresses", "development_addresses")
            },
        },
        "cli": {
            "projects": {payload[CLI_PROJECT] for payload, _ in cli} - {NULL},
            "addresses": tally.addresses["cli", "addresses"],
        },
    }


def is_deployed(host: bytes) -> bool:
    return host != NULL and not is_in_development(host)


def day_of(
    tally: Tally,
    units: dict[str, dict[str, set[bytes]]],
    core: Counter[tuple[bytes, Values]],
    cli: list[tuple[Values, int]],
) -> Day:
    events = {"core": core.total(), "cli": sum(times for _, times in cli)}
    return Day(
        events=events,
        with_project={
            "core": sum(n for (_, payload), n in core.items() if payload[CORE_PROJECT] != NULL),
            "cli": sum(times for payload, times in cli if payload[CLI_PROJECT] != NULL),
        },
        units={
            source: {unit: len(members) for unit, members in kinds.items()}
            for source, kinds in units.items()
        },
        refused=tally.refusals.total(),
        hashed=Counter((source, unit) for source, unit, _ in tally.hashed),
        without_address={
            source for source, n in events.items() if n and not units[source]["addresses"]
        },
        is_masked=are_masked(units["core"]["addresses"] | units["cli"]["addresses"]),
    )


def are_masked(addresses: set[bytes]) -> bool | None:
    """Tell whether these are networks in place of addresses; None if they are too few to tell."""
    if not all(map(is_network, addresses)):
        return False
    return True if len(addresses) >= MIN_MASKED else None


def last_seen(counted: Iterable[tuple[bytes, Values, int]]) -> Seen:
    """Return each unit with its most frequent payload; of equally frequent ones, the greater.

    Values of JSON text compare as the payloads in compact JSON do.
    """
    best: dict[bytes, tuple[int, Values]] = {}
    for unit, payload, times in counted:
        if unit not in best or best[unit] < (times, payload):
            best[unit] = times, payload
    return {unit: payload for unit, (_, payload) in best.items()}
