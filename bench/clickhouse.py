"""Load a world into the embedded ClickHouse and ask each view, each in a process of its own.

python bench/clickhouse.py DIRECTORY                 which holds files of bench/world.py
python bench/clickhouse.py DIRECTORY --times 17      load them so often, each time with new ids
python bench/clickhouse.py DIRECTORY --sql FILE      another version of deploy/clickhouse.sql
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
UNTIL = "2026-11-24"
VIEWS = {
    "active": f"active(until = '{UNTIL}')",
    "weeks": f"trend(until = '{UNTIL}', days = 7)",
    "days": f"trend(until = '{UNTIL}', days = 1)",
    "adoption": f"adoption(until = '{UNTIL}')",
    "lists": f"lists(until = '{UNTIL}')",
    "versions below": f"list_versions(until = '{UNTIL}')",
    "resources": f"resource_count(until = '{UNTIL}')",
}
RUN = """if True:
    import json, resource, sys, time
    from chdb.session import Session
    session, begin = Session(sys.argv[1]), time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for statement in json.load(sys.stdin):
        answer = session.query(statement)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = time.monotonic() - begin
    used = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps([seconds, used, usage.ru_maxrss // 1024, str(answer)]))
"""


def ask(directory: Path, *statements: str) -> tuple[float, float, int, str]:
    """Return seconds, seconds of processor, the process's largest MB, and the last answer."""
    command = [sys.executable, "-c", RUN, str(directory)]
    ran = subprocess.run(
        command, input=json.dumps(statements), stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, used, megabytes, answer = json.loads(ran.stdout)
    return seconds, used, megabytes, answer


def main() -> None:
    parser = argparse.ArgumentParser(description="what loading and the views cost")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--sql", type=Path, default=HERE.parent / "deploy/clickhouse.sql")
    options = parser.parse_args()
    text = re.sub(r"\s*--.*", "", options.sql.read_text(encoding="utf-8"))
    text = text.replace("'collectors/*/", f"'{options.directory.resolve()}/")
    statements = [one for one in text.split(";\n") if one.strip()]
    (load,) = [one for one in statements if one.lstrip().startswith("INSERT INTO events ")]
    again = load.replace("SELECT id,", "SELECT generateUUIDv4(),", 1)
    statements += [again] * (options.times - 1)
    with tempfile.TemporaryDirectory() as name:
        warehouse = Path(name)
        seconds, used, megabytes, _ = ask(warehouse, *statements)
        *_, size = ask(warehouse, "SELECT sum(bytes_on_disk) FROM system.parts WHERE active")
        disk = int(size) / 1e6
        print(f"{'load':15} {seconds:7.2f} s {used:7.2f} s {megabytes:6} MB; {disk:.0f} MB on disk")
        for view, query in VIEWS.items():
            seconds, used, megabytes, _ = ask(warehouse, f"SELECT * FROM {query} FORMAT Null")
            print(f"{view:15} {seconds:7.2f} s {used:7.2f} s {megabytes:6} MB", flush=True)


if __name__ == "__main__":
    main()
