"""The app; a process that is forked while the file $STOP_ONCE exists gets a SIGTERM at once."""

import os
import signal
from pathlib import Path

from app import create_app


def stop_once() -> None:
    once = Path(os.environ["STOP_ONCE"])
    if once.exists():
        once.unlink()
        os.kill(os.getpid(), signal.SIGTERM)


os.register_at_fork(after_in_child=stop_once)
app = create_app()
