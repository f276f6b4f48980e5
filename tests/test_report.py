"""`flask report`, its numbers counted a second time in the simplest way there is."""

import gzip
import json
import math
import random
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask

import report
from app import create_app
from parsing import PROVIDERS
from settings import read_settings

UNTIL = date(2026, 11, 23)
AGENTS = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/131.0.0.0 Safari/537.36",
    "none that is known",
]


@pytest.fixture
def run(make_app: Callable[..., Flask]) -> Callable[..., Result]:
    """Run `flask report` on `data_dir`; today is 2026-11-23."""

    def run(*arguments: str, **settings: str) -> Result:
        return make_app(**settings).test_cli_runner().invoke(args=["report", *arguments])

    return run


def send_a_week(data_dir: Path) -> None:
    """Two hundred events of each kind, and some refusals, through the endpoints."""
    chance = random.Random(7)
    now = [datetime(2026, 11, 23, 12, tzinfo=UTC)]
    settings = read_settings({"TELEMETRY_DATA_DIR": str(data_dir)})
    app = create_app(settings, clock=lambda: now[0])
    client = app.test_client()
    for _ in range(400):
        now[0] = datetime(2026, 11, 16 + chance.randrange(8), chance.randrange(24), tzinfo=UTC)
        options = {
            "headers": {
                "User-Agent": chance.choice(AGENTS),
                "Origin": chance.choice(["null", *(f"https://h{n}.example" for n in range(9))]),
            },
            "environ_overrides": {"REMOTE_ADDR": f"192.0.2.{chance.randrange(40)}"},
        }
        project = chance.choice([None, "a", "b", "<b>ü\u202e"])
        payload: dict[str, Any] = {"projectId": project}
        if chance.random() < 0.5:
            payload["providers"] = [chance.random() < 0.4 for _ in PROVIDERS]
            payload |= {"version": f"5.0.{chance.randrange(3)}"}
            payload["resourceCount"] = chance.randrange(-1, 30)
            body = report.encode(payload)
            encoded = b64encode(body.encode())
            client.post("/", data=encoded, **options)
        else:
            names = chance.sample(["core", "cli", "antd"], chance.randrange(4))
            payload["packages"] = [
                {"name": name, "version": chance.choice(["1", "2", None])} for name in names
            ]
            payload |= {"nodeVersion": chance.choice(["v20", "v22", 5]), "command": "dev"}
            payload |= {"projectFramework": chance.choice(["vite", "next"]), "os": "Linux"}
            payload["nodeEnv"] = chance.choice([None, "ci"])
            client.post("/cli", json=payload, **options)
    app.extensions["collector"].store.close()


# The naive count: every line by json.loads, every number by a loop of its own.


def read(data_dir: Path, kind: str, since: date, until: date = UNTIL) -> list[dict[str, Any]]:
    records = []
    for path in data_dir.glob(f"{kind}-*.jsonl"):
        if since <= date.fromisoformat(path.name[-16:-6]) <= until:
            records += [json.loads(line) for line in path.read_text().splitlines()]
    return records


def rank(values: list[tuple[Any, ...]], *names: str) -> list[dict[str, Any]]:
    rows = [dict(zip(names, v, strict=True)) | {"events": values.count(v)} for v in set(values)]
    return sorted(
        rows, key=lambda row: [-row["events"], *((row[n] is None, row[n] or "") for n in names)]
    )


def count_distinct(events: list[dict[str, Any]], source: str) -> dict[str, int]:
    mine = [event for event in events if event["source"] == source]
    found = {"addresses": {event["ip"] for event in mine}}
    if source == "core":
        found["hostnames"] = {event["hostname"] for event in mine}
    found["projects"] = {event["payload"]["projectId"] for event in mine}
    return {name: len(values - {None}) for name, values in found.items()}


