#!/usr/bin/env python3
"""What `memleak doctor -p` says that tracing costs, beside what it costs: the table of docs/doctor.md.

Each round starts each program, asks the doctor, and measures the CPU time that the program takes for each unit of its
work, traced and not, in turn. The round whose ratio is in the middle counts. As root, a minute a round:
bench/doctor.py [--program MEMLEAK] [--rounds N] [NAME...]
"""

import argparse
import json
import mmap
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PATIENCE = 60
PORT = "17382"

# Each counts its turns in the first bytes of a mapped file, so that it can be asked without a call of its own.
COUNTER = """
import mmap, struct, sys, time
file = open(sys.argv[1], "r+b")
counter = mmap.mmap(file.fileno(), 8)
def count(turns):
    counter[:] = struct.pack("=Q", turns)
"""

# An interpreter that is never idle, and whose blocks of more than 512 bytes are malloc's.
BUSY = (
    COUNTER
    + """
turns = 0
while True:
    for _ in range(100):
        blocks = [bytes(600 + turns % 8 * 100 + i) for i in range(8)]
        found = {len(block): str(block[:4]) for block in blocks}
        turns += 1
    count(turns)
"""
)

# A service that waits most of the time: JSON is read and written a few hundred times a second.
WAITING = (
    COUNTER
    + """
import json
text = json.dumps([{"name": "n" * 600, "values": list(range(40))} for _ in range(20)])
turns = 0
while True:
    time.sleep(0.004)
    json.dumps(json.loads(text))
    turns += 1
    count(turns)
"""
)

# Pairs of malloc and free below 8 frames, with some work between them or none.
PAIRS = r"""
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
__attribute__((noinline)) static void nested(volatile int depth) {
    if (depth > 0) { nested(depth - 1); depth = 0; return; }
    void *volatile block = malloc(64);
    free(block);
}
int main(int argc, char **argv) {
    volatile uint64_t *count = mmap(0, 8, PROT_READ | PROT_WRITE, MAP_SHARED, open(argv[1], O_RDWR), 0);
    int work = argc > 2 ? atoi(argv[2]) : 0;
    for (;;) {
        nested(8);
        for (volatile int i = 0; i < work; i++) {}
        ++*count;
    }
}
"""


class Counting:
    """A program that counts its turns in a file."""

    def __init__(self, folder, command):
        self.file = folder / "count"
        self.file.write_bytes(bytes(8))
        self.process = subprocess.Popen(command + [str(self.file)])
        self.pid = self.process.pid
        self.map = mmap.mmap(os.open(self.file, os.O_RDONLY), 8, prot=mmap.PROT_READ)
        wait_until(lambda: self.done() > 0, f"{command[0]} does not begin")

    def done(self):
        return int.from_bytes(self.map[:8], sys.byteorder)

    def end(self):
        self.process.kill()
        self.process.wait()


class WithWork(Counting):
    """The same, with work between its pairs."""

    def __init__(self, folder, command, work):
        super().__init__(folder, ["sh", "-c", f'exec "$0" "$1" {work}'] + command)


class Redis:
    """A server that 50 clients ask for the same all the time."""

    def __init__(self, what):
        server = ["redis-server", "--port", PORT, "--save", "", "--logfile", "/dev/null"]
        self.process = subprocess.Popen(server, stdout=subprocess.DEVNULL)
        self.pid = self.process.pid
        wait_until(lambda: self.cli("ping").strip() == "PONG", "redis-server does not answer")
        # More than it can answer meanwhile. (The number takes 31 bits.)
        ask = ["redis-benchmark", "-p", PORT, "-t", what, "-n", "1000000000", "-q"]
        self.clients = subprocess.Popen(ask, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.done() > 5000, "redis-benchmark does not ask")

    def cli(self, *words):
        command = ["redis-cli", "-p", PORT, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE).stdout

    def done(self):
        said = self.cli("info", "stats")
        return int(said.partition("total_commands_processed:")[2].split()[0])

    def end(self):
        for process in (self.clients, self.process):
            process.kill()
            process.wait()


