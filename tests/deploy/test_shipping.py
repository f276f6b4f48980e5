"""From a collector's files to ClickHouse's table, by syslog-ng and by rsync: nothing is lost.

The collector runs for real, on days of the test's choice.  What the receiver has accepted goes
into the embedded ClickHouse, as do the copies that rsync makes.
"""

import contextlib
import gzip
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

import clickhouse
from proxies import substitute
from server import PATIENCE_SECONDS, ROOT, Server, program, run, wait_until
from web import Asked, Site

pytestmark = pytest.mark.slow

CONFIG = (ROOT / "deploy/syslog-ng.conf").read_text(encoding="utf-8")
# What ClickHouse and a proxy before it say when something is wrong; none may drop a batch.
FAILURES = [400, 429, 500, 503, 504, 504, 504, 504]
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


def accepted(receiver: Site) -> list[Asked]:
    return [asked for asked in receiver.asked if asked.status == 200]


def lines_of(receiver: Site) -> list[bytes]:
    """Return the records that were accepted, without the name that the shipper put in front."""
    lines = b"\n".join(asked.body for asked in accepted(receiver)).splitlines()
    return [re.sub(rb'^{"collector":"[^"]+",', b"{", line) for line in lines]


def configure(directory: Path, data_dir: Path, port: int) -> None:
    """Write the configuration of deploy/, for a receiver on this port."""
    changes = {
        "/var/lib/telemetry": str(data_dir),
        "https://clickhouse.example.com:8443": f"http://127.0.0.1:{port}",
        "follow-freq(1)": "follow-freq(0.1)",
        "time-reopen(10)": "time-reopen(1)",
        "batch-timeout(1000)": "batch-timeout(50)",
    }
    options = "@version: 3.38\noptions { log-fifo-size(10); };\n"  # soon full, in an outage
    (directory / "main.conf").write_text(options + substitute(CONFIG, changes))


@contextlib.contextmanager
def syslog_ng(directory: Path) -> Iterator[None]:
    """Run syslog-ng in this directory; kill it at the end of the block."""
    files = {"cfgfile": "main.conf", "pidfile": "pid", "control": "ctl"}
    files["persist-file"] = "positions"
    command = [program("syslog-ng"), "--foreground", "--no-caps", "--stderr"]
    command += [f"--{option}={directory / name}" for option, name in files.items()]
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=directory, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)


def rows(
    directory: Path, receiver: Site, collectors: Path
) -> tuple[clickhouse.Rows, clickhouse.Rows]:
    """Return the table's rows after what the receiver accepted, and after reading copies twice."""
    inserts = []
    for asked in accepted(receiver):
        parameters = dict(parse_qsl(urlsplit(asked.path).query))
        query, _, form = parameters.pop("query").partition(" FORMAT ")
        settings = ", ".join(f"{name} = '{value}'" for name, value in parameters.items())
        inserts.append(f"{query} SETTINGS {settings} FORMAT {form}\n{asked.body.decode()}")
    select = "SELECT * EXCEPT collector FROM events FINAL ORDER BY id"
    read = clickhouse.insert(collectors)
    after_copies = ["TRUNCATE TABLE events", read, read, select]
    found = clickhouse.ask(directory, *clickhouse.MAKE, *inserts, select, *after_copies)
    return found[-5], found[-1]


def rsync(data_dir: Path, target: Path) -> None:
    """Run the command of docs/operations.md."""
    (recipe,) = re.findall(r"^    (rsync .*clickhouse\.example\.com:.*)$", OPERATIONS, re.MULTILINE)
    changes = {"/var/lib/telemetry/": f"{data_dir}/", "clickhouse.example.com:": f"{target}/"}
    program("rsync")
    assert run(*shlex.split(substitute(recipe, changes))).returncode == 0


def test_both_ship_every_event_and_duplicates_are_recognised_by_id(
    serve: Callable[..., Server], data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_collector(day: date) -> Server:
        monkeypatch.setenv("TODAY", str(day))
        return serve("--pythonpath=tests/support", "another_day:app", COMPRESS_AFTER_DAYS="2")

    def all_have_arrived() -> bool:
        return {*every_line(data_dir)} == {*lines_of(receiver)}

    collectors = tmp_path / "collectors"
    collectors.mkdir()
    data_dir.mkdir()
    (data_dir / f"address-key-{FIRST_DAY}").write_text("a secret")
    collector = start_collector(FIRST_DAY)
    with Site(status=200) as receiver:
        configure(tmp_path, data_dir, receiver.port)
        with syslog_ng(tmp_path):
            send_events(collector)
            wait_until(all_have_arrived)
            rsync(data_dir, tmp_path)

            receiver.statuses += FAILURES
            send_events(collector)
            wait_until(all_have_arrived)
            assert receiver.statuses == []

            receiver.status = 0  # an outage, in which the day ends
            send_events(collector)
            collector.stop()
            collector = start_collector(FIRST_DAY + timedelta(days=1))
            send_events(collector)
            receiver.status = 200
            wait_until(all_have_arrived)

        send_events(collector)
        with syslog_ng(tmp_path):
            wait_until(all_have_arrived)

        sent = len(lines_of(receiver))
        (tmp_path / "positions").unlink()
        with syslog_ng(tmp_path):  # it sends all files again
            wait_until(lambda: len(lines_of(receiver)) == sent + len(every_line(data_dir)))
            collector.stop()
            collector = start_collector(FIRST_DAY + timedelta(days=4))
            wait_until((data_dir / f"events-{FIRST_DAY}.jsonl.gz").exists)
            send_events(collector)
            wait_until(all_have_arrived)
            rsync(data_dir, tmp_path)

    inserted, read = rows(tmp_path / "table", receiver, collectors)
    assert len(inserted) == len(every_line(data_dir)) == 6 * BATCH_EVENTS
    ids = {json.loads(line)["id"] for line in every_line(data_dir)}
    assert {row["id"] for row in inserted} == ids
    assert inserted == read
    assert [*collectors.rglob("address-key-*")] == []
