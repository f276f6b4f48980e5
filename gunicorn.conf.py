"""gunicorn's settings, where they differ from its defaults.

The address is gunicorn's own default: 127.0.0.1:8000, or every interface at
$PORT where that is set.  $WEB_CONCURRENCY is the number of workers, 1 by default.
"""

import parsing

wsgi_app = "app:app"

# Build the app once, before the fork: a setting that cannot be used stops the
# start with one line, and workers share the memory of what was loaded.
preload_app = True

# Threads: while one request waits for the disk, others are read and parsed.
worker_class = "gthread"
threads = 16

# The GET payload is in the request line; this is the most gunicorn allows.
limit_request_line = 8190

# No header may say at which path the app is mounted; no proxy of ours needs to.
forwarder_headers = ""

# No access log: it would hold addresses and payloads.  (gunicorn's default,
# repeated because a promise stands on it.)
accesslog = None

# No second way in.
control_socket_disable = True

# The worker's heartbeat must not wait for the disk that events wait for.
worker_tmp_dir = "/dev/shm"  # noqa: S108 - a directory of every Linux, not a file of ours


def on_starting(server: object) -> None:
    # Build ua-parser's matcher (0.2 s) now rather than in the first request.
    parsing.describe_agent("")
