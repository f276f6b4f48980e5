"""Payloads, addresses, host names and user agents, one table for each rule."""

import codecs
import json
import time
from base64 import b64encode
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

import parsing
from files.records import PROVIDERS
from parsing import Rejected, parse_cli, parse_core
from server import CLI, CORE, core_payload

ALL_FALSE = dict.fromkeys(PROVIDERS, False)
SET = ["live", "i18n"]


def cli(**changes: Any) -> bytes:
    return json.dumps(CLI | changes).encode()


def parse(source: str, payload: dict[str, Any]) -> dict[str, Any]:
    document = json.dumps(payload).encode()
    return parse_cli(document) if source == "cli" else parse_core(b64encode(document).decode())


def without(payload: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in payload.items() if key != name}


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        pytest.param({}, ALL_FALSE, id="names left out are false"),
        pytest.param(dict.fromkeys(SET, True), ALL_FALSE | dict.fromkeys(SET, True), id="some"),
        pytest.param({"auth": True, "unheard": 5}, ALL_FALSE | {"auth": True}, id="others dropped"),
        pytest.param([False] * 7 + [True], ALL_FALSE | {"accessControl": True}, id="array"),
        pytest.param([True] + [False] * 7, ALL_FALSE | {"auth": True}, id="array, in order"),
    ],
)
def test_providers_are_stored_as_all_eight_names_in_order(
    sent: Any, stored: dict[str, bool]
) -> None:
    providers = parse_core(core_payload(providers=sent))["providers"]

    assert list(providers.items()) == list(stored.items())


def test_fields_that_are_not_listed_are_dropped() -> None:
    sent = cli(userName="x", packages=[{"version": "1", "name": "a", "path": "/home"}])

    assert parse_cli(sent) == parse_cli(cli(packages=[{"name": "a", "version": "1"}]))
    assert parse_core(core_payload(secret=1)) == parse_core(core_payload())


@pytest.mark.parametrize("value", [None, ""], ids=["null", "empty"])
@pytest.mark.parametrize("field", ["nodeEnv", "os", "osVersion", "command", "projectId"])
def test_an_optional_field_may_be_null_empty_or_missing(field: str, value: Any) -> None:
    assert parse_cli(cli(**{field: value}))[field] is None
    assert parse_cli(cli())[field] is None


TEXTS = ["x", "x" * 256, "é" * 256, "😀" * 256, "\u202e", " "]
PACKAGES = [{"name": f"p{n}", "version": "1.0.0"} for n in range(256)]


@pytest.mark.parametrize(
    ("source", "payload"),
    [
        *(("core", CORE | {"version": text}) for text in TEXTS),
        *(("core", CORE | {"resourceCount": count}) for count in (0, 1, 1_000_000)),
        ("cli", CLI | {"packages": PACKAGES}),
    ],
    ids=lambda part: f"{part!a:.40}",
)
def test_values_up_to_their_limits_are_kept(source: str, payload: dict[str, Any]) -> None:
    names = payload.keys() - {"providers"}
    kept = parse(source, payload)

    assert {name: kept[name] for name in names} == {name: payload[name] for name in names}


NOT_TEXT = {"": "got 0", "x" * 257: "got 257", "a\nb": "control", "\x7f": "control"}
NOT_TEXT |= {"\x9b": "control", "\ud800": "surrogate", "\0": "control"}
REFUSED_TEXT = [
    *NOT_TEXT.items(),
    (5, "an integer"),
    (True, "a boolean"),
    (None, "null"),
    ([], "an array"),
    ({}, "an object"),
    (1.5, "a number"),
]


