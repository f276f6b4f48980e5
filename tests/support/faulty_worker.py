"""Our worker, with an error in its loop for every connection that begins with FAULT."""

import contextlib
import socket

from worker import RoundWorker
from worker.connection import Connection


class FaultyWorker(RoundWorker):
    def proceed(self, connection: Connection) -> None:
        with contextlib.suppress(BlockingIOError):
            if connection.sock.recv(5, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"FAULT":
                connection.sock.recv(5)
                raise RuntimeError("not our day")
        super().proceed(connection)
