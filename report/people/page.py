"""The report as a page: one file without a script, for any browser, phone or printer."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from report.people.bars import Report
from report.people.outline import TURNOVER, Made, outline
from report.people.versions import MAX_SERIES, Audience
from report.people.words import cut

TOP, MAX_ROWS = 10, 100  # rows of a list: shown at first, and after unfolding
MAX_CHARACTERS, MAX_PART_CHARACTERS = 60, 20  # of a value, and of one in a row below

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def draw_page(report: Report, made: Made) -> str:
    """Draw the report as an HTML document that can be published."""
    page = TEMPLATES.get_template("report.html").render(
        told=outline(report, Audience.PAGE, made),
        turnover=TURNOVER,
        shades=range(MAX_SERIES),
        cut=cut,
        top=TOP,
        most_rows=MAX_ROWS,
        most_characters=MAX_CHARACTERS,
        most_part_characters=MAX_PART_CHARACTERS,
    )
    return page.lstrip()  # the template's macros leave empty lines
