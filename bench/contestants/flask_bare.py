"""The floor we stand on: Flask on our gunicorn settings, a body read, a 204.  Stores nothing."""

from types import SimpleNamespace

from flask import Flask, Response, request

app = Flask(__name__, static_folder=None)

# Our gunicorn.conf.py asks for these.
app.extensions["collector"] = SimpleNamespace(
    settings=SimpleNamespace(trusted_proxies=""),
    start=lambda: None,
    close=lambda: None,
    record_refusal=lambda status, detail: None,
)


@app.post("/")
@app.post("/cli")
def take() -> Response:
    request.get_data()
    return Response(status=204)
