"""The app, with an error outside Flask for every payload in a query."""

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

from app import create_app

app = create_app()
works = app.wsgi_app


def fail_payloads(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    if "payload" in environ.get("QUERY_STRING", ""):
        raise RuntimeError("not our day")
    return works(environ, start_response)


app.wsgi_app = fail_payloads  # type: ignore[method-assign]
