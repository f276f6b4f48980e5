"""`flask forget`: erase exactly one person's events, beside a running server."""

from forget.command import forget_command

__all__ = ["forget_command"]
