"""The lists: each ranked by the unit that it counts."""

from typing import Any, NamedTuple

from files.records import plural
from report.lists import LISTS, List
from report.people.bars import Report
from report.people.versions import Audience, line_of_majors, version_key
from report.people.words import number, share

TITLES = {
    "hosts": ("deployed host", "deployed hosts"),
    "addresses": ("address", "addresses"),
    "projects": ("project", "projects"),
}
ONE_FOR_EACH_EVENT = {"core": "versions", "cli": "commands"}  # lists whose events add up to all
MAX_PARTS = 6
FROZEN_SYSTEMS = ("Windows", "Mac OS X", "Android")
FROZEN_NOTE = (
    "No versions of Windows, Mac OS X and Android: browsers report an old one, whatever runs."
)

JsonRow = dict[str, Any]


class Row(NamedTuple):
    name: str
    units: str  # or events
    share: str  # of the list's base, or of the row above
    level: float
    kind: str = ""  # how it is drawn as a part of the row above
    parts: tuple["Row", ...] = ()
    more: str = ""  # what is not shown of the parts
    majors: str = ""


class Listing(NamedTuple):
    id: str
    title: str
    base: str
    unit: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


class Measure(NamedTuple):
    """What a list counts, and how many of it a value needs to be named."""

    key: str
    title: str
    base: int
    base_text: str
    least: float
    audience: Audience

    def count(self, row: JsonRow) -> int:
        return row[self.key] or 0

    def names(self, row: JsonRow) -> bool:
        return self.count(row) >= (self.least if listed_value(row) is not None else 1)

    def row(self, row: JsonRow, base: int, kind: str = "") -> Row:
        count = self.count(row)
        name = self.audience.named(listed_value(row))
        return Row(name, number(count), share(count, base), count / base if base else 0, kind)


def listed_value(row: JsonRow) -> str | None:
    value: str | None = row["name"] if "name" in row else row["value"]
    return value


def listings(report: Report, source: str, audience: Audience) -> tuple[Listing, ...]:
    """Return the source's lists that are not empty."""
    return tuple(
        listing(report, one, audience)
        for one in LISTS
        if one.source == source and report[source][one.name]
    )


def listing(report: Report, one: List, audience: Audience) -> Listing:
    measure = measure_of(report, one, audience)
    rows = [row for row in report[one.source][one.name] if measure.count(row)]
    named = sorted(filter(measure.names, rows), key=lambda row: -measure.count(row))
    notes = []
    if any(is_frozen(row, one) for row in named):
        notes.append(FROZEN_NOTE)
    if rare := len(rows) - len(named):
        few = "less than 1% of the" if measure.key == "events" else "fewer than three"
        notes.append(f"Rare: {plural(rare, 'value')} of {few} {measure.title}.")
    return Listing(
        f"{one.source}-{one.name}",
        one.title,
        measure.base_text,
        measure.title,
        tuple(full_row(row, one, measure) for row in named),
        tuple(notes),
    )


def measure_of(report: Report, one: List, audience: Audience) -> Measure:
    """Count the list's unit, or events where that is unknown or there is none."""
    base, (unit, units) = report["active"][one.source][one.unit]["28"]["now"], TITLES[one.unit]
    if base:
        text = f"share of {base:,} {unit if base == 1 else units} in 28 days"
        return Measure(one.unit, units, base, text, audience.value, audience)
    why = f"{units} are unknown" if base is None else f"there are no {units}"
    base = sum(row["events"] for row in report[one.source][ONE_FOR_EACH_EVENT[one.source]])
    text = f"share of {plural(base, 'event')} in 28 days: {why}"
    return Measure("events", "events", base, text, audience.least_events(base), audience)


def full_row(row: JsonRow, one: List, measure: Measure) -> Row:
    """Return a row with the rows below it, each with its share of this one."""
    total = measure.count(row)
    below = sorted(filter(measure.count, parts_of(row, one)), key=lambda part: -measure.count(part))
    named = [part for part in below if measure.names(part)]
    shown, majors = named[:MAX_PARTS], ""
    if one.name == "packages":
        shown.sort(key=lambda part: version_key(part["value"] or ""), reverse=True)
        counts = {part["value"] or "": measure.count(part) for part in below}
        majors = line_of_majors(counts, total, measure.audience)
    hidden = {"more": len(named) - len(shown), "rare": len(below) - len(named)}
    return measure.row(row, measure.base)._replace(
        parts=tuple(measure.row(part, total, f"shade-{at}") for at, part in enumerate(shown)),
        more=", ".join(f"{count:,} {word}" for word, count in hidden.items() if count),
        majors=majors,
    )


def parts_of(row: JsonRow, one: List) -> list[JsonRow]:
    """Return the rows below a row, without one that says nothing that the row does not."""
    parts: list[JsonRow] = row.get("versions", [])
    if is_frozen(row, one):
        return []
    return [] if [part["value"] for part in parts] in ([listed_value(row)], [None]) else parts


def is_frozen(row: JsonRow, one: List) -> bool:
    is_system = (one.source, one.name) == ("core", "operating_systems")
    return is_system and listed_value(row) in FROZEN_SYSTEMS
