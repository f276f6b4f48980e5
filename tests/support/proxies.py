"""The shipped nginx and Caddy sites, run for real in front of a server, and clients with TLS."""

import contextlib
import itertools
import os
import socket
import ssl
import subprocess
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from server import PATIENCE_SECONDS, ROOT, Answer, Server, program, read_next, wait_until

NAME = "telemetry.example.com"  # in the shipped files

# What Debian's nginx.conf has around a site, without its paths.
NGINX_CONF = """
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
{user}
events {{}}
http {{
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/site.conf;
}}
"""


class Front(Server):
    """A proxy before a server.  Each connection comes from a loopback address of its own."""

    changes: ClassVar[dict[str, str]] = {}  # of the shipped file

    def __init__(self, data_dir: Path, collector_port: int, directory: Path) -> None:
        self.data_dir, self.collector_port = data_dir, collector_port
        self.directory = directory
        self.clients = itertools.count()  # unlike a generator, safe in many threads
        self.port, self.plain_port = free_port(), free_port()
        self.certificate, self.key = make_certificate(directory)
        self.tls = ssl.create_default_context(cafile=str(self.certificate))
        with (directory / "output.log").open("wb") as output:
            self.process: subprocess.Popen[Any] = subprocess.Popen(
                self.command(),
                env={**os.environ, "XDG_DATA_HOME": str(directory), "HOME": str(directory)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_until(self.is_listening)

    def command(self) -> list[str]:
        raise NotImplementedError

    def is_listening(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(self.logs())
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def connect(self, source: str | None = None) -> ssl.SSLSocket:
        n = next(self.clients)
        source = source or f"127.1.{n // 250 % 250}.{n % 250 + 1}"
        sock = socket.create_connection(("127.0.0.1", self.port), PATIENCE_SECONDS, (source, 0))
        return self.tls.wrap_socket(sock, server_hostname=NAME)

    def raw(self, request: bytes, source: str | None = None) -> Answer:
        return self.answers([request], source)[0]

    def answers(self, requests: list[bytes], source: str | None = None) -> list[Answer]:
        """Send requests on one connection, all at once, and read their responses."""
        with self.connect(source) as sock, sock.makefile("rb") as stream:
            sock.sendall(b"".join(map(for_site, requests)))
            return [read_next(stream) for _ in requests]

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.directory.glob("*.log")))

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_SECONDS)


class Nginx(Front):
    def command(self) -> list[str]:
        site = substitute(
            (ROOT / "deploy/nginx.conf").read_text(),
            {
                "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
                "listen [::]:443 ssl;": "",
                "listen 80;": f"listen 127.0.0.1:{self.plain_port};",
                "listen [::]:80;": "",
                f"/etc/letsencrypt/live/{NAME}/fullchain.pem": str(self.certificate),
                f"/etc/letsencrypt/live/{NAME}/privkey.pem": str(self.key),
                "/var/log/nginx/": f"{self.directory}/",
                "/var/lib/telemetry-report": str(self.directory),
                "127.0.0.1:8000": f"127.0.0.1:{self.collector_port}",
                **self.changes,
            },
        )
        (self.directory / "site.conf").write_text(site)
        user = "user root;" if os.geteuid() == 0 else ""  # or its workers could not come here
        conf = self.directory / "nginx.conf"
        conf.write_text(NGINX_CONF.format(directory=self.directory, user=user))
        return [program("nginx"), "-e", "stderr", "-c", str(conf), "-p", str(self.directory)]


class NginxBehindCdn(Nginx):
    """With the lines of its comment, for a CDN on loopback addresses."""

    changes: ClassVar = {
        "# set_real_ip_from 192.0.2.0/24;": "set_real_ip_from 127.0.0.0/8;",
        "# real_ip_": "real_ip_",
    }


class Caddy(Front):
    def command(self) -> list[str]:
        site = substitute(
            (ROOT / "deploy/Caddyfile").read_text(),
            {
                "\n{\n": f"\n{{\nadmin off\nhttp_port {self.plain_port}\nhttps_port {self.port}\n",
                f"\n{NAME} {{": f"\n{NAME} {{\nbind 127.0.0.1\ntls {self.certificate} {self.key}",
                "/var/lib/telemetry-report": str(self.directory),
                "127.0.0.1:8000": f"127.0.0.1:{self.collector_port}",
                **self.changes,
            },
        )
        (self.directory / "Caddyfile").write_text(site)
        config = str(self.directory / "Caddyfile")
        return [program("caddy"), "run", "--adapter", "caddyfile", "--config", config]


def for_site(request: bytes) -> bytes:
    return request.replace(b"Host: telemetry.example\r\n", b"Host: %b\r\n" % NAME.encode())


def substitute(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, f"{old} is not in the shipped file"
        text = text.replace(old, new)
    return text


def make_certificate(directory: Path, name: str = NAME) -> tuple[Path, Path]:
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    arguments += f" -subj /CN={name} -addext subjectAltName=DNS:{name} -keyout {key}"
    subprocess.run(
        [program("openssl"), *arguments.split(), "-out", certificate],
        check=True,
        capture_output=True,
    )
    return certificate, key


def free_port() -> int:
    """Return a port that is free on every interface, and that no outgoing connection gets."""
    for port in Random().sample(range(10_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise RuntimeError("no port is free")
