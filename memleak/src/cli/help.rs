//! What the program says of itself: `-h`, and the end of `--help`.

/// The end of `--help`: examples, syntax, exit status.
pub(super) const AFTER_HELP: &str = "\
Examples:
  memleak -p 1234                        a running process: a report every 5 seconds until Ctrl-C
  memleak --name nginx 10 3              all its processes, and new ones: three reports, 10 seconds apart
  memleak --container 3f4e5d 10          a container's processes; also --unit, --cgroup, --pod
  memleak doctor -p 1234                 what tracing it would cost, and what this machine offers
  memleak --unit nginx --listen 9464     for Prometheus, Parca, go tool pprof
  memleak -- ./program --its-option      a program from its first instruction to its end
  memleak -c './program arg' 1           the same, quoted; a report every second
  memleak -p 1234 -o 60000 --sort count  what is older than a minute, most allocations first
  memleak -p 1234 --sort growth          what has grown since the previous report
  memleak -p 1234 -z 1M -T 3             only blocks of 1 MiB and more, the three largest stacks
  memleak -p 1234 -a -o 0 1 1            every outstanding allocation, once, and end
  memleak -p 1234 -s 100                 a busy program: one allocation in 100, scaled up
  memleak -p 1234 --json --output a.jsonl
  memleak -p 1234 --flamegraph held.svg --html held.html 60 1
  memleak -p 1234 --save before.gz 60 1  all of it, for later: memleak report before.gz --pprof a.pb.gz
  memleak diff before.gz after.gz        what has grown, is new, is gone
  memleak --kernel 10                    the kernel's own allocations, a report every 10 seconds
  memleak -k --slab dentry --sort growth which paths of the kernel grow the dentry cache
  memleak --error-exitcode 99 -- ./test  for CI: 99 when something is still outstanding at the end
  memleak -p 1234 --acquire 'libfoo.so:foo_open -> ret' --release 'libfoo.so:foo_close(arg1)'
  memleak -p 1234 --acquire 'db:db_open(arg2 size) -> *arg1 if ret == 0' --release 'db:db_close(arg1)'

Resources: the syntax of --acquire and --release ([ ] optional, { } choose one):
  acquire:   [NAME=][OBJECT:]FUNCTION[(SIZE size)] -> HANDLE[, HANDLE] [counted] [releasing HANDLE] [if CONDITION]
  release:   [NAME=][OBJECT:]FUNCTION(HANDLE) [if CONDITION]
  SIZE:      {argN, argN*argN, a number of bytes}
  HANDLE:    {ret, argN, *argN, *(argN+OFFSET)} [as int]; arguments count from 1; ret is for acquire only
  CONDITION: ret [as {int, long}] {==, !=, <, <=, >, >=} NUMBER
  counted: the same handle may be handed out several times (dlopen); releasing: what the same call takes back (realloc)
  Without a condition a call has succeeded when its handle is neither 0 nor -1, or, as int, not negative.
  FUNCTION is a symbol as nm prints it; OBJECT a path or a library's name as with -O, any object if it is left out.
  A release belongs to the acquire before it, an acquire directly after another one to the same resource.

Ctrl-C, SIGTERM, the end of COUNT and the target's end all give one last report and remove all probes.
A process given with -p is never signalled.

Exit status:
  0  done
  1  the work could not be done: one line on standard error says what failed, why and what to do
  2  the command line is wrong: one line says what to type
  3  a condition of --fail-if holds
  N  with --error-exitcode N, if the last report holds an outstanding allocation
  A command that ends by itself passes on its own status (128+N for signal N).";

/// What `-h` prints: one screen of 80 columns.
pub(super) const SHORT_HELP: &str = "\
memleak shows which call stacks are holding a running program's memory.

  memleak [OPTIONS] -p PID [INTERVAL] [COUNT]      a process (or --name NAME)
  memleak [OPTIONS] [INTERVAL] [COUNT] -- COMMAND  a program from its beginning
  memleak [OPTIONS] --kernel [INTERVAL] [COUNT]    the kernel's allocations

Reports come every INTERVAL seconds (5), COUNT times or until Ctrl-C.

  -r, --resource NAME   other resources: fd, mutex, ... (see --list-resources)
  -o, --older MS        leave out allocations younger than MS ms (500)
  -z, --min-size SIZE   only allocations of at least SIZE bytes (K, M, G)
  -s, --sample-rate N   trace one allocation in N: estimates, for busy programs
  -T, --top N           how many stacks to print (10)
  -a, --show-allocs     list each allocation: address, size, age
  -t, --trace           print each acquire and release as it happens
      --sort KEY        size, count, age, growth or verdict
      --json            write each report as one line of JSON
      --output FILE     write reports to FILE
      --error-exitcode N  exit with N if anything is outstanding at the end
      --follow-forks    also trace children
  -v                    more detail on standard error

memleak --help lists all options, with examples. Version: memleak -V
";
