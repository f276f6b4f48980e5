"""The app, with a disk, threads and a clock that fail as the file $FAULTS says at the moment.

    FAULTS=faults.json gunicorn --pythonpath tests/support "injected:create_app()"

Every process that serves or rewrites the files reads that file again at each call.
"""

import errno
import json
import os
import random
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial, partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flask import Flask

full: set[int] = set()  # descriptors whose last write stopped short


@dataclass(frozen=True)
class Faults:
    """What fails now.  Probabilities are for each call, during the first part of each period."""

    sync_seconds: float = 0  # how long each sync takes
    sync_errors: float = 0  # the probability that one fails, without syncing anything
    short_writes: float = 0  # that one stops early, and the next one finds the disk full
    truncate_errors: float = 0
    bad_seconds: float = 1  # of each period; the rest of it is without errors
    period_seconds: float = 1
    clock_seconds: float = 0  # how far the clock is ahead
    threads_start: bool = True

    def write(self, path: Path) -> None:
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(path)

    def strike(self, probability: float) -> bool:
        # The clock is the machine's, so all processes have their bad moments together.
        is_bad = time.monotonic() % self.period_seconds < self.bad_seconds
        return is_bad and random.random() < probability


def current() -> Faults:
    return Faults(**json.loads(Path(os.environ["FAULTS"]).read_text()))


def create_app() -> Flask:
    """Build the app, after the faults are in place in this process."""
    for name, fake in (("fsync", fsync), ("write", write), ("ftruncate", ftruncate)):
        patch.object(os, name, partial(fake, getattr(os, name))).start()
    start = partialmethod(start_thread, threading.Thread.start)
    patch.object(threading.Thread, "start", start).start()

    for fault in os.environ.get("PLANTED", "").split():
        import planted

        getattr(planted, fault)()

    import app

    return app.create_app(clock=shifted_clock)


def fsync(real: Callable[[int], None], fd: int) -> None:
    faults = current()
    time.sleep(faults.sync_seconds)
    if faults.strike(faults.sync_errors):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    real(fd)


def write(real: Callable[[int, Any], int], fd: int, content: Any) -> int:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return real(fd, content)  # gunicorn's pipes
    if fd in full:
        full.remove(fd)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    faults = current()
    if faults.strike(faults.short_writes) and len(content) > 1:
        full.add(fd)
        content = content[: random.randrange(1, len(content))]
    return real(fd, content)


def ftruncate(real: Callable[[int, int], None], fd: int, length: int) -> None:
    faults = current()
    if faults.strike(faults.truncate_errors):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    real(fd, length)


def start_thread(thread: threading.Thread, real: Callable[[threading.Thread], None]) -> None:
    if not current().threads_start:
        raise RuntimeError("can't start new thread")
    real(thread)


def shifted_clock() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=current().clock_seconds)
