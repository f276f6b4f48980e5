"""The app, with an error that Flask does not see."""

from app import app


def fail(*_: object) -> None:
    raise RuntimeError("not our day")


app.wsgi_app = fail
