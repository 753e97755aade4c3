"""Makes and drops objects as fast as it can. "measure N" on standard input: after N more turns it says how long they
took, and how much of its CPU time: in the words of steady.c."""

import select
import time


def turn(number):
    blocks = [bytes(600 + number % 8 * 100 + i) for i in range(8)]
    return {len(block): str(block[:4]) for block in blocks}


done, until, begun = 0, -1, (0, 0, 0)
print("READY", flush=True)
while True:
    if select.select([0], [], [], 0)[0]:
        begun = (done, time.monotonic_ns(), time.process_time_ns())
        until = done + int(input().split()[1])
    for _ in range(200):
        turn(done)
        done += 1
    if 0 <= until <= done:
        wall, cpu = time.monotonic_ns() - begun[1], time.process_time_ns() - begun[2]
        print('{"pairs":%d,"wall_ns":%d,"cpu_ns":%d}' % (done - begun[0], wall, cpu), flush=True)
        until = -1
