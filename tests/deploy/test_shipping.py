"""From a collector's files to ClickHouse's table, by syslog-ng and by rsync: nothing is lost.

The collector runs for real, on days of the test's choice.  The receiver fails in every way;
what it was sent in the end goes into the embedded ClickHouse, as do the copies that rsync makes.
"""

import gzip
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qsl, urlsplit

import pytest

import clickhouse
from proxies import free_port, substitute
from server import PATIENCE_SECONDS, ROOT, Server, program, run, wait_until

pytestmark = pytest.mark.slow

CONFIG = (ROOT / "deploy/syslog-ng.conf").read_text(encoding="utf-8")
# What ClickHouse and a proxy before it say when something is wrong; none may drop a batch.
STATUSES = [400, 429, 500, 503, 504, 504, 504, 504]
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
FIRST_DAY = date(2026, 11, 23)
BATCH_EVENTS = 20


def send_events(collector: Server) -> None:
    for _ in range(BATCH_EVENTS // 2):
        assert collector.send_core().status == collector.send_cli().status == 204


def every_line(data_dir: Path) -> list[bytes]:
    found = []
    for path in data_dir.glob("events-*.jsonl*"):
        content = path.read_bytes()
        found += (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()
    return found


class Receiver:
    """In the place of ClickHouse.  `behave` tells what becomes of a request: see `Handler`."""

    def __init__(self) -> None:
        self.port = free_port()
        self.inserts: list[tuple[str, bytes]] = []
        self.behave: Callable[[], int] = lambda: 200
        self.appear()

    def appear(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver.behave()
                if status in (0, 200):
                    receiver.inserts.append((self.path, body))
                if status:  # else the sender is not told
                    self.send_response(status)
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.thread = Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def disappear(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(PATIENCE_SECONDS)

    def lines(self) -> list[bytes]:
        """Return the records, without the name that the shipper put in front."""
        return [
            re.sub(rb'^{"collector":"[^"]+",', b"{", line)
            for _, body in self.inserts
            for line in body.splitlines()
        ]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.disappear()


class SyslogNg:
    """A running syslog-ng with the configuration of deploy/."""

    def __init__(self, directory: Path, data_dir: Path, receiver: Receiver) -> None:
        directory.mkdir()
        self.directory = directory
        self.positions = directory / "positions"
        changes = {
            "/var/lib/telemetry": str(data_dir),
            "https://clickhouse.example.com:8443": f"http://127.0.0.1:{receiver.port}",
            "follow-freq(1)": "follow-freq(0.1)",
            "time-reopen(10)": "time-reopen(1)",
            "batch-timeout(1000)": "batch-timeout(50)",
        }
        options = "@version: 3.38\noptions { log-fifo-size(10); };\n"  # soon full, in an outage
        (directory / "main.conf").write_text(options + substitute(CONFIG, changes))
        self.start()

    def start(self) -> None:
        files = {"cfgfile": "main.conf", "pidfile": "pid", "control": "ctl"}
        files["persist-file"] = self.positions.name
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [program("syslog-ng"), "--foreground", "--no-caps", "--stderr"]
                + [f"--{option}={self.directory / name}" for option, name in files.items()],
                cwd=self.directory,
                stderr=log,
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)


@pytest.fixture
def syslog_ng(tmp_path: Path, data_dir: Path, receiver: Receiver) -> Iterator[SyslogNg]:
    data_dir.mkdir()
    shipper = SyslogNg(tmp_path / "syslog-ng", data_dir, receiver)
    yield shipper
    shipper.kill()


def rows(
    directory: Path, receiver: Receiver, collectors: Path
) -> tuple[clickhouse.Rows, clickhouse.Rows]:
    """Return the table's rows after what the receiver was sent, and after reading copies twice."""
    inserts = []
    for path, body in receiver.inserts:
        parameters = dict(parse_qsl(urlsplit(path).query))
        query, _, form = parameters.pop("query").partition(" FORMAT ")
        settings = ", ".join(f"{name} = '{value}'" for name, value in parameters.items())
        inserts.append(f"{query} SETTINGS {settings} FORMAT {form}\n{body.decode()}")
    select = "SELECT * EXCEPT collector FROM events FINAL ORDER BY id"
    read = clickhouse.insert(collectors)
    after_copies = ["TRUNCATE TABLE events", read, read, select]
    found = clickhouse.ask(directory, *clickhouse.MAKE, *inserts, select, *after_copies)
    return found[-5], found[-1]


def rsync(data_dir: Path, target: Path) -> int:
    """Run the command of docs/operations.md; return its exit status."""
    (recipe,) = re.findall(r"^    (rsync .*clickhouse\.example\.com:.*)$", OPERATIONS, re.MULTILINE)
    changes = {"/var/lib/telemetry/": f"{data_dir}/", "clickhouse.example.com:": f"{target}/"}
    program("rsync")
    return run(*shlex.split(substitute(recipe, changes))).returncode


def test_both_ship_every_event_and_duplicates_are_recognised_by_id(
    serve: Callable[..., Server],
    receiver: Receiver,
    syslog_ng: SyslogNg,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start_collector(day: date) -> Server:
        monkeypatch.setenv("TODAY", str(day))
        return serve("--pythonpath=tests/support", "another_day:app", COMPRESS_AFTER_DAYS="2")

    def all_have_arrived() -> bool:
        return {*every_line(data_dir)} == {*receiver.lines()}

    clickhouse_host = tmp_path / "clickhouse"
    (clickhouse_host / "collectors").mkdir(parents=True)
    collector = start_collector(FIRST_DAY)
    send_events(collector)
    (data_dir / f"address-key-{FIRST_DAY}").write_text("a secret")
    wait_until(all_have_arrived)
    assert rsync(data_dir, clickhouse_host) == 0

    statuses = iter([*STATUSES, 0])  # in the end it is stored, but the sender is not told
    receiver.behave = lambda: next(statuses, 200)
    send_events(collector)
    wait_until(all_have_arrived)
    assert next(statuses, None) is None

    receiver.disappear()
    clickhouse_host.rename(tmp_path / "away")
    assert rsync(data_dir, clickhouse_host) != 0
    send_events(collector)
    collector.stop()
    collector = start_collector(FIRST_DAY + timedelta(days=1))
    send_events(collector)
    receiver.appear()
    wait_until(all_have_arrived)

    syslog_ng.kill()
    send_events(collector)
    syslog_ng.start()
    wait_until(all_have_arrived)

    syslog_ng.kill()
    sent = len(receiver.lines())
    syslog_ng.positions.unlink()
    syslog_ng.start()  # it sends all files again
    wait_until(lambda: len(receiver.lines()) == sent + len(every_line(data_dir)))

    collector.stop()
    collector = start_collector(FIRST_DAY + timedelta(days=4))
    wait_until((data_dir / f"events-{FIRST_DAY}.jsonl.gz").exists)
    send_events(collector)
    wait_until(all_have_arrived)
    (tmp_path / "away").rename(clickhouse_host)
    assert rsync(data_dir, clickhouse_host) == 0

    assert len(receiver.lines()) > len(every_line(data_dir))
    inserted, read = rows(tmp_path / "table", receiver, clickhouse_host / "collectors")
    assert len(inserted) == len(every_line(data_dir)) == 6 * BATCH_EVENTS
    ids = {json.loads(line)["id"] for line in every_line(data_dir)}
    assert {row["id"] for row in inserted} == ids
    assert inserted == read
    assert [*clickhouse_host.rglob("address-key-*")] == []
