"""Our worker, with an error in its loop for every connection that begins with FAULT."""

from worker import RoundWorker
from worker.connection import Connection


class FaultyWorker(RoundWorker):
    def receive(self, connection: Connection, content: bytes) -> None:
        if content.startswith(b"FAULT"):
            raise RuntimeError("not our day")
        super().receive(connection, content)
