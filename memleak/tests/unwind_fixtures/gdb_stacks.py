"""The truth of a whole run: gdb stops at each call of an allocator function and prints the callers' addresses.

Run as: gdb -nx -q -batch -ex "python FUNCTIONS='malloc calloc'; LIMIT=500" -x gdb_stacks.py --args program arguments
Prints one line for each different stack: STACK and the addresses, the caller of the function first; then DONE and the
number of stops.
"""
import gdb

for setting in ("pagination off", "confirm off", "backtrace past-main on", "backtrace past-entry on",
                "backtrace limit 400", "width 0", "debuginfod enabled off", "startup-with-shell off",
                "print thread-events off", "disable-randomization on", "breakpoint pending on",
                "print inferior-events off"):
    try:
        gdb.execute("set " + setting)
    except gdb.error:
        pass
gdb.execute("handle SIGUSR1 SIGILL nostop noprint pass")


def callers():
    frame, addresses = gdb.newest_frame().older(), []
    while frame is not None and len(addresses) < 300:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            # The tracer marks an interrupted instruction by its address plus 1.
            interrupted = frame.newer() is not None and frame.newer().type() == gdb.SIGTRAMP_FRAME
            addresses.append("%x" % (frame.pc() + (1 if interrupted else 0)))
        frame = frame.older()
    return " ".join(addresses)


for function in FUNCTIONS.split():
    gdb.execute("break -qualified " + function, to_string=True)
seen, stops = set(), 0
gdb.execute("run > /dev/null 2>&1", to_string=True)
while gdb.selected_thread() is not None and gdb.selected_thread().is_valid() and stops < LIMIT:
    stack = callers()
    stops += 1
    if stack not in seen:
        seen.add(stack)
        print("STACK " + stack)
    gdb.execute("continue", to_string=True)
print("DONE %d" % stops)
try:
    gdb.execute("kill", to_string=True)
except gdb.error:
    pass
