"""Add up days: which units were active in each week, and what each was seen with.

Weeks are counted back from the last day of the report, and the windows of 7 and 28 days
consist of whole weeks.  So a set of units for each week answers all questions of activity:
weeks, windows, stayed, new, gone.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta

from report.counting import NULL, Tally, is_local, json_text, read_part
from report.lists import AGENT, HASHED_UNITS, MACHINE, PAYLOAD, PROJECT, UNITS, Values

DAY = timedelta(days=1)
WEEK_DAYS = 7
WINDOWS = (7, 28)
WINDOW_WEEKS = 2 * max(WINDOWS) // WEEK_DAYS  # two windows, for the one before, too
LIST_DAYS = 28
HASH = re.compile(rb'"[0-9a-fA-F]{64}"')
HASH_BYTES = 66

Seen = dict[bytes, tuple[bytes, ...]]  # each unit with the parts of a payload
Members = defaultdict[bytes, set[bytes]]  # the units that each part was seen with


@dataclass(frozen=True)
class Period:
    """The days of a report, and the weeks and windows that follow from them."""

    since: date
    until: date

    @property
    def first_read(self) -> date:
        return min(self.since, self.until - (2 * max(WINDOWS) - 1) * DAY)

    @property
    def first_listed(self) -> date:
        return self.until - (LIST_DAYS - 1) * DAY

    @property
    def days(self) -> list[date]:
        return [self.since + n * DAY for n in range((self.until - self.since).days + 1)]

    @property
    def weeks(self) -> list[tuple[date, date]]:
        """The first and last day of each whole week, counted back from the last; oldest first."""
        last_days = [self.until - 7 * n * DAY for n in range(len(self.days) // 7)]
        return [(last - 6 * DAY, last) for last in reversed(last_days)]

    def week_of(self, day: date) -> int:
        """Return the number of the week, counted back from the last one, which is 0."""
        return (self.until - day).days // WEEK_DAYS


@dataclass
class Activity:
    """The units of one kind that were active in each week, keyed by its number.

    Hashed addresses cannot be counted beyond a day, so a figure that would include one is None.
    """

    may_be_hashed: bool
    weeks: defaultdict[int, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    hashed: set[bytes] = field(default_factory=set)
    old_weeks: dict[int, int | None] = field(default_factory=dict)  # only their figures

    def add(self, week: int, units: set[bytes]) -> None:
        self.weeks[week] |= units
        if self.may_be_hashed:
            self.hashed |= hashes_in(units)

    def merge(self, other: "Activity") -> None:
        for week, units in other.weeks.items():
            self.weeks[week] |= units
        self.hashed |= other.hashed
        self.old_weeks |= other.old_weeks

    def condense(self) -> None:
        """Replace the units of weeks that no window covers by their number, to save memory."""
        for week in [week for week in self.weeks if week >= WINDOW_WEEKS]:
            self.old_weeks[week] = self.count(week)
            del self.weeks[week]
        self.hashed &= set[bytes]().union(*self.weeks.values())

    def count(self, week: int) -> int | None:
        if week in self.old_weeks:
            return self.old_weeks[week]
        return self.count_known(self.weeks[week])

    def window(self, weeks: int) -> dict[str, int | None]:
        """Compare this many weeks up to the last day with as many before."""
        now = set[bytes]().union(*(self.weeks[week] for week in range(weeks)))
        before = set[bytes]().union(*(self.weeks[week] for week in range(weeks, 2 * weeks)))
        parts = {"stayed": now & before, "new": now - before, "gone": before - now}
        every = {"now": now, "before": before} | parts
        return {name: self.count_known(units) for name, units in every.items()}

    def count_known(self, units: set[bytes]) -> int | None:
        return len(units) if self.hashed.isdisjoint(units) else None


def hashes_in(units: set[bytes]) -> set[bytes]:
    return {unit for unit in units if len(unit) == HASH_BYTES and HASH.fullmatch(unit)}


class Count:
    """The counts of some days of a period."""

    def __init__(self, period: Period) -> None:
        self.period = period
        self.activity = {
            source: {unit: Activity(unit in HASHED_UNITS) for unit in units}
            for source, units in UNITS.items()
        }
        self.days: dict[date, dict[str, dict[str, int]]] = {}
        self.hosts_seen: dict[date, Seen] = {}
        self.refusals: Counter[tuple[str | None, ...]] = Counter()
        self.unreadable_lines = 0
        # Of the days that the lists cover.
        self.projects_seen: dict[date, Seen] = {}
        self.events: defaultdict[tuple[str, ...], Counter[bytes]] = defaultdict(Counter)
        self.addresses_of_agent: Members = defaultdict(set)
        self.projects_of_machine: Members = defaultdict(set)

    def add(self, day: date, tally: Tally) -> None:
        """Add a day, with all its events at once."""
        self.unreadable_lines += tally.unreadable_lines
        self.refusals.update(tally.refusals)
        units = units_of(tally)
        for source, kinds in units.items():
            for unit, members in kinds.items():
                self.activity[source][unit].add(self.period.week_of(day), members)
        events = {"core": tally.host_payloads.total(), "cli": tally.cli_payloads.total()}
        self.days[day] = {
            source: {"events": events[source]} | {unit: len(seen) for unit, seen in kinds.items()}
            for source, kinds in units.items()
        }
        self.hosts_seen[day] = last_seen(
            (host, (payload,), times)
            for (host, payload), times in tally.host_payloads.items()
            if host in units["core"]["hosts"]
        )
        if day >= self.period.first_listed:
            self.add_to_lists(day, tally)

    def add_to_lists(self, day: date, tally: Tally) -> None:
        for agent, addresses in tally.addresses_of_agent.items():
            self.addresses_of_agent[agent] |= addresses - {NULL}
        self.events[AGENT] += tally.agents
        for (_, payload), times in tally.host_payloads.items():
            self.events[PAYLOAD][payload] += times
        projects = []
        for (machine, project), times in tally.cli_payloads.items():
            self.events[MACHINE][machine] += times
            self.events[PROJECT][project] += times
            if (name := project_id(PROJECT, project)) is not None:
                projects.append((name, (machine, project), times))
                self.projects_of_machine[machine].add(name)
        self.projects_seen[day] = last_seen(projects)

    def merge(self, other: "Count") -> None:
        """Add the counts of other days."""
        for source, kinds in other.activity.items():
            for unit, activity in kinds.items():
                self.activity[source][unit].merge(activity)
        self.days |= other.days
        self.hosts_seen |= other.hosts_seen
        self.refusals += other.refusals
        self.unreadable_lines += other.unreadable_lines
        self.projects_seen |= other.projects_seen
        for part, events in other.events.items():
            self.events[part] += events
        for agent, addresses in other.addresses_of_agent.items():
            self.addresses_of_agent[agent] |= addresses
        for machine, projects in other.projects_of_machine.items():
            self.projects_of_machine[machine] |= projects

    def condense(self) -> None:
        """Drop what no figure needs once all days of the weeks in it are added."""
        for kinds in self.activity.values():
            for activity in kinds.values():
                activity.condense()

    def listed_hosts(self) -> Seen:
        return self.hosts_between(self.period.first_listed, self.period.until)

    def hosts_between(self, first: date, last: date) -> Seen:
        """Return each host with what it was last seen with in these days."""
        return latest({d: seen for d, seen in self.hosts_seen.items() if first <= d <= last})

    def listed_projects(self) -> Seen:
        return latest(self.projects_seen)


def units_of(tally: Tally) -> dict[str, dict[str, set[bytes]]]:
    hosts = {host for host, _ in tally.host_payloads}
    return {
        "core": {
            "hosts": {host for host in hosts if host != NULL and not is_local(host)},
            "projects": projects_of(PAYLOAD, {payload for _, payload in tally.host_payloads}),
            "addresses": tally.addresses,
            "local_addresses": tally.local_addresses,
        },
        "cli": {
            "projects": projects_of(PROJECT, {project for _, project in tally.cli_payloads}),
            "addresses": tally.cli_addresses,
        },
    }


def projects_of(keys: tuple[str, ...], texts: Iterable[bytes]) -> set[bytes]:
    names = {project_id(keys, text) for text in texts}
    return {name for name in names if name is not None}


def project_id(keys: tuple[str, ...], text: bytes) -> bytes | None:
    name = values_of(keys, text)["projectId"]
    return None if name is None else json_text(name)


def values_of(keys: tuple[str, ...], text: bytes) -> Values:
    return read_part(keys, text) or {}  # only parts that can be read have been counted


def last_seen(counted: Iterable[tuple[bytes, tuple[bytes, ...], int]]) -> Seen:
    """Return each unit with its most frequent payload; of equally frequent ones, the greater."""
    best: dict[bytes, tuple[int, tuple[bytes, ...]]] = {}
    for unit, payload, times in counted:
        best[unit] = max(best.get(unit, (0, ())), (times, payload))
    return {unit: payload for unit, (_, payload) in best.items()}


def latest(days: dict[date, Seen]) -> Seen:
    """Return each unit with what it was last seen with."""
    seen: Seen = {}
    for day in sorted(days):
        seen |= days[day]
    return seen
