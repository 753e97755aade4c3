"""The truth of a whole run: gdb stops at each call of an allocator function and prints the callers' addresses.

Run as: gdb -nx -q -batch -ex "python FUNCTIONS='malloc calloc'; LIMIT=500" -x gdb_stacks.py --args program arguments
With PID set (python PID=1234) it attaches to a running process instead, and prints READY when it waits for calls.
Prints one line for each different stack: STACK and its frames, the caller of the function first, each as the name of
its file and the address in it; then DONE and the number of stops. A stack ends where gdb goes on to words that are in
no file's text: behind the outermost frame it takes whatever lies there.
"""
import gdb

for setting in ("pagination off", "confirm off", "backtrace past-main on", "backtrace past-entry on",
                "backtrace limit 400", "width 0", "debuginfod enabled off", "startup-with-shell on",
                "print thread-events off", "disable-randomization on", "breakpoint pending on",
                "print inferior-events off", "inferior-tty /dev/null"):
    try:
        gdb.execute("set " + setting)
    except gdb.error:
        pass
gdb.execute("handle SIGUSR1 SIGILL nostop noprint pass")


def read_text(pid):
    """Executable ranges of files: start, end, name, where the file's address 0 is."""
    first, text = {}, []
    for line in open("/proc/%d/maps" % pid):
        fields = line.split(None, 5)
        if len(fields) < 6:
            continue
        start, end = (int(word, 16) for word in fields[0].split("-"))
        path = fields[5].strip()
        first.setdefault(path, start)
        if "x" in fields[1] and path[0] == "/":
            # A program that is not position independent is linked at its place, below 256 MiB.
            text.append((start, end, path.split("/")[-1], first[path] if first[path] >= 1 << 28 else 0))
    return text


text = []


def place(address):
    global text
    for attempt in range(2):
        for start, end, name, base in text:
            if start <= address < end:
                return "%s+%x" % (name, address - base)
        if attempt == 0:
            text = read_text(gdb.selected_inferior().pid)
    return None


def callers():
    frame, addresses = gdb.newest_frame().older(), []
    while frame is not None and len(addresses) < 300:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            # The tracer marks an interrupted instruction by its address plus 1.
            interrupted = frame.newer() is not None and frame.newer().type() == gdb.SIGTRAMP_FRAME
            found = place(frame.pc() + (1 if interrupted else 0))
            if found is None:
                break
            addresses.append(found)
        frame = frame.older()
    return " ".join(addresses)


attached = "PID" in globals()
if attached:
    gdb.execute("attach %d" % PID, to_string=True)
for function in FUNCTIONS.split():
    gdb.execute("break -qualified " + function, to_string=True)
seen, stops = set(), 0
if attached:
    print("READY")
    gdb.flush()
gdb.execute("continue" if attached else "run", to_string=True)
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
