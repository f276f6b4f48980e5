"""What shipped clients send, byte for byte, over a socket to a real gunicorn."""

import json
import re
from base64 import b64encode, urlsafe_b64encode
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from server import COMMON_HEADERS, CORE, ROOT, Server

REQUESTS = sorted((ROOT / "tests/wire").glob("*.json"))
STAMPS = re.compile(
    rb'^\{"id":"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",'
    rb'"received_at":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z",'
)


def without_stamps(line: bytes) -> bytes:
    return STAMPS.sub(b"{", line)


def compact(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()


@pytest.mark.parametrize("path", REQUESTS, ids=lambda path: path.stem)
def test_a_shipped_clients_request_is_stored_completely(shared_server: Server, path: Path) -> None:
    sent = json.loads(path.read_text(encoding="utf-8"))
    head = f"{sent['method']} {sent['target']} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in sent["headers"])

    answer = shared_server.raw(f"{head}\r\n{sent['body']}".encode("latin-1"))

    assert answer.status == (200 if sent["method"] == "GET" else 204)
    assert answer.headers.items() >= (COMMON_HEADERS | {"x-telemetry-outcome": "stored"}).items()
    assert list(map(without_stamps, shared_server.lines())) == [compact(sent["record"])]


# Three payloads whose Base64 holds "+" and "/", and ends with 0, 1 and 2 "=".
TRICKY = [CORE | {"projectId": "a~~~~b>>>>c????d~>?~>?" + "x" * n} for n in range(3)]


def wrap(encoded: str) -> str:
    return "\r\n".join(encoded[i : i + 76] for i in range(0, len(encoded), 76)) + "\r\n"


def variants(raw: bytes) -> list[str]:
    """Return its Base64 in each alphabet, with and without padding, and percent-escaped."""
    standard, url_safe = b64encode(raw).decode(), urlsafe_b64encode(raw).decode()
    return [
        standard,
        standard.rstrip("="),
        url_safe,
        url_safe.rstrip("="),
        quote(standard, safe=""),
    ]


@pytest.mark.parametrize("payload", TRICKY, ids=["0", "1", "2"])
@pytest.mark.parametrize("target", ["/", "/telemetry"])
def test_every_variant_of_base64_means_the_same(
    shared_server: Server, target: str, payload: dict[str, Any]
) -> None:
    texts = variants(json.dumps(payload).encode())

    answers = [shared_server.send("GET", f"{target}?payload={text}") for text in texts]
    answers += [shared_server.send("POST", target, body=text.encode()) for text in texts]
    answers += [shared_server.send("POST", target, body=wrap(texts[0]).encode())]

    assert [answer.status for answer in answers] == [200] * len(texts) + [204] * (len(texts) + 1)
    stored = [event["payload"]["projectId"] for event in shared_server.events()]
    assert stored == [payload["projectId"]] * len(answers)
