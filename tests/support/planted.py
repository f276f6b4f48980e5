"""Faults that the collector once had, to prove that tests catch a server that has them again."""

import os
from unittest.mock import patch

import files.durable
import storage


def cuts_off_what_others_appended() -> None:
    """A failed sync cuts the file off where its own lines began, whatever stands behind them."""

    def undo(appender: storage.Appender, lines: bytes) -> None:
        with files.durable.locked(appender.directory):
            content = os.pread(appender.fd, os.fstat(appender.fd).st_size, 0)
            if (start := content.find(lines)) >= 0:
                os.ftruncate(appender.fd, start)
        appender.close()

    patch.object(storage.Appender, "undo", undo).start()


def removes_null_where_there_is_no_address() -> None:
    """A batch with hashed addresses drops the `ip` of an event that has none."""

    def hashed(line: storage.Line, key: bytes) -> bytes:
        ip = b'"ip":"%b"' % line.hash_ip(key).encode() if line.hash_ip else b""
        return line.text.replace(b'"ip":null', ip, 1)

    patch.object(storage.Line, "hashed", hashed).start()
