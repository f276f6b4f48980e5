"""The app, on a disk that takes $FSYNC_SECONDS for each sync, and fails if $FSYNC_FAILS is set."""

import errno
import os
import time

from app import create_app

real_fsync = os.fsync


def slow_fsync(fd: int) -> None:
    time.sleep(float(os.environ["FSYNC_SECONDS"]))
    if os.environ.get("FSYNC_FAILS"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    real_fsync(fd)


os.fsync = slow_fsync  # type: ignore[assignment]
app = create_app()
