"""Faults that the collector once had, to prove that tests catch a server that has them again."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import files.durable
import files.rewriting
import storage
from files.days import DRAFT_NAME
from files.records import encode


def cuts_off_what_others_appended() -> None:
    """A failed sync cuts the file off where its own lines began, whatever stands behind them."""

    def undo(appender: storage.Appender, lines: bytes) -> None:
        with files.durable.locked(appender.directory):
            content = os.pread(appender.fd, os.fstat(appender.fd).st_size, 0)
            if (start := content.find(lines)) >= 0:
                os.ftruncate(appender.fd, start)
        appender.close()

    patch.object(storage.Appender, "undo", undo).start()


def runs_share_a_draft() -> None:
    """Two runs that rewrite files write one draft, and rename it by its name."""

    @contextlib.contextmanager
    def drafted(directory: Path, claim: int) -> Iterator[int]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with files.durable.opened(directory / DRAFT_NAME, flags, 0o600) as draft:
            yield draft

    def is_named(fd: int, path: Path) -> bool:
        return path.name == DRAFT_NAME or files.durable.is_named(fd, path)

    patch.object(files.rewriting, "drafted", drafted).start()
    patch.object(files.rewriting, "is_named", is_named).start()


def removes_null_where_there_is_no_address() -> None:
    """A batch with hashed addresses drops the `ip` of an event that has none."""

    def hashed(line: storage.Line, key: bytes) -> bytes:
        ip = b'"ip":"%b"' % line.hash_ip(key).encode() if line.hash_ip else b""
        return line.text.replace(b'"ip":null', ip, 1)

    patch.object(storage.Line, "hashed", hashed).start()


def keeps_refusals_that_no_job_will_write() -> None:
    """A refusal is queued before the job that writes it, which may not start."""

    def record_refusal(store: storage.Store, refusal: Mapping[str, Any]) -> None:
        line = f"{encode(refusal)}\n".encode("ascii")
        with contextlib.suppress(storage.NotStored, RuntimeError), store.lock:
            store.reserve(len(line))
            store.refusals.append((refusal["received_at"][:10], line))
            if len(store.refusals) == 1:
                store.writer.submit(store.write_refusals)

    patch.object(storage.Store, "record_refusal", record_refusal).start()


def keeps_keys_in_memory() -> None:
    """A worker reads a day's key once."""
    once = functools.cache(storage.read_or_make_key)
    patch.object(storage, "read_or_make_key", once).start()


FAULTS: dict[str, Callable[[], None]] = {
    fault.__name__: fault
    for fault in (
        cuts_off_what_others_appended,
        runs_share_a_draft,
        removes_null_where_there_is_no_address,
        keeps_refusals_that_no_job_will_write,
        keeps_keys_in_memory,
    )
}


def plant(fault: str) -> None:
    """Put the fault of that name into this process."""
    FAULTS[fault]()
