"""Random requests on a real socket, for FUZZ_SECONDS; TEST_SEED repeats a run."""

import json
import math
import os
import random
import time
from pathlib import Path

import pytest

from server import CHUNKED, CLI, Server, chunked, core_payload, request, wait_until

pytestmark = pytest.mark.slow
FUZZ_SECONDS = int(os.environ.get("FUZZ_SECONDS", "5"))


def good_requests() -> list[bytes]:
    cli, core = json.dumps(CLI).encode(), core_payload()
    return [
        request("POST", "/cli", body=cli),
        request("POST", "/cli", [CHUNKED], chunked(cli)),
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
