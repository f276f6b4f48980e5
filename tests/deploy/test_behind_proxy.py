"""The shipped nginx and Caddy sites in front of a real gunicorn, with TLS.

    STEADY_SECONDS=600 pytest -s -o faulthandler_timeout=900 -k steady tests/deploy

runs ten minutes instead of fifteen seconds, and kills a worker every twenty.
"""

import fcntl
import json
import os
import signal
import socket
import threading
import time
import uuid
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from proxies import Caddy, Front, Nginx, NginxBehindCdn
from server import (
    CLI,
    COMMON_HEADERS,
    CORE,
    Answer,
    Load,
    Sent,
    Server,
    read_answer,
    request,
    wait_until,
)

pytestmark = pytest.mark.slow

STEADY_SECONDS = int(os.environ.get("STEADY_SECONDS", "9"))
KILL_EVERY_SECONDS = 20 if STEADY_SECONDS >= 60 else 3
FORGED = [("X-Forwarded-For", "6.6.6.6"), ("Forwarded", "for=6.6.6.6"), ("X-Real-IP", "6.6.6.6")]
HEADERS = COMMON_HEADERS | {"content-type": "application/problem+json"}

StartFront = Callable[..., Front]


@pytest.fixture
def behind(
    serve: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartFront]:
    """Start a server, and a proxy before it."""
    fronts: list[Front] = []

    def start(kind: type[Front], *arguments: str) -> Front:
        server = serve(*arguments, TRUSTED_PROXIES="127.0.0.1")
        fronts.append(kind(server, tmp_path_factory.mktemp(kind.__name__)))
        return fronts[-1]

    yield start
    for front in fronts:
        front.stop()


@pytest.fixture(params=[Nginx, Caddy])
def front(request: pytest.FixtureRequest, behind: StartFront) -> Front:
    return behind(request.param)


@pytest.fixture
def nginx(behind: StartFront) -> Front:
    return behind(Nginx)


def test_every_kind_of_event_has_the_clients_real_address(front: Front) -> None:
    core = b64encode(json.dumps(CORE).encode())
    requests = [
        request("GET", f"/telemetry?payload={core.decode()}", FORGED),
        request("POST", "/", FORGED, core),
        request("POST", "/cli", FORGED, json.dumps(CLI).encode()),
    ]

    answers = [front.raw(sent, "127.0.0.77") for sent in requests]

    assert [answer.status for answer in answers] == [200, 204, 204]
    assert {answer.headers["x-telemetry-outcome"] for answer in answers} == {"stored"}
    assert [event["ip"] for event in front.events()] == ["127.0.0.77"] * 3


def test_the_longest_accepted_head_passes_the_proxy(front: Front) -> None:
    payload = b64encode(json.dumps(CORE).encode() + b" " * 40_000).decode()
    target = f"/?payload={payload}"
    cookies = [("Cookie", "x" * 60_000)]

    for sent in (
        request("GET", target),
        request("POST", "/cli", cookies, json.dumps(CLI).encode()),
    ):
        assert front.raw(sent).headers["x-telemetry-outcome"] == "stored"
    assert front.raw(request("GET", f"{target}&{'x' * 2**16}")).status in (414, 431)


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_over_the_limit_gets_a_413_with_its_detail(front: Front, framing: str) -> None:
    body = b"x" * (64 * 1024 + 1)
    headers = []
    if framing == "chunks":
        headers = [("Transfer-Encoding", "chunked")]
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)

    answer = front.raw(request("POST", "/cli", headers, body))

    assert (answer.status, answer.headers["x-telemetry-outcome"]) == (413, "refused")
    assert json.loads(answer.body)["detail"] == "body: want at most 65536 bytes, got more."
    assert answer.headers.items() >= HEADERS.items()


def test_a_body_that_nginx_rejects_gets_the_collectors_response(nginx: Front) -> None:
    answer = nginx.raw(request("POST", "/cli", body=b"x" * 2**18))

    assert (answer.status, answer.headers["x-telemetry-outcome"]) == (413, "refused")
    assert json.loads(answer.body)["detail"] == "body: want at most 65536 bytes, got more."
    assert answer.headers.items() >= HEADERS.items()
    assert "retry-after" not in answer.headers


