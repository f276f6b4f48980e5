"""Any bytes on a real socket: the documented response, below 500, and no broken line."""

import json
import math
import os
import random
import socket
import time
from http import HTTPStatus
from pathlib import Path

import pytest

from server import (
    CHUNKED,
    CLI,
    CLOSE,
    COMMON_HEADERS,
    Answer,
    Server,
    chunked,
    core_payload,
    read_answer,
    read_next,
    request,
    wait_until,
)

FUZZ_SECONDS = int(os.environ.get("FUZZ_SECONDS", "5"))
GOOD = json.dumps(CLI).encode()


def assert_refused(server: Server, answer: Answer, status: int, *sources: str | None) -> None:
    """Check the response, that no event was stored, and the refused line that says the same."""
    assert answer.status == status
    assert COMMON_HEADERS.items() <= answer.headers.items()
    assert answer.headers["x-telemetry-outcome"] == "refused"
    assert answer.headers["content-type"] == "application/problem+json"
    problem = json.loads(answer.body)
    assert (problem["status"], problem["title"]) == (status, HTTPStatus(status).phrase)
    assert server.lines() == []
    assert ("allow" in answer.headers) == (status == 405)
    if status not in (404, 405):  # these leave no line
        kept = {"status": status, "field": problem.get("field"), "detail": problem["detail"]}
        wanted = [kept | {"source": source} for source in sources]
        wait_until(lambda: any(line in wanted for line in refused(server)))


def refused(server: Server) -> list[dict[str, object]]:
    """Return the refused lines without their times."""
    lines = [json.loads(line) for line in server.lines("refused-*")]
    return [{name: line[name] for name in line if name != "received_at"} for line in lines]


CL = "Content-Length"
BODIES = [
    pytest.param(GOOD.ljust(65_536), [], 204, id="64 KiB"),
    pytest.param(GOOD.ljust(65_537), [], 413, id="64 KiB and a byte"),
    pytest.param(chunked(GOOD.ljust(65_536)), [CHUNKED], 204, id="64 KiB chunked"),
    pytest.param(chunked(GOOD.ljust(65_537)), [CHUNKED], 413, id="a byte more, chunked"),
    pytest.param(chunked(GOOD[:9], GOOD[9:]), [CHUNKED], 204, id="two chunks"),
    pytest.param(chunked(GOOD, end=b""), [CHUNKED], 400, id="no last chunk"),
    pytest.param(b"5\r\n{}", [CHUNKED], 400, id="chunk cut short"),
    pytest.param(b"zz\r\n{}\r\n0\r\n\r\n", [CHUNKED], 400, id="chunk size not hex"),
    pytest.param(GOOD, [(CL, str(len(GOOD) + 1))], 400, id="a byte short"),
    pytest.param(GOOD, [(CL, f"\t{len(GOOD)} ")], 204, id="length between white space"),
    pytest.param(GOOD, [(CL, "0")], 400, id="said to be empty"),
    pytest.param(GOOD, [(CL, "+9")], 400, id="length with a sign"),
    pytest.param(GOOD, [(CL, "9" * 30)], 400, id="enormous length"),
    pytest.param(GOOD, [(CL, "9" * 18)], 413, id="large length"),
    pytest.param(GOOD, [(CL, "1"), (CL, "2")], 400, id="two lengths"),
    pytest.param(GOOD, [(CL, "5"), CHUNKED], 400, id="length and chunked"),
    pytest.param(
        chunked(GOOD), [("Transfer-Encoding", "gzip, chunked")], 415, id="gzip below the chunks"
    ),
    pytest.param(GOOD, [("Content-Encoding", "gzip")], 415, id="gzip"),
    pytest.param(GOOD, [("Content-Encoding", "identity")], 204, id="identity is none"),
    pytest.param(b"[" * 60_000, [], 400, id="deep nesting"),
    pytest.param(GOOD[:-1] + b',"x":1e999}', [], 204, id="a float past all, in no field of ours"),
]


@pytest.mark.parametrize(("body", "headers", "status"), BODIES)
def test_a_hostile_body_gets_the_documented_response(
    shared_server: Server, body: bytes, headers: list[tuple[str, str]], status: int
) -> None:
    answer = shared_server.send("POST", "/cli", headers, body)

    if status == 204:
        assert answer.status == 204
        assert [event["source"] for event in shared_server.events()] == ["cli"]
    else:
        assert_refused(shared_server, answer, status, "cli", None)


