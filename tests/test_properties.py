"""What holds for any value and any bytes."""

import json
from base64 import b64encode
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="needs requirements-dev.txt")
from hypothesis import given, settings
from hypothesis import strategies as st

import parsing
from files.records import AGENT_KEYS, PAYLOAD_KEYS, encode, make_record
from parsing import Rejected, check_payload, parse_cli, parse_core
from report.counting import Tally, count_events
from server import CLI

# No deadline of one example: the machine may be busy.
settings.register_profile("ours", deadline=None, max_examples=50)
settings.load_profile("ours")

TEXT = st.text(st.characters(exclude_categories=()), max_size=300)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(TEXT, inner, max_size=9),
    max_leaves=20,
)


GOOD: dict[str, dict[str, Any]] = {
    "core": {
        "providers": [True] * 8,
        "version": "5",
        "resourceCount": 3,
        "projectId": None,
        "x": 1,
    },
    "cli": CLI | {"nodeEnv": "ci", "os": "", "packages": [{"name": "a", "version": None}]},
}


def nearly(good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with the right fields, most of them of the right type."""
    fields = {
        name: st.one_of(st.just(value), st.just(value), VALUE) for name, value in good.items()
    }
    return st.fixed_dictionaries({}, optional=fields)


def normal_form(parse: Any, document: Any) -> Any:
    """Return what `parse` returns, or None if it rejects the value without showing it."""
    try:
        return parse(document)
    except Rejected as exc:
        refused = exc
    assert refused.status == 400
    assert refused.detail.endswith(".")
    assert "\n" not in refused.detail
    return None


@pytest.mark.parametrize("source", ["core", "cli"])
@given(data=st.data())
def test_a_payload_is_normalised_or_rejected(source: str, data: st.DataObject) -> None:
    document = json.dumps(data.draw(VALUE | nearly(GOOD[source]))).encode()
    if source == "cli":
        payload = normal_form(parse_cli, document)
    else:
        payload = normal_form(parse_core, b64encode(document).decode())

    if payload is not None:
        assert tuple(payload) == PAYLOAD_KEYS[source]
        assert check_payload(source, payload) == payload


@given(st.binary(max_size=500))
def test_any_bytes_are_refused_or_parsed(document: bytes) -> None:
    normal_form(parse_cli, document)
    normal_form(parse_core, document.decode("latin-1"))
    normal_form(parse_core, b64encode(document).decode())


@given(st.dictionaries(TEXT, TEXT, max_size=20))
def test_a_line_holds_nothing_that_breaks_it_or_acts_on_a_terminal(record: dict[str, str]) -> None:
    line = encode(record)

    assert all(" " <= character <= "~" for character in line)
    assert json.loads(line) == record


@given(TEXT)
def test_any_header_gives_a_clean_value_or_none(header: str) -> None:
    hostname = parsing.parse_hostname(header)
    assert hostname is None or (len(hostname) <= 253 and hostname.isascii() and hostname)
    for value in parsing.describe_agent(header).values():
        assert value is None or not parsing.UNSAFE.search(value)


@given(TEXT, TEXT)
def test_an_address_is_canonical_or_none(peer: str, forwarded_for: str) -> None:
    address = parsing.client_address(peer, forwarded_for, parsing.Proxies())

    assert address is None or parsing.parse_address(str(address)) == address


def event_line(source: str, text: str, ip: str) -> bytes:
    """Return a line of that source, as storage.py writes it, with the text wherever one can be."""
    payload = check_payload(source, GOOD[source]) | {"projectId": text}
    if source == "cli":
        payload |= {"command": text, "packages": [{"name": text, "version": None}]}
    values = dict.fromkeys(AGENT_KEYS, text) | {"id": "1", "source": source, "ip": ip}
    values["received_at"] = "2026-11-23T22:29:09.305Z"
    return encode(make_record(source, values | {"payload": payload})).encode("ascii")


NASTY = st.text(st.sampled_from('{}[]",:\\ \n\r\u2028payload'), max_size=12) | TEXT
LINE = st.builds(event_line, st.sampled_from(["core", "cli"]), NASTY, st.sampled_from("12"))
BROKEN = st.builds(
    lambda line, at, piece: line[:at] + piece + line[at + 1 :],
    LINE,
    st.integers(0, 400),
    st.sampled_from([b"", b"\r", b'"', b"\\", b"{", b"}", b"[", b",", b" ", b"\0", b"\xff", b"1"]),
)


@given(st.lists(LINE | LINE | BROKEN, max_size=9))
def test_a_line_counts_for_the_report_as_it_would_alone(lines: list[bytes]) -> None:
    together, alone = Tally(), Tally()
    count_events(b"".join(line + b"\n" for line in lines), together)
    for line in lines:
        count_events(line + b"\n", alone)

    assert together == alone


@given(LINE)
def test_every_line_that_we_write_is_an_event_of_the_report(line: bytes) -> None:
    tally = Tally()
    count_events(line + b"\n", tally)

    counted = {"core": tally.core.total(), "cli": tally.cli.total()}
    assert tally.unreadable_lines == 0
    assert counted == {"core": 0, "cli": 0} | {json.loads(line)["source"]: 1}
