"""A disk that fails on demand, in place of `os` in the modules that write."""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
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


class Killed(BaseException):
    """What a process meets at each system call after it was killed."""


@contextlib.contextmanager
def process_on(disk: "FailingOs") -> Iterator[None]:
    """Do in this process what another one does on that disk, which may be killed."""
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.suppress(Killed):
        use_as_os(disk, monkeypatch)
        try:
            yield
        finally:
            for fd in disk.descriptors:  # and with them go its locks
                os.close(fd)


class FailingOs:
    """`os`, except that `fault` sees each system call first, and may raise or return instead.

    Nothing is synced, for only a power cut could tell.
    """

    CALLS = (
        "open write pread ftruncate fsync fstat stat statvfs fchmod fchown mkdir close"
        " rename unlink access"
    )

    def __init__(self) -> None:
        self.descriptors: set[int] = set()
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
            if name == "close":  # Linux frees the descriptor whatever it answers
                self.descriptors.discard(arguments[0])
                real(*arguments)
            answer = self.fault(len(self.calls) - 1, name, arguments)
            if answer is None and name not in ("close", "fsync"):
                answer = real(*arguments, **options)
            if name == "open":
                self.descriptors.add(answer)
            return answer

        return call

    def kill_at(self, index: int) -> None:
        self.raise_if(lambda at, name: at >= index, Killed())

    def fail_at(self, index: int, code: int) -> None:
        self.raise_if(lambda at, name: at == index, OSError(code, os.strerror(code)))

    def fail(self, failing: str, code: int = errno.EIO) -> None:
        names = failing.split()
        self.raise_if(lambda at, name: name in names, OSError(code, os.strerror(code)))

    def raise_if(self, is_failing: Callable[[int, str], bool], error: BaseException) -> None:
        def fault(at: int, name: str, arguments: Any) -> None:
            if is_failing(at, name):
                raise error

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
