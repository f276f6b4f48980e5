"""The unit, installed as it says itself, under a systemd that was booted for it."""

import contextlib
import gzip
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from machine import Machine
from server import ROOT, Load, read_answer, request, wait_until

pytestmark = pytest.mark.slow

MOST_EXPOSURE = 10  # tenths, of systemd's 100; a unit without any of its settings has 96
DEPLOY = ROOT / "deploy"
UNIT = (DEPLOY / "telemetry.service").read_text(encoding="utf-8")
SOCKET = (DEPLOY / "telemetry.socket").read_text(encoding="utf-8")


def instructions(text: str) -> list[str]:
    """Return the lines that comments show."""
    return re.findall(r"^#     (.+)$", text, re.MULTILINE)


INSTALL = instructions(UNIT.partition("[Unit]\n")[0])
UNIT_DROP_IN = instructions(UNIT.partition("[Unit]\n")[2])
SOCKET_DROP_IN = instructions(SOCKET)
REPORT = ".venv/bin/flask report /var/lib/telemetry"
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
PUBLISH = instructions((DEPLOY / "telemetry-report.service").read_text(encoding="utf-8"))
PAGE = "/var/lib/telemetry-report/report.html"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine") / "root")
    try:
        machine.run("\n".join(INSTALL))
        yield machine
    finally:
        machine.kill()


@pytest.fixture(autouse=True)
def no_start_counts(machine: Machine) -> None:
    """Five starts in ten seconds are systemd's limit; tests are faster."""
    machine.run("systemctl reset-failed telemetry")


@contextlib.contextmanager
def settings(machine: Machine, *lines: str) -> Iterator[None]:
    """Have these settings in /etc/telemetry.env, and the server running with them."""
    path = machine.path("/etc/telemetry.env")
    path.write_text("".join(f"{line}\n" for line in lines))
    try:
        machine.run("systemctl restart telemetry")
        yield
    finally:
        path.unlink()
        machine.ask("systemctl restart telemetry")


@contextlib.contextmanager
def drop_in(machine: Machine, unit: str, lines: list[str]) -> Iterator[None]:
    """Do what `systemctl edit` does with these lines, and restart."""
    directory = machine.path(f"/etc/systemd/system/{unit}.d")
    directory.mkdir()
    (directory / "override.conf").write_text("\n".join(lines))
    try:
        machine.run(f"systemctl daemon-reload; systemctl stop telemetry {unit}")
        machine.run("systemctl start telemetry")
        yield
    finally:
        shutil.rmtree(directory)
        machine.run(f"systemctl daemon-reload; systemctl stop telemetry {unit}")
        machine.run("systemctl start telemetry")


def main_pid(machine: Machine) -> int:
    return int(machine.run("systemctl show --property=MainPID --value telemetry"))


def projects(machine: Machine) -> Counter[str]:
    return Counter(event["payload"]["projectId"] for event in machine.events())


def test_the_instructions_are_found() -> None:
    assert [line.split()[0] for line in INSTALL] == ["useradd", "cp", "systemctl", "systemctl"]
    assert UNIT_DROP_IN == ["[Service]", "ReadWritePaths=/srv/telemetry"]
    assert SOCKET_DROP_IN[0] == "[Socket]"


def test_installed_it_stores_events_as_its_own_user(machine: Machine) -> None:
    assert machine.send_core().status == 204
    assert machine.send_cli(projectId="installed").status == 204
    assert machine.send("GET", "/healthz").status == 200

    assert "installed" in projects(machine)
    assert machine.run("stat -c '%U:%G %a' /var/lib/telemetry") == "telemetry:telemetry 750"
    modes = machine.run("stat -c '%U:%G %a' /var/lib/telemetry/events-*.jsonl")
    assert set(modes.splitlines()) == {"telemetry:telemetry 640"}


def test_it_starts_when_the_machine_boots(machine: Machine) -> None:
    machine.send_cli(projectId="before the boot")
    machine.power_off()
    machine.boot()

    assert machine.send_cli(projectId="after the boot").status == 204
    assert {"before the boot", "after the boot"} <= projects(machine).keys()


@pytest.mark.parametrize("command", ["restart", "reload"])
def test_under_load_no_connection_is_refused_or_lost(machine: Machine, command: str) -> None:
    with Load(machine, 6) as load:
        for _ in range(3):
            load.wait_for(204, 30)
            machine.run(f"systemctl {command} telemetry")
        load.wait_for(204, 30)

    assert set(load.statuses) == {204}
    assert all(projects(machine)[project] == 1 for project in load.projects())


def test_after_a_kill_it_restarts_with_every_acknowledged_event(machine: Machine) -> None:
    with Load(machine, 6) as load:
        load.wait_for(204, 50)
        killed = main_pid(machine)
        machine.run(f"kill -KILL {killed}")
        load.wait_for(204, 50)

    wait_until(lambda: main_pid(machine) not in (0, killed))
    stored = projects(machine)
    assert all(stored[project] == 1 for project in load.projects())


