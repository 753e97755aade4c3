# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_memleak_global_optspecs
    string join \n duration= summary completions= p/pid= name= unit= cgroup= container= pod= c/command= k/kernel follow-forks r/resource= list-resources acquire= release= resources-file= growth usdt system-calls library-calls z/min-size= Z/max-size= s/sample-rate= sample-bytes= O/obj= S/symbols-prefix= P/percpu kernel-probes= slab= only-pid= only-comm= F/wa-missing-free max-depth= stack-storage-size= max-allocs= max-memory= no-lifetimes unwind= traps-only releases-only check-stacks t/trace a/show-allocs C/combined-only o/older= temporary tui detach T/top= sort= color= by= full-stacks with-source full-names format= why= why-every= why-of= max-pause= json folded output= append flamegraph= flamegraph-by= pprof= heaptrack= html= speedscope= firefox= perfetto= why-dot= save= only= hide= suppressions= listen= push= fail-if= error-exitcode= no-seccomp v/verbose h help V/version
end

function __fish_memleak_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_memleak_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_memleak_using_subcommand
    set -l cmd (__fish_memleak_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c memleak -n "__fish_memleak_needs_command" -l duration -d 'End after this time, with a last report: seconds, or with a unit (60s, 10m)' -r
complete -c memleak -n "__fish_memleak_needs_command" -l completions -d 'Print completions for SHELL (bash, zsh, fish, elvish) and exit; the first argument' -r
complete -c memleak -n "__fish_memleak_needs_command" -s p -l pid -d 'Trace a running process; repeatable, or a comma list' -r
complete -c memleak -n "__fish_memleak_needs_command" -l name -d 'Trace all processes of this name, and those that come later; repeatable, as are the next four' -r
complete -c memleak -n "__fish_memleak_needs_command" -l unit -d 'Trace the processes of a unit of systemd (nginx, or nginx.service)' -r
complete -c memleak -n "__fish_memleak_needs_command" -l cgroup -d 'Trace the processes of a control group and those below it: a path in /sys/fs/cgroup, or as in /proc/PID/cgroup' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l container -d 'Trace the processes of a container of docker, containerd, cri-o or podman: the beginning of its ID, or its name' -r
complete -c memleak -n "__fish_memleak_needs_command" -l pod -d 'Trace the processes of a pod of Kubernetes on this machine' -r
complete -c memleak -n "__fish_memleak_needs_command" -s c -l command -d 'Start CMD, split into words as a shell would, and trace it from its first instruction' -r
complete -c memleak -n "__fish_memleak_needs_command" -s r -l resource -d 'Trace these resources; repeatable, or a comma list [default: heap,mmap, or all of --resources-file]' -r
complete -c memleak -n "__fish_memleak_needs_command" -l acquire -d 'A function that hands out a resource: \'OBJECT:FUNCTION -> ret\' (see Resources below); repeatable' -r
complete -c memleak -n "__fish_memleak_needs_command" -l release -d 'A function that releases it: \'OBJECT:FUNCTION(arg1)\'; belongs to the --acquire before it; repeatable' -r
complete -c memleak -n "__fish_memleak_needs_command" -l resources-file -d 'Also take resources from this TOML file; repeatable' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -s z -l min-size -d 'Capture allocations of at least SIZE bytes; suffixes K, M, G (1024-based)' -r
complete -c memleak -n "__fish_memleak_needs_command" -s Z -l max-size -d 'Capture allocations of at most SIZE bytes; suffixes K, M, G (1024-based)' -r
complete -c memleak -n "__fish_memleak_needs_command" -s s -l sample-rate -d 'Trace every N-th allocation; reports are then scaled estimates' -r
complete -c memleak -n "__fish_memleak_needs_command" -l sample-bytes -d 'Capture heap blocks by their bytes, one sample in SIZE on average (512K): large blocks always, small ones by chance; numbers are estimates, with their margin' -r
complete -c memleak -n "__fish_memleak_needs_command" -s O -l obj -d 'Take the allocator functions from this object, a path or a library\'s name [default: what the target links]' -r
complete -c memleak -n "__fish_memleak_needs_command" -s S -l symbols-prefix -d 'The allocator\'s symbols carry this prefix (je_, tc_, mi_)' -r
complete -c memleak -n "__fish_memleak_needs_command" -l kernel-probes -d 'How to instrument the kernel: auto (tracepoints, and kprobes for what has none), tracepoint or kprobe [default: auto]' -r
complete -c memleak -n "__fish_memleak_needs_command" -l slab -d 'Capture objects of this slab cache only (kmalloc-64, dentry; see /proc/slabinfo)' -r
complete -c memleak -n "__fish_memleak_needs_command" -l only-pid -d 'Only kernel allocations made by this process' -r
complete -c memleak -n "__fish_memleak_needs_command" -l only-comm -d 'Only kernel allocations made by threads of this command name' -r
complete -c memleak -n "__fish_memleak_needs_command" -l max-depth -d 'Maximum number of frames of a stack, 1 to 127' -r
complete -c memleak -n "__fish_memleak_needs_command" -l stack-storage-size -d 'Maximum number of distinct stacks kept [default: 262144, or from 65536 on as many as an eighth of the memory is enough for; 16384 with --kernel]' -r
complete -c memleak -n "__fish_memleak_needs_command" -l max-allocs -d 'Maximum number of outstanding allocations kept [default: as many as --max-memory has room for]' -r
complete -c memleak -n "__fish_memleak_needs_command" -l max-memory -d 'Kernel memory that the table of heap blocks may take [default: 2G, or an eighth of the memory if that is less]' -r
complete -c memleak -n "__fish_memleak_needs_command" -l unwind -d 'How stacks are walked: auto (unwind tables, and the frame pointer if a file has none), dwarf or fp [default: auto]' -r
complete -c memleak -n "__fish_memleak_needs_command" -s o -l older -d 'Leave out allocations younger than MS milliseconds' -r
complete -c memleak -n "__fish_memleak_needs_command" -s T -l top -d 'How many stacks to print' -r
complete -c memleak -n "__fish_memleak_needs_command" -l sort -d 'Order of the stacks: size, count, age, growth (since the report before) or verdict' -r
complete -c memleak -n "__fish_memleak_needs_command" -l color -d 'Colours: auto (on a terminal, as NO_COLOR and CLICOLOR_FORCE say), always or never' -r
complete -c memleak -n "__fish_memleak_needs_command" -l by -d 'On a terminal: split each site by process, thread or size' -r
complete -c memleak -n "__fish_memleak_needs_command" -l format -d 'How reports are written: text, human, json or folded [default: human on a terminal, text in a pipe or file]' -r
complete -c memleak -n "__fish_memleak_needs_command" -l why -d 'Say what of the heap is lost, which blocks hold each other in a circle, and what holds the rest: at the last report. --why=exact stops the target for it, which makes epoll_wait and a few other calls return EINTR' -r
complete -c memleak -n "__fish_memleak_needs_command" -l why-every -d 'With --why: at every N-th report, too' -r
complete -c memleak -n "__fish_memleak_needs_command" -l why-of -d 'With --why: say what holds the block at ADDRESS, or the blocks of TYPE' -r
complete -c memleak -n "__fish_memleak_needs_command" -l max-pause -d 'With --why=exact: leave it out if the target would be stopped for longer than MS milliseconds [default: 1000]' -r
complete -c memleak -n "__fish_memleak_needs_command" -l output -d 'Write reports to FILE, not to standard output; what was in it is replaced when the first report is ready' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l flamegraph -d 'Write a flame graph (SVG) of the last report to FILE; - is standard output here and below' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l flamegraph-by -d 'What the widths of the flame graph are: bytes, count, growth (since the report before) or acquired' -r
complete -c memleak -n "__fish_memleak_needs_command" -l pprof -d 'Write a profile for go tool pprof, Pyroscope, Parca (compressed by gzip)' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l heaptrack -d 'Write a data file for heaptrack_gui; compressed if FILE ends in .gz or .zst' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l html -d 'Write a page for a browser: table, flame graph, totals over time; it needs no network' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l speedscope -d 'Write a profile for speedscope (name it FILE.speedscope.json)' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l firefox -d 'Write a profile for the Firefox Profiler' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l perfetto -d 'Write a trace for ui.perfetto.dev' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l why-dot -d 'With --why: write the circles as a graph for dot (Graphviz)' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l save -d 'Write all of the last report, to make any other form of later: memleak report FILE, memleak diff OLD NEW' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l only -d 'Report only stacks with a frame of this module (its file\'s name) or function (a regular expression); repeatable' -r
complete -c memleak -n "__fish_memleak_needs_command" -l hide -d 'Leave out stacks with a frame like this; repeatable' -r
complete -c memleak -n "__fish_memleak_needs_command" -l suppressions -d 'Leave out the known leaks of FILE: lines leak:PATTERN as of LeakSanitizer, or valgrind\'s suppressions; repeatable' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l listen -d 'Serve /metrics, /debug/pprof/heap, /report and /healthz by HTTP: a port of 127.0.0.1, IP:PORT, or unix:PATH (which other users cannot read)' -r
complete -c memleak -n "__fish_memleak_needs_command" -l push -d 'Send each report as a profile: http://HOST:4040 (Pyroscope), http://HOST:4040/ingest, or http://HOST:7070/api/profiles/writeraw (Parca)' -r
complete -c memleak -n "__fish_memleak_needs_command" -l fail-if -d 'Exit with 3 if this holds at the end: growth>SIZE (since the first report), lost>N, or leak; repeatable' -r
complete -c memleak -n "__fish_memleak_needs_command" -l error-exitcode -d 'Exit with N (1 to 255) if the last report holds an outstanding allocation' -r
complete -c memleak -n "__fish_memleak_needs_command" -l summary -d 'End with a summary: calls, the most that was outstanding and when, what was lost'
complete -c memleak -n "__fish_memleak_needs_command" -s k -l kernel -d 'Trace the kernel\'s allocators: slab caches, pages, vmalloc'
complete -c memleak -n "__fish_memleak_needs_command" -l follow-forks -d 'Also trace the target\'s children and their descendants, whatever programs they run'
complete -c memleak -n "__fish_memleak_needs_command" -l list-resources -d 'Print the resources that can be named with -r, one a line, and exit'
complete -c memleak -n "__fish_memleak_needs_command" -l growth -d 'Show what makes the process grow: pages of memory that are still there, by the stack that touched each first; no function is probed, which costs next to nothing and works for any program (the same as -r growth)'
complete -c memleak -n "__fish_memleak_needs_command" -l usdt -d 'Take an allocator\'s own samples (its USDT probes otel_memory:alloc and otel_memory:free), with the bytes that each stands for, and probe no function; an error if the target has none (the same as -r otel-memory)'
complete -c memleak -n "__fish_memleak_needs_command" -l system-calls -d 'Count mappings (the resource mmap) at system calls, and not at the C library\'s functions: raw calls and the break are seen as well, and what allocators map for themselves unless heap is traced too'
complete -c memleak -n "__fish_memleak_needs_command" -l library-calls -d 'Count descriptors at the C library\'s functions, and not at system calls'
complete -c memleak -n "__fish_memleak_needs_command" -s P -l percpu -d 'Also trace per-CPU allocations'
complete -c memleak -n "__fish_memleak_needs_command" -s F -l wa-missing-free -d 'Accepted for compatibility with bcc; always on'
complete -c memleak -n "__fish_memleak_needs_command" -l no-lifetimes -d 'Do not keep how much each stack has released, and at what age'
complete -c memleak -n "__fish_memleak_needs_command" -l traps-only -d 'Attach programs that do nothing: what the traps alone cost (cargo xtask bench)'
complete -c memleak -n "__fish_memleak_needs_command" -l releases-only -d 'With --traps-only: at functions that release, and at no others (memleak doctor)'
complete -c memleak -n "__fish_memleak_needs_command" -l check-stacks -d 'Kernel mode: compare what is remembered of stacks with what the kernel\'s walk gives (a test)'
complete -c memleak -n "__fish_memleak_needs_command" -s t -l trace -d 'Print each acquire and release as it happens'
complete -c memleak -n "__fish_memleak_needs_command" -s a -l show-allocs -d 'List each outstanding allocation (address, size, age) above its stack'
complete -c memleak -n "__fish_memleak_needs_command" -s C -l combined-only -d 'Keep totals for each stack only: no ages or addresses in the report'
complete -c memleak -n "__fish_memleak_needs_command" -l temporary -d 'With each report: the stacks whose allocations were released at once, in numbers'
complete -c memleak -n "__fish_memleak_needs_command" -l tui -d 'Show reports on the terminal as they come, to sort, search and look into; ? shows the keys'
complete -c memleak -n "__fish_memleak_needs_command" -l detach -d 'Go on when the terminal goes (a dropped ssh), as with --save and other files'
complete -c memleak -n "__fish_memleak_needs_command" -l full-stacks -d 'On a terminal: show frames of libraries too, and whole paths'
complete -c memleak -n "__fish_memleak_needs_command" -l with-source -d 'Show lines of sources, if they are on this machine: in the view of --tui, in the page of --html'
complete -c memleak -n "__fish_memleak_needs_command" -l full-names -d 'On a terminal: show names with all their template arguments'
complete -c memleak -n "__fish_memleak_needs_command" -l json -d 'Write each report as one line of JSON: --format json'
complete -c memleak -n "__fish_memleak_needs_command" -l folded -d 'Write the last report as folded stacks, for flame graphs: --format folded'
complete -c memleak -n "__fish_memleak_needs_command" -l append -d 'With --output: add to what is in FILE'
complete -c memleak -n "__fish_memleak_needs_command" -l no-seccomp -d 'Put up no filter of system calls once probes are in'
complete -c memleak -n "__fish_memleak_needs_command" -s v -l verbose -d 'More detail on standard error; -vv for debug output'
complete -c memleak -n "__fish_memleak_needs_command" -s h -d 'Print the most used options, on one screen'
complete -c memleak -n "__fish_memleak_needs_command" -l help -d 'Print all options, with examples'
complete -c memleak -n "__fish_memleak_needs_command" -s V -l version -d 'Print version'
complete -c memleak -n "__fish_memleak_needs_command" -a "report" -d 'Writes a saved report (--save) again, in any form'
complete -c memleak -n "__fish_memleak_needs_command" -a "diff" -d 'Compares two saved reports by their stacks: what has grown, what is new, what has gone'
complete -c memleak -n "__fish_memleak_needs_command" -a "doctor" -d 'Says what this machine offers, and with -p what tracing a process would cost'
complete -c memleak -n "__fish_memleak_using_subcommand report" -l format -d 'How the report is written: text, human, json or folded [default: human on a terminal, text in a pipe or file, nothing with files]' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -s T -l top -d 'How many stacks to print' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l sort -d 'Order of the stacks: size, count, age, growth (since the report before) or verdict' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l color -d 'Colours: auto (on a terminal, as NO_COLOR and CLICOLOR_FORCE say), always or never' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l by -d 'On a terminal: split each site by process, thread or size' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l flamegraph -d 'Write a flame graph (SVG) of the last report to FILE; - is standard output here and below' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand report" -l flamegraph-by -d 'What the widths of the flame graph are: bytes, count, growth (since the report before) or acquired' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l pprof -d 'Write a profile for go tool pprof, Pyroscope, Parca (compressed by gzip)' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand report" -l heaptrack -d 'Write a data file for heaptrack_gui; compressed if FILE ends in .gz or .zst' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand report" -l html -d 'Write a page for a browser: table, flame graph, totals over time; it needs no network' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand report" -l speedscope -d 'Write a profile for speedscope (name it FILE.speedscope.json)' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand report" -l firefox -d 'Write a profile for the Firefox Profiler' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand report" -l perfetto -d 'Write a trace for ui.perfetto.dev' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand report" -l why-dot -d 'With --why: write the circles as a graph for dot (Graphviz)' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand report" -l save -d 'Write all of the last report, to make any other form of later: memleak report FILE, memleak diff OLD NEW' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand report" -l only -d 'Report only stacks with a frame of this module (its file\'s name) or function (a regular expression); repeatable' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l hide -d 'Leave out stacks with a frame like this; repeatable' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l suppressions -d 'Leave out the known leaks of FILE: lines leak:PATTERN as of LeakSanitizer, or valgrind\'s suppressions; repeatable' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand report" -l fail-if -d 'Exit with 3 if this holds: growth>SIZE (since the first report), lost>N, or leak; repeatable' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l json -d '--format json'
complete -c memleak -n "__fish_memleak_using_subcommand report" -l folded -d '--format folded'
complete -c memleak -n "__fish_memleak_using_subcommand report" -l full-stacks -d 'On a terminal: show frames of libraries too, and whole paths'
complete -c memleak -n "__fish_memleak_using_subcommand report" -l with-source -d 'Show lines of sources, if they are on this machine: in the view of --tui, in the page of --html'
complete -c memleak -n "__fish_memleak_using_subcommand report" -l full-names -d 'On a terminal: show names with all their template arguments'
complete -c memleak -n "__fish_memleak_using_subcommand diff" -s T -l top -d 'How many stacks to print' -r
complete -c memleak -n "__fish_memleak_using_subcommand diff" -l flamegraph -d 'Write a flame graph of the difference to FILE: red has grown, blue has shrunk' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand diff" -l color -d 'Colours: auto, always or never' -r
complete -c memleak -n "__fish_memleak_using_subcommand diff" -l only -d 'Report only stacks with a frame of this module (its file\'s name) or function (a regular expression); repeatable' -r
complete -c memleak -n "__fish_memleak_using_subcommand diff" -l hide -d 'Leave out stacks with a frame like this; repeatable' -r
complete -c memleak -n "__fish_memleak_using_subcommand diff" -l suppressions -d 'Leave out the known leaks of FILE: lines leak:PATTERN as of LeakSanitizer, or valgrind\'s suppressions; repeatable' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand diff" -l fail-if -d 'Exit with 3 if this holds: growth>SIZE, new, lost>N, or leak; repeatable' -r
complete -c memleak -n "__fish_memleak_using_subcommand diff" -l json -d 'One object of JSON, with all stacks'
complete -c memleak -n "__fish_memleak_using_subcommand diff" -l full-names -d 'Show names with all their template arguments'
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s p -l pid -d 'Also say what tracing this process would cost: it is traced for some three seconds; repeatable' -r
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -l json -d 'One object of JSON'
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -l pairs -d 'Make pairs of malloc and free, for the doctor that has started this'