def test_without_a_running_collector_the_proxy_responds_503_with_retry_after(front: Front) -> None:
    front.server.stop()

    answer = front.send_cli()

    assert (answer.status, answer.headers["x-telemetry-outcome"]) == (503, "failed")
    assert answer.headers["retry-after"] == "30"
    assert answer.headers.items() >= HEADERS.items()
    assert json.loads(answer.body)["status"] == 503


def test_the_reports_page_is_served_once_it_is_there(front: Front) -> None:
    assert front.send("GET", "/report.html").status == 404

    (front.directory / "report.html").write_text("<!doctype html><p>\u2585", encoding="utf-8")
    answer = front.send("GET", "/report.html")

    assert (answer.status, answer.body) == (200, "<!doctype html><p>\u2585".encode())
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert front.events() == []
    assert front.send("GET", "/").status == 200  # the collector's own


def test_a_flood_is_limited_and_others_are_not(nginx: Front) -> None:
    def send(source: str) -> Answer:
        return nginx.raw(request("POST", "/cli", body=json.dumps(CLI).encode()), source)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(send, ["127.0.0.66"] * 600))
    other = send("127.0.0.67")

    taken = Counter(answer.status for answer in answers)
    assert set(taken) == {204, 429}
    assert taken[204] >= 100  # what may come at once
    limited = next(answer for answer in answers if answer.status == 429)
    assert limited.headers["x-telemetry-outcome"] == "refused"
    assert limited.headers["retry-after"] == "5"
    assert limited.headers.items() >= HEADERS.items()
    assert json.loads(limited.body)["status"] == 429
    assert other.status == 204
    assert len(nginx.events()) == taken[204] + 1


def test_behind_a_cdn_each_client_has_its_own_address_and_limit(behind: StartFront) -> None:
    nginx = behind(NginxBehindCdn)

    def send(client: str) -> int:
        body = json.dumps(CLI).encode()
        forwarded = [("X-Forwarded-For", f"6.6.6.6, {client}")]
        return nginx.raw(request("POST", "/cli", forwarded, body), "127.0.0.9").status

    clients = [f"203.0.113.{n}" for n in range(250)]
    with ThreadPoolExecutor(16) as pool:
        statuses = set(pool.map(send, clients))

    assert statuses == {204}  # of one address, the limit takes about 100 at once
    assert sorted(event["ip"] for event in nginx.events()) == sorted(clients)


def test_slow_clients_delay_nobody_behind_nginx(nginx: Front) -> None:
    begun = request("POST", "/cli", [("Content-Length", "100")], b"{")
    slow = [nginx.connect() for _ in range(64)]
    try:
        for sock in slow:
            sock.sendall(begun)
        began = time.monotonic()
        assert nginx.send_cli().status == 204
        assert time.monotonic() - began < 5  # the slow ones have ten
    finally:
        for sock in slow:
            sock.close()


def test_no_log_of_the_proxy_holds_an_address_or_a_payload(front: Front) -> None:
    def send(sent: bytes) -> int:
        return front.raw(sent, "127.0.0.99").status

    cli = request("POST", "/cli", body=json.dumps(CLI | {"projectId": "findme"}).encode())
    assert send(cli) == 204
    assert send(request("POST", "/cli", body=b"findme")) == 400
    assert send(request("GET", "/findme")) == 404
    assert send(b"findme\r\n\r\n") == 400
    assert send(request("GET", "/" + "findme" * 15_000)) in (414, 431)
    send(request("POST", "/cli", body=b"findme" * 50_000))
    with socket.create_connection(("127.0.0.1", front.port), source_address=("127.0.0.99", 0)) as s:
        s.sendall(b"no TLS at all, findme")
        s.recv(100)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, [cli] * 200))
    front.server.stop()
    assert send(cli) == 503
    front.stop()

    assert "127.0.0.99" not in front.logs()
    assert "findme" not in front.logs()


