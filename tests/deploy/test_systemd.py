"""The unit, installed as it says itself, under a systemd that was booted for it."""

import contextlib
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from machine import Machine
from server import ROOT, Load, read_answer, request, wait_until

pytestmark = pytest.mark.slow


def shown(name: str) -> list[str]:
    """Return what the comments of a file in deploy/ show, block by block."""
    text = (ROOT / "deploy" / name).read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^#     .+\n)+", text, re.MULTILINE)
    return [block.replace("#     ", "") for block in blocks]


INSTALL, UNIT_DROP_IN = shown("telemetry.service")
(SOCKET_DROP_IN,) = shown("telemetry.socket")
(PUBLISH,) = shown("telemetry-report.service")
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
PAGE = "/var/lib/telemetry-report/report.html"
ENVIRONMENT = "/etc/telemetry.env"
# Where `systemctl edit` writes.
UNIT_OVERRIDE = "/etc/systemd/system/telemetry.service.d/override.conf"
SOCKET_OVERRIDE = "/etc/systemd/system/telemetry.socket.d/override.conf"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with Machine(tmp_path_factory.mktemp("machine") / "root") as machine:
        machine.boot()
        machine.run(INSTALL)
        yield machine


@pytest.fixture(autouse=True)
def no_start_counts(machine: Machine) -> None:
    """Five starts in thirty seconds are the unit's limit; tests are faster."""
    machine.run("systemctl reset-failed telemetry")


@contextlib.contextmanager
def configured(machine: Machine, files: dict[str, str]) -> Iterator[None]:
    """Have these lines in files of the machine, and the server running with them."""
    restart = "systemctl daemon-reload; systemctl stop telemetry.socket telemetry"
    restart += "; systemctl start telemetry"
    for name, text in files.items():
        machine.path(name).parent.mkdir(exist_ok=True)
        machine.path(name).write_text(text)
    try:
        machine.run(restart)
        yield
    finally:
        for name in files:
            machine.path(name).unlink()
        machine.run(restart)


def projects(machine: Machine) -> Counter[str]:
    return Counter(event["payload"]["projectId"] for event in machine.events())


def copy_of_today(machine: Machine, days_ago: int) -> Path:
    """Copy today's file to the name of an earlier day."""
    today = datetime.now(UTC).date()
    name = f"events-{today - timedelta(days=days_ago)}.jsonl"
    copy = f"cp --preserve=mode,ownership events-{today}.jsonl {name}"
    machine.run(f"cd /var/lib/telemetry; {copy}")
    return machine.data_dir / name


def test_after_a_boot_it_compresses_and_stores_as_its_own_user(machine: Machine) -> None:
    assert machine.send_cli(projectId="before the boot").status == 204
    path = copy_of_today(machine, 9)
    content = path.read_bytes()
    machine.power_off()
    machine.boot()

    assert machine.send_cli(projectId="after the boot").status == 204
    assert {"before the boot", "after the boot"} <= projects(machine).keys()
    packed = path.with_name(f"{path.name}.gz")
    wait_until(lambda: packed.exists() and not path.exists())
    assert gzip.decompress(packed.read_bytes()) == content
    modes = machine.run("stat -c '%U:%G %a' /var/lib/telemetry /var/lib/telemetry/*.jsonl*")
    assert modes.splitlines() == [f"telemetry:telemetry {mode}" for mode in (750, 640, 640)]


@pytest.mark.parametrize(
    ("command", "statuses"),
    [("restart", {204}), ("reload", {204}), ("kill --kill-who=main --signal=KILL", {204, 0})],
)
def test_under_load_no_acknowledged_event_is_lost(
    machine: Machine, command: str, statuses: set[int]
) -> None:
    with Load(machine, 4) as load:
        load.wait_for(204, 50)
        machine.run(f"systemctl {command} telemetry")
        wait_until(lambda: machine.ask("systemctl is-active telemetry") == "active")
        load.wait_for(204, 50)

    stored = projects(machine)
    assert load.statuses.keys() <= statuses
    assert all(stored[project] == 1 for project in load.projects())