REQUIRED_TEXT = ["nodeVersion", "projectFramework"]
OPTIONAL_TEXT = ["nodeEnv", "os", "osVersion", "command", "projectId"]
Refused = list[tuple[dict[str, Any], str, str]]  # changes, field and detail
REFUSED_CORE: Refused = [
    ({"resourceCount": True}, "resourceCount", "got a boolean"),
    ({"resourceCount": -1}, "resourceCount", "got one out of range"),
    ({"resourceCount": 1_000_001}, "resourceCount", "got one out of range"),
    ({"resourceCount": 10**300}, "resourceCount", "got one out of range"),
    ({"resourceCount": -(10**300)}, "resourceCount", "got one out of range"),
    ({"resourceCount": 2.0}, "resourceCount", "got a number with a fraction"),
    ({"resourceCount": "2"}, "resourceCount", "got a string"),
    ({"resourceCount": None}, "resourceCount", "got null"),
    ({"version": 5}, "version", "got an integer"),
    ({"projectId": 5}, "projectId", "got an integer"),
    ({"providers": None}, "providers", "got null"),
    ({"providers": "auth"}, "providers", "got a string"),
    ({"providers": {"auth": 1}}, "providers.auth", "want a boolean, got an integer"),
    ({"providers": {"i18n": None}}, "providers.i18n", "want a boolean, got null"),
    ({"providers": [True] * 7}, "providers", "want 8 booleans, got 7"),
    ({"providers": [True] * 9}, "providers", "want 8 booleans, got 9"),
    ({"providers": [True, 0] + [True] * 6}, "providers[1]", "got an integer"),
]
REFUSED_PACKAGES: list[tuple[Any, str, str]] = [
    (None, "packages", "got null"),
    ({}, "packages", "got an object"),
    ([{"name": "a"}] * 257, "packages", "want at most 256 packages, got 257"),
    (["a"], "packages[0]", "want an object, got a string"),
    ([{"name": "a"}, {}], "packages[1].name", "got nothing"),
    ([{"name": ""}], "packages[0].name", "got 0"),
    ([{"name": "a", "version": 1}], "packages[0].version", "got an integer"),
    ([{"name": "a", "version": "x" * 257}], "packages[0].version", "got 257"),
    ([{"name": "a\n"}], "packages[0].name", "control"),
]
REFUSED_CLI: Refused = [
    *(({name: value}, name, seen) for name in REQUIRED_TEXT for value, seen in REFUSED_TEXT),
    *(
        ({name: value}, name, seen)
        for name in OPTIONAL_TEXT
        for value, seen in REFUSED_TEXT
        if value not in (None, "")
    ),
    *(({"packages": value}, name, seen) for value, name, seen in REFUSED_PACKAGES),
]


@pytest.mark.parametrize(
    ("source", "payload", "field", "detail"),
    [
        *(("core", CORE | changes, field, detail) for changes, field, detail in REFUSED_CORE),
        *(("cli", CLI | changes, field, detail) for changes, field, detail in REFUSED_CLI),
        *(("core", without(CORE, name), name, "got nothing") for name in CORE),
        *(("cli", without(CLI, name), name, "got nothing") for name in CLI),
    ],
    ids=lambda part: f"{part!a:.20}",
)
def test_a_rejected_field_is_named(
    source: str, payload: dict[str, Any], field: str, detail: str
) -> None:
    with pytest.raises(Rejected, match=detail) as rejected:
        parse(source, payload)

    assert (rejected.value.field, rejected.value.status) == (field, 400)


@pytest.mark.parametrize(
    ("document", "detail"),
    [
        (b"", "want JSON, got nothing"),
        (b"{", "not JSON at character 1"),
        (b'{"a":1}x', "not JSON at character 7"),
        (b"[]", "want an object, got an array"),
        (b"null", "want an object, got null"),
        (b'"x"', "want an object, got a string"),
        (b'{"x":NaN}', "got a constant that JSON does not have"),
        (b'{"x":-Infinity}', "got a constant that JSON does not have"),
        (b"\xff", "want UTF-8, got an invalid byte at 0"),
        (b"\xef\xbb\xbf", "want JSON, got nothing"),
        (b"\xef\xbb\xbf" * 2 + b"{}", "not JSON"),
        ('{"x":1}'.encode("utf-16"), "UTF-8"),
        (b'{"x":' + b"[" * 30_000, "nesting too deep|not JSON"),  # some Pythons go deeper
    ],
    ids=lambda part: f"{part!a:.20}",
)
def test_a_payload_that_is_not_a_json_object_is_rejected(document: bytes, detail: str) -> None:
    with pytest.raises(Rejected, match=detail) as refused:
        parse_cli(document)

    assert refused.value.field is None


