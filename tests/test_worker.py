"""The worker's side of the contract: connections, in whatever way clients use them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server import (
    CLI,
    GUNICORN,
    PATIENCE_SECONDS,
    ROOT,
    Answer,
    Load,
    Server,
    read_answer,
    request,
    wait_until,
)

GOOD = json.dumps(CLI).encode()
CLOSE = ("Connection", "close")
CHUNKED = ("Transfer-Encoding", "chunked")
AT_ONCE_SECONDS = 2
NOISE_SECONDS = 2  # a busy machine


def event(number: int = 0, *headers: tuple[str, str]) -> bytes:
    body = json.dumps(CLI | {"projectId": str(number)}).encode()
    return request("POST", "/cli", headers, body)


def projects(server: Server) -> list[str]:
    return sorted(one["payload"]["projectId"] for one in server.events())


def statuses(sock: socket.socket) -> list[int]:
    """Read to the end of the connection and return the status of each response."""
    received = b"".join(iter(lambda: sock.recv(2**16), b""))
    return [int(part.split()[0]) for part in received.split(b"HTTP/1.1 ")[1:]]


def booted(server: Server) -> list[int]:
    wait_until(server.workers)
    return server.workers()


def assert_answered_at_once(server: Server) -> None:
    began = time.monotonic()
    assert server.send_cli().status == 204
    assert time.monotonic() - began < AT_ONCE_SECONDS + NOISE_SECONDS


# Several requests on one connection.


def test_pipelined_requests_are_answered_in_their_order(server: Server) -> None:
    sent = [
        event(1),
        request("GET", "/healthz"),
        event(2),
        request("GET", "/nope"),
        event(3, CLOSE),
    ]
    with server.connect() as sock:
        sock.sendall(b"".join(sent))
        assert statuses(sock) == [204, 200, 204, 404, 204]

    assert projects(server) == ["1", "2", "3"]


def test_a_client_that_has_stopped_sending_gets_all_its_responses(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(event(1) + event(2) + event(3))
        sock.shutdown(socket.SHUT_WR)
        assert statuses(sock) == [204, 204, 204]

    assert projects(server) == ["1", "2", "3"]


def test_a_connection_serves_the_next_request_after_a_rejected_one(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(request("POST", "/cli", body=b"{}") + request("POST", "/nope", body=GOOD))
        sock.sendall(event(1, CLOSE))
        assert statuses(sock) == [400, 404, 204]


def test_an_idle_connection_is_closed_and_a_used_one_is_not(serve: Callable[..., Server]) -> None:
    server = serve("--keep-alive=1")
    with server.connect() as sock:
        sock.sendall(event(1))
        assert read_answer(sock).headers["connection"] == "keep-alive"
        assert sock.recv(1) == b""


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
    content = event(1, *headers).replace(b"HTTP/1.1", b"HTTP/" + version.encode())
    with server.connect() as sock:
        sock.sendall(content)
        answer = read_answer(sock)

    assert (answer.status, answer.headers["connection"]) == (204, connection)


# Bodies in chunks.


def in_chunks(size: int, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    parts = [GOOD[at : at + size] for at in range(0, len(GOOD), size)]
    chunks = [b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts]
    return b"".join(chunks) + b"0\r\n" + trailers + b"\r\n"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(in_chunks(1000), id="one chunk"),
        pytest.param(in_chunks(7), id="several"),
        pytest.param(in_chunks(1), id="a byte each"),
        pytest.param(in_chunks(10, b";a=b"), id="with extensions"),
        pytest.param(in_chunks(10, b"", b"X: y\r\nZ: 1\r\n"), id="with trailers"),
    ],
)
def test_a_chunked_event_is_stored_however_it_is_split_into_packets(
    server: Server, body: bytes
) -> None:
    content = request("POST", "/cli", [CHUNKED], body) + event(1, CLOSE)
    cuts = range(1, len(content), max(1, len(content) // 40))
    for cut in cuts:
        with server.connect() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(content[:cut])
            assert (
                server.send("GET", "/healthz").status == 200
            )  # the worker has seen the first part
            sock.sendall(content[cut:])
            assert statuses(sock) == [204, 204], f"cut at {cut}"

    assert len(server.lines()) == 2 * len(cuts)


def test_a_request_that_comes_byte_by_byte_is_one_event(server: Server) -> None:
    content = request("POST", "/cli", [CHUNKED, CLOSE], in_chunks(9))
    with server.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for n in range(len(content)):
            sock.sendall(content[n : n + 1])
        assert read_answer(sock).status == 204

    assert len(server.lines()) == 1


@pytest.mark.parametrize(
    "body",
    [b"5\r\nhello", b"zz\r\n", b"-5\r\nhello\r\n0\r\n\r\n", b"5\r\nhelloX\r\n0\r\n\r\n", b"_5\r\n"],
)
def test_broken_chunks_are_a_400_and_end_the_connection(server: Server, body: bytes) -> None:
    with server.connect() as sock:
        sock.sendall(request("POST", "/cli", [CHUNKED], body))
        sock.shutdown(socket.SHUT_WR)
        assert statuses(sock) == [400]

    assert server.lines() == []


# More than the worker keeps.


def test_a_full_worker_drops_the_connection_that_has_waited_longest(
    serve: Callable[..., Server],
) -> None:
    server = serve("--worker-connections=10")
    connections = [server.connect() for _ in range(15)]
    for connection in connections:
        connection.sendall(b"POST /cli HTTP/1.1\r\n")
    assert_answered_at_once(server)

    assert statuses(connections[0]) == [503]
    connections[-1].sendall(
        f"Content-Length: {len(GOOD)}\r\n{': '.join(CLOSE)}\r\n\r\n".encode() + GOOD
    )
    assert statuses(connections[-1]) == [204]
    for connection in connections:
        connection.close()


def test_the_memory_of_incomplete_bodies_is_bounded_in_total(server: Server) -> None:
    """Four hundred bodies of 60 KiB, each without its last byte, are over 16 MiB."""
    head = request("POST", "/cli", [("Content-Length", str(60 * 1024 + 1))])
    connections = []
    for _ in range(400):
        connections.append(server.connect())
        connections[-1].sendall(head + b" " * 60 * 1024)
    assert_answered_at_once(server)
    (worker,) = server.workers()
    status = Path(f"/proc/{worker}/status").read_text()
    peak_kib = int(status.split("VmHWM:")[1].split()[0])

    assert peak_kib < 150 * 1024
    for connection in connections:
        connection.close()
    assert_answered_at_once(server)


def test_a_client_that_never_reads_its_responses_is_dropped(server: Server) -> None:
    with server.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                sock.sendall(request("GET", "/"))
        assert_answered_at_once(server)


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
            sock.sendall(event(1, CLOSE, ("X-Forwarded-For", "198.51.100.7")))
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
    server = Server(data_dir, launcher=launcher)
    try:
        assert server.port == port
        assert server.send_cli().status == 204
        assert server.stop() == 0
    finally:
        server.kill()


def test_with_port_both_families_are_served(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "serve.py"],
        cwd=ROOT,
        env={**os.environ, "PORT": str(port), "TELEMETRY_DATA_DIR": str(data_dir)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def answers(host: str) -> bool:
        try:
            sock = socket.create_connection((host, port), PATIENCE_SECONDS)
        except ConnectionRefusedError:
            return False
        with sock:
            sock.sendall(event(1, CLOSE))
            return read_answer(sock).status == 204

    try:
        wait_until(lambda: answers("127.0.0.1"))
        if socket.has_ipv6 and Path("/proc/net/if_inet6").read_text():
            assert answers("::1")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)
    (path,) = data_dir.glob("events-*")
    ips = {json.loads(line)["ip"] for line in path.read_text().splitlines()}
    assert ips <= {"127.0.0.1", "::1"}


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
    ran = subprocess.run(
        [GUNICORN, "--bind", "127.0.0.1:0", "--log-level=error", argument],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )

    assert ran.returncode != 0
    assert len(ran.stderr.splitlines()) == 1
    assert "not supported" in ran.stderr


# Errors that end no worker.


def test_a_worker_that_cannot_start_threads_recovers_when_it_can(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    allowed = tmp_path / "allowed"
    server = serve("--pythonpath=tests", f"--env=THREADS_ALLOWED={allowed}", "no_threads:app")
    workers = booted(server)
    with server.connect() as partial:
        partial.sendall(b"POST /cli HTTP/1.1\r\n")
        assert [server.send_cli().status for _ in range(3)] == [503] * 3
    allowed.touch()

    assert server.send_cli().status == 204
    assert server.workers() == workers
    assert len(server.lines()) == 1


def test_an_error_in_the_loop_ends_one_connection_and_not_the_worker(
    serve: Callable[..., Server],
) -> None:
    server = serve("--pythonpath=tests", "--worker-class=faulty_worker.FaultyWorker")
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
    server = Server(data_dir, launcher=["env", "PYTHONPROFILEIMPORTTIME=1"])
    try:
        wait_until(lambda: any("Booting worker" in line for line in server.log))
        for answer in every_kind_of_answer(server):
            assert answer.status < 500
        server.stop()
    finally:
        server.kill()
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


# The same application under other servers.


def check_other_server(server: Server) -> None:
    """Store what is acknowledged, refuse what is not valid, and tell the health."""
    with Load(server, clients=8) as load:
        load.wait_for(204)
    assert sorted(load.projects()) == projects(server)
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
    waitress = [
        sys.executable,
        "-m",
        "waitress",
        "--listen=127.0.0.1:0",
        "--call",
        "app:create_app",
    ]
    server = Server(data_dir, command=waitress)
    try:
        check_other_server(server)
    finally:
        server.kill()
