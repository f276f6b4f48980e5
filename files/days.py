"""The names of the daily files and of the work files beside them."""

import contextlib
import re
from collections.abc import Iterable
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

# The pattern events-*.jsonl* does not match them.
CLAIM_NAME = "events-housekeeping.claim"
DRAFT_NAME = "events-housekeeping.draft"


class Kind(StrEnum):
    """What a daily file holds; the value begins its name."""

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
KEY_NAME = re.compile(r"address-key-(\d{4}-\d\d-\d\d)", re.ASCII)


def plain_name(kind: Kind, day: str) -> str:
    return f"{kind}-{day}.jsonl"


def key_name(day: str) -> str:
    return f"address-key-{day}"


def day_files(directory: Path) -> list[DayFile]:
    """Return the daily files in the directory, oldest first; other names are ignored."""
    found = []
    for path in directory.iterdir():
        if match := DAY_FILE_NAME.fullmatch(path.name):
            with contextlib.suppress(ValueError):  # such as the 31st of February
                found.append(DayFile(date.fromisoformat(match[2]), Kind(match[1]), path))
    return sorted(found)


def distinct(paths: Iterable[Path]) -> list[Path]:
    """Return each file or directory once, however it is spelled or linked."""
    found: dict[object, Path] = {}
    for path in paths:
        identity: object = path  # of what cannot be looked up: whoever opens it will see why
        with contextlib.suppress(OSError):
            status = path.stat()
            identity = status.st_dev, status.st_ino
        found.setdefault(identity, path)
    return list(found.values())


def size_of(path: Path) -> int:
    """Return the size in bytes, 0 if the file cannot be looked up; whoever reads it learns why."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def compressed_path(plain: Path) -> Path:
    return plain.with_name(f"{plain.name}.gz")
