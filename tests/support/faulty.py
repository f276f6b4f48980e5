"""Our worker and app with errors in unusual places, where a request has one second to arrive.

gunicorn --pythonpath tests/support --worker-class faulty.FaultyWorker faulty:app
"""

import contextlib
import socket
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

import worker.connection
import worker.loop
from app import create_app
from worker.connection import Connection

for module in (worker.connection, worker.loop):
    vars(module)["RECEIVE_SECONDS"] = 1.0
app = create_app()
works = app.wsgi_app


class FaultyWorker(worker.RoundWorker):
    """An error in the loop for each connection that begins with FAULT."""

    def proceed(self, connection: Connection) -> None:
        with contextlib.suppress(BlockingIOError):
            if connection.sock.recv(5, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"FAULT":
                connection.sock.recv(5)  # or close() would send a reset
                raise RuntimeError("a fault in the loop")
        super().proceed(connection)


def fail_payloads(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Fail outside Flask for each payload in a query."""
    if "payload" in environ.get("QUERY_STRING", ""):
        raise RuntimeError("a fault in the app")
    return works(environ, start_response)


app.wsgi_app = fail_payloads  # type: ignore[method-assign]
