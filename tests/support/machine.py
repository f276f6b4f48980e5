"""A machine with its own systemd, booted from a directory and isolated from this one."""

import contextlib
import ctypes
import os
import re
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server import PATIENCE_SECONDS, ROOT, Server, children, give_up, program, wait_until

PYTHON = "/usr/bin/python3"  # of /usr, which the machine sees
LINKS_TO_USR = ("bin", "sbin", "lib", "lib64")
RUNTIME = (ROOT / "requirements.txt").read_text().partition("# Tests")[0]
RUNTIME_REQUIREMENTS = ["--no-deps", *re.findall(r"^\S+==\S+", RUNTIME, re.MULTILINE)]
DIRECTORIES = ["dev", "etc/systemd/system", "home", "opt", "proc", "root", "run", "srv", "sys"]
DIRECTORIES += ["tmp", "usr", "var"]
FILES = {
    "passwd": "root:x:0:0::/root:/bin/bash\nnobody:x:65534:65534::/:/usr/sbin/nologin\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "shadow": "root:*:20000::::::\nnobody:*:20000::::::\n",
    "gshadow": "",
    "login.defs": "USERGROUPS_ENAB no\n",  # some distributions say so, and useradd obeys
    "machine-id": f"{uuid.uuid4().hex}\n",  # or the boot is a first one
}


def make_root(root: Path) -> None:
    """Make a root directory that lacks only what is in /usr."""
    for name in DIRECTORIES:
        (root / name).mkdir(parents=True)
    for name in LINKS_TO_USR:
        (root / name).symlink_to(f"usr/{name}")
    for name, text in FILES.items():
        (root / "etc" / name).write_text(text)
    shutil.copy("/usr/lib/os-release", root / "etc")


def install_requirements(project: Path, seen_as: str) -> None:
    """Make its .venv, for programs to which the project's directory is `seen_as`."""
    environment = project / ".venv"
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", environment], check=True)
    pip("--python", f"{environment}/bin/python", "install", *RUNTIME_REQUIREMENTS)
    for name in ("flask", "gunicorn"):
        script = environment / "bin" / name
        script.write_text(script.read_text().replace(str(project), seen_as))


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def in_network_of(pid: int) -> Iterator[None]:
    """Open sockets of this thread in the network of that process."""
    own, other = Path("/proc/thread-self/ns/net"), Path(f"/proc/{pid}/ns/net")
    with own.open() as own_file, other.open() as other_file:
        enter(other_file.fileno())
        try:
            yield
        finally:
            enter(own_file.fileno())


def enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class Machine(Server):
    """Has the project in /opt/telemetry.  Requests are sent inside of it, to its port 8000."""

    port = 8000

    def __init__(self, root: Path) -> None:
        if os.geteuid() != 0:
            give_up("only root can boot a machine")
        self.nspawn = program("systemd-nspawn")
        self.root = root
        self.data_dir = root / "var/lib/telemetry"
        self.console = root.with_name("console")
        make_root(root)
        left_out = shutil.ignore_patterns(".*", "__pycache__", "bench", "node_modules", "tests")
        shutil.copytree(ROOT, root / "opt/telemetry", ignore=left_out)
        install_requirements(root / "opt/telemetry", "/opt/telemetry")
        self.name = f"telemetry-test-{uuid.uuid4().hex[:8]}"
        self.cgroups = make_cgroups(self.name)

    def boot(self) -> None:
        nspawn = [self.nspawn, f"--directory={self.root}", "--bind-ro=/usr", "--boot"]
        nspawn += [f"--machine={self.name}", "--private-network", "--console=read-only"]
        nspawn += ["--register=no", "--keep-unit", "--capability=all", "--system-call-filter=bpf"]
        join = f'echo $$ >{self.cgroups[0]}/cgroup.procs && exec "$@"'
        with self.console.open("wb") as console:
            self.process: subprocess.Popen[Any] = subprocess.Popen(
                # It powers off when this process ends, also by a signal.
                ["bash", "-c", join, "bash", program("setpriv"), "--pdeathsig=TERM", *nspawn],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        wait_until(self.is_up)

    def is_up(self) -> bool:
        if self.process.poll() is not None:
            give_up(f"systemd-nspawn cannot boot here: {self.console.read_text()[-300:]}")
        self.leader = next(iter(children(self.process.pid)), 0)
        state = self.ask("systemctl is-system-running") if self.leader else ""
        return state in ("running", "degraded")  # some unit of Debian's own may have failed

    def start(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run lines of shell in the project's directory, as root."""
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root"]
        enter = [program("nsenter"), f"--target={self.leader}", *namespaces]
        environ = ["env", "--chdir=/opt/telemetry", "--ignore-environment"]
        shell = ["PATH=/usr/bin:/usr/sbin", "bash", "-e", "-c", command]
        return subprocess.run(
            [*enter, *environ, *shell], capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )

    def ask(self, command: str) -> str:
        """Return what a command prints, even if it fails."""
        return self.start(command).stdout.strip()

    def run(self, command: str) -> str:
        """Return what a command prints; it must succeed."""
        ran = self.start(command)
        assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout.strip()

    def path(self, inside: str) -> Path:
        """Return where a file of the machine is, seen from here."""
        return self.root / inside.removeprefix("/")

    def connect(self, to: str = "127.0.0.1", timeout: float = PATIENCE_SECONDS) -> socket.socket:
        with in_network_of(self.leader):
            return socket.create_connection((to, self.port), timeout)

    def power_off(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        try:
            self.power_off()
        finally:
            self.process.kill()
            self.process.wait(PATIENCE_SECONDS)
            for cgroup in self.cgroups:
                for directory, _, _ in os.walk(cgroup, topdown=False):
                    Path(directory).rmdir()


def make_cgroups(name: str) -> list[Path]:
    """Make a control group for systemd-nspawn, which creates others in it under fixed names.

    The second path is where it has those of version 1.
    """
    mounted = Path("/sys/fs/cgroup")
    if (mounted / "unified").is_dir():  # beside version 1
        mounted /= "unified"
    if not (mounted / "cgroup.procs").exists():
        give_up("no cgroup2 file system is mounted")
    own = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
    (mounted / own / name).mkdir()
    return [mounted / own / name, mounted.with_name("systemd") / own / name]
