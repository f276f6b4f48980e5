"""The daily files' names and days: what the collector writes and the report reads.

DATA_DIR/events-2026-11-23.jsonl      the UTC day of each event's received_at
DATA_DIR/events-2026-11-15.jsonl.gz   an older day, compressed
DATA_DIR/refused-2026-11-23.jsonl     what was refused that day, and why
"""

import contextlib
import json
import re
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

# Compact JSON in printable ASCII: the form of every line.
encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Kind(StrEnum):
    """What a daily file holds; its name begins with the value."""

    EVENTS = "events"
    REFUSED = "refused"


class DayFile(NamedTuple):
    day: date
    kind: Kind
    path: Path

    @property
    def is_compressed(self) -> bool:
        return self.path.suffix == ".gz"


DAY_FILE_NAME = re.compile(r"(events|refused)-(\d{4}-\d\d-\d\d)\.jsonl(?:\.gz)?", re.ASCII)


def day_files(directory: Path) -> list[DayFile]:
    """Return the directory's daily files, oldest first; what has another name is not ours."""
    found = []
    for path in directory.iterdir():
        if match := DAY_FILE_NAME.fullmatch(path.name):
            with contextlib.suppress(ValueError):  # a 31st of February
                found.append(DayFile(date.fromisoformat(match[2]), Kind(match[1]), path))
    return sorted(found)
