"""What an operator may set, and how a setting of no use is reported."""

import sys
from pathlib import Path

import pytest

from parsing import Proxies
from server import run
from settings import NAMES, ConfigError, bind_addresses, read_settings, worker_count


def test_the_default_settings_are_those_of_the_contract() -> None:
    assert vars(read_settings({"PATH": "/bin", "PORT": "80"})) == {
        "data_dir": Path("data"),
        "framework": "Refine",
        "opt_out": "",
        "contact": "",
        "trusted_proxies": Proxies(),
        "ip": "full",
        "honor_opt_out": True,
        "compress_after_days": 7,
        "retention_days": 0,
        "min_free_mb": 64,
    }


PATH = "a directory, without quotes, ~, $ or white space"
NUMBER = "a whole number from 0 to 999999999"
INVALID = [
    ("DATA_DIR", ["'/srv/data'", '"/srv/data"', "~/data", "$HOME/data", " /srv/data", " "], PATH),
    ("DATA_DIR", ["/srv/data\r", "/srv/data\x85", "\x1b/srv/data", "/srv/data\x9b"], PATH),
    ("DATA_DIR", [__file__, f"{__file__}/data"], "a directory"),
    ("FRAMEWORK", ["Sprout\nSprout", " "], "one line of text"),
    ("OPT_OUT", ["set SPROUT_QUIET=1 "], "one line of text"),
    ("CONTACT", ["Sprout\udce9"], "one line of text"),
    (
        "TRUSTED_PROXIES",
        ["::ffff:127.0.0.1", "fe80::1%eth0", "10.0.0.1/8", "nginx", "127.0.0.1,"],
        'addresses, networks and "unix"',
    ),
    ("IP", ["FULL"], "one of full, masked, hashed, none"),
    ("HONOR_OPT_OUT", ["yes"], "true or false"),
    ("COMPRESS_AFTER_DAYS", ["-1"], NUMBER),
    ("RETENTION_DAYS", ["90d", "1e3"], NUMBER),
    ("MIN_FREE_MB", ["٣", "9" * 10], NUMBER),
    ("RETENTION", ["90"], "one of TELEMETRY_DATA_DIR, "),
    ("PORTS", ["1"], "one of TELEMETRY_DATA_DIR, "),
    ("PORT_OLD", ["1"], "one of TELEMETRY_DATA_DIR, "),
    ("SERVICE", ["1"], "one of TELEMETRY_DATA_DIR, "),
]


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [(f"TELEMETRY_{name}", value, wanted) for name, values, wanted in INVALID for value in values],
)
def test_an_invalid_setting_is_one_line_with_name_value_and_what_is_wanted(
    name: str, value: str, wanted: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        read_settings({name: value})

    message = str(refused.value)
    assert message.startswith(f"{name}={value!r}: want {wanted}")
    assert len(message.splitlines()) == 1


KUBERNETES = """SERVICE_HOST SERVICE_PORT SERVICE_PORT_HTTP PORT PORT_8000_TCP PORT_8123_TCP_ADDR
    PORT_53_UDP_PROTO"""


@pytest.mark.parametrize("service", ["TELEMETRY", "TELEMETRY_CLICKHOUSE", "TELEMETRY_V2"])
def test_variables_that_kubernetes_makes_of_a_service_are_ignored(service: str) -> None:
    names = [f"{service}_{ending}" for ending in KUBERNETES.split()]

    assert read_settings(dict.fromkeys(names, "tcp://10.0.0.1:8000")) == read_settings({})


def test_an_empty_value_is_as_good_as_none() -> None:
    empty = dict.fromkeys([*NAMES, "PORT", "WEB_CONCURRENCY"], "")

    assert read_settings(empty) == read_settings({})
    assert bind_addresses(empty) == bind_addresses({})
    assert worker_count(empty) == 1


@pytest.mark.parametrize("value", ["a~", "a b", "/srv/it's", "/srv/$x", "/srv/caf\udce9", "é"])
def test_an_unusual_directory_is_taken(value: str) -> None:
    assert read_settings({"TELEMETRY_DATA_DIR": value}).data_dir == Path(value)


@pytest.mark.parametrize("value", ["auto", "abc", "0", "-1", "1.5", "70000"])
def test_servers_variables_are_whole_numbers(value: str) -> None:
    for read, name in ((worker_count, "WEB_CONCURRENCY"), (bind_addresses, "PORT")):
        with pytest.raises(ConfigError, match=f"^{name}='{value}': want a whole number from 1 to"):
            read({name: value})


START = (sys.executable, "serve.py")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (START, "TELEMETRY_IP"),
        (START, "WEB_CONCURRENCY"),
        (START, "PORT"),
        ((sys.executable, "-m", "gunicorn"), "TELEMETRY_IP"),
    ],
)
def test_an_invalid_value_stops_the_start_with_one_line(
    command: tuple[str, ...], name: str
) -> None:
    ran = run(*command, **{name: "hash"})

    assert ran.returncode == 1
    assert ran.stderr.startswith(f"{name}='hash': want ")
    assert len(ran.stderr.splitlines()) == 1


def test_empty_variables_do_not_stop_the_start() -> None:
    ran = run(*START, "--check-config", WEB_CONCURRENCY="", PORT="", TELEMETRY_IP="")

    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    ("before", "line"),
    [
        ("sys.version_info = (3, 10, 4)", "want Python 3.11 or newer"),
        ("sys.path = ['.', *(p for p in sys.path if 'site-packages' not in p)]", "No module named"),
    ],
)
def test_what_is_missing_for_a_start_is_one_line(before: str, line: str) -> None:
    code = f"import runpy, sys; {before}; runpy.run_path('serve.py', run_name='__main__')"
    ran = run(sys.executable, "-c", code)

    assert ran.returncode == 1
    assert line in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_without_port_it_listens_on_this_machine_only_and_with_it_on_every_interface() -> None:
    assert bind_addresses({}) == ["127.0.0.1:8000"]
    assert bind_addresses({"PORT": "80"})[-1] in ("[::]:80", "0.0.0.0:80")
    assert worker_count({"WEB_CONCURRENCY": "3"}) == 3
