"""The truth of a run that is traced at the same time: gdb stops at each call of an allocator's function, before the
tracer's probe in it, and again where the call returns to.

Run as: gdb -nx -q -batch -ex "python FUNCTIONS='malloc calloc'" -x gdb_calls.py --args program arguments
With PID set (python PID=1234) it attaches to a running process instead. It prints READY and the process's id while the
process is stopped before its first call, and goes on at the next line of its standard input, when probes may be in. At
the program's end it prints

- STACK, a number, and the frames' addresses, the function's caller first,
- BLOCK, heap or mmap, an address that calls returned, and of the last of them the bytes asked for and the stack's number,
- DONE and the number of calls that got what they asked for.
"""
import os
import platform
import subprocess
import sys
import gdb

for setting in ("pagination off", "confirm off", "width 0", "debuginfod enabled off", "inferior-tty /dev/null",
                "print thread-events off", "print inferior-events off",
                "backtrace past-main on", "backtrace past-entry on", "backtrace limit 400",
                # As the process would run without gdb.
                "disable-randomization off",
                # A probe and a breakpoint at one instruction: gdb must not run a copy of the probe's elsewhere, nor take it
                # for one that the program has of its own, which it would skip.
                "displaced-stepping off"):
    gdb.execute("set " + setting)
gdb.execute("handle all nostop noprint pass", to_string=True)

# How many bytes a function is asked for, from its first three arguments.
SIZES = {
    "malloc": lambda a, b, c: a, "calloc": lambda a, b, c: a * b, "realloc": lambda a, b, c: b,
    "reallocarray": lambda a, b, c: b * c, "posix_memalign": lambda a, b, c: c, "aligned_alloc": lambda a, b, c: b,
    "memalign": lambda a, b, c: b, "mmap": lambda a, b, c: b, "mremap": lambda a, b, c: c,
}
IS_ARM = platform.machine() == "aarch64"
# On arm64 as many as Arm's own processors have (ID_AA64DFR0_EL1.BRPs), and all probes are at functions' first bytes.
MOST_HARDWARE_BREAKPOINTS = 6 if IS_ARM else 4
SET_TID_ADDRESS = 96 if IS_ARM else 218
PC, SP, RESULT = ("pc", "sp", "x0") if IS_ARM else ("rip", "rsp", "rax")
ARGUMENTS = ("x0", "x1", "x2") if IS_ARM else ("rdi", "rsi", "rdx")
# What a call instruction takes of the caller's frame.
RETURN_SLOT = 0 if IS_ARM else 8
# The kernel's breakpoint (arch/arm64/include/asm/brk-imm.h, UPROBES_BRK_IMM).
BREAKPOINT = b"\xa0\x00\x20\xd4" if IS_ARM else b"\xcc"


def pid():
    return gdb.selected_inferior().pid


