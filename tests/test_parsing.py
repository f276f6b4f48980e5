"""Payloads, addresses, host names and user agents, one table for each rule."""

import codecs
import json
import time
from base64 import b64encode
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

import parsing
from files.records import AGENT_KEYS, PROVIDERS
from parsing import Rejected, parse_cli, parse_core
from server import CLI, CORE

ALL_FALSE = dict.fromkeys(PROVIDERS, False)
SET = {"live": True, "i18n": True}
PACKAGES = [{"name": f"p{n}", "version": "1.0.0"} for n in range(256)]
REQUIRED_TEXTS = ["nodeVersion", "projectFramework"]
OPTIONAL_TEXTS = ["nodeEnv", "os", "osVersion", "command", "projectId"]
MISSING = object()


def parse(field: str, value: Any) -> Any:
    """Send an event with this value, and return what is stored of that field."""
    good, parse = (CORE, parse_core_json) if field in CORE else (CLI, parse_cli)
    sent = {name: known for name, known in good.items() if name != field}
    if value is not MISSING:
        sent[field] = value
    return parse(json.dumps(sent | {"not listed": 1}).encode())[field]


def parse_core_json(document: bytes) -> dict[str, Any]:
    return parse_core(b64encode(document).decode())


@pytest.mark.parametrize(
    ("field", "sent", "stored"),
    [
        ("providers", {}, ALL_FALSE),
        ("providers", SET | {"unheard": 5}, ALL_FALSE | SET),
        ("providers", [False] * 7 + [True], ALL_FALSE | {"accessControl": True}),
        ("providers", [True] + [False] * 7, ALL_FALSE | {"auth": True}),
        *(("version", text, text) for text in ("x", "é" * 256, "😀" * 256, "\u202e", " ")),
        *(("resourceCount", count, count) for count in (0, 1_000_000)),
        ("packages", PACKAGES, PACKAGES),
        ("packages", [{"x": "/", "name": "a"}], [{"name": "a", "version": None}]),
        ("packages", [{"version": "", "name": "a"}], [{"name": "a", "version": None}]),
        *((field, value, None) for field in OPTIONAL_TEXTS for value in (MISSING, None, "")),
    ],
    ids=lambda part: f"{part!a:.20}",
)
def test_a_valid_value_is_stored_with_its_keys_in_order(field: str, sent: Any, stored: Any) -> None:
    assert json.dumps(parse(field, sent)) == json.dumps(stored)


@pytest.mark.parametrize(
    ("field", "value", "at", "detail"),
    [
        *((field, MISSING, field, "got nothing") for field in [*CORE, *CLI]),
        *((field, None, field, "got null") for field in [*CORE, *CLI]),
        *((field, 5, field, "got an integer") for field in REQUIRED_TEXTS + OPTIONAL_TEXTS),
        ("version", True, "version", "got a boolean"),
        ("version", [], "version", "got an array"),
        ("version", {}, "version", "got an object"),
        ("version", "", "version", "got 0"),
        ("version", "x" * 257, "version", "got 257"),
        *(("version", f"a{one}", "version", "control") for one in "\0\n\x1f\x7f\x9f\ud800\udfff"),
        ("resourceCount", True, "resourceCount", "got a boolean"),
        ("resourceCount", 2.0, "resourceCount", "got a number with a fraction"),
        ("resourceCount", "2", "resourceCount", "got a string"),
        *(
            ("resourceCount", count, "resourceCount", "got one out of range")
            for count in (-1, 1_000_001, 10**300, -(10**300))
        ),
        ("providers", "auth", "providers", "got a string"),
        ("providers", {"auth": 1}, "providers.auth", "want a boolean, got an integer"),
        ("providers", {"i18n": None}, "providers.i18n", "want a boolean, got null"),
        ("providers", [True] * 9, "providers", "want 8 booleans, got 9"),
        ("providers", [True, 0] + [True] * 6, "providers[1]", "got an integer"),
        ("packages", {}, "packages", "got an object"),
        ("packages", [{"name": "a"}] * 257, "packages", "want at most 256 packages, got 257"),
        ("packages", ["a"], "packages[0]", "want an object, got a string"),
        ("packages", [{"name": "a"}, {}], "packages[1].name", "got nothing"),
        ("packages", [{"name": "a", "version": 1}], "packages[0].version", "got an integer"),
    ],
    ids=lambda part: f"{part!a:.20}",
)
def test_a_rejected_field_is_named(field: str, value: Any, at: str, detail: str) -> None:
    with pytest.raises(Rejected, match=detail) as rejected:
        parse(field, value)

    assert (rejected.value.field, rejected.value.status) == (at, 400)


