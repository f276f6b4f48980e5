"""The report for people: text for a terminal, and an HTML page."""

from report.people.page import draw_page
from report.people.text import draw_text

__all__ = ["draw_page", "draw_text"]
