"""What tests need from npm: the packages that tests/apps pins."""

import fcntl
import shutil
import subprocess

from server import ROOT, give_up, program

APPS = ROOT / "tests/apps"
MODULES = APPS / "node_modules"
INSTALL_SECONDS = 300
NPM_OPTIONS = ("--ignore-scripts", "--fetch-retries=1", "--no-audit", "--no-fund")

# Programs among the packages, by the name that tests use.
RUNTIMES = {
    "node 22": MODULES / "node-22/bin/node",
    "node 24": MODULES / "node-24/bin/node",
    "bun": MODULES / "@oven/bun-linux-x64/bin/bun",
    "deno": MODULES / "@deno/linux-x64-glibc/deno",
}


def runtime(name: str) -> str:
    """Return the path of a JavaScript runtime; skip the test without it."""
    if name == "node":
        return program("node")
    install_packages()
    if not RUNTIMES[name].exists():
        give_up(f"npm has no {name} for this machine")
    return str(RUNTIMES[name])


def install_packages() -> None:
    """Install what tests/apps/package-lock.json pins, if that has not been done.

    No package's own scripts run: what they would download is not pinned.
    """
    lock, installed = APPS / "package-lock.json", MODULES / ".lock"
    with (APPS / ".npm-lock").open("w") as only_one:
        fcntl.flock(only_one, fcntl.LOCK_EX)
        if installed.exists() and installed.read_bytes() == lock.read_bytes():
            return
        try:
            subprocess.run(
                [program("npm"), "ci", *NPM_OPTIONS],
                cwd=APPS,
                capture_output=True,
                check=True,
                timeout=INSTALL_SECONDS,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            give_up(f"npm could not install the packages of tests/apps: {error.stderr!s:.300}")
        shutil.copy(lock, installed)
