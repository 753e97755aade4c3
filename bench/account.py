#!/usr/bin/env python3
"""The account of memory of real programs, as in docs/memory.md: prints its two tables.

Each program is traced from its start, and in a second run with -p before its work begins; the last
report counts. As root, in a few minutes: bench/account.py [--program MEMLEAK] [NAME...]
"""

import argparse
import json
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PATIENCE = 300
SAY = "done"

PYTHON = f"""
import sys
print("ready", flush=True); sys.stdin.readline()
kept = [str(i) * 8 for i in range(200_000)]
del kept[::2]
print("{SAY}", flush=True); sys.stdin.readline()
"""

NODE = f"""
console.log("ready");
const kept = [];
process.stdin.on("data", () => {{
  if (kept.length) process.exit(0);
  for (let i = 0; i < 300000; i++) kept.push({{ number: i, name: "name" + i }});
  const blocks = [];
  for (let i = 0; i < 30; i++) blocks.push(Buffer.alloc(1 << 20, 1));
  kept.push(blocks);
  console.log("{SAY}");
}});
"""

JAVA = f"""
import java.util.*;
class Account {{
    public static void main(String[] arguments) throws Exception {{
        Scanner told = new Scanner(System.in);
        System.out.println("ready"); told.nextLine();
        List<byte[]> arrays = new ArrayList<>();
        for (int i = 0; i < 60000; i++) arrays.add(new byte[1000]);
        Map<Integer, String> map = new HashMap<>();
        for (int i = 0; i < 200000; i++) map.put(i, "value " + i);
        System.out.println("{SAY}"); told.hasNextLine();
        System.out.println(arrays.size() + map.size());
    }}
}}
"""

SORT = "declare sorted cursor for select g, repeat(md5(g::text), 2) from generate_series(1, 400000) g order by 2"
TABLES = ";".join(f"create table t{i} as select g, repeat('x', 100) from generate_series(1, 100000) g" for i in range(3))


class Speaking:
    """A program that says when it is ready and done, and does its work when it is told to."""

    def __init__(self, command):
        self.command = command

    def wait_ready(self, process):
        """Gives the process that is meant by -p."""
        wait_for_line(process, "ready")
        return process.pid

    def work(self, process):
        process.stdin.write("go\n")
        process.stdin.flush()
        wait_for_line(process, SAY)


