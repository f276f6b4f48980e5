"""The shipped nginx and Caddy sites in front of a real gunicorn, with TLS.

    STEADY_SECONDS=600 pytest -s -o faulthandler_timeout=900 -k steady tests/deploy

runs ten minutes instead of three seconds.
"""

import contextlib
import functools
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from proxies import (
    Caddy,
    Front,
    Nginx,
    NginxBehindCdn,
    free_port,
)
from server import (
    CHUNKED,
    CLI,
    COMMON_HEADERS,
    Load,
    Server,
    assert_answered_at_once,
    chunked,
    cli_event,
    core_payload,
    read_answer,
    request,
    wait_until,
)

pytestmark = pytest.mark.slow

STEADY_SECONDS = int(os.environ.get("STEADY_SECONDS", "3"))
FORGED = [("X-Forwarded-For", "6.6.6.6"), ("Forwarded", "for=6.6.6.6"), ("X-Real-IP", "6.6.6.6")]
HEADERS = COMMON_HEADERS | {"content-type": "application/problem+json"}

StartFront = Callable[..., Front]


@pytest.fixture(scope="module")
def start(running_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartFront]:
    """Start a proxy before the server, or before another port; each only once."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start(kind: type[Front], port: int = running_server.port) -> Front:
            front = kind(running_server.data_dir, port, tmp_path_factory.mktemp(kind.__name__))
            stack.callback(front.stop)
            return front

        yield start


@pytest.fixture(params=[Nginx, Caddy])
def kind(request: pytest.FixtureRequest) -> type[Front]:
    kind: type[Front] = request.param
    return kind


@pytest.fixture
def front(start: StartFront, kind: type[Front], shared_server: Server) -> Front:
    return start(kind)


@pytest.fixture
def nginx(start: StartFront, shared_server: Server) -> Front:
    return start(Nginx)


def test_every_kind_of_event_has_the_clients_real_address(front: Front) -> None:
    core = core_payload()
    requests = [
        request("GET", f"/telemetry?payload={core}", FORGED),
        request("POST", "/", FORGED, core.encode()),
        request("POST", "/cli", FORGED, json.dumps(CLI).encode()),
    ]

    answers = [front.raw(sent, "127.0.0.77") for sent in requests]

    assert [answer.status for answer in answers] == [200, 204, 204]
    assert {answer.headers["x-telemetry-outcome"] for answer in answers} == {"stored"}
    assert [event["ip"] for event in front.events()] == ["127.0.0.77"] * 3


def test_the_longest_accepted_head_passes_the_proxy(front: Front) -> None:
    target = f"/?payload={core_payload(unknown='x' * 40_000)}"
    cookies = [("Cookie", "x" * 60_000)]

    for sent in (
        request("GET", target),
        request("POST", "/cli", cookies, json.dumps(CLI).encode()),
    ):
        assert front.raw(sent).headers["x-telemetry-outcome"] == "stored"
    assert front.raw(request("GET", f"{target}&{'x' * 2**16}")).status in (414, 431)


@pytest.mark.parametrize("size", [64 * 1024 + 1, 2**18])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_over_the_limit_gets_a_413_with_its_detail(
    front: Front, framing: str, size: int
) -> None:
    """Over 128 KiB nginx says so itself."""
    body = b"x" * size
    sent = request("POST", "/cli", body=body)
    if framing == "chunks":
        sent = request("POST", "/cli", [CHUNKED], chunked(body))

    answer = front.raw(sent)

    assert (answer.status, answer.headers["x-telemetry-outcome"]) == (413, "refused")
    assert json.loads(answer.body)["detail"] == "body: want at most 65536 bytes, got more."
    assert answer.headers.items() >= HEADERS.items()
    assert "retry-after" not in answer.headers


def test_without_a_running_collector_the_proxy_responds_503_with_retry_after(
    start: StartFront, kind: type[Front]
) -> None:
    front = start(kind, free_port())

    answer = front.raw(cli_event(), "127.0.0.99")

    assert (answer.status, answer.headers["x-telemetry-outcome"]) == (503, "failed")
    assert answer.headers["retry-after"] == "30"
    assert answer.headers.items() >= HEADERS.items()
    assert json.loads(answer.body)["status"] == 503
    assert "127.0.0.99" not in front.logs()


def test_the_reports_page_is_served_once_it_is_there(front: Front) -> None:
    assert front.send("GET", "/report.html").status == 404

    (front.directory / "report.html").write_text("<!doctype html><p>\u2585", encoding="utf-8")
    answer = front.send("GET", "/report.html")

    assert (answer.status, answer.body) == (200, "<!doctype html><p>\u2585".encode())
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert front.events() == []
    assert front.send("GET", "/").status == 200  # the collector's own


def test_a_flood_is_limited_and_others_are_not(nginx: Front) -> None:
    answers = []
    for _ in range(4):
        answers += nginx.answers([cli_event()] * 99, "127.0.0.66")
    other = nginx.raw(cli_event(), "127.0.0.67")

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


def test_behind_a_cdn_each_client_has_its_own_address_and_limit(
    start: StartFront, shared_server: Server
) -> None:
    nginx = start(NginxBehindCdn)
    clients = [f"203.0.113.{n}" for n in range(250)]
    requests = [cli_event(0, ("X-Forwarded-For", f"6.6.6.6, {client}")) for client in clients]
    for first in range(0, 250, 50):
        answers = nginx.answers(requests[first : first + 50], "127.0.0.9")
        assert {answer.status for answer in answers} == {204}  # the limit takes about 100

    assert sorted(event["ip"] for event in nginx.events()) == sorted(clients)


def test_slow_clients_delay_nobody_behind_nginx(nginx: Front) -> None:
    with nginx.connections(64, request("POST", "/cli", [("Content-Length", "100")], b"{")):
        assert_answered_at_once(nginx)


def test_no_log_of_the_proxy_holds_an_address_or_a_payload(front: Front) -> None:
    def send(sent: bytes) -> int:
        return front.raw(sent, "127.0.0.99").status

    assert send(request("POST", "/cli", body=b"findme")) == 400
    assert send(request("GET", "/findme")) == 404
    assert send(b"findme\r\n\r\n") == 400
    assert send(request("GET", "/" + "findme" * 15_000)) in (414, 431)
    send(request("POST", "/cli", body=b"findme" * 50_000))
    with socket.create_connection(("127.0.0.1", front.port), source_address=("127.0.0.99", 0)) as s:
        s.sendall(b"no TLS at all, findme")
        s.recv(100)
    event = json.dumps(CLI | {"projectId": "findme"}).encode()
    for _ in range(3):  # nginx limits them at the end
        front.answers([request("POST", "/cli", body=event)] * 50, "127.0.0.99")

    assert "127.0.0.99" not in front.logs()
    assert "findme" not in front.logs()


def test_without_tls_nothing_is_accepted_or_redirected(nginx: Front) -> None:
    with socket.create_connection(("127.0.0.1", nginx.plain_port)) as sock:
        sock.sendall(cli_event())
        answer = read_answer(sock)

    assert answer.status == 404
    assert nginx.events() == []


def test_kills_and_reloads_under_steady_load_lose_no_event_and_fail_no_request(
    serve: Callable[..., Server], start: StartFront
) -> None:
    """The proxy repeats the requests of a killed worker."""
    server = serve("--workers=2", TRUSTED_PROXIES="127.0.0.1")
    nginx = start(Nginx, server.port)
    kills = 0
    end = time.monotonic() + STEADY_SECONDS
    with Load(nginx, clients=8) as load:
        while time.monotonic() < end:
            wait_until(lambda: len(server.workers()) == 2)
            os.kill(server.workers()[kills % 2], signal.SIGKILL)
            kills += 1
            load.wait_for(204)
            server.process.send_signal(signal.SIGHUP)
            load.wait_for(204)

    stored = Counter(server.projects())
    slowest = max(sent.seconds for sent in load.sent)
    print(
        f"\n{kills} kills and reloads, answers {dict(load.statuses)}, {len(stored)} events stored, "
        f"{stored.total() - len(stored)} of them twice, slowest answer {slowest:.2f} s"
    )
    assert set(load.statuses) == {204}
    assert load.projects() == set(stored)
