"""Numbers, dates and values as people read them."""

import unicodedata
from datetime import date, timedelta

from files.records import encode, plural

UNKNOWN = "–"
MIN_CHANGE_BASE = 100  # from a smaller base, a change in percent would mislead
MIN_SHARE_BASE = 20  # likewise a share
MAX_GAPS = 3  # runs of missing days; more are counted, not named
MAX_MARKS = 2  # combining characters on one letter


def number(count: int | None) -> str:
    return UNKNOWN if count is None else f"{count:,}"


def share(part: int | None, whole: int | None, decimals: int = 0) -> str:
    """Return a percentage; "" from a small base; never 0% for some, nor 100% for almost all."""
    if part is None or whole is None:
        return UNKNOWN
    if whole < MIN_SHARE_BASE:
        return ""
    step = 10**-decimals
    percent = round(100 * part / whole, decimals)
    if percent == 0 and part:
        return f"<{step:.{decimals}f}%"
    if percent == 100 and part < whole:
        return f">{100 - step:.{decimals}f}%"
    return f"{percent:.{decimals if 0 < percent < 10 else 0}f}%"


def in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def change(now: int | None, before: int | None) -> str:
    if now is None or before is None:
        return UNKNOWN
    return f"{now - before:+,}".replace("-", "−") if now != before else "0"


def percent_change(now: int | None, before: int | None) -> str:
    """Return a change in percent, or "" if there is none or its base is too small."""
    if now is None or before is None or before < MIN_CHANGE_BASE or now == before:
        return ""
    percent = round(100 * (now - before) / before)
    sign = "+" if now > before else "−"
    return f"{sign}<1%" if percent == 0 else f"{sign}{abs(percent):,}%"


def long_date(day: date) -> str:
    return f"{day.day} {day:%B %Y}"


def day_runs(days: list[date]) -> str:
    """Name the runs of consecutive days, or count the days if there are many runs."""
    runs: list[list[date]] = []
    for day in days:
        if runs and day - runs[-1][-1] == timedelta(days=1):
            runs[-1].append(day)
        else:
            runs.append([day])
    if len(runs) > MAX_GAPS:
        return plural(len(days), "day")
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def in_ascii(value: str | None) -> str:
    """Return a value escaped as in the files: safe on a terminal, and found by grep."""
    return "unknown" if value is None else encode(value)[1:-1]


def in_letters(value: str | None) -> str:
    """Return a value with every character escaped that is not seen, or leaves its line."""
    if value is None:
        return "unknown"
    shown, marks = "", 0
    for character in value:
        category = unicodedata.category(character)
        marks = marks + 1 if category[0] == "M" else 0
        is_shown = marks <= MAX_MARKS and category[0] not in "CZ"
        shown += character if is_shown or character == " " else encode(character)[1:-1]
    return shown


def cut(text: str, length: int) -> str:
    """Cut a long text in its middle, for both ends tell it apart from others."""
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[len(text) - (length - head - 1) :]}"
