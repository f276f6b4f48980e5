"""Append-only daily files, one JSON object a line.

    DATA_DIR/events-2026-11-23.jsonl     the UTC day of each event's received_at
    DATA_DIR/refused-2026-11-23.jsonl    what was refused that day, and why

A line counts once its newline is on disk.  The files are plain ASCII: the
encoder writes everything else as \\uXXXX, so no line can be broken in the
middle and any line is safe to show in a terminal.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

FILE_MODE = 0o640
DIRECTORY_MODE = 0o750
KEY_BYTES = 32
MAX_REFUSED_BYTES = 8 * 1024 * 1024

log = logging.getLogger(__name__)
encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class NotStored(Exception):
    """The event is not on disk; its sender may try again."""


def timestamp(now: datetime) -> str:
    """Return the aware UTC time as `2026-11-23T04:05:06.123Z`."""
    return f"{now.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


class Store:
    """The files of one data directory, which is made when first needed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address_keys: dict[str, bytes] = {}

    def append(self, event: Mapping[str, Any]) -> None:
        """Store one event; it is on disk when this returns.  Raises NotStored."""
        line = f"{encode(event)}\n".encode("ascii")
        name = f"events-{event['received_at'][:10]}.jsonl"
        try:
            with self.locked(), open_to_append(self.directory / name) as fd:
                start = os.fstat(fd).st_size
                write_whole(fd, line, start)
                if start == 0:
                    sync_directory(self.directory)
        except OSError as exc:
            raise NotStored(f"{name}: {len(line)} bytes not written: {exc}") from exc

    def note_refusal(self, refusal: Mapping[str, Any]) -> None:
        """Append one line to the day's refusals, while they are below MAX_REFUSED_BYTES.

        They are statistics: not synced, and a failure is only logged.
        """
        line = f"{encode(refusal)}\n".encode("ascii")
        name = f"refused-{refusal['received_at'][:10]}.jsonl"
        try:
            with self.locked(), open_to_append(self.directory / name) as fd:
                if os.fstat(fd).st_size + len(line) <= MAX_REFUSED_BYTES:
                    os.write(fd, line)
        except OSError as exc:
            log.warning("%s: refusal not noted: %s", name, exc)

    def address_key(self, day: str) -> bytes:
        """Return the day's random key, the same for every worker.  Raises NotStored."""
        if day not in self.address_keys:
            path = self.directory / f"address-key-{day}"
            try:
                with self.locked():
                    if not path.exists():
                        write_key(path)
                    self.address_keys[day] = path.read_bytes()
            except OSError as exc:
                raise NotStored(f"{path.name}: no key: {exc}") from exc
        return self.address_keys[day]

    def health(self) -> dict[str, Any]:
        """Say whether events can be stored now: `ok`, and `free_mb` where it can be told."""
        try:
            self.make_directory()
            free = os.statvfs(self.directory)
            writable = os.access(self.directory, os.W_OK | os.X_OK)
        except OSError as exc:
            return {"ok": False, "error": str(exc)}
        return {"ok": writable, "free_mb": free.f_bavail * free.f_frsize // 2**20}

    def make_directory(self) -> None:
        self.directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory against every other thread and process."""
        self.make_directory()
        # Opened each time: a descriptor that a fork shares would lock nobody out.
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


@contextlib.contextmanager
def open_to_append(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
    try:
        yield fd
    finally:
        os.close(fd)


def write_whole(fd: int, line: bytes, start: int) -> None:
    """Write and sync `line`, or leave the file as long as it was: `start` bytes."""
    try:
        if (written := os.write(fd, line)) != len(line):
            raise OSError(errno.EIO, f"short write, {written} of {len(line)} bytes")
        os.fsync(fd)
    except OSError:
        # The sender is about to be told to try again: no half line may stay.
        os.ftruncate(fd, start)
        raise


def write_key(path: Path) -> None:
    """Put a new key under `path` at once, so that no worker reads half of one."""
    draft = path.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_bytes(secrets.token_bytes(KEY_BYTES))
    draft.rename(path)


def sync_directory(directory: Path) -> None:
    """Make a new file's name durable: syncing the file syncs only what is in it."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