def test_without_tls_nothing_is_accepted_or_redirected(nginx: Front) -> None:
    with socket.create_connection(("127.0.0.1", nginx.plain_port)) as sock:
        sock.sendall(request("POST", "/cli", body=json.dumps(CLI).encode()))
        answer = read_answer(sock)

    assert answer.status == 404
    assert nginx.events() == []


def test_nginx_repeats_the_requests_of_a_killed_worker(nginx: Front) -> None:
    assert nginx.send_cli(projectId="first").status == 204
    directory = os.open(nginx.data_dir, os.O_RDONLY)
    with ThreadPoolExecutor(8) as pool:
        fcntl.flock(directory, fcntl.LOCK_EX)  # nothing can be written
        try:
            answers = [pool.submit(nginx.send_cli, projectId=f"held-{n}") for n in range(8)]
            (worker,) = nginx.server.workers()
            wait_until(lambda: established(nginx.server.port) >= 8)
            os.kill(worker, signal.SIGKILL)
        finally:
            os.close(directory)
        assert [answer.result().status for answer in answers] == [204] * 8

    projects = Counter(event["payload"]["projectId"] for event in nginx.events())
    assert projects == Counter(["first", *(f"held-{n}" for n in range(8))])


def established(port: int) -> int:
    """Return how many connections the server on that port has established."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    local = f":{port:04X}"
    return sum(line.split()[1].endswith(local) and line.split()[3] == "01" for line in lines)


class SteadyLoad(Load):
    """Fifty events a second of every kind, whatever becomes of them."""

    PAUSE_SECONDS = 0.2

    def _send_events(self) -> None:
        while not self.stopping.wait(self.PAUSE_SECONDS):
            project, began = str(uuid.uuid4()), time.monotonic()
            core = b64encode(json.dumps(CORE | {"projectId": project}).encode())
            kind = len(self.sent) % 3
            try:
                if kind == 0:
                    answer = self.server.send("GET", f"/telemetry?payload={quote(core)}")
                elif kind == 1:
                    answer = self.server.send("POST", "/", body=core)
                else:
                    answer = self.server.send_cli(projectId=project)
            except ConnectionRefusedError:
                answer = Answer(-1, {}, b"")
            except OSError:
                answer = Answer(0, {}, b"")
            with self.changed:
                self.sent.append(Sent(project, began, time.monotonic() - began, answer))
                self.statuses[answer.status] += 1
                self.changed.notify_all()


def test_kills_and_reloads_under_steady_load_lose_no_event_and_fail_no_request(
    behind: StartFront,
) -> None:
    nginx = behind(Nginx, "--workers=2")
    wait_until(lambda: len(nginx.server.workers()) == 2)
    kills = reloads = 0
    end = time.monotonic() + STEADY_SECONDS
    with SteadyLoad(nginx, clients=10) as load:
        while time.monotonic() < end:
            os.kill(nginx.server.workers()[kills % 2], signal.SIGKILL)
            kills += 1
            pause(KILL_EVERY_SECONDS / 2)
            nginx.server.process.send_signal(signal.SIGHUP)
            reloads += 1
            pause(KILL_EVERY_SECONDS / 2)
            wait_until(lambda: len(nginx.server.workers()) == 2)

    stored = Counter(event["payload"]["projectId"] for event in nginx.events())
    acknowledged = load.projects(200) | load.projects(204)
    slowest = max(sent.seconds for sent in load.sent)
    print(
        f"\n{kills} kills, {reloads} reloads, answers {dict(load.statuses)}, {len(stored)} events "
        f"stored, {stored.total() - len(stored)} of them twice, slowest answer {slowest:.2f} s"
    )
    assert set(load.statuses) <= {200, 204, -1}
    assert acknowledged - set(stored) == set()
    assert len(acknowledged) >= STEADY_SECONDS * 10


def pause(seconds: float) -> None:
    """Let the load continue; this test is about time."""
    threading.Event().wait(seconds)