class Served:
    """A server: commands say whether it is ready, and have it work."""

    def __init__(self, command, is_ready, work):
        self.command, self.is_ready, self.do_work = command, is_ready, work

    def wait_ready(self, process):
        deadline = time.monotonic() + PATIENCE
        while subprocess.run(self.is_ready, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            if time.monotonic() > deadline or process.poll() is not None:
                sys.exit(f"{self.command[0]} does not answer")
            time.sleep(0.1)
        return process.pid

    def work(self, process):
        subprocess.run(self.do_work, check=True, stdout=subprocess.DEVNULL)


class Backend(Served):
    """The process of a database server that serves one client."""

    def wait_ready(self, process):
        super().wait_ready(process)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.client = subprocess.Popen(self.do_work[:-1] + ["-At", "-f", "-"], **pipes)
        return int(self.ask("select pg_backend_pid();"))

    def ask(self, line):
        self.client.stdin.write(line + "\n")
        self.client.stdin.flush()
        return self.client.stdout.readline()

    def work(self, _):
        self.ask(f"set work_mem = '200MB'; begin; {SORT}; fetch 1 from sorted;")


def wait_for_line(process, text):
    for line in process.stdout:
        if line.strip() == text:
            return
    sys.exit(f"a program ended without saying {text}")


def redis(*_):
    cli = ["redis-cli", "-p", "17380"]
    server = ["redis-server", "--port", "17380", "--save", "", "--enable-debug-command", "yes", "--logfile", "/dev/null"]
    return Served(server, cli + ["ping"], cli + ["debug", "populate", "100000", "key", "200"])


def postgres(folder, is_attached):
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        return None
    programs, data, user = found[-1].parent, folder / "data", pwd.getpwnam("postgres")
    as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    for path in (folder, data):
        os.chown(path, user.pw_uid, user.pw_gid)
    subprocess.run(as_user + [programs / "initdb", "-D", data], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    server = as_user + [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-p", "17381"]
    client = as_user + [programs / "psql", "-q", "-h", folder, "-p", "17381", "-d", "postgres", "-c"]
    server = [str(word) for word in server]
    if is_attached:
        return Backend(server, client + ["select 1"], client)
    return Served(server, client + ["select 1"], client + [TABLES])


def java(folder, _):
    if not shutil.which("java"):
        return None
    source = folder / "Account.java"
    source.write_text(JAVA)
    subprocess.run(["javac", source], check=True)
    return Speaking(["java", "-cp", str(folder), "Account"])


PROGRAMS = {
    "redis-server": redis,
    "python3": lambda *_: Speaking(["python3", "-c", PYTHON]),
    "node": lambda *_: Speaking(["node", "-e", NODE]),
    "postgres": postgres,
    "java": java,
}


def accounts(path):
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [report["memory"] for report in map(json.loads, whole.splitlines()) if report.get("memory")]


def wait_accounts(path, count, tracer):
    deadline = time.monotonic() + PATIENCE
    while len(accounts(path)) < count:
        if time.monotonic() > deadline or tracer.poll() is not None:
            said = (path.parent / "said").read_text()
            sys.exit(f"memleak gives no account ({len(accounts(path))} of {count}): {said[-500:]}")
        time.sleep(0.2)
    return accounts(path)


def end(process):
    process.send_signal(signal.SIGINT)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def traced(memleak, folder, program, is_attached):
    """First and last account of one run."""
    reports = folder / "reports"
    reports.unlink(missing_ok=True)
    said = open(folder / "said", "w")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said, "text": True}
    options = [memleak, "--json", "-o", "0", "--output", str(reports)]
    if is_attached:
        process = subprocess.Popen(program.command, cwd=folder, **pipes)
        pid = program.wait_ready(process)
        tracer = subprocess.Popen(options + ["-p", str(pid), "1"], stderr=said)
        wait_accounts(reports, 1, tracer)
    else:
        process = tracer = subprocess.Popen(options + ["1", "--"] + program.command, cwd=folder, **pipes)
        program.wait_ready(process)
    program.work(process)
    # The report under way may be of the time before.
    known = len(accounts(reports))
    found = wait_accounts(reports, known + 2, tracer)
    end(tracer)
    if is_attached:
        end(process)
    said.close()
    return found[0], found[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/memleak", help="the memleak to use")
    parser.add_argument("names", nargs="*", choices=[*PROGRAMS, []], help="programs (all)")
    arguments = parser.parse_args()
    memleak = os.path.abspath(arguments.program)
    started, attached = [], []
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for name in arguments.names or PROGRAMS:
            for is_attached in (False, True):
                program = PROGRAMS[name](pathlib.Path(folder), is_attached)
                if program is None:
                    print(f"{name} is not installed", file=sys.stderr)
                    break
                first, last = traced(memleak, pathlib.Path(folder), program, is_attached)
                finding = f" (`{last['finding']}`)" if last.get("finding") else ""
                mega = {key: value / 1e6 for key, value in last.items() if isinstance(value, (int, float))}
                if is_attached:
                    growth = max(mega["rss_growth"], 1e-6)
                    attached.append(
                        f"| {name} | {mega['rss'] - growth:.1f} MB | {growth:.1f} MB | {first['before_attach'] / 1e6:.1f}, "
                        f"{mega['before_attach']:.1f} MB | {100 * mega['unaccounted'] / growth:.1f} %{finding} |"
                    )
                else:
                    started.append(
                        f"| {name} | {mega['rss']:.1f} MB | {100 * mega['outstanding_resident'] / mega['rss']:.1f} % | "
                        f"{mega['before_attach']:.1f} MB | {100 * mega['unaccounted'] / mega['rss']:.1f} %{finding} |"
                    )
    print("| program | RSS | outstanding | from before | not accounted for |\n| --- | --- | --- | --- | --- |")
    print("\n".join(started))
    print("\n| program | RSS at the attach | growth | from before: first, last | not accounted for of the growth |")
    print("| --- | --- | --- | --- | --- |\n" + "\n".join(attached))


if __name__ == "__main__":
    main()
