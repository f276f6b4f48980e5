"""The report for people: as text for a terminal, and as a page."""

from report.page import draw_page
from report.text import draw_text

__all__ = ["draw_page", "draw_text"]