HEADS = [
    pytest.param(
        b"GET /?payload=" + b"A" * 2**16 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, id="long"
    ),
    pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 2**16 + b"\r\n\r\n", 431, id="big"),
    pytest.param(b"GET / HTTP/1.1\r\nX: " + b"a" * 2**18, 431, id="endless"),
    pytest.param(b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 11_000 + b"\r\n", 431, id="many headers"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", 400, id="NUL in a header"),
    pytest.param(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400, id="space before the colon"),
    pytest.param(b"POST /cli HTTP/1.1\r\nContent-Len", 400, id="cut off"),
    pytest.param(b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400, id="unknown version"),
    pytest.param(b"GET http://[ HTTP/1.1\r\n\r\n", 400, id="invalid address in the target"),
    pytest.param(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="CONNECT"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, id="TLS"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="HTTP/2"),
    pytest.param(b"GET /%00%ff/../..//etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404, id="path"),
    pytest.param(request("GET", "/nothing"), 404, id="no such route"),
    pytest.param(request("TRACE", "/"), 405, id="TRACE"),
    pytest.param(request("GET", "/cli"), 405, id="GET where there is only POST"),
    pytest.param(request("POST", "/healthz"), 405, id="POST where there is only GET"),
    pytest.param(b"GET /?payload=%00%ff%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="bad escapes"),
    pytest.param(b"GET /?payload= HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="empty payload"),
]


@pytest.mark.parametrize(("head", "status"), HEADS)
def test_a_hostile_head_gets_the_documented_response(
    shared_server: Server, head: bytes, status: int
) -> None:
    reached_a_route = status == 400 and head.startswith(b"GET /?payload=")

    assert_refused(
        shared_server, shared_server.raw(head), status, "core" if reached_a_route else None
    )


@pytest.mark.parametrize("host", ["a..b", ".", "a" * 64, "[", "é", ""])
def test_no_request_depends_on_its_host(shared_server: Server, host: str) -> None:
    head = f"OPTIONS /cli HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    event = f"POST /cli HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(GOOD)}\r\n\r\n"

    assert shared_server.raw(head.encode()).status == 204
    assert shared_server.raw(event.encode() + GOOD).status == 204
    assert len(shared_server.lines()) == 1


@pytest.mark.parametrize(
    "value",
    ["", "x" * 8000, "\x9b31m\x80", "é" * 3000, "," * 8000, "[" * 8000, "http://" + "." * 7000],
    ids=["empty", "8 KB", "C1 controls", "UTF-8", "commas", "brackets", "dots"],
)
def test_headers_of_any_content_do_no_harm(shared_server: Server, value: str) -> None:
    on_the_wire = value.encode("latin-1" if "\x9b" in value else "utf-8").decode("latin-1")
    names = ["User-Agent", "Origin", "Referer", "X-Forwarded-For", "DNT", "Sec-GPC", "SCRIPT_NAME"]

    assert shared_server.send_core([(name, on_the_wire) for name in names]).status == 204
    (line,) = shared_server.lines()
    assert all(32 <= byte < 127 for byte in line)


@pytest.mark.parametrize("size", [2**16 + 1, 2**18, 2**23])
def test_a_body_that_is_too_long_is_answered_without_a_reset(
    running_server: Server, size: int
) -> None:
    """A reset could overtake the response."""
    with running_server.connect() as sock:
        sock.sendall(request("POST", "/cli", [CLOSE], b" " * size))

        assert read_answer(sock).status == 413
        assert sock.recv(1) == b""


@pytest.mark.parametrize("body", [b"zz\r\n", b"2\r\n{}XX0\r\n\r\n"])
@pytest.mark.parametrize(("path", "status"), [("/nope", 404), ("/healthz", 405), ("/cli", 400)])
def test_bytes_after_a_broken_body_are_not_read_as_a_request(
    running_server: Server, path: str, status: int, body: bytes
) -> None:
    sent = request("POST", path, [CHUNKED], body) + request("GET", "/healthz")
    with running_server.connect() as sock, sock.makefile("rb") as stream:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)

        assert read_next(stream).status == status
        assert stream.read() == b""


# Random requests, for FUZZ_SECONDS; TEST_SEED repeats a run.


def good_requests() -> list[bytes]:
    core = core_payload()
    return [
        request("POST", "/cli", body=GOOD),
        request("POST", "/cli", [CHUNKED], chunked(GOOD)),
        request("POST", "/", [("Origin", "https://a.example")], core.encode()),
        request("GET", f"/?payload={core}", [("Referer", "https://a.example/x")]),
        request("GET", "/telemetry?payload=x", [("User-Agent", "Mozilla/5.0 Firefox/128.0")]),
        request("GET", "/", [("DNT", "1")]),
        request("OPTIONS", "/cli", [("Access-Control-Request-Method", "POST")]),
    ]


PIECES = [b"\0", b"\r\n", b"\n", b":", b"{", b"[" * 999, b'"', b"\\ud800", b"%", b"=", b"\xff"]
PIECES += [b"9" * 999, b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"NaN", b"\x9b"]


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Change a few places: a byte, a piece more, a part less, a part twice."""
    for _ in range(chance.randrange(4)):
        at, length = chance.randrange(len(content) + 1), chance.randrange(40)
        part, rest = content[at : at + length], content[at + length :]
        piece = chance.choice(PIECES)
        changed = chance.choice([b"", part + part, piece, piece + part, bytes(reversed(part))])
        content = content[:at] + changed + rest
    return content


def resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


@pytest.mark.slow
def test_whatever_is_sent_is_answered_below_500_and_breaks_no_line(server: Server) -> None:
    seed = int(os.environ.get("TEST_SEED", time.time_ns() % 2**32))
    print(f"TEST_SEED={seed}")
    chance = random.Random(seed)
    wait_until(server.workers)
    (worker,) = server.workers()
    stored = sent = memory_kib = 0
    until = time.monotonic() + FUZZ_SECONDS
    while time.monotonic() < until:
        content = mutate(chance.choice(good_requests()), chance)
        answer = server.raw(content)
        sent += 1
        assert answer.status < 500, content
        assert answer.status not in range(300, 400), content
        assert "set-cookie" not in answer.headers, content
        if sent == 500:
            memory_kib = resident_kib(worker)
        stored += answer.headers.get("x-telemetry-outcome") == "stored"

    assert resident_kib(worker) < (memory_kib or math.inf) + 8 * 1024
    lines = server.lines()
    assert 0 < stored <= len(lines) < sent
    for line in lines:
        assert all(32 <= byte < 127 for byte in line)
        assert json.loads(line)["source"] in ("core", "cli")
    assert server.stop() == 0
    assert not [entry for entry in server.log if "Traceback" in entry or "ERROR" in entry]
    print(f"{sent} requests, {stored} stored")
