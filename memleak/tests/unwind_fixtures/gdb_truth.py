"""The walk's truth: gdb prints a stopped thread's registers and its frames, one line each, and waits for a line."""
import gdb


def registers():
    frame = gdb.newest_frame()
    names = ("rip", "rsp", "rbp")
    return " ".join("%x" % (int(frame.read_register(name)) & (2**64 - 1)) for name in names)


def frames():
    gdb.selected_inferior()
    frame, pcs = gdb.newest_frame(), []
    while frame is not None and len(pcs) < 400:
        # An inlined function, and one that left by a jump (gdb infers it from debug information), have no frame of
        # their own on the stack.
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            pcs.append("%x" % frame.pc())
        frame = frame.older()
    return " ".join(pcs)


class Truth(gdb.Command):
    """truth: print "TRUTH pid tid; registers; frames"."""

    def __init__(self):
        super().__init__("truth", gdb.COMMAND_USER)

    def invoke(self, argument, from_tty):
        thread = gdb.selected_thread()
        if thread is None or not thread.is_valid():
            print("TRUTH gone")
        else:
            print("TRUTH %d %d;%s;%s" % (gdb.selected_inferior().pid, thread.ptid[1], registers(), frames()))
        gdb.flush()


Truth()
for setting in ("pagination off", "confirm off", "backtrace past-main on", "backtrace past-entry on",
                "backtrace limit 400", "width 0", "debuginfod enabled off", "startup-with-shell off",
                "print thread-events off", "disable-randomization on"):
    try:
        gdb.execute("set " + setting)
    except gdb.error:
        pass
gdb.execute("handle SIGUSR1 SIGILL nostop noprint pass")
