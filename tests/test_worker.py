"""The worker's side of the contract: connections, in whatever way clients use them."""

import contextlib
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import pytest

pytest.importorskip("hypothesis", reason="needs requirements-dev.txt")
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxies import free_port
from server import (
    AT_ONCE_SECONDS,
    CHUNKED,
    CLI,
    CLOSE,
    COMMON_HEADERS,
    GUNICORN,
    PATIENCE_SECONDS,
    Load,
    Server,
    assert_answered_at_once,
    cli_event,
    core_payload,
    program,
    read_answer,
    read_next,
    request,
    run,
    wait_until,
)

GOOD = json.dumps(CLI).encode()
UPGRADE = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c")]
EXAMPLES = int(os.environ.get("SPLITS", "30"))  # of requests split into pieces
RECEIVE_SECONDS = 10  # the contract's limit for a whole request


def in_chunks(number: int) -> bytes:
    """Return an event in small chunks, with extensions and trailers."""
    body = json.dumps(CLI | {"projectId": str(number)}).encode()
    parts = [body[at : at + 9] for at in range(0, len(body), 9)]
    chunks = [b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in parts]
    trailers = b"0\r\nX: y\r\nDNT: 1\r\n\r\n"
    return request("POST", "/cli", [CHUNKED], b"".join([*chunks, trailers]))


def image(number: int) -> bytes:
    return request("GET", f"/telemetry?payload={core_payload(projectId=str(number))}")


def next_statuses(stream: BinaryIO, count: int) -> list[int]:
    return [read_next(stream).status for _ in range(count)]


def statuses(sock: socket.socket) -> list[int]:
    """Read to the end of the connection and return the status of each response."""
    received = b"".join(iter(lambda: sock.recv(2**16), b""))
    return [int(part.split()[0]) for part in received.split(b"HTTP/1.1 ")[1:]]


