"""The image, built from deploy/Dockerfile and run with as little as it needs."""

import os
import re
import uuid
from collections import Counter
from collections.abc import Iterator

import pytest

from image import Composed, Container, Image
from server import ROOT, Load, package, request, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    image = Image(tmp_path_factory.mktemp("image"))
    yield image
    image.remove()


@pytest.fixture(autouse=True)
def no_container_left(image: Image) -> Iterator[None]:
    yield
    image.remove_containers()


@pytest.fixture
def volume() -> str:
    """The name of a volume that is not there yet."""
    return uuid.uuid4().hex


def test_a_second_container_continues_with_the_files_of_the_first(
    image: Image, volume: str
) -> None:
    for project in ("first", "second"):
        container = Container(image, volume=volume)
        assert container.send_cli(projectId=project).status == 204
        assert container.stop() == 0

    assert [event["payload"]["projectId"] for event in container.events()] == ["first", "second"]
    (path,) = container.data_dir.glob("events-*.jsonl")
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (10001, 10001, 0o640)


@pytest.mark.parametrize("user", ["12345:0", "10001:12345"])
def test_any_user_of_group_0_can_run_it_and_its_own_user_in_any_group(
    image: Image, volume: str, user: str
) -> None:
    container = Container(image, volume=volume, user=user)

    assert container.send_core().status == 204
    assert container.is_healthy()
    assert container.stop() == 0


def test_the_health_check_asks_its_own_port_and_no_proxy(image: Image, volume: str) -> None:
    proxy = dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
    container = Container(image, volume=volume, PORT="9000", **proxy)
    assert container.is_healthy()
    assert container.stop() == 0

    full = Container(image, volume=volume, TELEMETRY_MIN_FREE_MB="10000000")
    assert full.send("GET", "/healthz").status == 503
    assert not full.is_healthy()
    assert full.stop() == 0


def test_it_stops_in_time_and_loses_nothing(image: Image, volume: str) -> None:
    container = Container(image, volume=volume, WEB_CONCURRENCY="2")
    slow = container.connect()
    slow.sendall(request("POST", "/cli", body=b"x" * 50)[:-1])
    with Load(container, 4) as load:
        load.wait_for(204, 50)
        status = container.stop()
    slow.close()

    stored = Counter(event["payload"]["projectId"] for event in container.events())
    assert status == 0
    assert all(stored[project] == 1 for project in load.projects())


def test_the_image_holds_only_what_runs(image: Image) -> None:
    script = "import importlib.util as u, os; print(u.find_spec('pytest'), *sorted(os.listdir()))"
    found = image.run("--rm", "--entrypoint=python", "telemetry", "-c", script).split()

    assert found[0] == "None"
    assert {"app.py", "gunicorn.conf.py", "templates"} <= {*found}
    assert {"tests", "deploy", "README.md"}.isdisjoint(found)


def test_the_build_warns_of_nothing(image: Image) -> None:
    assert "warning" not in image.build_log.lower()


def test_compose_runs_it_and_trusts_a_proxy_on_the_same_machine(image: Image) -> None:
    package("podman_compose")
    container = Composed(image)
    with Load(container, 2) as load:
        load.wait_for(204, 20)
        killed = container.pid()
        image.inside("kill", "-KILL", str(killed))
        wait_until(lambda: container.pid() not in (0, killed))
        load.wait_for(204, 20)
    assert container.send_cli([("X-Forwarded-For", "203.0.113.9")]).status == 204
    assert b"What Sprout telemetry collects" in container.send("GET", "/").body
    assert container.stop() == 0

    events = container.events()
    assert events[-1]["ip"] == "203.0.113.9"
    assert load.projects() <= {event["payload"]["projectId"] for event in events}


def test_report_and_forget_run_in_the_container_as_documented(image: Image, volume: str) -> None:
    manual = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    commands = re.findall(r"exec (?:-T )?telemetry (flask [^`\n>]+)", manual)
    container = Container(image, volume=volume)
    assert container.send_core().status == 204
    report, forget = (
        image.podman("exec", container.name, *command.split(), *more)
        for command, more in zip(commands, (["--until", "today"], ["--yes"]), strict=True)
    )

    assert report.stdout.startswith("<!doctype html>")
    assert (forget.returncode, len(container.events())) == (0, 1)


def test_the_cron_job_writes_a_page_from_a_volume_that_it_only_reads(
    image: Image, volume: str
) -> None:
    yaml = package("yaml")
    objects = yaml.safe_load_all((ROOT / "deploy/kubernetes-report.yaml").read_text())
    (job,) = (o["spec"]["jobTemplate"]["spec"] for o in objects if o["kind"] == "CronJob")
    (spec,) = job["template"]["spec"]["containers"]
    container = Container(image, volume=volume)
    assert container.send_core().status == 204
    (path,) = container.data_dir.glob("events-*.jsonl")
    path.rename(path.with_name("events-2026-01-01.jsonl"))

    report = image.directory / "report"
    report.mkdir()
    os.chown(report, 10001, 10001)
    mounts = [f"--volume={volume}:/data:ro", f"--volume={report}:/report"]
    args = [*spec["args"], "--since", "2026-01-01", "--until", "2026-01-01"]
    image.run("--rm", "--read-only", "--cap-drop=ALL", *mounts, "telemetry", *args)

    assert (report / "report.html").read_text().startswith("<!doctype html>")
    assert [mount["mountPath"] for mount in spec["volumeMounts"]] == ["/data", "/report"]


def test_a_pod_has_valid_settings_and_its_probes_get_responses(image: Image, volume: str) -> None:
    yaml = package("yaml")
    objects = yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text(encoding="utf-8"))
    (pod,) = (o["spec"]["template"]["spec"] for o in objects if o["kind"] == "Deployment")
    (spec,) = pod["containers"]
    environ = {variable["name"]: variable["value"] for variable in spec["env"]}
    user = "{runAsUser}:{runAsGroup}".format(**pod["securityContext"])

    # What Kubernetes adds for a Service called telemetry.
    environ |= {"TELEMETRY_SERVICE_HOST": "10.96.0.7", "TELEMETRY_PORT": "tcp://10.96.0.7:80"}
    assert pod["enableServiceLinks"] is False

    container = Container(image, volume=volume, user=user, **environ)

    assert container.send_cli().status == 204
    for probe in ("readinessProbe", "livenessProbe"):
        assert container.send("GET", spec[probe]["httpGet"]["path"]).status == 200
    assert spec["ports"][0]["containerPort"] == container.port
    assert [mount["mountPath"] for mount in spec["volumeMounts"]] == ["/data"]