@pytest.mark.parametrize(
    ("document", "detail"),
    [
        (b"", "want JSON, got nothing"),
        (b'{"a":1}x', "not JSON at character 7"),
        (b"[]", "want an object, got an array"),
        (b'{"x":NaN}', "got a constant that JSON does not have"),
        (b"\xff", "want UTF-8, got an invalid byte at 0"),
        (codecs.BOM_UTF8, "want JSON, got nothing"),
        (codecs.BOM_UTF8 * 2 + b"{}", "not JSON"),
        ('{"x":1}'.encode("utf-16"), "UTF-8"),
        (b'{"x":' + b"[" * 30_000, "nesting too deep|not JSON"),  # some Pythons go deeper
    ],
    ids=lambda part: f"{part!a:.20}",
)
def test_a_payload_that_is_not_a_json_object_is_rejected(document: bytes, detail: str) -> None:
    with pytest.raises(Rejected, match=detail) as refused:
        parse_cli(document)

    assert refused.value.field is None


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["no mark", "a byte order mark"])
@pytest.mark.parametrize("project", ["plain", "b\u00fccher", "\U0001f600"])
def test_text_outside_ascii_may_follow_a_byte_order_mark(mark: bytes, project: str) -> None:
    """A core event's may also be Latin-1: btoa() makes one byte of each code unit."""
    core, cli = (
        json.dumps(good | {"projectId": project}, ensure_ascii=False) for good in (CORE, CLI)
    )
    parsed = [parse_cli(mark + cli.encode()), parse_core_json(mark + core.encode())]
    if project < "\u0100":
        parsed.append(parse_core_json(mark + core.encode("latin-1")))

    assert {payload["projectId"] for payload in parsed} == {project}


def test_what_is_not_utf8_is_latin1_and_no_other_code_page() -> None:
    def parsed(byte: int) -> str | None:
        document = json.dumps(CORE).encode()[:-1] + b',"projectId":"%c"}' % byte
        try:
            return str(parse_core_json(document)["projectId"])
        except Rejected:
            return None

    # 0x80 to 0x9f are control characters in Latin-1.
    assert [parsed(byte) for byte in range(0x80, 0xA0)] == [None] * 32
    assert [parsed(byte) for byte in range(0xA0, 0x100)] == list(map(chr, range(0xA0, 0x100)))


@pytest.mark.parametrize("encoded", ["%", "ab c!", "YQ===", "YQ=x", "YQ=", "Y", "é", "YWJj\0", "="])
def test_base64_that_only_a_lax_decoder_accepts_is_rejected(encoded: str) -> None:
    with pytest.raises(Rejected, match="got text that is not Base64"):
        parse_core(encoded)


@pytest.mark.parametrize(
    ("written", "address"),
    [
        (" 192.0.2.1 ", "192.0.2.1"),
        ("192.0.2.1:8080", "192.0.2.1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
        *(
            (written, None)
            for written in ("fe80::1%eth0", "[fe80::1%25<script>]", "[::1", "[::1]x")
        ),
        *((written, None) for written in ("192.0.2.1:http", "192.0.2.1:", "192.0.2.01", "192.0.2")),
        *((written, None) for written in ("3221225985", "unknown", "")),
    ],
)
def test_an_address_is_read_in_each_way_it_is_written(written: str, address: str | None) -> None:
    assert parsing.parse_address(written) == (address and ip_address(address))


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "address"),
    [
        pytest.param("192.0.2.9", "198.51.100.1", "192.0.2.9", id="peer not trusted"),
        pytest.param("10.0.0.1", "", "10.0.0.1", id="no header"),
        pytest.param("10.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1", id="forged in front"),
        pytest.param("10.0.0.1", "198.51.100.1,10.0.0.2 , 10.0.0.3", "198.51.100.1", id="walk"),
        pytest.param("10.0.0.1", "10.0.0.3,10.0.0.2", "10.0.0.3", id="all trusted: the farthest"),
        pytest.param("10.0.0.1", "198.51.100.1, junk, 10.0.0.2", "10.0.0.2", id="at the last good"),
        pytest.param(
            "10.0.0.1", "198.51.100.1, ,\t,10.0.0.2,", "198.51.100.1", id="empty elements"
        ),
        pytest.param("10.0.0.1", ",198.51.100.1 , , junk,", "10.0.0.1", id="but junk is junk"),
        pytest.param("10.0.0.1", " ,, ", "10.0.0.1", id="empty elements only"),
        pytest.param("10.0.0.1", "fe80::1%eth0", "10.0.0.1", id="zone"),
        pytest.param("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1", id="mapped peer"),
        pytest.param("2001:db8:ffff::1", "198.51.100.1", "198.51.100.1", id="IPv6 proxy"),
        pytest.param("", "198.51.100.1, 10.0.0.2", "198.51.100.1", id="Unix socket"),
        pytest.param("", "junk", None, id="Unix socket, and no address at all"),
    ],
)
def test_the_clients_address_is_the_first_that_is_not_a_trusted_proxys(
    peer: str, forwarded_for: str, address: str | None
) -> None:
    networks = ip_network("10.0.0.0/8"), ip_network("2001:db8:ffff::/48")
    found = parsing.client_address(peer, forwarded_for, parsing.Proxies(networks, unix=True))

    assert found == (address and ip_address(address))


