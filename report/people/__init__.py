"""The report for people: text for a terminal, and an HTML page, both drawn from one outline."""

from report.people.outline import Made
from report.people.page import draw_page
from report.people.text import draw_text

__all__ = ["Made", "draw_page", "draw_text"]
