"""`flask report`: how many use the framework, whether that grows, on which versions, with what."""

from report.command import report_command

__all__ = ["report_command"]
