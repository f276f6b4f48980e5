"""The worker's side of the contract: connections, in whatever way clients use them."""

import contextlib
import json
import os
import select
import socket
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import pytest

pytest.importorskip("hypothesis", reason="needs requirements-dev.txt")
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server import (
    CLI,
    CLOSE,
    CORE,
    GUNICORN,
    PATIENCE_SECONDS,
    Answer,
    Load,
    Server,
    assert_answered_at_once,
    cli_event,
    program,
    read_answer,
    read_next,
    request,
    run,
    wait_until,
)

GOOD = json.dumps(CLI).encode()
UPGRADE = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c")]
EXAMPLES = int(os.environ.get("SPLITS", "60"))  # of requests split into pieces
CHUNKED = ("Transfer-Encoding", "chunked")


def core(number: int) -> str:
    return b64encode(json.dumps(CORE | {"projectId": str(number)}).encode()).decode()


def in_chunks(number: int) -> bytes:
    """Return an event's body in small chunks, with extensions and trailers."""
    body = json.dumps(CLI | {"projectId": str(number)}).encode()
    parts = [body[at : at + 9] for at in range(0, len(body), 9)]
    chunks = [b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in parts]
    return b"".join(chunks) + b"0\r\nX: y\r\nDNT: 1\r\n\r\n"


def next_statuses(stream: BinaryIO, count: int) -> list[int]:
    return [read_next(stream).status for _ in range(count)]


def statuses(sock: socket.socket) -> list[int]:
    """Read to the end of the connection and return the status of each response."""
    received = b"".join(iter(lambda: sock.recv(2**16), b""))
    return [int(part.split()[0]) for part in received.split(b"HTTP/1.1 ")[1:]]


def booted(server: Server) -> list[int]:
    wait_until(server.workers)
    return server.workers()


# Several requests on one connection.

KINDS: dict[str, tuple[Callable[[int], bytes], int]] = {
    "event": (cli_event, 204),
    "chunked event": (lambda number: request("POST", "/cli", [CHUNKED], in_chunks(number)), 204),
    "image": (lambda number: request("GET", f"/telemetry?payload={core(number)}"), 200),
    "upgrade": (lambda number: cli_event(number, *UPGRADE), 204),
    "invalid": (lambda number: request("POST", "/cli", body=b"{}"), 400),
    "elsewhere": (lambda number: request("POST", "/nope", body=GOOD), 404),
    "preflight": (lambda number: request("OPTIONS", "/cli"), 204),
}
STORED = ("event", "chunked event", "image", "upgrade")


@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=12),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    half_closes=st.booleans(),
)
@example(sorted(KINDS), [n / 2000 for n in range(2000)], True)  # byte by byte
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


@pytest.mark.parametrize("kind", ["event", "image"])
@pytest.mark.parametrize("half_closes", [True, False])
def test_six_hundred_requests_at_once_are_six_hundred_events(
    server: Server, kind: str, half_closes: bool
) -> None:
    make, status = KINDS[kind]
    with server.connect() as sock, sock.makefile("rb") as stream:
        sock.sendall(make(0))
        assert next_statuses(stream, 1) == [status]
        sock.sendall(b"".join(make(number) for number in range(1, 600)))
        if half_closes:
            sock.shutdown(socket.SHUT_WR)
        assert next_statuses(stream, 599) == [status] * 599

    assert server.projects() == sorted(map(str, range(600)))


def test_a_client_that_reads_late_gets_all_its_responses(server: Server) -> None:
    """Five megabytes of them, more than a kernel holds."""
    with server.connect() as sock:
        sock.sendall(request("GET", "/") * 600 + cli_event(1))
        sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: server.send_cli().status == 204)
        assert statuses(sock) == [200] * 600 + [204]


def test_an_idle_connection_is_closed_and_a_used_one_is_not(serve: Callable[..., Server]) -> None:
    server = serve("--keep-alive=1")
    with server.connect() as sock:
        sock.sendall(cli_event(1))
        assert read_answer(sock).headers["connection"] == "keep-alive"
        assert sock.recv(1) == b""