def test_the_kernel_enforces_its_sandbox(machine: Machine) -> None:
    pid = machine.run("systemctl show --property=MainPID --value telemetry")
    lines = machine.run(f"cat /proc/{pid}/status").splitlines()
    status = {name: value.split() for name, value in (line.split(":", 1) for line in lines)}
    places = "/ /etc /home /opt/telemetry /root /srv /usr /var/lib /var/lib/telemetry"
    look = f"for p in {places}; do touch $p/t 2>/dev/null && echo $p && rm $p/t; done; true"
    writable = machine.run(f"nsenter --target {pid} --mount bash -c '{look}'")  # by root, even

    assert [status[name] for name in ("CapEff", "CapPrm", "CapBnd")] == [[f"{0:016x}"]] * 3
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    assert status["Uid"] == [machine.run("id --user telemetry")] * 4
    assert writable == "/var/lib/telemetry"
    # Of 100 points of exposure; a unit without any of its settings has 96.
    machine.run("systemd-analyze security --no-pager --threshold=10 telemetry")


def test_it_makes_no_forbidden_system_call_and_stops_in_time(machine: Machine) -> None:
    with (
        configured(machine, {UNIT_OVERRIDE: "[Service]\nSystemCallErrorNumber=kill"}),
        machine.connections(5, request("POST", "/cli", body=b"x" * 50)[:-1]),  # incomplete
    ):
        since = machine.run("date +'%F %T'")
        with Load(machine, 2) as load:
            load.wait_for(204, 20)
            machine.run("systemctl reload telemetry")
            load.wait_for(204, 20)
        assert machine.send_core().status == 204
        assert machine.send_core(version=5).status == 400
        assert machine.send("GET", "/healthz").status == 200
        machine.run("systemctl stop telemetry")
        result = machine.run("systemctl show --property=Result,ExecMainStatus telemetry")

    assert set(result.splitlines()) == {"Result=success", "ExecMainStatus=0"}
    assert "SYS" not in machine.run(f"journalctl --output=cat --since='{since}'")


def test_it_speaks_to_no_other_machine(machine: Machine) -> None:
    machine.run("ip address add 192.0.2.1/32 dev lo")
    send = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('{}', 9))"
    group = "/sys/fs/cgroup/system.slice/telemetry.service/cgroup.procs"

    machine.run(f'echo $$ >{group}; python3 -c "{send.format("127.0.0.1")}"')
    refused = machine.ask(f'echo $$ >{group}; python3 -c "{send.format("192.0.2.1")}" 2>&1')
    assert refused.endswith("PermissionError: [Errno 1] Operation not permitted")


def test_another_address_and_another_data_directory_work_as_documented(machine: Machine) -> None:
    for address in ("10.0.0.1", "192.0.2.2"):
        machine.run(f"ip address add {address}/32 dev lo")
    machine.run("install -d -o telemetry -g telemetry -m 0750 /srv/telemetry")
    settings = "TELEMETRY_DATA_DIR=/srv/telemetry\nTELEMETRY_IP=hashed"
    files = {SOCKET_OVERRIDE: SOCKET_DROP_IN, UNIT_OVERRIDE: UNIT_DROP_IN, ENVIRONMENT: settings}
    with configured(machine, files):
        assert machine.send_cli(projectId="elsewhere").status == 204
        with machine.connect("10.0.0.1") as sock:
            sock.sendall(request("GET", "/healthz"))
            assert read_answer(sock).status == 200
        with pytest.raises(TimeoutError):
            machine.connect("192.0.2.2", timeout=0.5)

    (path,) = machine.path("/srv/telemetry").glob("events-*.jsonl")
    event = json.loads(path.read_text())
    assert event["payload"]["projectId"] == "elsewhere"
    assert re.fullmatch("[0-9a-f]{64}", event["ip"])
    assert machine.run("stat -c '%U %a' /srv/telemetry/address-key-*") == "telemetry 600"
    assert "elsewhere" not in projects(machine)