def test_it_stops_in_time_whatever_clients_do(machine: Machine) -> None:
    slow = [machine.connect() for _ in range(30)]
    try:
        for number, sock in enumerate(slow):
            whole = request("POST", "/cli", body=b"x" * 50)
            sock.sendall(whole[: number * len(whole) // len(slow)])
        assert machine.send_cli().status == 204
        machine.run("systemctl stop telemetry")
    finally:
        for sock in slow:
            sock.close()
    outcome = machine.run("systemctl show --property=Result,ExecMainStatus telemetry")
    machine.run("systemctl start telemetry")

    assert set(outcome.splitlines()) == {"Result=success", "ExecMainStatus=0"}


def test_the_kernel_enforces_its_sandbox(machine: Machine) -> None:
    pid = main_pid(machine)
    lines = machine.run(f"cat /proc/{pid}/status").splitlines()
    status = {name: value.split() for name, value in (line.split(":", 1) for line in lines)}
    places = "/ /etc /home /opt/telemetry /root /srv /usr /var/lib /var/lib/telemetry"
    look = f"for p in {places}; do touch $p/t 2>/dev/null && echo $p && rm $p/t; done; true"
    writable = machine.run(f"nsenter --target {pid} --mount bash -c '{look}'")  # by root, even

    assert [status[name] for name in ("CapEff", "CapPrm", "CapBnd")] == [[f"{0:016x}"]] * 3
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    assert status["Uid"] == [machine.run("id --user telemetry")] * 4
    assert writable == "/var/lib/telemetry"


def test_systemd_analyze_rates_its_exposure_as_low(machine: Machine) -> None:
    machine.run(f"systemd-analyze security --no-pager --threshold={MOST_EXPOSURE} telemetry")


def test_it_makes_no_forbidden_system_call(machine: Machine) -> None:
    with drop_in(machine, "telemetry.service", ["[Service]", "SystemCallErrorNumber=kill"]):
        pid = main_pid(machine)
        since = machine.run("date +'%F %T'")
        with Load(machine, 2) as load:
            load.wait_for(204, 20)
            machine.run("systemctl reload telemetry")
            load.wait_for(204, 20)
        assert machine.send_core().status == 204
        assert machine.send_core(version=5).status == 400
        assert machine.send("GET", "/healthz").status == 200
        machine.run("systemctl stop telemetry")

    assert pid != 0
    assert machine.run("systemctl show --property=Result --value telemetry") == "success"
    assert "SYS" not in machine.run(f"journalctl --output=cat --since='{since}'")


def test_it_speaks_to_no_other_machine(machine: Machine) -> None:
    machine.run("ip address add 192.0.2.1/32 dev lo")
    send = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('{}', 9))"
    group = "/sys/fs/cgroup/system.slice/telemetry.service/cgroup.procs"

    machine.run(f'echo $$ >{group}; python3 -c "{send.format("127.0.0.1")}"')
    refused = machine.ask(f'echo $$ >{group}; python3 -c "{send.format("192.0.2.1")}" 2>&1')
    assert refused.endswith("PermissionError: [Errno 1] Operation not permitted")


def test_another_listen_address_works_as_documented_for_those_allowed(
    machine: Machine,
) -> None:
    for address in ("10.0.0.1", "192.0.2.2"):
        machine.run(f"ip address add {address}/32 dev lo")
    with drop_in(machine, "telemetry.socket", SOCKET_DROP_IN):
        assert machine.send_cli().status == 204
        with machine.connect("10.0.0.1") as sock:
            sock.sendall(request("GET", "/healthz"))
            assert read_answer(sock).status == 200
        with pytest.raises(TimeoutError):
            machine.connect("192.0.2.2", timeout=1)


def test_another_data_directory_works_as_documented(machine: Machine) -> None:
    machine.run("install -d -o telemetry -g telemetry -m 0750 /srv/telemetry")
    with (
        drop_in(machine, "telemetry.service", UNIT_DROP_IN),
        settings(machine, "TELEMETRY_DATA_DIR=/srv/telemetry"),
    ):
        assert machine.send_cli(projectId="elsewhere").status == 204
        (path,) = (machine.root / "srv/telemetry").glob("events-*.jsonl")
        assert "elsewhere" in path.read_text()
    assert "elsewhere" not in projects(machine)


def test_only_the_server_can_read_the_key_of_hashed_addresses(machine: Machine) -> None:
    with settings(machine, "TELEMETRY_IP=hashed"):
        assert machine.send_cli(projectId="hashed").status == 204

    (event,) = (e for e in machine.events() if e["payload"]["projectId"] == "hashed")
    assert re.fullmatch("[0-9a-f]{64}", event["ip"])
    mode = machine.run("stat -c '%U %a' /var/lib/telemetry/address-key-*")
    assert mode == "telemetry 600"


def test_it_compresses_by_itself_and_the_report_reads_all_files(machine: Machine) -> None:
    assert machine.send_core().status == machine.send_cli().status == 204
    today = datetime.now(UTC).date()
    names = [f"events-{today - timedelta(days=age)}.jsonl" for age in (0, 1, 9)]
    copy = "cd /var/lib/telemetry; cp --preserve=mode,ownership"
    machine.run("; ".join(f"{copy} {names[0]} {name}" for name in names[1:]))
    machine.run("systemctl restart telemetry")
    packed = machine.data_dir / f"{names[2]}.gz"
    wait_until(packed.exists)
    report = json.loads(machine.run(f"{REPORT} --format json --until {today}"))

    lines = machine.lines(names[0])
    assert gzip.decompress(packed.read_bytes()).splitlines() == lines
    assert machine.run(f"stat -c '%U %a' /var/lib/telemetry/{packed.name}") == "telemetry 640"
    assert report["events"] == Counter(json.loads(line)["source"] for line in lines * 3)


def test_the_page_is_published_each_day_and_stays_where_the_report_fails(machine: Machine) -> None:
    today = datetime.now(UTC).date()
    day = f"events-{today - timedelta(days=1)}.jsonl"
    assert machine.send_core().status == 204
    copy = "cd /var/lib/telemetry; cp --preserve=mode,ownership"
    machine.run(f"{copy} events-{today}.jsonl {day}")
    with settings(machine, "TELEMETRY_FRAMEWORK=Sprout"):
        machine.run("\n".join(PUBLISH))
        machine.run("systemctl start telemetry-report")
    page = machine.run(f"cat {PAGE}")
    due = machine.run("systemctl show --property=NextElapseUSecRealtime telemetry-report.timer")

    assert page.startswith("<!doctype html>")
    assert "Sprout" in page
    assert (
        machine.run(f"stat -c '%U %a' {PAGE} $(dirname {PAGE})") == "telemetry 644\ntelemetry 755"
    )
    assert " 00:10:00 UTC" in due
    machine.run("systemd-analyze security --no-pager --threshold=25 telemetry-report")

    machine.run("mv /var/lib/telemetry /var/lib/gone")
    failed = machine.start("systemctl start telemetry-report").returncode
    machine.run("mv /var/lib/gone /var/lib/telemetry")
    assert failed != 0
    assert machine.run(f"cat {PAGE}") == page


def documented(beginning: str, count: int = 1) -> list[str]:
    """Return the commands of docs/operations.md that begin so."""
    found = re.findall(rf"^ {{4,}}({re.escape(beginning)}.*)$", OPERATIONS, re.MULTILINE)
    assert len(found) == count
    return found


def test_the_report_needs_no_working_directory_and_no_flask_app(machine: Machine) -> None:
    assert machine.send_core().status == 204
    (command,) = documented("TELEMETRY_DATA_DIR=/var/lib/telemetry /opt/")
    machine.run(
        f"mkdir -p /srv/www; cd /tmp; export FLASK_APP=other.py; {command} --until $(date -u +%F)"
    )

    assert machine.path("/srv/www/report.html").read_text().startswith("<!doctype html>")


def test_settings_can_be_checked_before_a_restart(machine: Machine) -> None:
    (check,) = documented("systemd-run ")
    path = machine.path("/etc/telemetry.env")
    path.write_text("TELEMETRY_IP=masked\n")
    assert machine.run(f"{check} 2>&1") == ""

    path.write_text("TELEMETRY_IP=mask\n")
    said = machine.ask(f"{check} 2>&1")
    path.unlink()
    assert said == "TELEMETRY_IP='mask': want one of full, masked, hashed, none"


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

    with Load(machine, 2) as load:
        load.wait_for(204, 20)
        for command in documented("/opt/telemetry/.venv/bin/flask", 2):
            machine.run(f"cd /tmp; {command}")
        load.wait_for(204, 20)

    addresses = Counter(event["ip"] for event in machine.events())
    assert (addresses["203.0.113.9"], addresses["203.0.113.99"]) == (0, 1)
    assert load.projects() <= projects(machine).keys()
    assert set(load.statuses) == {204}


def test_an_invalid_setting_is_one_line_in_the_journal_and_leaves_no_client_waiting(
    machine: Machine,
) -> None:
    path = machine.path("/etc/telemetry.env")
    path.write_text("TELEMETRY_RETENTION_DAYS=90d\n")
    since = machine.run("date +'%F %T'")
    machine.ask("systemctl restart telemetry")
    wait_until(lambda: machine.ask("systemctl is-active telemetry.socket") == "failed")
    journal = f"journalctl --output=cat --since='{since}' SYSLOG_IDENTIFIER=telemetry"
    lines = machine.run(f"{journal} | grep -v INFO").splitlines()
    with pytest.raises(ConnectionRefusedError):
        machine.connect()
    path.unlink()
    machine.run("systemctl reset-failed telemetry; systemctl restart telemetry")

    assert len({*lines}) == 1  # of several starts
    assert all(word in lines[0] for word in ("TELEMETRY_RETENTION_DAYS", "90d", "want"))
    assert machine.send_cli().status == 204
