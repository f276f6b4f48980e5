"""Our worker, with an error in its loop for every connection that begins with FAULT."""

from worker import Connection, RoundWorker


class FaultyWorker(RoundWorker):
    def examine(self, connection: Connection) -> None:
        if connection.received.startswith(b"FAULT"):
            raise RuntimeError("not our day")
        super().examine(connection)