def test_the_page_is_published_each_day(machine: Machine) -> None:
    assert machine.send_core().status == 204
    copy_of_today(machine, 1)
    environment = machine.path(ENVIRONMENT)
    environment.write_text("TELEMETRY_FRAMEWORK=Sprout\n")
    machine.run(PUBLISH + "systemctl start telemetry-report")
    environment.unlink()
    modes = machine.run(f"stat -c '%U %a' {PAGE} $(dirname {PAGE})")
    due = machine.run("systemctl show --property=NextElapseUSecRealtime telemetry-report.timer")

    assert "Sprout" in machine.run(f"cat {PAGE}")
    assert modes.splitlines() == ["telemetry 644", "telemetry 755"]
    assert " 00:10:00 UTC" in due
    machine.run("systemd-analyze security --no-pager --threshold=25 telemetry-report")


def documented(beginning: str, count: int = 1) -> list[str]:
    """Return the commands of docs/operations.md that begin so."""
    found = re.findall(rf"^ {{4,}}({re.escape(beginning)}.*)$", OPERATIONS, re.MULTILINE)
    assert len(found) == count
    return found


def test_a_backup_is_restored_as_documented(machine: Machine) -> None:
    (save,) = documented("rsync --archive --exclude='address-key-*'")
    restore = re.findall("To restore:\n\n(.+?)\n\n", OPERATIONS, re.DOTALL)[0]
    assert machine.send_cli(projectId="saved").status == 204
    for commands in (
        f"mkdir /root/telemetry; {save}",
        "rm /var/lib/telemetry/*",
        restore + "\nrm -r /root/telemetry",
    ):
        machine.run(commands.replace("backup.example.com:", "/root/"))

    assert machine.send_cli(projectId="after the restore").status == 204
    assert {"saved", "after the restore"} <= projects(machine).keys()
    assert machine.run("stat -c '%U:%G %a' /var/lib/telemetry") == "telemetry:telemetry 750"


def test_a_person_is_forgotten_beside_the_running_server(machine: Machine) -> None:
    assert machine.send_cli([("X-Forwarded-For", "203.0.113.9")]).status == 204
    assert machine.send_cli([("X-Forwarded-For", "203.0.113.99")]).status == 204

    for command in documented("/opt/telemetry/.venv/bin/flask", 2):
        machine.run(f"cd /tmp; export FLASK_APP=other.py; {command}")
    assert machine.send_cli(projectId="after the erasure").status == 204

    addresses = Counter(event["ip"] for event in machine.events())
    assert (addresses["203.0.113.9"], addresses["203.0.113.99"]) == (0, 1)
    assert "after the erasure" in projects(machine)


def test_an_invalid_setting_is_one_line_before_a_restart_and_in_the_journal(
    machine: Machine,
) -> None:
    """The start is given up, so that clients are refused instead of waiting."""
    (check,) = documented("systemd-run ")
    path = machine.path(ENVIRONMENT)
    path.write_text("TELEMETRY_IP=masked\n")
    assert machine.run(f"{check} 2>&1") == ""
    path.write_text("TELEMETRY_IP=mask\n")
    said = machine.ask(f"{check} 2>&1")
    since = machine.run("date +'%F %T'")
    machine.ask("systemctl restart telemetry")
    wait_until(lambda: machine.ask("systemctl is-active telemetry.socket") == "failed")
    journal = f"journalctl --output=cat --since='{since}' SYSLOG_IDENTIFIER=telemetry"
    lines = machine.run(f"{journal} | grep -v INFO").splitlines()
    with pytest.raises(ConnectionRefusedError):
        machine.connect()
    path.unlink()
    machine.run("systemctl reset-failed telemetry; systemctl restart telemetry")

    assert said == "TELEMETRY_IP='mask': want one of full, masked, hashed, none"
    assert {*lines} == {said}  # of several starts
    assert machine.send_cli().status == 204
