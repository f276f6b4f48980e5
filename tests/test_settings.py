"""What an operator may set, and how a setting of no use is reported."""

import socket
import sys
from pathlib import Path

import pytest

from server import run
from settings import NAMES, ConfigError, bind_addresses, read_settings, worker_count

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
    assert read_settings(dict.fromkeys(NAMES, "")) == read_settings({})


@pytest.mark.parametrize("value", ["a~", "a b", "/srv/it's", "/srv/$x", "/srv/caf\udce9", "é"])
def test_an_unusual_directory_is_taken(value: str) -> None:
    assert read_settings({"TELEMETRY_DATA_DIR": value}).data_dir == Path(value)


@pytest.mark.parametrize("value", ["auto", "abc", "0", "-1", "1.5", "70000"])
def test_servers_variables_are_whole_numbers(value: str) -> None:
    for read, name in ((worker_count, "WEB_CONCURRENCY"), (bind_addresses, "PORT")):
        with pytest.raises(ConfigError, match=f"^{name}='{value}': want a whole number from 1 to"):
            read({name: value})


START = (sys.executable, "serve.py")


def start_after(code: str) -> tuple[str, ...]:
    """Return a command that starts the server where something was changed before."""
    start = "runpy.run_path('serve.py', run_name='__main__')"
    return sys.executable, "-c", f"import runpy, sys, time; {code}; {start}"


NO_PACKAGES = "sys.path = [path for path in sys.path if 'site-packages' not in path]"


@pytest.mark.parametrize(
    ("command", "environ", "line"),
    [
        (START, {"TELEMETRY_IP": "hash"}, "TELEMETRY_IP='hash': want "),
        (START, {"WEB_CONCURRENCY": "auto"}, "WEB_CONCURRENCY='auto': want "),
        (START, {"PORT": "http"}, "PORT='http': want "),
        (
            (sys.executable, "-m", "gunicorn"),
            {"TELEMETRY_IP": "hash"},
            "TELEMETRY_IP='hash': want ",
        ),
        (start_after("sys.version_info = (3, 10, 4)"), {}, "want Python 3.11 or newer"),
        (start_after(NO_PACKAGES), {}, "No module named"),
    ],
)
def test_what_stops_the_start_is_one_line(
    command: tuple[str, ...], environ: dict[str, str], line: str
) -> None:
    ran = run(*command, **environ)

    assert ran.returncode == 1
    assert line in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_a_port_in_use_stops_the_start_with_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        options = f"['--bind=127.0.0.1:{port}', '--log-level=error']"
        ran = run(*start_after(f"time.sleep = lambda _: None; sys.argv[1:] = {options}"))

    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert f"('127.0.0.1', {port}) failed" in line
    assert line.endswith("(PORT sets the port)")


def test_empty_variables_do_not_stop_the_start() -> None:
    ran = run(*START, "--check-config", WEB_CONCURRENCY="", PORT="", TELEMETRY_IP="")

    assert (ran.returncode, ran.stderr) == (0, "")


def test_without_port_it_listens_on_this_machine_only_and_with_it_on_every_interface() -> None:
    assert bind_addresses({}) == ["127.0.0.1:8000"]
    assert bind_addresses({"PORT": "80"})[-1] in ("[::]:80", "0.0.0.0:80")
    assert worker_count({"WEB_CONCURRENCY": "3"}) == 3