@pytest.mark.parametrize("name", ["plain", "b\u00fccher", "\U0001f600"])
def test_a_byte_order_mark_before_the_json_is_passed_over(name: str) -> None:
    sent = json.dumps(CLI | {"projectId": name}, ensure_ascii=False).encode("utf-8-sig")
    assert parse_cli(sent)["projectId"] == name

    text = json.dumps(CORE | {"projectId": name}, ensure_ascii=False)
    for encoding in ("utf-8", "latin-1") if name < "\u0100" else ("utf-8",):
        sent = codecs.BOM_UTF8 + text.encode(encoding)
        assert parse_core(b64encode(sent).decode())["projectId"] == name


@pytest.mark.parametrize("encoded", ["%", "ab c!", "YQ===", "YQ=x", "YQ=", "Y", "é", "YWJj\0", "="])
def test_base64_that_only_a_lax_decoder_accepts_is_rejected(encoded: str) -> None:
    with pytest.raises(Rejected, match="got text that is not Base64"):
        parse_core(encoded)


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1 ", "192.0.2.1"),
        ("192.0.2.1:8080", "192.0.2.1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
        ("fe80::1%eth0", None),
        ("[fe80::1%25<script>]", None),
        ("192.0.2.1:http", None),
        ("192.0.2.1:", None),
        ("[::1", None),
        ("[::1]x", None),
        ("192.0.2.01", None),
        ("192.0.2", None),
        ("3221225985", None),
        ("unknown", None),
        ("", None),
    ],
)
def test_an_address_is_read_in_each_way_it_is_written(written: str, address: str | None) -> None:
    assert parsing.parse_address(written) == (address and ip_address(address))


NETWORKS = (ip_network("10.0.0.0/8"), ip_network("2001:db8:ffff::/48"))


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "address"),
    [
        pytest.param("192.0.2.9", "198.51.100.1", "192.0.2.9", id="peer not trusted"),
        pytest.param("10.0.0.1", "", "10.0.0.1", id="no header"),
        pytest.param("10.0.0.1", "198.51.100.1", "198.51.100.1", id="one hop"),
        pytest.param("10.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1", id="forged in front"),
        pytest.param("10.0.0.1", "198.51.100.1,10.0.0.2 , 10.0.0.3", "198.51.100.1", id="walk"),
        pytest.param("10.0.0.1", "10.0.0.3,10.0.0.2", "10.0.0.3", id="all trusted: the farthest"),
        pytest.param("10.0.0.1", "198.51.100.1, junk", "10.0.0.1", id="junk ends the walk"),
        pytest.param("10.0.0.1", "198.51.100.1, junk, 10.0.0.2", "10.0.0.2", id="at the last good"),
        pytest.param("10.0.0.1", "198.51.100.1,", "198.51.100.1", id="empty element at the end"),
        pytest.param("10.0.0.1", "198.51.100.1, ,\t,10.0.0.2", "198.51.100.1", id="and between"),
        pytest.param("10.0.0.1", ",198.51.100.1 , , junk,", "10.0.0.1", id="but junk is junk"),
        pytest.param("10.0.0.1", " ,, ", "10.0.0.1", id="empty elements only"),
        pytest.param("10.0.0.1", "[2001:db8::7]:99", "2001:db8::7", id="brackets and port"),
        pytest.param("10.0.0.1", "fe80::1%eth0", "10.0.0.1", id="zone"),
        pytest.param("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1", id="mapped peer"),
        pytest.param("10.0.0.1", "198.51.100.1, ::ffff:10.0.0.2", "198.51.100.1", id="mapped hop"),
        pytest.param("2001:db8:ffff::1", "198.51.100.1", "198.51.100.1", id="IPv6 proxy"),
        pytest.param("", "198.51.100.1, 10.0.0.2", "198.51.100.1", id="Unix socket"),
        pytest.param("", "junk", None, id="Unix socket, and no address at all"),
    ],
)
def test_the_clients_address_is_the_first_that_is_not_a_trusted_proxys(
    peer: str, forwarded_for: str, address: str | None
) -> None:
    found = parsing.client_address(peer, forwarded_for, parsing.Proxies(NETWORKS, unix=True))

    assert found == (address and ip_address(address))


