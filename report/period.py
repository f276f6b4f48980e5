"""The days of a report, and the weeks and windows that follow from them."""

from dataclasses import dataclass
from datetime import date, timedelta

DAY = timedelta(days=1)
WEEK_DAYS = 7
WINDOWS = (7, 28)  # days; each of whole weeks
WINDOW_WEEKS = 2 * max(WINDOWS) // WEEK_DAYS  # of the longest window and the one before it
LIST_WEEKS = 4


def days_to(last: date, length: int) -> list[date]:
    return [last - n * DAY for n in reversed(range(length))]


@dataclass(frozen=True)
class Period:
    since: date
    until: date

    @property
    def first_read(self) -> date:
        return min(self.since, self.until - (2 * max(WINDOWS) - 1) * DAY)

    @property
    def days(self) -> list[date]:
        return days_to(self.until, (self.until - self.since).days + 1)

    @property
    def days_read(self) -> list[date]:
        return days_to(self.until, (self.until - self.first_read).days + 1)

    @property
    def listed(self) -> list[date]:
        return days_to(self.until, LIST_WEEKS * WEEK_DAYS)

    @property
    def whole_weeks(self) -> list[int]:
        """The numbers of the weeks that do not begin before `since`, oldest first."""
        return list(reversed(range(len(self.days) // WEEK_DAYS)))

    def week_of(self, day: date) -> int:
        """Return the number of the week, counted back from the last one, which is 0."""
        return (self.until - day).days // WEEK_DAYS

    def days_of_week(self, week: int) -> list[date]:
        return days_to(self.until - week * WEEK_DAYS * DAY, WEEK_DAYS)

    def window(self, length: int) -> list[date]:
        return days_to(self.until, length)

    def window_before(self, length: int) -> list[date]:
        return days_to(self.until - length * DAY, length)