@pytest.fixture(scope="module")
def faulty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of faulty.py, where a request has one second, and an idle connection three."""
    data_dir = tmp_path_factory.mktemp("faulty") / "data"
    worker = "--worker-class=faulty.FaultyWorker"
    arguments = ["--pythonpath=tests/support", worker, "--keep-alive=3", "faulty:app"]
    with Server(data_dir, *arguments) as running:
        wait_until(running.workers)
        yield running


# Several requests on one connection.

KINDS: dict[str, tuple[Callable[[int], bytes], int]] = {
    "event": (cli_event, 204),
    "chunked event": (in_chunks, 204),
    "image": (image, 200),
    "upgrade": (lambda number: cli_event(number, *UPGRADE), 204),
    "invalid": (lambda number: request("POST", "/cli", body=b"{}"), 400),
    "elsewhere": (lambda number: request("POST", "/nope", body=GOOD), 404),
    "preflight": (lambda number: request("OPTIONS", "/cli"), 204),
}
STORED = ("event", "chunked event", "image", "upgrade")
A_FEW_BYTES_EACH = [n / 300 for n in range(300)]  # each request still arrives within its deadline


@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=12),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    half_closes=st.booleans(),
)
@example(["chunked event", "upgrade", "image"], A_FEW_BYTES_EACH, True)
@settings(max_examples=EXAMPLES, deadline=None, database=None)
def test_requests_are_answered_once_and_in_order_however_they_are_split(
    running_server: Server, kinds: list[str], cuts: list[float], half_closes: bool
) -> None:
    server, before = running_server, len(running_server.lines())
    sent = b"".join(KINDS[kind][0](number) for number, kind in enumerate(kinds))
    bounds = [0, *sorted(int(cut * len(sent)) for cut in cuts), len(sent)]
    with server.connect() as sock, sock.makefile("rb") as stream:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in pairwise(bounds):
            sock.sendall(sent[start:end])
            assert server.send("GET", "/healthz").status == 200  # the worker has read that part
        if half_closes:
            sock.shutdown(socket.SHUT_WR)
        assert next_statuses(stream, len(kinds)) == [KINDS[kind][1] for kind in kinds]
        if half_closes:
            assert stream.read() == b""

    numbers = [str(number) for number, kind in enumerate(kinds) if kind in STORED]
    assert [one["payload"]["projectId"] for one in server.events()[before:]] == numbers


@pytest.mark.parametrize(("kind", "half_closes"), [("event", True), ("image", False)])
def test_six_hundred_requests_at_once_are_six_hundred_events(
    shared_server: Server, kind: str, half_closes: bool
) -> None:
    make, status = KINDS[kind]
    with shared_server.connect() as sock, sock.makefile("rb") as stream:
        sock.sendall(make(0))
        assert next_statuses(stream, 1) == [status]
        sock.sendall(b"".join(make(number) for number in range(1, 600)))
        if half_closes:
            sock.shutdown(socket.SHUT_WR)
        assert next_statuses(stream, 599) == [status] * 599

    assert shared_server.projects() == sorted(map(str, range(600)))


def test_a_client_that_reads_late_gets_all_its_responses(running_server: Server) -> None:
    """Five megabytes of them, more than a kernel holds."""
    with running_server.connect() as sock:
        sock.sendall(request("GET", "/") * 600 + cli_event(1))
        sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: running_server.send_cli().status == 204)
        assert statuses(sock) == [200] * 600 + [204]


def test_a_connection_may_rest_for_longer_than_a_request_may_take(faulty_server: Server) -> None:
    """Balancers reuse one for a minute, and do not repeat a POST."""
    with faulty_server.connect() as sock:
        sock.sendall(cli_event(1))
        assert read_answer(sock).status == 204
        assert select.select([sock], [], [], 2.5)[0] == []
        sock.sendall(cli_event(2))
        assert read_answer(sock).status == 204
        assert sock.recv(1) == b""


def test_a_connection_is_kept_as_the_protocol_version_says(running_server: Server) -> None:
    def connection(version: bytes, *headers: tuple[str, str]) -> str:
        with running_server.connect() as sock:
            sock.sendall(cli_event(1, *headers).replace(b"HTTP/1.1", version))
            return read_answer(sock).headers["connection"]

    assert connection(b"HTTP/1.1") == "keep-alive"
    assert connection(b"HTTP/1.1", CLOSE) == "close"
    assert connection(b"HTTP/1.0") == "close"
    assert connection(b"HTTP/1.0", ("Connection", "keep-alive")) == "keep-alive"


# What a request may be.


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([("Cookie", "x" * 9_000), ("Authorization", "y" * 12_000)], id="sign-on"),
        pytest.param([("X", "y" * 60_000)], id="one large field"),
        pytest.param([("X", "y")] * 5_000, id="many fields"),
        pytest.param([("Host", "a"), ("Host", "b")], id="several hosts"),
        pytest.param([("Expect", "a miracle")], id="another expectation"),
        pytest.param(UPGRADE, id="an upgrade"),
    ],
)
def test_a_head_costs_no_event_whatever_its_fields_are(
    shared_server: Server, headers: list[tuple[str, str]]
) -> None:
    answers = [
        shared_server.send("GET", f"/?payload={core_payload(projectId='1')}", [*headers, CLOSE]),
        shared_server.send_cli([*headers, CLOSE], projectId="1"),
    ]

    assert [answer.status for answer in answers] == [200, 204]
    assert shared_server.projects() == ["1", "1"]


def test_a_name_with_an_underscore_does_not_pass_for_one_with_a_hyphen(
    shared_server: Server,
) -> None:
    assert shared_server.send_cli([("X_Forwarded_For", "6.6.6.6"), ("D_NT", "1")]).status == 204

    assert [one["ip"] for one in shared_server.events()] == ["127.0.0.1"]


# Slow clients, and more than the worker keeps.


def test_incomplete_and_broken_requests_delay_no_complete_one(shared_server: Server) -> None:
    incomplete = [
        b"",
        b"P",
        b"POST /cli HTTP/1.1\r\nX: ",
        b"POST /cli HTTP/1.1\r\nContent-Length: 9999\r\n\r\n{",
    ]
    with contextlib.ExitStack() as stack:
        for sent in incomplete:
            stack.enter_context(shared_server.connections(100, sent))
        assert_answered_at_once(shared_server)
        broken = request("GET", "/", [("Host ", "x")])
        refused = stack.enter_context(shared_server.connections(50, broken))
        complete = stack.enter_context(shared_server.connections(50, cli_event(1, CLOSE)))
        assert_answered_at_once(shared_server)  # although these are not closed by their clients

        assert {read_answer(sock).status for sock in refused} == {400}
        assert {read_answer(sock).status for sock in complete} == {204}
    assert len(shared_server.lines()) == 52


def test_a_client_that_never_reads_delays_nobody_and_is_dropped(faulty_server: Server) -> None:
    with faulty_server.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(0.5)
        with contextlib.suppress(OSError):  # no more is taken
            while True:
                sock.sendall(request("GET", "/") * 100)
                assert_answered_at_once(faulty_server)
        assert_answered_at_once(faulty_server)
        dropped = select.poll()
        dropped.register(sock, 0)  # of errors and of the end it always tells
        wait_until(lambda: dropped.poll(0))


def test_a_full_worker_drops_the_connection_that_has_waited_longest(data_dir: Path) -> None:
    """With 128 descriptors, 64 connections are accepted and the rest wait in the kernel."""
    start, rest = cli_event(1, CLOSE)[:20], cli_event(1, CLOSE)[20:]
    with Server(data_dir, launcher=["prlimit", "--nofile=128:128"]) as server:
        assert server.send_cli().status == 204  # it has told the kernel to hold silent ones back
        with server.connections(200):
            assert_answered_at_once(server)
        with server.connections(150, start) as connections:
            assert_answered_at_once(server)

            assert statuses(connections[0]) == [503]
            connections[-1].sendall(rest)
            assert statuses(connections[-1]) == [204]


def test_the_memory_of_incomplete_bodies_is_bounded_in_total(running_server: Server) -> None:
    """Of four hundred that lack a byte, together 24 MB, those over 16 MB are dropped."""
    content = request("POST", "/cli", [("Content-Length", "60001")], b" " * 60_000)
    with running_server.connections(400, content) as connections:
        assert_answered_at_once(running_server)
        wait_until(lambda: len(select.select(connections, [], [], 0)[0]) > 100)
        dropped = select.select(connections, [], [], 0)[0]

        assert len(dropped) < 200
        assert {read_answer(sock).status for sock in dropped} == {503}


def test_many_large_events_at_once_are_all_stored(shared_server: Server) -> None:
    """Eleven megabytes of them, more than may be queued for the disk."""
    content = request("POST", "/cli", [CLOSE], GOOD.ljust(56 * 1024))
    with shared_server.connections(200, content[:-1]) as connections:
        for sock in connections:
            sock.sendall(b" ")

        assert {read_answer(sock).status for sock in connections} == {204}
    assert len(shared_server.lines()) == 200


# Where it listens.


def test_with_port_both_families_are_served(data_dir: Path) -> None:
    port = free_port()
    hosts = ["127.0.0.1", "::1"] if Path("/proc/net/if_inet6").read_text() else ["127.0.0.1"]
    command, environ = [sys.executable, "serve.py"], {"PORT": str(port)}
    with Server(data_dir, command=command, environ=environ) as server:
        for host in hosts:
            with socket.create_connection((host, port), PATIENCE_SECONDS) as sock:
                sock.sendall(cli_event(1, CLOSE))
                assert read_answer(sock).status == 204

    assert [one["ip"] for one in server.events()] == hosts


def test_an_unsupported_setting_of_the_worker_stops_the_start_with_one_line() -> None:
    ran = run(GUNICORN, "--bind=127.0.0.1:0", "--log-level=error", "--access-logfile=-")

    assert ran.returncode != 0
    assert len(ran.stderr.splitlines()) == 1
    assert "accesslog='-': not supported" in ran.stderr


# A stop.


@pytest.mark.slow
def test_a_stop_refuses_new_connections_and_waits_ten_seconds_for_requests(server: Server) -> None:
    """A `100 Continue` gives them no more time."""
    content = cli_event(1)
    head = request("POST", "/cli", [("Expect", "100-continue"), ("Content-Length", "99")])
    with (
        server.connections(200),
        server.connections(200, content[:20]) as slow,
        server.connect() as arriving,
        server.connect() as expecting,
    ):
        arriving.sendall(content[:-1])
        expecting.sendall(head[:-1])
        assert server.send("GET", "/healthz").status == 200  # the worker has read all that
        began = time.monotonic()
        server.process.terminate()
        wait_until(lambda: not accepts(server.port))
        arriving.sendall(content[-1:])
        answer = read_answer(arriving)
        assert (answer.status, answer.headers["connection"]) == (204, "close")
        assert select.select([expecting], [], [], 5)[0] == []
        expecting.sendall(b"\n")
        assert expecting.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        expecting.sendall(b"{")

        assert {read_answer(sock).status for sock in [*slow, expecting]} == {400}
        assert server.stop() == 0
        assert time.monotonic() - began < RECEIVE_SECONDS + AT_ONCE_SECONDS
    assert len(server.lines()) == 1


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS).close()
    except ConnectionRefusedError:
        return False
    return True


# Errors that end no worker.


@pytest.mark.parametrize(
    "faults",
    [
        [
            "epoll_ctl:error=ENOMEM:when=1..4",
            "accept4:error=EMFILE:when=3+20",
            "sendto:error=EIO:when=3+9",
        ],
        [
            "epoll_ctl:error=ENOMEM:when=5+5",
            "epoll_wait:error=ENOMEM:when=3+9",
            "accept4:error=ECONNABORTED:when=3+9",
            "recvfrom:error=EIO:when=3+9",
            "shutdown:error=ENOTCONN",
        ],
    ],
    ids=["some", "others"],
)
def test_an_error_of_a_system_call_costs_one_connection_at_most(
    data_dir: Path, faults: list[str]
) -> None:
    tracer = [program("strace"), "-f", "-qq", "-o", "/dev/null"]
    tracer += [f"--trace={','.join(fault.partition(':')[0] for fault in faults)}"]
    tracer += [f"--inject={fault}" for fault in faults]
    with Server(data_dir, launcher=tracer) as server:
        with Load(server, clients=4) as load:
            load.wait_for(204, 20)
        assert load.projects() <= {one["payload"]["projectId"] for one in server.events()}
        for _ in range(9):
            with contextlib.suppress(OSError):  # that one was reset
                assert server.send("POST", "/cli", [CLOSE], b" " * 2**17).status in (413, 503, 0)
        assert sum("Booting worker" in line for line in server.log) == 1


def test_an_error_in_the_loop_ends_one_connection_and_not_the_worker(
    faulty_server: Server,
) -> None:
    workers = faulty_server.workers()
    with faulty_server.connect() as sock:
        sock.sendall(b"FAULT")
        assert statuses(sock) == []
    with Load(faulty_server, clients=4) as load:
        load.wait_for(204)

    assert faulty_server.workers() == workers


def test_an_error_outside_the_app_is_a_500_whose_log_names_no_client(
    faulty_server: Server,
) -> None:
    answer = faulty_server.send("GET", "/?payload=findme")

    assert (answer.status, json.loads(answer.body)["status"]) == (500, 500)
    assert COMMON_HEADERS.items() <= answer.headers.items()
    assert answer.headers["x-telemetry-outcome"] == "failed"
    wait_until(lambda: "RuntimeError: a fault in the app" in faulty_server.log)
    booted = next(n for n, line in enumerate(faulty_server.log) if "Booting worker" in line)
    log = "\n".join(faulty_server.log[booted:])
    assert not [text for text in ("findme", "127.0.0.1") if text in log]


def test_nothing_is_imported_by_a_request(data_dir: Path) -> None:
    """A worker may run as a user who cannot read the Python installation."""
    agent = [("Origin", "https://\u00e4.example"), ("User-Agent", "Mozilla/5.0 Firefox/1")]
    with Server(data_dir, launcher=["env", "PYTHONPROFILEIMPORTTIME=1"]) as server:
        wait_until(lambda: any("Booting worker" in line for line in server.log))
        answers = [server.send_core(agent), server.send_cli(), server.send_cli([("DNT", "1")])]
        answers += [server.send_cli(nodeVersion=1), server.raw(b"junk\r\n\r\n")]
        answers += [server.send("GET", target) for target in ("/?payload=x", "/", "/healthz", "/x")]
        answers.append(server.send("OPTIONS", "/cli"))
        server.stop()
    booted = next(n for n, line in enumerate(server.log) if "Booting worker" in line)

    assert {answer.status for answer in answers} == {200, 204, 400, 404}
    assert [line for line in server.log[booted:] if "import time" in line] == []


# What a system may lack.


@pytest.mark.parametrize(
    ("code", "worker"),
    [
        ("import sys; sys.modules['httptools'] = None", "gthread"),
        ("import select; del select.epoll", "gthread"),
        (
            "import select, socket; del select.EPOLLEXCLUSIVE, socket.TCP_DEFER_ACCEPT",
            "RoundWorker",
        ),
    ],
)
def test_what_is_missing_is_done_without(
    data_dir: Path, tmp_path: Path, code: str, worker: str
) -> None:
    """Another worker runs the same application."""
    (tmp_path / "sitecustomize.py").write_text(code)
    with Server(data_dir, launcher=["env", f"PYTHONPATH={tmp_path}"]) as server:
        with Load(server, clients=8) as load:
            load.wait_for(204)
        assert sorted(load.projects()) == server.projects()
        assert [server.send_core().status, server.send_cli(nodeVersion=1).status] == [204, 400]
        assert server.send("GET", "/healthz").status == 200
        server.stop()
    assert any(f"Using worker: {worker}" in line for line in server.log)
    assert sum("for trying" in line for line in server.log) == (worker == "gthread")