def read(address, length):
    """From the memory itself: gdb would not show what has been put into code."""
    with open("/proc/%d/mem" % pid(), "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(length)


def read_word(address):
    return int.from_bytes(read(address, 8), "little")


def register(name):
    return int(gdb.newest_frame().read_register(name)) & (2**64 - 1)


def mappings():
    """Start, end, permissions and name of each mapping."""
    for line in open("/proc/%d/maps" % pid()):
        fields = line.split(None, 5)
        start, end = (int(word, 16) for word in fields[0].split("-"))
        yield start, end, fields[1], fields[5].strip() if len(fields) > 5 else ""


class Text:
    """Where frames' addresses can be."""

    def __init__(self):
        self.read()

    def read(self):
        # On arm64 signal handlers return to the vdso; on x86_64 to the C library.
        self.files = [(start, end) for start, end, may, name in mappings()
                      if "x" in may and (name[:1] == "/" or name == "[vdso]")]
        self.trampolines = [(start, end) for start, end, _, name in mappings() if name == "[uprobes]"]
        self.nowhere = {0}

    def holds(self, address):
        return any(start <= address < end for start, end in self.files)

    def is_trampoline(self, address):
        return any(start <= address < end for start, end in self.trampolines)

    def is_new(self, address):
        """Says whether something has been mapped there since the last reading."""
        if address in self.nowhere or self.holds(address) or self.is_trampoline(address):
            return False
        self.read()
        if self.holds(address) or self.is_trampoline(address):
            return True
        self.nowhere.add(address)
        return False


def walk():
    """The callers' addresses, and the one that is in no file's text: a stack ends where gdb goes on to it, behind the
    outermost frame, or at 0."""
    frame, addresses = gdb.newest_frame().older(), []
    while frame is not None and len(addresses) < 300:
        # An inlined function, and one that left by a jump (gdb infers it from debug information), have no frame.
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            # The tracer marks an interrupted instruction by its address plus 1.
            interrupted = frame.newer() is not None and frame.newer().type() == gdb.SIGTRAMP_FRAME
            address = frame.pc() + (1 if interrupted else 0)
            if not text.holds(address):
                return tuple(addresses), address
            addresses.append(address)
        frame = frame.older()
    return tuple(addresses), 0


def callers():
    """None for a call out of another one that is pending: the tracer counts that one. On x86_64 the kernel has replaced its
    return address by its trampoline's."""
    if IS_ARM and is_nested():
        return None
    addresses, beyond = walk()
    if text.is_new(beyond):
        # gdb waits for the dynamic linker's notice where the tracer has a probe, which takes it.
        gdb.execute("sharedlibrary", to_string=True)
        addresses, beyond = walk()
    return None if text.is_trampoline(beyond) else addresses


def is_nested():
    """A frame is that of a pending call's caller, by its stack pointer and the return address."""
    thread, frame = gdb.selected_thread().ptid[1], gdb.newest_frame().older()
    if all(pending != thread for pending, _ in calls.pending):
        return False  # mostly so: to ask frames for their registers takes as long as to walk
    while frame is not None:
        call = calls.pending.get((thread, int(frame.read_register("sp")) & (2**64 - 1)))
        if call is not None and call[4] == frame.pc():
            return True
        frame = frame.older()
    return False


def files():
    """The files that are mapped, the program first and libc last, with the addresses of their first bytes."""
    program, found = os.readlink("/proc/%d/exe" % pid()), {}
    for start, _, _, name in mappings():
        if name[:1] == "/":
            found.setdefault(name, start)
    return [(name, found[name]) for name in sorted(found, key=lambda name: (name != program, "/libc." in name))]


def is_linker(name):
    return "/ld-" in name


def symbols(name, start):
    """Name and address of each function of a file."""
    with open(name, "rb") as file:
        identification = file.read(18)
    if identification[:4] != b"\x7fELF":
        return
    bias = start if identification[16] == 3 else 0  # ET_DYN
    for table in ([], ["-D"]):
        listed = subprocess.run(["nm", "--defined-only", *table, name], capture_output=True, text=True).stdout
        for words in map(str.split, listed.splitlines()):
            if len(words) == 3 and words[1] in "TtWw":
                yield words[2].split("@")[0], bias + int(words[0], 16)


def imports(names):
    """What files take from others by name."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", *names], capture_output=True, text=True).stdout
    return {line.split()[-1].split("@")[0] for line in listed.splitlines() if line.split()[:-1] in (["U"], ["w"])}


def start():
    """Runs up to where all objects are mapped, and no constructor has run."""
    if "PID" in globals():
        gdb.execute("attach %d" % PID, to_string=True)
        return
    gdb.execute("starti", to_string=True)
    if any(is_linker(name) for name, _ in files()):
        # By then it has mapped what the program is linked with, and relocates it next. gdb would not see its notice where
        # a tracer, of whatever process, has a probe at it.
        gdb.execute("catch syscall %d" % SET_TID_ADDRESS, to_string=True)
        gdb.execute("continue", to_string=True)
        gdb.execute("delete")
        gdb.execute("sharedlibrary", to_string=True)


def functions():
    """Where the functions are: in the program, else in a library of an allocator, else in libc. First those that a file
    takes from another: they are surely called, and the processor has not a breakpoint for each."""
    found, mapped = {}, [(name, start) for name, start in files() if not is_linker(name)]
    for name, start in mapped:
        for function, address in symbols(name, start):
            found.setdefault(function, address)
    imported = imports([name for name, _ in mapped])
    order = sorted(FUNCTIONS.split(), key=lambda function: function not in imported)
    return [(function, found[function]) for function in order if function in found]


def set_breakpoints():
    """By address, what is called there. Where the tracer's probe is, the processor breaks before it."""
    entries, hardware = {}, 0
    for function, address in functions():
        if address in entries:
            continue
        probed = read(address, len(BREAKPOINT)) == BREAKPOINT
        if probed and hardware == MOST_HARDWARE_BREAKPOINTS:
            print("no breakpoint is left for " + function)
            continue
        hardware += probed
        kind = gdb.BP_HARDWARE_BREAKPOINT if probed else gdb.BP_BREAKPOINT
        gdb.Breakpoint("*%d" % address, type=kind).silent = True
        entries[address] = function
    return entries


class Return(gdb.Breakpoint):
    """Where calls return to, which they have begun with their return address on the stack, or in a register."""

    def stop(self):
        calls.leave(gdb.selected_thread().ptid[1], register(SP) - RETURN_SLOT)
        return False


class Calls:
    def __init__(self):
        self.number, self.stacks, self.blocks, self.pending, self.returns = 0, {}, {}, {}, set()

    def enter(self, thread, function):
        stack = callers()
        if stack is None:
            return
        arguments = [register(name) for name in ARGUMENTS]
        out = arguments[0] if function == "posix_memalign" else None
        number = self.stacks.setdefault(stack, len(self.stacks))
        resource = "mmap" if function in ("mmap", "mremap") else "heap"
        self.pending[thread, register(SP)] = (resource, out, SIZES[function](*arguments), number, stack[0])
        if stack[0] not in self.returns:
            self.returns.add(stack[0])
            Return("*%d" % stack[0]).silent = True

    def leave(self, thread, slot):
        call = self.pending.pop((thread, slot), None)
        if call is None:
            return  # it came to this place by another way
        resource, out, size, stack, _ = call
        address = register(RESULT)
        if out is not None:
            address = read_word(out) if address == 0 else 0
        if address not in (0, 2**64 - 1):  # null, MAP_FAILED
            self.number += 1
            self.blocks[resource, address] = (size, stack)


start()
print("READY %d" % pid())
gdb.flush()
sys.stdin.readline()
gdb.execute("set trust-readonly-sections on")
text, calls, entries = Text(), Calls(), set_breakpoints()
gdb.execute("set breakpoint always-inserted on")
while True:
    gdb.execute("continue", to_string=True)
    thread = gdb.selected_thread()
    if thread is None or not thread.is_valid():
        break
    calls.enter(thread.ptid[1], entries[register(PC)])
for stack, number in calls.stacks.items():
    print("STACK %d %s" % (number, " ".join("%x" % address for address in stack)))
for (resource, address), (size, stack) in calls.blocks.items():
    print("BLOCK %s %x %d %d" % (resource, address, size, stack))
print("DONE %d" % calls.number)
