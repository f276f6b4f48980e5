"""A disk that fails on demand, in place of `os` in the modules that write."""

import errno
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

import storage
from files import durable, housekeeping, rewriting

DAY = "2026-11-23"
NAME = f"events-{DAY}.jsonl"
EVENT = {"id": "x", "received_at": f"{DAY}T23:59:59.999Z", "source": "cli"}
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def line(n: int, length: int = 60) -> bytes:
    return json.dumps({"n": n}).encode().ljust(length - 1) + b"\n"


def use_as_os(disk: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace `os` in all modules that write to the data directory."""
    for module in (durable, housekeeping, rewriting, storage):
        monkeypatch.setattr(module, "os", disk)


class FailingOs:
    """`os`, except that `fault` sees each system call first, and may raise or return instead."""

    CALLS = (
        "open write pread ftruncate fsync fstat stat statvfs fchmod fchown mkdir close"
        " rename unlink"
    )

    def __init__(self) -> None:
        self.heal()

    def heal(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.fault: Callable[[int, str, Any], Any] = lambda index, name, arguments: None

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.CALLS.split():
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append((name, arguments))
            try:
                answer = self.fault(len(self.calls) - 1, name, arguments)
            except (OSError, KeyboardInterrupt):
                if name == "close":  # Linux frees the descriptor whatever it answers
                    real(*arguments)
                raise
            return real(*arguments, **options) if answer is None else answer

        return call

    def fail_at(self, index: int, code: int) -> None:
        self.fail_if(lambda at, name: at == index, code)

    def fail(self, failing: str, code: int = errno.EIO) -> None:
        self.fail_if(lambda at, name: name in failing.split(), code)

    def fail_if(self, is_failing: Callable[[int, str], bool], code: int) -> None:
        def fault(at: int, name: str, arguments: Any) -> None:
            if is_failing(at, name):
                raise OSError(code, os.strerror(code))

        self.calls, self.fault = [], fault

    def fill_up_after(self, length: int) -> None:
        """The next write stops after `length` bytes, and the disk is full from then on."""
        room = length

        def fault(at: int, name: str, arguments: Any) -> int | None:
            nonlocal room
            if name != "write":
                return None
            if room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fd, content = arguments
            written = os.write(fd, content[:room])
            room -= written
            return written

        self.calls, self.fault = [], fault


@dataclass
class Stall:
    """A disk that hangs in each fsync; `begun` is set in the first, and `over` ends it."""

    begun: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def fault(self, at: int, name: str, arguments: Any) -> None:
        if name == "fsync":
            self.begun.set()
            self.over.wait(60)