def naive(data_dir: Path, since: date) -> dict[str, Any]:
    events = read(data_dir, "events", since)
    core = [event for event in events if event["source"] == "core"]
    cli = [event["payload"] for event in events if event["source"] == "cli"]
    days = []
    for n in range((UNTIL - since).days + 1):
        day = since + timedelta(days=n)
        todays = [event for event in events if event["received_at"].startswith(str(day))]
        row: dict[str, Any] = {"date": str(day)}
        for source in ("core", "cli"):
            count = sum(event["source"] == source for event in todays)
            row[source] = {"events": count} | count_distinct(todays, source)
        days.append(row)

    def with_projects(name: Callable[[dict[str, Any]], list[str]]) -> list[dict[str, Any]]:
        rows = rank([(value,) for event in core for value in name(event["payload"])], "value")
        for row in rows:
            having = [e["payload"]["projectId"] for e in core if row["value"] in name(e["payload"])]
            row["projects"] = len(set(having) - {None})
        return rows

    resources = sorted(event["payload"]["resourceCount"] for event in core)
    reasons = [(r["source"], r["field"], r["detail"]) for r in read(data_dir, "refused", since)]
    return {
        "since": str(since),
        "until": str(UNTIL),
        "events": {"core": len(core), "cli": len(cli)},
        "unreadable_lines": 0,
        "refused": rank(reasons, "source", "field", "detail"),
        "days": days,
        "active": {
            str(n): {
                source: count_distinct(
                    read(data_dir, "events", UNTIL - timedelta(days=n - 1)), source
                )
                for source in ("core", "cli")
            }
            for n in (1, 7, 30)
        },
        "core": {
            "versions": with_projects(lambda payload: [payload["version"]]),
            "providers": with_projects(
                lambda payload: [name for name in PROVIDERS if payload["providers"][name]]
            ),
            "browsers": rank(
                [(e["browser"], e["browser_version"]) for e in core], "value", "version"
            ),
            "operating_systems": rank(
                [(e["os"], e["os_version"]) for e in core], "value", "version"
            ),
            "resource_count": {
                "min": resources[0],
                "median": resources[(len(resources) - 1) // 2],
                "p90": resources[math.ceil(len(resources) * 0.9) - 1],
                "max": resources[-1],
            },
        },
        "cli": {
            "commands": rank([(p["command"],) for p in cli], "value"),
            "node_versions": rank([(p["nodeVersion"],) for p in cli], "value"),
            "operating_systems": rank([(p["os"], p["osVersion"]) for p in cli], "value", "version"),
            "frameworks": rank([(p["projectFramework"],) for p in cli], "value"),
            "environments": rank([(p["nodeEnv"],) for p in cli], "value"),
            "packages": rank(
                [(k["name"], k["version"]) for p in cli for k in p["packages"]], "name", "version"
            ),
        },
    }


@pytest.mark.parametrize("first_day", [17, 23], ids=["a week", "one day"])
@pytest.mark.parametrize("kept_as", ["plain", "pieces", "gzip"])
def test_every_number_is_that_of_a_naive_count(
    run: Callable[..., Result],
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept_as: str,
    first_day: int,
) -> None:
    send_a_week(data_dir)
    expected = naive(data_dir, date(2026, 11, first_day))
    if kept_as == "pieces":
        monkeypatch.setattr(report, "PIECE_BYTES", 1000)
    if kept_as == "gzip":
        for path in list(data_dir.glob("*-1*.jsonl")):
            with gzip.open(f"{path}.gz", "wb") as packed:
                packed.write(path.read_bytes())
            path.unlink()

    result = run("--format=json", f"--since=2026-11-{first_day}")

    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == expected
    assert list(json.loads(result.stdout)) == list(expected)


@pytest.mark.parametrize(
    ("counts", "median", "p90"),
    [
        ({5: 1}, 5, 5),
        (dict.fromkeys(range(1, 11), 1), 5, 9),
        (dict.fromkeys(range(1, 12), 1), 6, 10),
        ({0: 9, 100: 1}, 0, 0),
        ({0: 89, 100: 11}, 0, 100),
    ],
)
def test_the_median_is_the_lower_middle_and_90_percent_do_not_exceed_p90(
    counts: dict[int, int], median: int, p90: int
) -> None:
    spread = {"min": min(counts), "median": median, "p90": p90, "max": max(counts)}

    assert report.spread(Counter(counts)) == spread


def test_the_default_is_the_30_days_that_end_today(
    run: Callable[..., Result], data_dir: Path
) -> None:
    send_a_week(data_dir)
    found = json.loads(run("--format=json").stdout)

    assert (found["since"], found["until"], len(found["days"])) == ("2026-10-25", "2026-11-23", 30)


def test_several_directories_count_as_one(
    run: Callable[..., Result], data_dir: Path, tmp_path: Path
) -> None:
    send_a_week(data_dir)
    expected = naive(data_dir, date(2026, 11, 17))
    halves = [tmp_path / "a", tmp_path / "b"]
    for path in data_dir.iterdir():
        lines = path.read_bytes().splitlines(keepends=True)
        for n, half in enumerate(halves):
            half.mkdir(exist_ok=True)
            (half / path.name).write_bytes(b"".join(lines[n::2]))

    result = run("--format=json", "--since=2026-11-17", *map(str, halves))

    assert json.loads(result.stdout) == expected


GOOD = (
    b'{"id":"00000000-0000-0000-0000-000000000000","received_at":"2026-11-23T12:00:00.000Z",'
    b'"source":"cli","ip":"192.0.2.1","payload":{"nodeEnv":null,"nodeVersion":"v20","os":null,'
    b'"osVersion":null,"command":null,"packages":[],"projectFramework":"vite","projectId":null}}'
)


@pytest.mark.parametrize(
    ("line", "counted"),
    [
        pytest.param(GOOD, True, id="as we write it"),
        pytest.param(json.dumps(json.loads(GOOD)).encode(), True, id="with spaces"),
        pytest.param(json.dumps(json.loads(GOOD), sort_keys=True).encode(), True, id="sorted"),
        pytest.param(GOOD.replace(b"v20", rb"\",\"os\":\\"), True, id="with quotes in a string"),
        pytest.param(GOOD[:-2] + b',"more":1}}', True, id="with one more field"),
        pytest.param(GOOD[:-1] + b',"more":{}}', True, id="with an object behind"),
        pytest.param(GOOD.replace(b"v20", b"v" * 9999), True, id="with a text that is too long"),
        pytest.param(GOOD.replace(b'"cli"', b'"else"'), False, id="of another source"),
        pytest.param(GOOD.replace(b'"cli"', b'"core"'), False, id="a payload of another source"),
        pytest.param(GOOD.replace(b'"v20"', b"[]"), False, id="a list for a text"),
        pytest.param(GOOD.replace(b'"v20"', b"20"), False, id="a number for a text"),
        pytest.param(GOOD.replace(b'"192.0.2.1"', b"1"), False, id="a number for an address"),
        pytest.param(GOOD.replace(b'"packages":[],', b""), False, id="a field missing"),
        pytest.param(GOOD[:-1], False, id="cut short"),
        pytest.param(b"x" + GOOD, False, id="something in front"),
        pytest.param(b"{}", False, id="another object"),
        pytest.param(b"[" * 9999, False, id="deep nesting"),
        pytest.param(b"\xff\0", False, id="no text"),
    ],
)
def test_a_line_is_counted_in_any_form_or_skipped_and_counted_as_unreadable(
    run: Callable[..., Result], data_dir: Path, line: bytes, counted: bool
) -> None:
    data_dir.mkdir()
    (data_dir / "events-2026-11-23.jsonl").write_bytes(GOOD + b"\n" + line + b"\n" + GOOD + b"\n")
    found = json.loads(run("--format=json").stdout)

    assert (found["events"]["cli"], found["unreadable_lines"]) == (2 + counted, 1 - counted)
    assert found["active"]["1"]["cli"]["addresses"] == 1


@pytest.mark.parametrize("piece_bytes", [1, report.PIECE_BYTES])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_last_line_without_its_newline_is_no_line(
    run: Callable[..., Result],
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    packed: bool,
    piece_bytes: int,
) -> None:
    monkeypatch.setattr(report, "PIECE_BYTES", piece_bytes)
    data_dir.mkdir()
    path = data_dir / f"events-2026-11-23.jsonl{'.gz' if packed else ''}"
    lines = GOOD + b"\n" + GOOD
    path.write_bytes(gzip.compress(lines) if packed else lines)
    found = json.loads(run("--format=json").stdout)

    assert (found["events"]["cli"], found["unreadable_lines"]) == (1, 0)


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("earlier", [0, 2])
def test_a_day_that_a_killed_server_left_in_both_files_counts_once(
    run: Callable[..., Result], data_dir: Path, earlier: int, late: int
) -> None:
    """As between the rename of the .gz and the removal of the plain file."""
    data_dir.mkdir()
    lines = [GOOD.replace(b"v20", b"v%d" % n) + b"\n" for n in range(9)]
    plain = data_dir / "events-2026-11-22.jsonl"
    plain.write_bytes(b"".join(lines[2 : 5 + late]))
    packed = gzip.compress(b"".join(lines[2 - earlier : 5]))
    plain.with_name(f"{plain.name}.gz").write_bytes(packed)
    found = json.loads(run("--format=json").stdout)

    assert (found["events"]["cli"], found["unreadable_lines"]) == (3 + earlier + late, 0)


@pytest.mark.parametrize("off_by", [-1, 0, 1])
def test_a_line_at_the_edge_of_a_piece_is_counted_once(
    run: Callable[..., Result], data_dir: Path, monkeypatch: pytest.MonkeyPatch, off_by: int
) -> None:
    monkeypatch.setattr(report, "PIECE_BYTES", len(GOOD + b"\n") + off_by)
    data_dir.mkdir()
    (data_dir / "events-2026-11-23.jsonl").write_bytes((GOOD + b"\n") * 5)

    assert json.loads(run("--format=json").stdout)["events"]["cli"] == 5


def test_a_gz_that_came_after_the_files_were_listed_takes_nothing_from_the_plain_one(
    data_dir: Path,
) -> None:
    data_dir.mkdir()
    plain = data_dir / "events-2026-11-23.jsonl"
    plain.write_bytes(GOOD + b"\n")
    (file,) = report.day_files(data_dir)
    plain.with_name(f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))

    assert report.split(file, {file.path}) == [report.Piece(file, 0, len(GOOD) + 1)]


