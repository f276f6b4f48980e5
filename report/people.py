"""The report for people: text for a terminal, and an HTML page."""

from report.page import draw_page
from report.text import draw_text

__all__ = ["draw_page", "draw_text"]