def compiled(folder):
    program = folder / "pairs"
    if not program.exists():
        command = ["cc", "-O1", "-x", "c", "-o", str(program), "-"]
        subprocess.run(command, input=PAIRS, text=True, check=True)
    return [str(program)]


def python(text):
    return ["/usr/bin/python3", "-S", "-c", text]


PROGRAMS = {
    "redis-set": lambda _: Redis("set"),
    "redis-get": lambda _: Redis("get"),
    "python-busy": lambda folder: Counting(folder, python(BUSY)),
    "python-waiting": lambda folder: Counting(folder, python(WAITING)),
    "pairs-work": lambda folder: WithWork(folder, compiled(folder), 2000),
    "pairs-only": lambda folder: Counting(folder, compiled(folder)),
}
WAYS = ("", "--sample-bytes 512K")


def wait_until(is_so, otherwise):
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        if time.monotonic() > deadline:
            sys.exit(otherwise)
        time.sleep(0.02)


def cpu_time(pid):
    """CPU seconds of all its threads (schedstat: to the nanosecond)."""
    threads = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def cpu_of_a_unit(program, seconds):
    done, used = program.done(), cpu_time(program.pid)
    time.sleep(seconds)
    return (cpu_time(program.pid) - used) / (program.done() - done)


def asked(memleak, pid):
    said = subprocess.run([memleak, "doctor", "--json", "-p", str(pid)], capture_output=True, text=True)
    price = json.loads(said.stdout)["processes"][0]
    return {offer["options"]: offer["cpus"] / price["cpus"] for offer in price["offers"]}


def traced(memleak, program, options, seconds):
    """CPU time of a unit while it is traced."""
    command = [memleak, "-v", "-p", str(program.pid), "--output", "/dev/null", *options.split(), "3600"]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in tracer.stderr:
        if "memleak: attached " in line:
            break
    else:
        sys.exit(f"{' '.join(command)} has ended")
    # What it meets for the first time takes longer.
    time.sleep(seconds / 4)
    taken = cpu_of_a_unit(program, seconds)
    tracer.send_signal(signal.SIGINT)
    tracer.communicate(timeout=PATIENCE)
    return taken


def compared(memleak, program, seconds):
    """For each way to trace it what was said and what was measured, as shares of its own CPU time."""
    said = asked(memleak, program.pid)
    found, before = {}, cpu_of_a_unit(program, seconds)
    for options in WAYS:
        with_tracer = traced(memleak, program, options, seconds)
        after = cpu_of_a_unit(program, seconds)
        found[options] = (said.get(options, 0), 2 * with_tracer / (before + after) - 1)
        before = after
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/memleak", help="the memleak to use")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is compared (3)")
    parser.add_argument("--seconds", type=float, default=2, help="how long each measurement takes (2)")
    parser.add_argument("names", nargs="*", choices=[*PROGRAMS, []], help="programs (all)")
    arguments = parser.parse_args()
    if not shutil.which("redis-benchmark"):
        sys.exit("redis-benchmark is missing: install redis-server and redis-tools")
    memleak = os.path.abspath(arguments.program)
    names = arguments.names or list(PROGRAMS)
    rounds = {(name, options): [] for name in names for options in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for name in names:
                program = PROGRAMS[name](pathlib.Path(folder))
                try:
                    found = compared(memleak, program, arguments.seconds)
                finally:
                    program.end()
                for options, (said, measured) in found.items():
                    rounds[name, options].append((said / measured, said, measured))
                    print(f"round {number + 1}, {name} '{options}': {said:.3f} said, {measured:.3f} measured", file=sys.stderr)
    print("| program | way | said | measured | ratio | of all rounds |\n| --- | --- | ---: | ---: | ---: | --- |")
    for (name, options), ratios in rounds.items():
        ratios.sort()
        ratio, said, measured = ratios[len(ratios) // 2]
        way = f"`{options}`" if options else "in full"
        print(f"| {name} | {way} | {said:.1%} | {measured:.1%} | {ratio:.2f} | {ratios[0][0]:.2f} to {ratios[-1][0]:.2f} |")


if __name__ == "__main__":
    main()
