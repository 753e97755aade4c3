#!/usr/bin/env python3
"""What `--sample-bytes` estimates of a redis-server under load, beside what is held.

In each run redis-benchmark's SETs of new keys are traced twice at the same time: in full, which tells what is held, and by
samples. The load is over before the last reports are made. Counts the runs whose estimate is as close to the truth as the
report says that it is (1.96 standard deviations: 19 of 20). As root, 10 s a run:
bench/sampled.py [--program MEMLEAK] [--runs N] [--mean BYTES]
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
from doctor import PATIENCE, PORT, wait_until


def cli(*words):
    return subprocess.run(["redis-cli", "-p", PORT, *words], capture_output=True, text=True, timeout=PATIENCE).stdout


def start_tracer(memleak, pid, output, options):
    """Returns when its probes are in."""
    command = [memleak, "-v", "--json", "-o", "0", "--output", str(output), "-p", str(pid), *options, "3600"]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    if not any("memleak: attached " in line for line in tracer.stderr):
        sys.exit(f"{' '.join(command)} has ended")
    return tracer


def last_report(tracer, output):
    tracer.send_signal(signal.SIGINT)
    tracer.communicate(timeout=PATIENCE)
    report = json.loads(output.read_text().splitlines()[-1])
    lost = {reason: number for reason, number in report["lost"].items() if number}
    if lost:
        print(f"{output.name}: lost {lost}", file=sys.stderr)
    return report


def run(memleak, folder, mean, sets):
    """What is held, the estimate of it, and its margin."""
    server = subprocess.Popen(["redis-server", "--port", PORT, "--save", "", "--logfile", "/dev/null"], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: cli("ping").strip() == "PONG", "redis-server does not answer")
        full, sampled = folder / "full", folder / "sampled"
        tracers = [(start_tracer(memleak, server.pid, full, ["-T", "100000"]), full)]
        tracers.append((start_tracer(memleak, server.pid, sampled, ["--sample-bytes", mean]), sampled))
        load = ["redis-benchmark", "-p", PORT, "-t", "set", "-r", "1000000", "-d", "100", "-n", str(sets), "-q"]
        subprocess.run(load, check=True, stdout=subprocess.DEVNULL)
        # Its clients are freed a moment after they have gone.
        wait_until(lambda: "connected_clients:1\n" in cli("info", "clients"), "clients stay")
        reports = [last_report(*tracer) for tracer in tracers]
    finally:
        server.kill()
        server.wait()
    return reports[0]["totals"]["bytes"], reports[1]["totals"]["bytes"], reports[1]["margin_bytes"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/memleak", help="the memleak to use")
    parser.add_argument("--runs", type=int, default=20, help="how often (20)")
    parser.add_argument("--mean", default="64K", help="of --sample-bytes (64K)")
    parser.add_argument("--sets", type=int, default=100_000, help="SETs of a run (100000)")
    arguments = parser.parse_args()
    if not shutil.which("redis-benchmark"):
        sys.exit("redis-benchmark is missing: install redis-server and redis-tools")
    memleak = os.path.abspath(arguments.program)
    within = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, arguments.runs + 1):
            held, estimate, margin = run(memleak, pathlib.Path(folder), arguments.mean, arguments.sets)
            within += abs(estimate - held) <= margin
            print(f"run {number}: {held} bytes held, {estimate} +- {margin} estimated, {(estimate - held) / margin:+.2f} margins", flush=True)
    print(f"{within} of {arguments.runs} runs within their margin")


if __name__ == "__main__":
    main()
