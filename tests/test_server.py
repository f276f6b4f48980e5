"""Start and stop of a real gunicorn."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from server import CLI, CLOSE, Server, wait_until


def test_a_start_writes_nothing_to_the_disk_and_trusts_no_proxy(server: Server) -> None:
    assert server.send("GET", "/").status == 200
    assert not server.data_dir.exists()
    server.stop()
    assert "X-Forwarded-For is believed from: nobody" in "\n".join(server.log)


# RFC 9112, 3.2 has four forms of a target; and paths that others would redirect.
@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/cli", 204),
        ("/%63li", 204),
        ("//cli", 204),
        ("HTTP://anywhere.example:80/cli?x#y", 204),
        ("http://anywhere.example", 400),  # the path is "/", where Base64 is wanted
        ("*", 404),
        ("anywhere.example:80", 400),
        ("/cli/", 404),
        ("/./cli", 404),
        ("/x/../cli", 404),
        ("/%ff", 404),
        ("//anywhere.example/cli", 404),
    ],
)
def test_a_target_in_any_form_is_answered_without_a_redirect(
    shared_server: Server, target: str, status: int
) -> None:
    """A client would turn a redirected POST into a GET."""
    answer = shared_server.send("POST", target, [CLOSE], json.dumps(CLI).encode())

    assert answer.status == status
    assert "location" not in answer.headers
    assert len(shared_server.lines()) == (status == 204)


def test_several_header_lines_are_one_list(shared_server: Server) -> None:
    hops = [("X-Forwarded-For", "6.6.6.6, 198.51.100.7"), ("X-Forwarded-For", "127.0.0.1")]
    opt_out = [("DNT", "1"), ("DNT", "1")]

    outcomes = [
        shared_server.send_cli(headers).headers["x-telemetry-outcome"]
        for headers in (hops, opt_out)
    ]

    assert outcomes == ["stored", "opted-out"]
    assert [event["ip"] for event in shared_server.events()] == ["198.51.100.7"]


@pytest.mark.parametrize("mode", ["full", "hashed"])
def test_only_mode_full_stores_whole_addresses_and_no_log_has_any(
    serve: Callable[..., Server], mode: str
) -> None:
    cut_off = [b"GET /?payload=findme", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nfindme"]
    server = serve("--log-level=debug", TRUSTED_PROXIES="127.0.0.1,10.0.0.0/8", IP=mode)
    forwarded = ("X-Forwarded-For", "198.51.100.77")
    assert server.send_core([forwarded], projectId="findme").status == 204
    assert server.send_core([forwarded], version=["findme"]).status == 400
    assert server.send("POST", "/cli", [forwarded, ("findme", "a\0b")]).status == 400
    assert server.send("PUT", "/findme", [forwarded]).status == 404
    for content in cut_off:
        assert server.raw(content).status == 400
    assert server.stop() == 0

    started = next(n for n, line in enumerate(server.log) if "Booting worker" in line)
    log = "\n".join(server.log[started:])
    assert "X-Forwarded-For is believed from: 127.0.0.1/32, 10.0.0.0/8" in "\n".join(server.log)
    assert not [text for text in ("198.51.100", "127.0.0.1", "findme") if text in log]
    assert "findme" not in b"".join(server.lines("refused-*")).decode()
    files = b"".join(path.read_bytes() for path in server.data_dir.iterdir())
    assert (b"198.51.100.77" in files) == (mode == "full")
    assert b"127.0.0.1" not in files


def test_a_signal_that_a_worker_gets_before_its_handlers_stops_it(
    data_dir: Path, tmp_path: Path
) -> None:
    """Lost, it would let the worker live until the graceful timeout and then be killed."""
    once = tmp_path / "once"
    once.touch()
    arguments = ["--pythonpath=tests/support", "stopped_at_fork:app"]
    with Server(data_dir, *arguments, environ={"STOP_ONCE": str(once)}) as server:
        wait_until(lambda: sum("Booting worker" in line for line in server.log) == 2)
        assert server.send_cli().status == 204
        assert server.stop() == 0

    exits = [line for line in server.log if "Worker exiting" in line]
    assert len(exits) == 2
    assert not any("was sent SIG" in line for line in server.log)
