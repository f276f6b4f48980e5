"""The image, built from deploy/Dockerfile, and containers of it, without any registry.

What FROM names is made here: a root directory without /usr/bin and the like, which
are this machine's, and a Python with pip in /usr/local, as the real image has.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from machine import PYTHON, RUNTIME_REQUIREMENTS, in_network_of, make_root, pip
from server import PATIENCE_SECONDS, ROOT, Server, give_up, package, program, wait_until

FROM = "docker.io/library/python:3.13-slim"
SHARED = ("bin", "sbin", "lib", "lib64", "share")
OF_USR = [f"--volume=/usr/{name}:/usr/{name}:ro" for name in SHARED]
# podman would raise the limits, and not every root may.
RUN_OPTIONS = ["--cgroups=disabled", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"]
RUN_OPTIONS += OF_USR


class Image:
    """The image, in a storage of its own, and a network with nothing but its containers."""

    def __init__(self, directory: Path) -> None:
        if os.geteuid() != 0:
            give_up("only root can build an image here")
        self.directory = directory
        self.runroot = Path(tempfile.mkdtemp(prefix="telemetry-"))  # podman wants it to be short
        self.storage = [f"--root={directory}/storage", f"--runroot={self.runroot}"]
        self.networks = f"--network-config-dir={directory}/networks"
        base = directory / "base"
        make_base(base)
        archive = subprocess.run(
            ["tar", "--create", "--directory", base, "."], capture_output=True, check=True
        ).stdout
        imported = [program("podman"), *self.storage, "import", "-", FROM]
        subprocess.run(imported, input=archive, capture_output=True, check=True)
        self.build()
        self.holder = hold_namespaces()

    def build(self) -> None:
        isolated = ["--isolation=chroot", "--network=host", *OF_USR]
        options = ["--format=docker", "--file=deploy/Dockerfile", "--tag=telemetry"]
        ran = subprocess.run(
            [program("buildah"), *self.storage, "bud", *isolated, *options, "."],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert ran.returncode == 0, ran.stdout
        assert "warning" not in ran.stdout.lower(), ran.stdout

    def podman(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.inside(program("podman"), *self.storage, self.networks, *arguments)

    def inside(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command where the containers run."""
        enter = [program("nsenter"), f"--target={self.holder.pid}", "--net", "--mount"]
        return subprocess.run(
            [*enter, *command],
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    def run(self, *arguments: str) -> str:
        """Run a container with these options, image and command; return what it prints."""
        ran = self.podman("run", "--network=host", *RUN_OPTIONS, *arguments)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    def remove_containers(self) -> None:
        self.podman("rm", "--all", "--force", "--time=0")

    def remove(self) -> None:
        self.remove_containers()
        self.holder.kill()
        self.holder.wait(PATIENCE_SECONDS)
        for directory in (self.directory, self.runroot):  # podman may be cleaning up, too
            shutil.rmtree(directory, ignore_errors=True)


def make_base(base: Path) -> None:
    make_root(base)
    shutil.copy("/etc/login.defs", base / "etc")
    for name in SHARED:
        (base / "usr" / name).mkdir()
    local = base / "usr/local"
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", local], check=True)
    (packages,) = local.glob("lib/python*/site-packages")
    shutil.copytree(package("pip").__path__[0], packages / "pip")
    script = local / "bin/pip"
    script.write_text('#!/bin/sh\nexec python -m pip "$@"\n')
    script.chmod(0o755)
    of_base = ["--python", f"{local}/bin/python"]
    pip(*of_base, "download", "--dest", base / "wheels", *RUNTIME_REQUIREMENTS)
    (base / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")


def hold_namespaces() -> subprocess.Popen[str]:
    """Start a process that has a network, mounts and a cgroup file system apart."""
    prepare = """
        set -e
        ip link set lo up
        [ "$(stat --file-system --format=%T /sys/fs/cgroup)" = cgroup2fs ] || {
            umount --recursive /sys/fs/cgroup
            mount --types cgroup2 cgroup2 /sys/fs/cgroup
        }
        echo ready
        exec sleep infinity
    """
    unshare = [program("unshare"), "--net", "--mount", "--propagation=private"]
    holder = subprocess.Popen(
        [program("setpriv"), "--pdeathsig=KILL", *unshare, "bash", "-c", prepare],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert holder.stdout
    with holder.stdout as output:
        said = output.readline()
        if said != "ready\n":
            give_up(f"no container can run here: {said}")
    return holder


class Container(Server):
    """A running container."""

    def __init__(self, image: Image, name: str, volume: str, port: int = 8000) -> None:
        self.image, self.name, self.volume, self.port = image, name, volume, port
        mounted = image.podman("volume", "inspect", volume, "--format={{.Mountpoint}}")
        self.data_dir = Path(mounted.stdout.strip())
        wait_until(self.is_listening)

    def is_listening(self) -> bool:
        try:
            self.connect().close()
        except ConnectionRefusedError:
            assert self.pid() != 0, self.image.podman("logs", self.name)
            return False
        return True

    def connect(self) -> socket.socket:
        with in_network_of(self.image.holder.pid):
            return super().connect()

    def is_healthy(self) -> bool:
        return self.image.podman("healthcheck", "run", self.name).returncode == 0

    def stop(self) -> int:
        """Stop it as `docker stop` does, with compose.yaml's grace; return its exit status."""
        self.image.podman("stop", "--time=30", self.name)
        return self.state("ExitCode")

    def pid(self) -> int:
        """Return its first process; 0 while there is none."""
        return self.state("Pid")

    def state(self, name: str) -> int:
        ran = self.image.podman("inspect", f"--format={{{{.State.{name}}}}}", self.name)
        return int(ran.stdout)


def start_container(
    image: Image, *, volume: str = "", user: str = "10001", **environ: str
) -> Container:
    """Replace the container that runs, with the least privileges and a new volume or this one."""
    image.remove_containers()
    name = f"telemetry-{uuid.uuid4().hex[:8]}"
    volume = volume or name
    locked = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL"]
    locked += ["--security-opt=no-new-privileges", f"--volume={volume}:/data", f"--user={user}"]
    variables = (f"--env={name}={value}" for name, value in environ.items())
    image.run("--detach", f"--name={name}", *locked, *variables, "telemetry")
    return Container(image, name, volume, int(environ.get("PORT", "8000")))


def compose(image: Image, **environ: str) -> Container:
    """Start the container of deploy/compose.yaml, by podman-compose, from the image as it is."""
    image.remove_containers()
    image.podman("tag", "telemetry", "deploy_telemetry")
    command = [str(Path(sys.executable).with_name("podman-compose"))]
    command += [f"--podman-args={option}" for option in (*image.storage, image.networks)]
    command += [f"--podman-run-args={option}" for option in RUN_OPTIONS]
    command += [f"--file={ROOT}/deploy/compose.yaml", "up", "--detach"]
    ran = image.inside(*command, **environ)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return Container(image, "deploy_telemetry_1", "deploy_data")
