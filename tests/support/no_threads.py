"""The app, where no thread can be started until the file $THREADS_ALLOWED exists."""

import os
import threading
from pathlib import Path

from app import create_app

start = threading.Thread.start


def start_if_allowed(thread: threading.Thread) -> None:
    if not Path(os.environ["THREADS_ALLOWED"]).exists():
        raise RuntimeError("can't start new thread")
    start(thread)


threading.Thread.start = start_if_allowed  # type: ignore[method-assign, assignment]
app = create_app()
