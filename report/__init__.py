"""`flask report`: how many use the framework, more or fewer, on which versions, with what."""

from report.command import report_command

__all__ = ["report_command"]
