"""Any bytes on a real socket: the documented response, below 500, and no broken line."""

import json
import socket

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

GOOD = json.dumps(CLI).encode()


def assert_refused(server: Server, answer: Answer, status: int, *sources: str | None) -> None:
    """Check the response, that no event was stored, and the refused line that says the same."""
    assert answer.status == status
    assert COMMON_HEADERS.items() <= answer.headers.items()
    assert answer.headers["x-telemetry-outcome"] == "refused"
    assert answer.headers["content-type"] == "application/problem+json"
    problem = json.loads(answer.body)
    assert problem["status"] == status
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
    pytest.param(chunked(*[b"x" * 8192] * 25), [CHUNKED], 413, id="200 KiB chunked"),
    pytest.param(chunked(GOOD[:9], GOOD[9:]), [CHUNKED], 204, id="two chunks"),
    pytest.param(chunked(GOOD, end=b""), [CHUNKED], 400, id="no last chunk"),
    pytest.param(chunked(GOOD, end=b"0\r\n"), [CHUNKED], 400, id="no end of trailers"),
    pytest.param(b"5\r\n{}", [CHUNKED], 400, id="chunk cut short"),
    pytest.param(b"2\r\n{}XX0\r\n\r\n", [CHUNKED], 400, id="chunk without its end"),
    pytest.param(b"zz\r\n{}\r\n0\r\n\r\n", [CHUNKED], 400, id="chunk size not hex"),
    pytest.param(GOOD, [(CL, str(len(GOOD) + 1))], 400, id="a byte short"),
    pytest.param(b"", [(CL, "10")], 400, id="no body at all"),
    pytest.param(GOOD, [(CL, f"\t{len(GOOD)} ")], 204, id="length between white space"),
    pytest.param(GOOD, [("content-length", f"000{len(GOOD)}")], 204, id="length with zeros"),
    pytest.param(GOOD, [(CL, "0")], 400, id="said to be empty"),
    pytest.param(GOOD, [(CL, "-1")], 400, id="negative length"),
    pytest.param(GOOD, [(CL, "+9")], 400, id="length with a sign"),
    pytest.param(GOOD, [(CL, "9" * 30)], 400, id="enormous length"),
    pytest.param(GOOD, [(CL, "9" * 18)], 413, id="large length"),
    pytest.param(GOOD, [(CL, "1"), (CL, "2")], 400, id="two lengths"),
    pytest.param(GOOD, [(CL, str(len(GOOD)))] * 2, 400, id="two equal lengths"),
    pytest.param(GOOD, [(CL, "5"), CHUNKED], 400, id="length and chunked"),
    pytest.param(GOOD, [("Transfer-Encoding", "xchunked")], 415, id="unknown coding"),
    pytest.param(
        chunked(GOOD), [("Transfer-Encoding", "gzip, chunked")], 415, id="gzip below the chunks"
    ),
    pytest.param(GOOD, [("Content-Encoding", "gzip")], 415, id="gzip"),
    pytest.param(b"\x1f\x8b", [("Content-Encoding", "br")], 415, id="br"),
    pytest.param(GOOD, [("Content-Encoding", "identity")], 204, id="identity is none"),
    pytest.param(b"[" * 60_000, [], 400, id="deep nesting"),
    pytest.param(GOOD[:-1] + b',"x":' + b"9" * 60_000 + b"}", [], 204, id="huge, in no field"),
    pytest.param(GOOD[:-1] + b',"x":1e999}', [], 204, id="a float past all, in no field of ours"),
    pytest.param(GOOD[:-1] + ',"command":"\u202e"}'.encode(), [], 204, id="right-to-left override"),
    pytest.param(b"\0" * 65_536, [], 400, id="NUL bytes"),
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
    pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x1bb\r\n\r\n", 400, id="ESC in a header"),
    pytest.param(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400, id="space before the colon"),
    pytest.param(b"GET / HTTP/1.1\nHost: x\n\n", 400, id="bare line feeds"),
    pytest.param(b"POST /cli HTTP/1.1\r\nContent-Len", 400, id="cut off"),
    pytest.param(b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400, id="unknown version"),
    pytest.param(b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400, id="HTTP/2 without its preface"),
    pytest.param(b"GET / HTTP/0.9\r\n\r\n", 400, id="HTTP/0.9"),
    pytest.param(b"GET /\r\n\r\n", 400, id="HTTP/0.9 as it was"),
    pytest.param(b"GET http://[ HTTP/1.1\r\n\r\n", 400, id="invalid address in the target"),
    pytest.param(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="CONNECT"),
    pytest.param(b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="method in lower case"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, id="TLS"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="HTTP/2"),
    pytest.param(b"GET /%00%ff/../..//etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404, id="path"),
    pytest.param(request("GET", "/nothing"), 404, id="no such route"),
    pytest.param(request("POST", "/x//cli"), 404, id="a route with something before it"),
    pytest.param(request("TRACE", "/"), 405, id="TRACE"),
    pytest.param(request("PUT", "/"), 405, id="PUT"),
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
    "name", ["User-Agent", "Origin", "Referer", "X-Forwarded-For", "DNT", "Sec-GPC", "SCRIPT_NAME"]
)
@pytest.mark.parametrize(
    "value",
    ["", "x" * 8000, "\x9b31m\x80", "é" * 3000, "," * 8000, "[" * 8000, "http://" + "." * 7000],
    ids=["empty", "8 KB", "C1 controls", "UTF-8", "commas", "brackets", "dots"],
)
def test_a_header_of_any_content_does_no_harm(shared_server: Server, name: str, value: str) -> None:
    on_the_wire = value.encode("latin-1" if "\x9b" in value else "utf-8").decode("latin-1")
    answer = shared_server.send("POST", "/", [(name, on_the_wire[:8100])], core_payload().encode())

    assert answer.status == 204
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
