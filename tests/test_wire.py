"""What shipped clients send, byte for byte, over a socket to a real gunicorn."""

import json
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
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


def standard(raw: bytes) -> str:
    return b64encode(raw).decode()


def url_safe(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode()


VARIANTS: dict[str, Callable[[bytes], str]] = {
    "standard, unescaped": standard,
    "standard, percent-escaped": lambda raw: quote(standard(raw), safe=""),
    "standard, no padding": lambda raw: standard(raw).rstrip("="),
    "URL-safe": url_safe,
    "URL-safe, no padding": lambda raw: url_safe(raw).rstrip("="),
}


@pytest.mark.parametrize("payload", TRICKY, ids=["0", "1", "2"])
@pytest.mark.parametrize("target", ["/", "/telemetry"])
def test_every_variant_of_base64_means_the_same(
    shared_server: Server, target: str, payload: dict[str, Any]
) -> None:
    raw = json.dumps(payload).encode()
    texts = [encode(raw) for encode in VARIANTS.values()]

    answers = [shared_server.send("GET", f"{target}?payload={text}") for text in texts]
    answers += [shared_server.send("POST", target, body=text.encode()) for text in texts]
    answers += [shared_server.send("POST", target, body=wrap(standard(raw)).encode())]

    assert [answer.status for answer in answers] == [200] * len(texts) + [204] * (len(texts) + 1)
    stored = [event["payload"]["projectId"] for event in shared_server.events()]
    assert stored == [payload["projectId"]] * len(answers)


@pytest.mark.parametrize(
    ("raw", "project"),
    [
        pytest.param('"pröjekt-é"'.encode("latin-1"), "pröjekt-é", id="Latin-1, as btoa writes it"),
        pytest.param('"pröjekt-é"'.encode(), "pröjekt-é", id="UTF-8"),
        pytest.param(b'"\\ud83d\\ude00"', "😀", id="escaped"),
        pytest.param('"😀"'.encode(), "😀", id="UTF-8 past the first plane"),
    ],
)
def test_text_outside_ascii_arrives_and_is_stored_as_ascii(
    shared_server: Server, raw: bytes, project: str
) -> None:
    document = json.dumps(CORE).encode()[:-1] + b', "projectId": ' + raw + b"}"

    assert shared_server.send("POST", "/", body=b64encode(document)).status == 204

    (line,) = shared_server.lines()
    assert line.isascii()
    assert json.loads(line)["payload"]["projectId"] == project
