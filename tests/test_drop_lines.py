"""deploy/drop-lines.sh, beside a server that is writing."""

import fcntl
import gzip
import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server import PATIENCE_SECONDS, ROOT, Load, Server, wait_until

pytestmark = pytest.mark.slow

TODAY, LONG_AGO = "events-2026-11-23.jsonl", "events-2026-11-15.jsonl.gz"
LINES = b'{"ip":"203.0.113.9"}\n{"ip":"203.0.113.99"}\n{"ip":"203.0.113.9","x":1}\n'
LEFT = b'{"ip":"203.0.113.99"}\n'


def drop(directory: Path, text: str) -> int:
    script = ROOT / "deploy/drop-lines.sh"
    return subprocess.run([script, directory, text], timeout=PATIENCE_SECONDS).returncode


def test_only_lines_that_hold_the_text_go_and_from_both_kinds_of_file(tmp_path: Path) -> None:
    (tmp_path / TODAY).write_bytes(LINES)
    (tmp_path / TODAY).chmod(0o640)
    (tmp_path / LONG_AGO).write_bytes(gzip.compress(LINES) + gzip.compress(LINES))
    (tmp_path / "notes.jsonl").write_bytes(LINES)
    inode = (tmp_path / TODAY).stat().st_ino

    assert drop(tmp_path, '"ip":"203.0.113.9"') == 0

    assert (tmp_path / TODAY).read_bytes() == LEFT
    assert (tmp_path / TODAY).stat().st_mode & 0o777 == 0o640
    assert (tmp_path / TODAY).stat().st_ino != inode
    assert gzip.decompress((tmp_path / LONG_AGO).read_bytes()) == LEFT * 2
    assert (tmp_path / "notes.jsonl").read_bytes() == LINES
    assert sorted(path.name for path in tmp_path.iterdir()) == [LONG_AGO, TODAY, "notes.jsonl"]


def test_a_file_without_the_text_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / TODAY).write_bytes(LINES)
    inode = (tmp_path / TODAY).stat().st_ino

    assert drop(tmp_path, "203.0.113.7") == 0
    assert (tmp_path / TODAY).stat().st_ino == inode


def test_a_torn_tail_does_not_become_a_line(tmp_path: Path) -> None:
    (tmp_path / TODAY).write_bytes(LINES + b'{"ip":"198.51')

    assert drop(tmp_path, '"ip":"203.0.113.9"') == 0
    assert (tmp_path / TODAY).read_bytes() == LEFT


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write for somebody else")
def test_the_file_stays_the_servers_own_when_root_does_it(tmp_path: Path) -> None:
    (tmp_path / TODAY).write_bytes(LINES)
    os.chown(tmp_path / TODAY, 12345, 12346)

    assert drop(tmp_path, '"ip":"203.0.113.9"') == 0
    status = (tmp_path / TODAY).stat()
    assert (status.st_uid, status.st_gid) == (12345, 12346)


@pytest.mark.parametrize(
    ("name", "held"),
    [
        pytest.param(TODAY, TODAY, id="an event between write and sync"),
        pytest.param(LONG_AGO, "events-housekeeping.claim", id="housekeeping"),
    ],
)
def test_a_file_in_use_is_left_as_it_is_and_that_is_said(
    tmp_path: Path, name: str, held: str
) -> None:
    content = gzip.compress(LINES) if name.endswith(".gz") else LINES
    (tmp_path / name).write_bytes(content)
    with (tmp_path / held).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert drop(tmp_path, '"ip":"203.0.113.9"') == 1
    assert (tmp_path / name).read_bytes() == content

    assert drop(tmp_path, '"ip":"203.0.113.9"') == 0


def test_what_was_not_searched_is_no_success(tmp_path: Path) -> None:
    (tmp_path / TODAY).write_bytes(LINES)
    (tmp_path / "events-2026-11-22.jsonl").symlink_to(tmp_path / TODAY)

    assert drop(tmp_path / "typo", "203.0.113.9") == 1
    assert drop(tmp_path / TODAY, "203.0.113.9") == 1
    assert drop(tmp_path, '"ip":"203.0.113.9"') == 1  # a link: to another disk, perhaps
    assert (tmp_path / "events-2026-11-22.jsonl").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_read_the_directory_is_told_so(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir(0o700)
    (directory / TODAY).write_bytes(LINES)
    script = f"cd /; . '{ROOT}/deploy/drop-lines.sh' '{directory}' 203.0.113.9"
    somebody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c", script]
    ran = subprocess.run(somebody, capture_output=True, text=True, timeout=PATIENCE_SECONDS)

    assert ran.returncode == 1
    assert f"{directory}: want a directory that I may read and write" in ran.stderr


def test_a_damaged_gzip_is_left_as_it_is(tmp_path: Path) -> None:
    damaged = gzip.compress(LINES) + gzip.compress(LINES)[:-12]
    (tmp_path / LONG_AGO).write_bytes(damaged)

    assert drop(tmp_path, '"ip":"203.0.113.9"') == 1
    assert (tmp_path / LONG_AGO).read_bytes() == damaged


@pytest.mark.parametrize("name", [TODAY, LONG_AGO])
def test_on_a_full_disk_the_file_stays_as_it_was(tmp_path: Path, name: str) -> None:
    lines = LINES + b"".join(b'{"id":"%b"}\n' % os.urandom(64).hex().encode() for _ in range(2000))
    content = gzip.compress(lines) if name.endswith(".gz") else lines
    (tmp_path / name).write_bytes(content)

    # No file can become longer than 8 KiB; the shell's signal for it is ignored.
    limited = f"trap '' XFSZ; ulimit -f 8; '{ROOT}/deploy/drop-lines.sh' '{tmp_path}' 203.0.113.9"
    assert subprocess.run(["bash", "-c", limited], timeout=PATIENCE_SECONDS).returncode == 1

    assert (tmp_path / name).read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_beside_a_loaded_server_nothing_else_is_lost_doubled_or_refused(
    serve: Callable[..., Server],
) -> None:
    server = serve("--workers=2")
    wait_until(lambda: len(server.workers()) == 2)
    with Load(server, 6) as others, Load(server, 2, command="to be dropped") as dropped:
        for _ in range(30):
            dropped.wait_for(204, 20)
            before = dropped.projects()
            drop(server.data_dir, '"command":"to be dropped"')  # more may have come meanwhile
            left = {event["payload"]["projectId"] for event in whole_events(server)}
            assert before & left == set()
        others.wait_for(204, 50)

    assert drop(server.data_dir, '"command":"to be dropped"') == 0
    events = server.events()
    stored = Counter(event["payload"]["projectId"] for event in events)
    assert set(others.statuses) == set(dropped.statuses) == {204}
    assert stored == Counter(others.projects())
    assert "to be dropped" not in json.dumps(events)


def whole_events(server: Server) -> list[dict[str, Any]]:
    """Return the events in its files, which are being written."""
    directory = os.open(server.data_dir, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        return server.events()
    finally:
        os.close(directory)