def test_a_file_that_is_gone_is_named_and_the_others_are_counted(
    run: Callable[..., Result], data_dir: Path
) -> None:
    data_dir.mkdir()
    (data_dir / "events-2026-11-22.jsonl").symlink_to("nowhere")
    (data_dir / "events-2026-11-23.jsonl").write_bytes(GOOD + b"\n")
    result = run("--format=json")

    assert result.exit_code == 1
    assert "events-2026-11-22.jsonl: " in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert json.loads(result.stdout)["events"]["cli"] == 1


def test_lines_without_what_is_searched_for_take_no_time_that_grows_with_their_number() -> None:
    """A hundred times as long as good ones is much, and a search to the end is far more."""

    def seconds(line: bytes) -> float:
        chunk, tally = (line + b"\n") * 4000, report.Tally()
        began = time.process_time()
        report.count_events(chunk, tally)
        return time.process_time() - began

    assert seconds(GOOD.replace(b'"packages":[],', b"")) < 100 * seconds(GOOD)


def test_a_gzip_cut_short_is_named_and_counted_as_far_as_it_goes(
    run: Callable[..., Result], data_dir: Path
) -> None:
    data_dir.mkdir()
    whole = gzip.compress(b"".join(GOOD.replace(b"v20", b"v%d" % n) + b"\n" for n in range(5000)))
    (data_dir / "events-2026-11-23.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    result = run("--format=json")

    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {data_dir}/events-2026-11-23.jsonl.gz: ")
    assert len(result.stderr.splitlines()) == 1
    assert 0 < json.loads(result.stdout)["events"]["cli"] < 5000


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--since=yesterday"], 2, "--since 'yesterday': want a date such as 2026-11-23"),
        (["--until=2026-02-30"], 2, "--until '2026-02-30': want a date such as 2026-11-23"),
        (["--until=0001-01-05"], 2, "--until '0001-01-05': want a date such as 2026-11-23"),
        (["--since=2026-11-24"], 2, "--since 2026-11-24: want a day not after the last one"),
        ([], 1, "No such file or directory; TELEMETRY_DATA_DIR says where the files are"),
    ],
)
def test_an_error_is_one_clear_line(
    run: Callable[..., Result], arguments: list[str], status: int, said: str
) -> None:
    result = run(*arguments)

    assert result.exit_code == status
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_output_that_cannot_be_written_is_one_clear_line(
    run: Callable[..., Result], data_dir: Path
) -> None:
    data_dir.mkdir()
    (data_dir / "events-2026-11-23.jsonl").write_bytes(GOOD + b"\n")
    result = run("--output=/nonexistent/report")

    assert result.exit_code == 1
    assert result.stderr == "Error: --output /nonexistent/report: No such file or directory\n"


@pytest.mark.parametrize("style", ["text", "json", "html"])
def test_no_file_in_the_range_is_an_empty_report_and_an_error(
    run: Callable[..., Result], data_dir: Path, style: str
) -> None:
    data_dir.mkdir()
    result = run(f"--format={style}")

    assert result.exit_code == 1
    assert result.stdout
    assert "no file from 2026-10-25 to 2026-11-23" in result.stderr
