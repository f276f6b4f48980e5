"""The image, built from deploy/Dockerfile and run with as little as it needs."""

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from image import Image, compose, start_container
from server import ROOT, Load, package, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    image = Image(tmp_path_factory.mktemp("image"))
    yield image
    image.remove()


def manifest(name: str, kind: str) -> dict[str, Any]:
    """Return the object of that kind in a file for Kubernetes."""
    yaml = package("yaml")
    text = (ROOT / "deploy" / name).read_text(encoding="utf-8")
    objects: Iterator[dict[str, Any]] = yaml.safe_load_all(text)
    return next(one for one in objects if one["kind"] == kind)


def test_it_stops_at_sigterm_and_the_next_container_continues_with_its_files(image: Image) -> None:
    container = start_container(image, WEB_CONCURRENCY="2")
    with Load(container, 4) as load:
        load.wait_for(204, 50)
        assert container.stop() == 0
    (path,) = container.data_dir.glob("events-*.jsonl")
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (10001, 10001, 0o640)

    container = start_container(image, volume=container.volume)
    assert container.send_cli(projectId="next").status == 204
    stored = Counter(event["payload"]["projectId"] for event in container.events())
    assert all(stored[project] == 1 for project in load.projects())
    assert "next" in stored


def test_any_user_of_group_0_can_run_it_and_its_health_check_asks_its_own_port_and_no_proxy(
    image: Image,
) -> None:
    proxy = dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
    container = start_container(image, user="12345:0", PORT="9000", **proxy)
    assert container.send_core().status == 204
    assert container.is_healthy()

    container.data_dir.chmod(0)
    assert container.send_core().status == 503
    assert not container.is_healthy()


def test_compose_runs_it_and_trusts_a_proxy_on_the_same_machine(image: Image) -> None:
    package("podman_compose")
    container = compose(image, TELEMETRY_FRAMEWORK="Sprout")
    with Load(container, 2) as load:
        load.wait_for(204, 20)
        killed = container.pid()
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: container.pid() not in (0, killed))
        load.wait_for(204, 20)
    assert container.send_cli([("X-Forwarded-For", "203.0.113.9")]).status == 204
    assert b"What Sprout telemetry collects" in container.send("GET", "/").body

    events = container.events()
    assert events[-1]["ip"] == "203.0.113.9"
    assert load.projects() <= {event["payload"]["projectId"] for event in events}


def test_only_what_runs_is_in_the_image_and_report_and_forget_run_there_as_documented(
    image: Image,
) -> None:
    manual = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    commands = re.findall(r"exec (?:-T )?telemetry (flask [^`\n>]+)", manual)
    container = start_container(image, user="10001:12345")  # its own user in any group
    assert container.send_core().status == 204
    script = "import importlib.util as u, os; print(u.find_spec('pytest'), *os.listdir())"
    found = image.podman("exec", container.name, "python", "-c", script).stdout.split()
    report, forget = (
        image.podman("exec", container.name, *command.split(), *more)
        for command, more in zip(commands, (["--until", "today"], ["--yes"]), strict=True)
    )

    assert found[0] == "None"
    assert {"app.py", "gunicorn.conf.py", "templates"} <= {*found}
    assert {"tests", "deploy", "README.md"}.isdisjoint(found)
    assert report.stdout.startswith("<!doctype html>")
    assert (forget.returncode, len(container.events())) == (0, 1)


def test_a_pod_responds_to_its_probes_and_the_cron_job_writes_a_page_from_its_volume(
    image: Image,
) -> None:
    pod = manifest("kubernetes.yaml", "Deployment")["spec"]["template"]["spec"]
    (spec,) = pod["containers"]
    environ = {variable["name"]: variable["value"] for variable in spec["env"]}
    # What Kubernetes adds for a Service called telemetry.
    environ |= {"TELEMETRY_SERVICE_HOST": "10.96.0.7", "TELEMETRY_PORT": "tcp://10.96.0.7:80"}
    user = "{runAsUser}:{runAsGroup}".format(**pod["securityContext"])
    container = start_container(image, user=user, **environ)

    assert container.send_core().status == 204
    for probe in ("readinessProbe", "livenessProbe"):
        asked = spec[probe]["httpGet"]
        assert asked["port"] == container.port
        assert container.send("GET", asked["path"]).status == 200
    assert [mount["mountPath"] for mount in spec["volumeMounts"]] == ["/data"]

    (path,) = container.data_dir.glob("events-*.jsonl")
    path.rename(path.with_name("events-2026-01-01.jsonl"))
    report = image.directory / "report"
    report.mkdir()
    os.chown(report, 10001, 10001)
    job = manifest("kubernetes-report.yaml", "CronJob")["spec"]["jobTemplate"]["spec"]
    (spec,) = job["template"]["spec"]["containers"]
    mounts = [f"--volume={container.volume}:/data:ro", f"--volume={report}:/report"]
    args = [*spec["args"], "--since", "2026-01-01", "--until", "2026-01-01"]
    image.run("--rm", "--read-only", "--cap-drop=ALL", *mounts, "telemetry", *args)

    assert (report / "report.html").read_text().startswith("<!doctype html>")
    assert [mount["mountPath"] for mount in spec["volumeMounts"]] == ["/data", "/report"]
