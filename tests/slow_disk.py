"""The app, on a disk that takes $FSYNC_SECONDS for each sync."""

import os
import time

from app import app as app

real_fsync = os.fsync


def slow_fsync(fd: int) -> None:
    time.sleep(float(os.environ["FSYNC_SECONDS"]))
    real_fsync(fd)


os.fsync = slow_fsync