@pytest.mark.parametrize(
    ("url", "hostname"),
    [
        ("https://Admin.Example.COM:8443/path?query#part", "admin.example.com"),
        ("http://user:password@example.com/", "example.com"),
        ("http://localhost:5173/", "localhost"),
        ("http://my_host.example./", "my_host.example"),
        ("http://[2001:DB8::1]:3000/", "2001:db8::1"),
        ("https://münchen.de/", "xn--mnchen-3ya.de"),
        ("https://" + "a" * 63 + ".example", "a" * 63 + ".example"),
        ("https://" + "a" * 64 + ".example", None),
        ("https://" + "abcd." * 50 + "abc.", "abcd." * 50 + "abc"),
        ("https://" + "abcd." * 50 + "abcd", None),
        ("http://-a.example", None),
        ("http://a..example", None),
        ("http://999.1.1.1/", None),
        ("http://127.0.0.0x1/", None),
        ("http://[::1]evil.example/", None),
        ("http://[v1.a]/", None),
        ("http://[fe80::1%25eth0]/", None),
        ("http://ex%61mple.com/", None),
        ("http://h\u202e.com/", None),
        ("http://\x9b.com/", None),
        ("file:///home/me/index.html", None),
        ("null", None),
        ("", None),
    ],
    ids=lambda part: f"{part!a:.30}",
)
def test_a_hostname_is_valid_or_none(url: str, hostname: str | None) -> None:
    on_the_wire = url.encode().decode("latin-1")

    assert parsing.parse_hostname(on_the_wire) == hostname


def test_an_overlong_hostname_is_rejected_before_it_is_decoded() -> None:
    """To normalise it, or to write it in ASCII, takes the square of its length in time."""

    def seconds(hostname: str) -> float:
        url = f"http://{hostname}".encode().decode("latin-1")
        parsing.parse_hostname.cache_clear()
        began = time.process_time()
        assert parsing.parse_hostname(url) is None
        return time.process_time() - began

    different_letters = "".join(chr(0x4E00 + n) for n in range(2600))
    marks_out_of_order = "\u0301" * 1300 + "\u0327" * 1300
    longest_decoded = seconds(different_letters[:253])
    assert seconds(different_letters) < longest_decoded
    assert seconds(marks_out_of_order) < longest_decoded


IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1"
)
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"


@pytest.mark.parametrize(
    ("header", "described"),
    [
        (FIREFOX, ("Firefox", "128.0", "Linux", None)),
        (IPHONE, ("Mobile Safari", "17.5", "iOS", "17.5")),
        ("x" * 499 + "Firefox/128.0", ("Firefox", "128.0", None, None)),
        ("x" * 500 + "Firefox/128.0", (None,) * 4),  # only 512 characters are matched
        ("no such agent", (None,) * 4),
        ("", (None,) * 4),
    ],
)
def test_what_does_not_match_in_a_user_agent_is_none(header: str, described: Any) -> None:
    assert parsing.describe_agent(header) == dict(zip(AGENT_KEYS, described, strict=True))
