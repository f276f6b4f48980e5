"""Routes, answers and records, in this process."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from server import CLI, COMMON_HEADERS, core_payload

GOOD_CORE = core_payload()
GOOD_CLI = json.dumps(CLI).encode()
DATA_REQUESTS = [("GET", "/"), ("GET", "/telemetry"), ("POST", "/"), ("POST", "/telemetry")]
DATA_REQUESTS += [("POST", "/cli")]


def send(client: FlaskClient, method: str, path: str, **options: Any) -> TestResponse:
    """Send the good event that belongs to the route."""
    if method == "GET":
        return client.get(path, query_string={"payload": GOOD_CORE}, **options)
    return client.post(path, data=GOOD_CLI if path == "/cli" else GOOD_CORE, **options)


def stored(data_dir: Path) -> list[dict[str, Any]]:
    text = "".join(path.read_text("ascii") for path in sorted(data_dir.glob("events-*.jsonl")))
    return [json.loads(line) for line in text.splitlines()]


def has_headers(response: TestResponse, outcome: str) -> bool:
    expected = COMMON_HEADERS | {"x-telemetry-outcome": outcome}
    return {name: response.headers.get(name) for name in expected} == expected


def test_the_pixel_is_a_transparent_gif(client: FlaskClient) -> None:
    response = send(client, "GET", "/")

    assert response.mimetype == "image/gif"
    assert response.data.startswith(b"GIF89a\x01\x00\x01\x00")  # width and height
    assert response.data[19:23] == b"\x21\xf9\x04\x01"  # transparency
    assert response.data.endswith(b";")


@pytest.mark.parametrize(
    ("origin", "referer", "hostname"),
    [
        ("https://a.example", "https://b.example/x", "a.example"),
        (None, "https://b.example/x", "b.example"),
        ("null", "https://b.example/x", "b.example"),
        ("null", None, None),
        (None, None, None),
    ],
)
def test_the_hostname_comes_from_origin_else_from_referer(
    client: FlaskClient, data_dir: Path, origin: Any, referer: Any, hostname: Any
) -> None:
    sent = {"Origin": origin, "Referer": referer}
    headers = {name: value for name, value in sent.items() if value}
    send(client, "POST", "/", headers=headers)

    assert [event["hostname"] for event in stored(data_dir)] == [hostname]


@pytest.mark.parametrize("header", ["Sec-GPC", "DNT"])
@pytest.mark.parametrize(("method", "path"), DATA_REQUESTS)
def test_an_opt_out_is_answered_as_accepted_and_nothing_is_stored(
    client: FlaskClient, data_dir: Path, method: str, path: str, header: str
) -> None:
    response = send(client, method, path, headers={header: "1"})

    assert response.status_code == (200 if method == "GET" else 204)
    assert has_headers(response, "opted-out")
    assert not data_dir.exists()


@pytest.mark.parametrize(
    ("headers", "settings"),
    [
        ({"Sec-GPC": "0"}, {}),
        ({"DNT": "0"}, {}),
        ({"DNT": "null"}, {}),
        ({"DNT": "1"}, {"HONOR_OPT_OUT": "false"}),
    ],
)
def test_only_the_value_1_opts_out_and_only_where_the_settings_honour_it(
    make_app: Callable[..., Flask],
    data_dir: Path,
    headers: dict[str, str],
    settings: dict[str, str],
) -> None:
    client = make_app(**settings).test_client()

    assert has_headers(send(client, "POST", "/", headers=headers), "stored")
    assert len(stored(data_dir)) == 1


@pytest.mark.parametrize("path", ["/", "/telemetry", "/cli"])
def test_a_preflight_is_answered_for_a_day(client: FlaskClient, path: str) -> None:
    response = client.options(path, headers={"Access-Control-Request-Headers": "content-type"})

    assert response.status_code == 204
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    # By name, too: older browsers know no "*".
    assert response.headers["Access-Control-Allow-Headers"] == "content-type, *"
    assert response.headers["Access-Control-Allow-Methods"] == "GET, POST"
    assert response.headers["Access-Control-Max-Age"] == "86400"


@pytest.mark.parametrize("path", ["/", "/telemetry"])
def test_head_stores_nothing(client: FlaskClient, data_dir: Path, path: str) -> None:
    response = client.head(path, query_string={"payload": GOOD_CORE})

    assert response.status_code == 200
    assert response.data == b""
    assert not data_dir.exists()


@pytest.mark.parametrize(
    ("mode", "address", "kept"),
    [
        ("full", "192.0.2.77", "192.0.2.77"),
        ("masked", "192.0.2.77", "192.0.2.0"),
        ("masked", "2001:db8:1:ffff:3::4", "2001:db8:1::"),
        ("hashed", "192.0.2.77", "[0-9a-f]{64}"),
        ("none", "192.0.2.77", "None"),
    ],
)
def test_an_address_is_stored_as_the_mode_says_by_every_worker(
    make_app: Callable[..., Flask], data_dir: Path, mode: str, address: str, kept: str
) -> None:
    for _ in range(2):  # two apps on one directory, as two workers are
        client = make_app(IP=mode).test_client()
        send(client, "POST", "/cli", environ_overrides={"REMOTE_ADDR": address})

    first, second = (str(event["ip"]) for event in stored(data_dir))
    assert first == second
    assert re.fullmatch(kept, first)


@pytest.mark.parametrize(
    ("proxies", "peer", "kept", "warnings"),
    [
        pytest.param("", "", None, 1, id="no address, and Unix sockets are not trusted"),
        pytest.param("unix", "", "8.8.4.4", 0, id="a trusted Unix socket"),
        pytest.param("", "10.0.0.9", "10.0.0.9", 1, id="private and not trusted"),
        pytest.param("unix,10.0.0.0/8", "10.0.0.9", "8.8.4.4", 0, id="trusted"),
        pytest.param("", "8.8.8.8", "8.8.8.8", 0, id="anybody can send the header"),
    ],
)
def test_only_trusted_proxies_forward_addresses_and_others_are_warned_about_once(
    make_app: Callable[..., Flask],
    data_dir: Path,
    caplog: pytest.LogCaptureFixture,
    proxies: str,
    peer: str,
    kept: str | None,
    warnings: int,
) -> None:
    client = make_app(TRUSTED_PROXIES=proxies).test_client()
    headers, environ = {"X-Forwarded-For": "8.8.4.4"}, {"REMOTE_ADDR": peer}
    for _ in range(3):
        send(client, "POST", "/cli", headers=headers, environ_overrides=environ)

    assert [event["ip"] for event in stored(data_dir)] == [kept] * 3
    assert caplog.text.count("TELEMETRY_TRUSTED_PROXIES") == warnings
    assert not [text for text in ("10.0.0.9", "8.8.4.4") if text in caplog.text]


def test_an_error_of_our_own_is_a_problem_document_too(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.Store.enqueue", None)
    response = send(client, "POST", "/cli")

    assert response.status_code == 500
    assert has_headers(response, "failed")
    assert response.mimetype == "application/problem+json"


# The transparency page.


def page(make_app: Callable[..., Flask], **settings: str) -> str:
    response = make_app(**settings).test_client().get("/")
    assert (response.status_code, response.mimetype) == (200, "text/html")
    return " ".join(response.text.split())


def test_the_page_names_every_key_of_every_record_and_no_other(
    make_app: Callable[..., Flask], data_dir: Path
) -> None:
    client = make_app().test_client()
    send(client, "POST", "/")
    send(client, "POST", "/cli")
    named = [
        set(re.findall(r'<th scope="row"><code>(\w+)</code>', table))
        for table in page(make_app).split("<table>")[1:]
    ]

    kept = [set(event) - {"payload"} | set(event["payload"]) for event in stored(data_dir)]
    assert named == kept


@pytest.mark.parametrize(
    ("settings", "said", "not_said"),
    [
        ({}, '<html lang="en">', "<script"),
        ({}, "<code>disableTelemetry</code>", "Sprout"),
        ({}, "<code>REFINE_NO_TELEMETRY=true</code>", "Sprout"),
        ({}, "<code>Sec-GPC: 1</code>", "ignores"),
        ({"HONOR_OPT_OUT": "false"}, "ignores Global Privacy Control", "stores nothing"),
        ({}, "stored as it is", "cut to its network"),
        ({"IP": "masked"}, "cut to its network", "stored as it is"),
        ({"IP": "hashed"}, "replaced, before it is stored, by a keyed hash", "stored as it is"),
        ({"IP": "none"}, "address a request comes from is not stored", "stored as it is"),
        ({}, "by project id and by address", "but not by address"),
        ({"IP": "masked"}, "but not by address", "and by address"),
        ({}, "have set no limit", "days old"),
        ({"RETENTION_DAYS": "1"}, "deleted when they are 1 day old", "no limit"),
        ({"FRAMEWORK": "Sprout"}, "<h1>What Sprout telemetry collects", "Refine"),
        ({"FRAMEWORK": "Sprout"}, "documentation of Sprout says how", "REFINE_NO_TELEMETRY"),
        ({"FRAMEWORK": "<b>", "OPT_OUT": '<i>"'}, "<li>&lt;i&gt;&#34;</li>", "<b>"),
        ({}, "they have given no address here", 'href="h'),
        ({"CONTACT": "mailto:a@b.example"}, 'a href="mailto:a@b.example">a@b', "given"),
        ({"CONTACT": "HTTPS://b.example"}, '<a href="HTTPS://b.example">', "given"),
        ({"CONTACT": "javascript:alert(1)"}, "server: javascript:alert(1) </p>", 'href="j'),
        ({"CONTACT": "https://b.example or call"}, "https://b.example or call </p>", 'href="h'),
        ({"CONTACT": 'https://b.example/"><b>'}, "/&#34;&gt;&lt;b&gt;", "<b>"),
    ],
)
def test_the_page_says_what_the_settings_do(
    make_app: Callable[..., Flask], settings: dict[str, str], said: str, not_said: str
) -> None:
    text = page(make_app, **settings)

    assert said in text
    assert not_said not in text