@pytest.mark.slow
def test_a_connection_may_rest_for_longer_than_a_request_may_take(server: Server) -> None:
    """Balancers reuse one for a minute, and do not repeat a POST."""
    with server.connect() as sock:
        sock.sendall(cli_event(1))
        assert read_answer(sock).status == 204
        assert select.select([sock], [], [], 12)[0] == []
        sock.sendall(cli_event(2))
        assert read_answer(sock).status == 204


@pytest.mark.parametrize(
    ("version", "headers", "connection"),
    [
        ("1.1", [], "keep-alive"),
        ("1.1", [CLOSE], "close"),
        ("1.0", [], "close"),
        ("1.0", [("Connection", "keep-alive")], "keep-alive"),
    ],
)
def test_a_connection_is_kept_as_the_protocol_version_says(
    server: Server, version: str, headers: list[tuple[str, str]], connection: str
) -> None:
    content = cli_event(1, *headers).replace(b"HTTP/1.1", b"HTTP/" + version.encode())
    with server.connect() as sock:
        sock.sendall(content)
        answer = read_answer(sock)

    assert (answer.status, answer.headers["connection"]) == (204, connection)


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
        shared_server.send("GET", f"/?payload={core(1)}", [*headers, CLOSE]),
        shared_server.send_cli([*headers, CLOSE], projectId="1"),
    ]

    assert [answer.status for answer in answers] == [200, 204]
    assert shared_server.projects() == ["1", "1"]


def test_a_name_with_an_underscore_does_not_pass_for_one_with_a_hyphen(
    serve: Callable[..., Server],
) -> None:
    server = serve(TRUSTED_PROXIES="127.0.0.1")
    assert server.send_cli([("X_Forwarded_For", "6.6.6.6"), ("D_NT", "1")]).status == 204

    assert [one["ip"] for one in server.events()] == ["127.0.0.1"]


# More than the worker keeps.


def test_a_full_worker_drops_the_connection_that_has_waited_longest(
    serve: Callable[..., Server],
) -> None:
    server = serve("--worker-connections=10")
    start, rest = cli_event(1, CLOSE)[:20], cli_event(1, CLOSE)[20:]
    with server.connections(15, start) as connections:
        assert_answered_at_once(server)

        assert statuses(connections[0]) == [503]
        connections[-1].sendall(rest)
        assert statuses(connections[-1]) == [204]


def test_the_memory_of_incomplete_bodies_is_bounded_in_total(server: Server) -> None:
    """Four hundred bodies of 60 KiB, each without its last byte, are over 16 MiB."""
    head = request("POST", "/cli", [("Content-Length", str(60 * 1024 + 1))])
    with server.connections(400, head + b" " * 60 * 1024):
        assert_answered_at_once(server)
        (worker,) = server.workers()
        status = Path(f"/proc/{worker}/status").read_text()
        peak_kib = int(status.split("VmHWM:")[1].split()[0])

    assert peak_kib < 150 * 1024
    assert_answered_at_once(server)


@pytest.mark.parametrize(("count", "size"), [(64, 2**16), (200, 56 * 1024)])
def test_many_large_events_at_once_are_all_stored(server: Server, count: int, size: int) -> None:
    body = GOOD.ljust(size)
    with server.connections(count, request("POST", "/cli", [CLOSE], body)[:-1]) as connections:
        for sock in connections:
            sock.sendall(b" ")

        assert {read_answer(sock).status for sock in connections} == {204}
    assert len(server.lines()) == count


# Where it listens.


@pytest.mark.parametrize(
    ("proxies", "stored"), [("", None), ("unix", "198.51.100.7"), ("127.0.0.1", None)]
)
def test_a_unix_socket_has_no_address_but_a_trusted_one_tells_it(
    serve: Callable[..., Server], tmp_path: Path, proxies: str, stored: str | None
) -> None:
    path = tmp_path / "s"
    server = serve("--bind", f"unix:{path}", TRUSTED_PROXIES=proxies)
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(cli_event(1, CLOSE, ("X-Forwarded-For", "198.51.100.7")))
            assert read_answer(sock).status == 204
    server.stop()

    assert [one["ip"] for one in server.events()] == [stored] * 2
    warned = [text for text in server.log if "without an address" in text]
    assert len(warned) == (proxies != "unix")


