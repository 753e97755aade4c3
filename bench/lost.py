#!/usr/bin/env python3
"""What --why calls lost in real programs at work, as in docs/why.md: prints its table.

Each program is looked at four times under load, once traced from its start and once with -p; all it
has lost in any look counts. As root, in some minutes: bench/lost.py [--program MEMLEAK] [NAME...]
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from account import Served, end, postgres as account_postgres, wait_for_line

PATIENCE = 300
LOOKS = 4
WHY = ["--why", "--why-every", "1", "-o", "0", "-T", "100000"]

PYTHON = """
import json, random, re, sys
class Node:
    def __init__(self, next): self.next, self.name = next, "node %d" % random.randrange(1000)
print("ready", flush=True)
kept = {}
while True:
    head = None
    for _ in range(200): head = Node(head)
    head.next = head  # a circle, which the collector takes
    text = json.dumps({str(i): list(range(i % 20)) for i in range(200)})
    kept[random.randrange(500)] = (head, json.loads(text), re.findall("[0-9]+", text))
"""

NODE = """
console.log("ready");
const kept = new Map();
setInterval(() => {
  for (let i = 0; i < 2000; i++) kept.set(i % 500, JSON.parse(JSON.stringify({ i, list: [...Array(i % 20).keys()] })));
  kept.set("buffer", Buffer.alloc(1 << 16, 1));
}, 5);
"""

SQL = """create table if not exists t (a integer primary key, b text);
insert or replace into t select abs(random()) % 5000, hex(randomblob(50)) from (select 1 union select 2), (select 1 union select 2);
select count(*), max(b) from t where b like '%' || (abs(random()) % 100) || '%';
delete from t where a % 97 = abs(random()) % 97;
"""

NGINX = """daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 64; }}
http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; gzip on; gzip_min_length 10;
server {{ listen 127.0.0.1:17390; root {folder}; location /proxy/ {{ proxy_pass http://127.0.0.1:17390/; }} }} }}
"""


class Talking:
    """A program that says when it is at work, or is fed by its standard input."""

    loads = ()

    def __init__(self, command, feed=None, environment=None):
        self.command, self.feed, self.environment = command, feed, environment

    def wait_ready(self, process):
        if self.feed is None:
            wait_for_line(process, "ready")
        return process.pid

    def begin(self, process):
        if self.feed is not None:
            threading.Thread(target=self.write, args=(process,), daemon=True).start()

    def write(self, process):
        try:
            while process.poll() is None:
                process.stdin.write(self.feed)
                process.stdin.flush()
        except OSError:
            pass  # it has ended


class Loaded(Served):
    """A server with clients."""

    environment = None

    def __init__(self, command, is_ready, loads, is_of_worker=False):
        super().__init__(command, is_ready, None)
        self.loads, self.is_of_worker = loads, is_of_worker

    def wait_ready(self, process):
        pid = super().wait_ready(process)
        if self.is_of_worker:
            pid = int(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        return pid

    def begin(self, _):
        pass


def redis(*_):
    address = ["-p", "17391"]
    load = ["redis-benchmark", *address, "-q", "-n", "20000", "-r", "1000", "-t", "set,get,lpush,rpop,sadd,hset,zadd,mset"]
    server = ["redis-server", "--port", "17391", "--save", "", "--logfile", "/dev/null"]
    return Loaded(server, ["redis-cli", *address, "ping"], [[load]])


def nginx(folder, is_attached):
    (folder / "index.html").write_text("<p>some text</p>" * 500)
    (folder / "conf").write_text(NGINX.format(folder=folder))
    places = ["", "proxy/index.html", "missing", "proxy/missing"]
    loads = [[["ab", "-q", "-n", "2000", "-c", "2", "-H", "Accept-Encoding: gzip", f"http://127.0.0.1:17390/{place}"]] for place in places]
    server = ["nginx", "-p", str(folder), "-c", str(folder / "conf")]
    return Loaded(server, ["curl", "-sf", "http://127.0.0.1:17390/"], loads, is_of_worker=is_attached)


def postgres(folder, _):
    served = account_postgres(folder, False)
    if served is None:
        return None
    at = served.is_ready.index("-q")
    bench = served.is_ready[: at - 1] + [str(pathlib.Path(served.command[4]).parent / "pgbench"), "-h", str(folder), "-p", "17381"]
    loads = [bench + ["-i", "-q", "postgres"], bench + ["-c", "3", "-T", "5", "-n", "postgres"]]
    return Loaded(served.command, served.is_ready, [loads])


PROGRAMS = {
    "redis-server": redis,
    "python3": lambda *_: Talking(["python3", "-c", PYTHON]),
    "python3, PYTHONMALLOC=malloc": lambda *_: Talking(["python3", "-c", PYTHON], environment={"PYTHONMALLOC": "malloc"}),
    "sqlite3": lambda *_: Talking(["sqlite3", ":memory:"], feed=SQL),
    "git log -p": lambda *_: Talking(["sh", "-c", "exec git -C " + str(pathlib.Path(__file__).parent) + " log -p --stat"], feed=""),
    "nginx": nginx,
    "node": lambda *_: Talking(["node", "-e", NODE]),
    "postgres": postgres,
}


def keep_busy(loads, stop):
    """Runs these one after the other, and again."""
    while not stop.is_set():
        for command in loads:
            client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while client.poll() is None:
                if stop.wait(0.05):
                    client.kill()
                    client.wait()


def looked_at(memleak, folder, program, is_attached, asked, every, times):
    """The file of all reports of one run, so many seconds apart."""
    for needed in {command[0] for load in program.loads for command in load}:
        if not shutil.which(needed):
            sys.exit(f"{needed} is not installed, which is to keep the program busy (ab: apache2-utils)")
    reports = folder / "reports"
    reports.unlink(missing_ok=True)
    said = open(folder / "said", "w")
    environment = {**os.environ, **(program.environment or {})}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said, "text": True}
    options = [memleak, "--json", *asked, "--output", str(reports)]
    when = [str(every), str(times)]
    if is_attached:
        process = subprocess.Popen(program.command, cwd=folder, env=environment, **pipes)
    else:
        options += ["--follow-forks", *when, "--"]
        process = subprocess.Popen(options + program.command, cwd=folder, env=environment, **pipes)
    pid = program.wait_ready(process)
    program.begin(process)
    threading.Thread(target=drain, args=(process,), daemon=True).start()
    stop = threading.Event()
    busy = [threading.Thread(target=keep_busy, args=(load, stop)) for load in program.loads]
    for thread in busy:
        thread.start()
    if is_attached:
        subprocess.run(options + ["-p", str(pid), *when], stderr=said, check=True, timeout=every * times + PATIENCE)
    else:
        process.wait(every * times + PATIENCE)
    stop.set()
    for thread in busy:
        thread.join()
    if is_attached:
        end(process)
    said.close()
    return reports


def drain(process):
    """Reads what it writes, no faster than a person's pager: a short one is at work for all looks."""
    while process.stdout.read(1 << 14):
        time.sleep(0.05)


def lost_of(reports):
    """What is said of all looks, and where the lost was acquired."""
    looks = [report["why"] for report in reports if report.get("why")]
    blocks = sum(sum(look[name]["count"] for name in CLASSES) for look in looks)
    lost = [look["definitely_lost"]["count"] for look in looks]
    places = set()
    for report in reports:
        for stack in report["stacks"]:
            if any(block.get("why") == "definitely_lost" for block in stack.get("allocations", [])) or stack.get("why", {}).get("definitely_lost", {}).get("count"):
                named = [frame["function"] for frame in stack["frames"] if frame.get("function")]
                places.add(" < ".join(named[:3]))
    return len(looks), blocks, lost, places


CLASSES = ["definitely_lost", "indirectly_lost", "possibly_lost", "still_reachable"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/memleak", help="the memleak to use")
    parser.add_argument("names", nargs="*", choices=[*PROGRAMS, []], help="programs (all)")
    arguments = parser.parse_args()
    memleak = os.path.abspath(arguments.program)
    print("| program | from the start: blocks, definitely lost | `-p`: blocks, definitely lost |\n| --- | --- | --- |")
    for name in arguments.names or PROGRAMS:
        found = []
        for is_attached in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                os.chmod(folder, 0o755)
                program = PROGRAMS[name](pathlib.Path(folder), is_attached)
                if program is None:
                    print(f"{name} is not installed", file=sys.stderr)
                    break
                file = looked_at(memleak, pathlib.Path(folder), program, is_attached, WHY, 3, LOOKS)
                looks, blocks, lost, places = lost_of([json.loads(line) for line in file.read_text().splitlines()])
                if looks != LOOKS:
                    sys.exit(f"{name} was looked at {looks} times, and not {LOOKS}")
                found.append(f"{blocks:,}, {lost if any(lost) else 'none'} {'; '.join(sorted(places))}".strip())
        if found:
            print(f"| {name} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
