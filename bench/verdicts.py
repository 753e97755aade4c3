#!/usr/bin/env python3
"""What real programs at work get for verdicts, as in docs/reports.md: prints its table.

Each program is traced under load for five minutes, once from its start and once with -p. What is a leak or growing in
any report of these is printed with its stack and its reason; the table counts the verdicts of the last report, of a
thousand sites, the worst first. As root, ten minutes a program, two programs at a time:
bench/verdicts.py [--program MEMLEAK] [--seconds N] [NAME...]
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import sys
import tempfile

from lost import PROGRAMS as LOST_PROGRAMS, Talking, looked_at

EVERY = 5
# No more than these: the worst are among them.
WORST_FIRST = ["--sort", "verdict", "-T", "1000"]
KINDS = ["leak", "growing", "cache", "in_use", "temporary", "unknown"]

JAVA = """
import java.nio.ByteBuffer;
import java.util.*;
import java.util.concurrent.*;
import java.util.regex.Pattern;
import java.util.stream.*;
import java.util.zip.*;
class Busy {
    static byte[] packed(byte[] text) {
        Deflater deflater = new Deflater();
        deflater.setInput(text);
        deflater.finish();
        byte[] into = new byte[1 << 16];
        int length = deflater.deflate(into);
        deflater.end();
        return Arrays.copyOf(into, length);
    }
    public static void main(String[] arguments) throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(4);
        Map<Integer, Object> kept = new ConcurrentHashMap<>();
        System.out.println("ready");
        for (int turn = 0; ; turn++) {
            int number = turn;
            threads.submit(() -> {
                String text = IntStream.range(0, 500).mapToObj(i -> "word" + i * number).collect(Collectors.joining(" "));
                Map<String, List<String>> words = Pattern.compile(" ").splitAsStream(text).collect(Collectors.groupingBy(word -> word.substring(0, 5)));
                kept.put(number % 500, List.of(words, packed(text.getBytes()), ByteBuffer.allocateDirect(1 << 12)));
            }).get();
            if (turn % 200 == 0) new Thread(() -> kept.remove(number % 500)).start();
        }
    }
}
"""


def java(folder, _):
    (folder / "Busy.java").write_text(JAVA)
    return Talking(["java", "-Xmx256m", str(folder / "Busy.java")])


PROGRAMS = {name: LOST_PROGRAMS[name] for name in LOST_PROGRAMS if name != "git log -p"} | {"java": java}


def place(stack):
    named = [frame["function"] or frame["module"] or frame["ip"] for frame in stack["frames"]]
    return " < ".join(name for name in named[:12] if name)


def traced(memleak, name, is_attached, times):
    """What the last report counts, and what was called a leak in any."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        program = PROGRAMS[name](pathlib.Path(folder), is_attached)
        if program is None:
            sys.exit(f"{name} is not installed")
        file = looked_at(memleak, pathlib.Path(folder), program, is_attached, WORST_FIRST, EVERY, times)
        number, called = 0, {}
        # One at a time: those of a JVM have thousands of stacks each.
        with open(file) as lines:
            for number, line in enumerate(lines, 1):
                report = json.loads(line)
                for stack in report["stacks"]:
                    if stack["verdict"] in ("leak", "growing"):
                        key = (stack["verdict"], stack["stack_id"])
                        times_before = called[key][0] if key in called else 0
                        called[key] = (times_before + 1, report["elapsed_ms"], stack)
    if number < times:
        sys.exit(f"{name} was reported on {number} times, and not {times}")
    counts = collections.Counter(stack["verdict"] for stack in report["stacks"])
    return counts, called, report["totals"]["acquired"]


def row(memleak, name, times):
    """Its row of the table; what is called a leak goes to standard error."""
    cells = []
    for is_attached in (False, True):
        counts, called, acquired = traced(memleak, name, is_attached, times)
        way = "-p" if is_attached else "from the start"
        for (verdict, stack_id), (reports, at, stack) in called.items():
            print(f"{name}, {way}: {verdict} in {reports} reports, the last after {at // 1000} s: {stack['bytes']} bytes in {stack['count']}: {stack['verdict_reason']}\n    {place(stack)}", file=sys.stderr, flush=True)
        cells.append(f"{acquired:,} | " + ", ".join(f"{kind} {counts[kind]}" for kind in KINDS if counts[kind]))
    return f"| {name} | {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/memleak", help="the memleak to use")
    parser.add_argument("--seconds", type=int, default=300, help="how long each run takes (300)")
    parser.add_argument("names", nargs="*", choices=[*PROGRAMS, []], help="programs (all)")
    arguments = parser.parse_args()
    memleak = os.path.abspath(arguments.program)
    print("| program | from the start: acquired | sites | `-p`: acquired | sites |\n| --- | ---: | --- | ---: | --- |", flush=True)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        rows = pool.map(lambda name: row(memleak, name, arguments.seconds // EVERY), arguments.names or PROGRAMS)
        for line in rows:
            print(line, flush=True)


if __name__ == "__main__":
    main()