@pytest.mark.parametrize("byte", range(0x80, 0x100))
def test_what_is_not_utf8_is_latin1_and_no_other_code_page(byte: int) -> None:
    """btoa() makes one byte of each code unit; 0x80 to 0x9f are control characters then."""
    project = b',"projectId":"%c"}' % byte
    encoded = b64encode(json.dumps(CORE).encode()[:-1] + project).decode()

    if byte < 0xA0:
        with pytest.raises(Rejected, match="projectId: want printable characters"):
            parse_core(encoded)
    else:
        assert parse_core(encoded)["projectId"] == chr(byte)


@pytest.mark.parametrize(
    ("address", "network"),
    [("192.0.3.255", "192.0.3.0"), ("2001:db8:1:ffff:3::4", "2001:db8:1::")],
)
def test_a_masked_address_is_that_of_its_network(address: str, network: str) -> None:
    assert parsing.mask_address(ip_address(address)) == network


def test_a_hashed_address_depends_on_address_and_key_alone() -> None:
    addresses = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    hashes = [parsing.hash_address(one, key * 32) for one in addresses for key in (b"k", b"l")]

    assert len(set(hashes)) == 4
    assert hashes[0] == parsing.hash_address(addresses[0], b"k" * 32)


@pytest.mark.parametrize(
    ("url", "hostname"),
    [
        ("https://admin.example.com", "admin.example.com"),
        ("https://Admin.Example.COM:8443/path?query#part", "admin.example.com"),
        ("http://user:password@example.com/", "example.com"),
        ("http://localhost:5173/", "localhost"),
        ("http://my_host.example./", "my_host.example"),
        ("http://127.0.0.1:3000", "127.0.0.1"),
        ("http://[2001:DB8::1]:3000/", "2001:db8::1"),
        ("https://xn--mnchen-3ya.de/", "xn--mnchen-3ya.de"),
        ("https://münchen.de/", "xn--mnchen-3ya.de"),
        ("https://" + "a" * 63 + ".example", "a" * 63 + ".example"),
        ("https://" + "a" * 64 + ".example", None),
        ("https://" + "a.b." * 64, None),
        ("https://" + "abcd." * 50 + "abc.", "abcd." * 50 + "abc"),
        ("https://" + "abcd." * 50 + "abcd", None),
        ("http://-a.example", None),
        ("http://a..example", None),
        ("http://999.1.1.1/", None),
        ("http://127.0.0.0x1/", None),
        ("http://[::1]evil.example/", None),
        ("http://evil.example[::1]/", None),
        ("http://[v1.a]/", None),
        ("http://[::1", None),
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


DIFFERENT_LETTERS = "".join(chr(0x4E00 + n) for n in range(2600))
MARKS_OUT_OF_ORDER = "\u0301" * 1300 + "\u0327" * 1300


@pytest.mark.parametrize("hostname", [DIFFERENT_LETTERS, MARKS_OUT_OF_ORDER], ids=["a", "b"])
def test_an_overlong_hostname_is_rejected_before_it_is_decoded(hostname: str) -> None:
    """To normalise it, or to write it in ASCII, takes the square of its length in time."""

    def seconds(hostname: str) -> float:
        url = f"http://{hostname}".encode().decode("latin-1")
        parsing.parse_hostname.cache_clear()
        began = time.process_time()
        assert parsing.parse_hostname(url) is None
        return time.process_time() - began

    assert seconds(hostname) < seconds(DIFFERENT_LETTERS[:253])


@pytest.mark.parametrize(
    ("header", "browser", "browser_version", "os", "os_version"),
    [
        (
            "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
            *("Firefox", "128.0", "Linux", None),
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 "
            "(KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
            *("Mobile Safari", "17.5", "iOS", "17.5"),
        ),
        ("no such agent", None, None, None, None),
        ("", None, None, None, None),
    ],
)
def test_what_does_not_match_in_a_user_agent_is_none(
    header: str, browser: Any, browser_version: Any, os: Any, os_version: Any
) -> None:
    assert parsing.describe_agent(header) == {
        "browser": browser,
        "browser_version": browser_version,
        "os": os,
        "os_version": os_version,
    }


def test_only_the_first_512_characters_of_an_agent_are_matched() -> None:
    firefox = "Firefox/128.0"

    assert parsing.describe_agent("x" * (512 - len(firefox)) + firefox)["browser"] == "Firefox"
    assert parsing.describe_agent("x" * 512 + firefox)["browser"] is None