INHERIT = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
if listener.fileno() != 3:
    os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_socket_passed_by_systemd_is_served(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-c", INHERIT, str(port)]
    with Server(data_dir, launcher=launcher) as server:
        assert server.port == port
        assert server.send_cli().status == 204
        assert server.stop() == 0


def test_with_port_both_families_are_served(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    hosts = ["127.0.0.1"]
    if socket.has_ipv6 and Path("/proc/net/if_inet6").read_text():
        hosts.append("::1")
    command, environ = [sys.executable, "serve.py"], {"PORT": str(port)}
    with Server(data_dir, command=command, environ=environ) as server:
        for host in hosts:
            with socket.create_connection((host, port), PATIENCE_SECONDS) as sock:
                sock.sendall(cli_event(1, CLOSE))
                assert read_answer(sock).status == 204

    assert [one["ip"] for one in server.events()] == hosts


@pytest.mark.parametrize(
    "argument",
    [
        "--access-logfile=-",
        "--proxy-protocol=auto",
        f"--certfile={__file__}",
        "--http2-cleartext=upgrade",
        "--limit-request-line=4000",
        "--limit-request-fields=50",
        "--header-map=dangerous",
        "--forwarder-headers=PATH_INFO",
        "--max-requests=1000",
    ],
)
def test_an_unsupported_setting_of_the_worker_stops_the_start_with_one_line(argument: str) -> None:
    ran = run(GUNICORN, "--bind=127.0.0.1:0", "--log-level=error", argument)

    assert ran.returncode != 0
    assert len(ran.stderr.splitlines()) == 1
    assert "not supported" in ran.stderr


# A stop.


def test_a_stop_refuses_new_connections_and_waits_for_requests_that_are_arriving(
    server: Server,
) -> None:
    assert server.send_cli().status == 204
    content = cli_event(1)
    with server.connect() as sock:
        sock.sendall(content[:-1])
        assert server.send("GET", "/healthz").status == 200  # the worker has read that
        server.process.terminate()
        wait_until(lambda: not accepts(server.port))
        sock.sendall(content[-1:])
        assert read_answer(sock).headers["connection"] == "close"

    assert server.stop() == 0
    assert len(server.lines()) == 2


def test_a_master_that_is_killed_alone_leaves_its_port_to_the_next_start(
    serve: Callable[..., Server],
) -> None:
    first = serve()
    with first.connect() as sock:
        sock.sendall(b"POST /cli HTTP/1.1\r\n")
        assert first.send_cli().status == 204
        first.process.kill()
        second = serve(f"--bind=127.0.0.1:{first.port}")
        assert second.send_cli().status == 204
    wait_until(lambda: not first.workers())


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS).close()
    except ConnectionRefusedError:
        return False
    return True


# Errors that end no worker.


def test_a_worker_that_cannot_start_threads_recovers_when_it_can(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    allowed = tmp_path / "allowed"
    server = serve(
        "--pythonpath=tests/support", f"--env=THREADS_ALLOWED={allowed}", "no_threads:app"
    )
    workers = booted(server)
    with server.connect() as partial:
        partial.sendall(b"POST /cli HTTP/1.1\r\n")
        assert [server.send_cli().status for _ in range(3)] == [503] * 3
    allowed.touch()

    assert server.send_cli().status == 204
    assert server.workers() == workers
    assert len(server.lines()) == 1


@pytest.mark.parametrize(
    "fault",
    [
        "epoll_ctl:error=ENOMEM:when=1..4",
        "epoll_ctl:error=ENOMEM:when=5+5",
        "epoll_wait:error=ENOMEM:when=3+9",
        "accept4:error=EMFILE:when=3+9",
        "accept4:error=ECONNABORTED:when=3+9",
        "recvfrom:error=EIO:when=3+9",
        "sendto:error=EIO:when=3+9",
        "shutdown:error=ENOTCONN",
    ],
)
def test_an_error_of_a_system_call_costs_one_connection_at_most(data_dir: Path, fault: str) -> None:
    tracer = [program("strace"), "-f", "-qq", "-o", "/dev/null"]
    filters = ["-e", f"trace={fault.partition(':')[0]}", "-e", f"inject={fault}"]
    with Server(data_dir, launcher=[*tracer, *filters]) as server:
        with Load(server, clients=4) as load:
            load.wait_for(204, 20)
        assert load.projects() <= {one["payload"]["projectId"] for one in server.events()}
        for _ in range(9):
            with contextlib.suppress(OSError):  # that one was reset
                assert server.send("POST", "/cli", [CLOSE], b" " * 2**17).status in (413, 503, 0)
        assert sum("Booting worker" in line for line in server.log) == 1


def test_an_error_in_the_loop_ends_one_connection_and_not_the_worker(
    serve: Callable[..., Server],
) -> None:
    server = serve("--pythonpath=tests/support", "--worker-class=faulty_worker.FaultyWorker")
    workers = booted(server)
    with server.connect() as sock:
        sock.sendall(b"FAULT")
        assert statuses(sock) == []
    with Load(server, clients=4) as load:
        load.wait_for(204)

    assert server.workers() == workers


def test_a_worker_has_at_most_three_threads(server: Server) -> None:
    with Load(server, clients=16) as load:
        load.wait_for(204)
        (worker,) = server.workers()
        assert len(list(Path(f"/proc/{worker}/task").iterdir())) <= 3


def test_nothing_is_imported_by_a_request(data_dir: Path) -> None:
    """A worker may run as a user who cannot read the Python installation."""
    with Server(data_dir, launcher=["env", "PYTHONPROFILEIMPORTTIME=1"]) as server:
        wait_until(lambda: any("Booting worker" in line for line in server.log))
        for answer in every_kind_of_answer(server):
            assert answer.status < 500
        server.stop()
    booted = next(n for n, line in enumerate(server.log) if "Booting worker" in line)

    assert [line for line in server.log[booted:] if "import time" in line] == []


def every_kind_of_answer(server: Server) -> Iterator[Answer]:
    origin = [("Origin", "https://\u00e4.example"), ("User-Agent", "Mozilla/5.0 Firefox/1")]
    yield server.send_core(origin)
    yield server.send_cli()
    yield server.send_cli([("DNT", "1")])
    yield server.send_cli(nodeVersion=1)
    yield server.send("GET", "/?payload=x")
    for target in ("/", "/healthz", "/nope"):
        yield server.send("GET", target)
    yield server.send("OPTIONS", "/cli")
    yield server.raw(b"junk\r\n\r\n")


# What a system may lack.


@pytest.mark.parametrize(
    ("code", "worker"),
    [
        ("import sys; sys.modules['httptools'] = None", "gthread"),
        ("import select; del select.epoll", "gthread"),
        ("import select; del select.EPOLLEXCLUSIVE", "RoundWorker"),
        ("import socket; del socket.TCP_DEFER_ACCEPT", "RoundWorker"),
    ],
)
def test_what_is_missing_is_done_without(
    data_dir: Path, tmp_path: Path, code: str, worker: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(code)
    with Server(data_dir, launcher=["env", f"PYTHONPATH={tmp_path}"]) as server:
        check_other_server(server)
        server.stop()
    assert any(f"Using worker: {worker}" in line for line in server.log)
    assert sum("for trying" in line for line in server.log) == (worker == "gthread")


# The same application under other servers.


def check_other_server(server: Server) -> None:
    """Store what is acknowledged, refuse what is not valid, and tell the health."""
    with Load(server, clients=8) as load:
        load.wait_for(204)
    assert sorted(load.projects()) == server.projects()
    assert server.send_core().status == 204
    answer = server.send_cli(nodeVersion=1)
    assert (answer.status, json.loads(answer.body)["field"]) == (400, "nodeVersion")
    assert server.send("GET", "/healthz").status == 200


@pytest.mark.parametrize(
    "arguments", [["--worker-class=gthread", "--threads=4"], ["--worker-class=sync"]]
)
def test_the_application_runs_under_gunicorns_own_workers(
    serve: Callable[..., Server], arguments: list[str]
) -> None:
    check_other_server(serve(*arguments))


def test_the_application_runs_under_waitress(data_dir: Path) -> None:
    command = f"{sys.executable} -m waitress --listen=127.0.0.1:0 --call app:create_app"
    with Server(data_dir, command=command.split()) as server:
        check_other_server(server)
