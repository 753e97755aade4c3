// More than forty ways in which a block can be held or lost, for --why beside valgrind and LeakSanitizer. Each block has a
// size of its own, by which a report names it.
//
// LIBRARY: a library that has a variable `kept`, or there is one shape less.
//
// usage: shapes     prints "SHAPE SIZE" for each block, then READY; waits for a line
//
// No address of a block may be left where it is not meant to be: each shape is made deep in the stack, which is
// overwritten afterwards, and no shape is made by main itself.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <unordered_map>

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define NOINLINE __attribute__((noipa))

// The leak checker of -fsanitize=leak, if it is linked in.
extern "C" int __lsan_do_recoverable_leak_check(void) __attribute__((weak));

static const uintptr_t HIDE = 0x5555000000000000;

static char out[1 << 14];
static size_t out_length = 0;

static void tell(const char *shape, size_t size) {
    out_length += (size_t)snprintf(out + out_length, sizeof out - out_length, "%s %zu\n", shape, size);
}

// As many calls deep as it is told: each block has a stack of its own, since valgrind adds up blocks of one stack.
static NOINLINE void *deep(int calls, size_t size) {
    void *volatile block = calls == 0 ? malloc(size) : deep(calls - 1, size);
    return block;
}

// A block of `size` bytes, all zero.
static NOINLINE void *sized(const char *shape, size_t size, bool has_own_stack = true) {
    static int number = 0;
    void *block = deep(has_own_stack ? ++number : 0, size);
    memset(block, 0, size);
    tell(shape, size);
    return block;
}

// A block with a size that no other has.
static NOINLINE void *block(const char *shape, bool has_own_stack = true) {
    static size_t next = 1000;
    return sized(shape, next += 24, has_own_stack);
}

// Overwrites what calls have left below the caller's stack.
static NOINLINE long scrub() {
    volatile char all[1 << 16];
    for (size_t i = 0; i < sizeof all; i++) all[i] = 0;
    return all[77];
}

static void **words(void *at) { return (void **)at; }

// Where a shape's pointer is kept by a global variable: these are all the globals that hold anything.
static void *globals[128];
static size_t globals_used = 0;
static void keep(void *pointer) { globals[globals_used++] = pointer; }

// A place that every shape may forget.
static void *made(size_t bytes) { return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }

// A pointer of which an int has overwritten one half (0, 1, -1, as slots of stacks and registers have them) points near
// a boundary of 4 GiB. Where the next mapping of `bytes` would lie across one, nothing is mapped any more afterwards.
static NOINLINE void clear_of_boundary(size_t bytes) {
    for (;;) {
        uintptr_t start = (uintptr_t)made(bytes), end = start + bytes;
        if (start >> 32 == end >> 32 && (uint32_t)start != 0) {
            munmap((void *)start, bytes);
            return;
        }
    }
}

// --- lists, trees, rings

static NOINLINE void *chain(const char *shape, int count, bool is_ring, bool is_double) {
    void *first = nullptr, *last = nullptr;
    for (int i = 0; i < count; i++) {
        void *node = block(shape);
        if (last != nullptr) {
            words(last)[2] = node;
            if (is_double) words(node)[3] = last;
        } else {
            first = node;
        }
        last = node;
    }
    if (is_ring) words(last)[2] = first;
    return first;
}

static NOINLINE void *tree(const char *shape) {
    void *root = block(shape);
    words(root)[0] = block(shape);
    words(root)[1] = block(shape);
    return root;
}

static NOINLINE void plain() {
    block("lost");
    keep(block("global"));
    keep(chain("list", 3, false, false));
    chain("lost_list", 3, false, false);
    keep(tree("tree"));
    tree("lost_tree");
    keep(chain("ring", 3, true, false));
    chain("lost_ring", 3, true, false);
    keep(chain("double", 3, false, true));
    chain("lost_double", 3, false, true);
    void *self = block("lost_self");
    words(self)[3] = self;
    void *holds = chain("lost_ring_holds", 2, true, false);
    words(holds)[5] = block("lost_ring_held");
    void *pointed = chain("ring_inner", 2, true, false);
    keep((char *)pointed + 40);
}

// --- inner pointers

struct first_base {
    virtual ~first_base() {}
    long a = 1;
};
struct second_base {
    virtual ~second_base() {}
    long b = 2;
};
struct two_bases : first_base, second_base {
    char rest[3000];
};
struct plain_object {
    char rest[3100];
};
struct with_destructor {
    long number[13];
    NOINLINE ~with_destructor() { number[0] = 0; }
};
struct nothing_with_destructor {
    char one;
    NOINLINE ~nothing_with_destructor() { one = 0; }
};

static void *operator_new(const char *shape, size_t size) { return sized(shape, size); }

template <class T> struct told : std::allocator<T> {
    template <class U> struct rebind {
        typedef told<U> other;
    };
    told() {}
    template <class U> told(const told<U> &) {}
    NOINLINE T *allocate(size_t count) { return (T *)operator_new("make_shared_object", count * sizeof(T)); }
};

static NOINLINE void inner() {
    keep((char *)block("inner") + 104);
    void *held_by_inner = block("inner_holds");
    words(held_by_inner)[1] = block("inner_held");
    keep((char *)held_by_inner + 48);
    // std::string of the old ABI: length, capacity, references.
    size_t capacity = 4000;
    long *string = (long *)sized("old_string", capacity + 25);
    string[0] = 5, string[1] = (long)capacity;
    keep(string + 3);
    long *length = (long *)sized("length_before", 4108);
    length[0] = 4100;
    keep(length + 1);
    long *array = (long *)operator_new("new_array", 8 + 41 * sizeof(with_destructor));
    array[0] = 41;
    keep(array + 1);
    long *nothing = (long *)operator_new("new_array_of_none", 8);
    nothing[0] = 0;
    keep(nothing + 1);
    two_bases *two = new (operator_new("second_base", sizeof(two_bases))) two_bases;
    keep((second_base *)two);
    static std::shared_ptr<plain_object> *shared = nullptr;
    std::shared_ptr<plain_object> made = std::allocate_shared<plain_object>(told<plain_object>());
    keep(made.get());
    // Leaked on purpose: only the object's address is kept.
    shared = new (globals + 120) std::shared_ptr<plain_object>(made);
    memset((void *)shared, 0, sizeof *shared);
    shared = nullptr;
    // Nearly all blocks of one stack are used by a place behind a header.
    for (int i = 0; i < 10; i++) keep((char *)block("header", false) + 16);
    keep((void *)((uintptr_t)block("tag_low") | 1));
    keep((void *)((uintptr_t)block("tag_high") | (uintptr_t)0x8123 << 48));
    static struct __attribute__((packed)) {
        int four;
        void *pointer;
    } packed;
    packed.pointer = block("unaligned");
    __asm__ volatile("" : : "m"(packed));
    // A ring: each has the exclusive or of its neighbours.
    void *nodes[3] = {block("xor_first"), block("xor_next"), block("xor_next")};
    for (int i = 0; i < 3; i++)
        words(nodes[i])[0] = (void *)((uintptr_t)nodes[(i + 1) % 3] ^ (uintptr_t)nodes[(i + 2) % 3]);
    keep(nodes[0]);
    memset(nodes, 0, sizeof nodes);
    __asm__ volatile("" : : "m"(nodes));
}

// --- memory of other kinds

static NOINLINE void elsewhere() {
    void *holder = malloc(4200);
    memset(holder, 0, 4200);
    words(holder)[40] = block("freed_holder");
    free(holder);
    void *gone = made(4096);
    words(gone)[3] = block("unmapped_holder");
    munmap(gone, 4096);
#ifdef LIBRARY
    void *library = dlopen(LIBRARY, RTLD_NOW);
    *words(dlsym(library, "kept")) = block("closed_library");
    if (dlclose(library) != 0 || dlopen(LIBRARY, RTLD_NOW | RTLD_NOLOAD) != nullptr) abort();
#endif
    void *kept = made(4096);
    words(kept)[3] = block("mapping");
    keep(kept);
    void *forgotten = made(4096);
    words(forgotten)[3] = block("lost_mapping");
    void *constant = made(4096);
    words(constant)[3] = block("read_only");
    mprotect(constant, 4096, PROT_READ);
    keep(constant);
    int file = memfd_create("shapes", 0);
    if (ftruncate(file, 4096) != 0) abort();
    void *shared = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    words(shared)[3] = block("shared_memory");
    keep(shared);
    void *large = sized("large", 1 << 20);
    words(large)[1000] = block("large_held");
    keep(large);
    clear_of_boundary((1 << 20) + 8192);
    void *lost = sized("lost_large", (1 << 20) + 4096);
    words(lost)[1000] = block("lost_large_held");
    void *aligned = nullptr;
    if (posix_memalign(&aligned, 256, 4304) != 0) abort();
    tell("aligned", 4304);
    keep(aligned);
    void *grown = malloc(100);
    grown = realloc(grown, 4408);
    memset(grown, 0, 4408);
    tell("realloc", 4408);
    keep(grown);
    keep(sized("of_nothing", 0));
}

static std::unordered_map<int, void *> map;
static NOINLINE void in_map() { map[7] = block("unordered_map"); }

static NOINLINE void in_kernel() {
    int epoll = epoll_create1(0), event = eventfd(0, 0);
    struct epoll_event wanted = {};
    wanted.events = EPOLLIN;
    wanted.data.ptr = block("epoll");
    epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted);
    memset(&wanted, 0, sizeof wanted);
    struct sigevent signal = {};
    signal.sigev_notify = SIGEV_SIGNAL;
    signal.sigev_signo = SIGUSR1;
    signal.sigev_value.sival_ptr = block("timer");
    timer_t timer;
    timer_create(CLOCK_MONOTONIC, &signal, &timer);
    memset(&signal, 0, sizeof signal);
}

// --- shared_ptr

struct other_half;
struct half {
    std::shared_ptr<other_half> other;
    char rest[5000];
};
struct other_half {
    std::shared_ptr<half> other;
    char rest[5100];
};
template <class T> struct told_half : std::allocator<T> {
    template <class U> struct rebind {
        typedef told_half<U> other;
    };
    told_half() {}
    template <class U> told_half(const told_half<U> &) {}
    NOINLINE T *allocate(size_t count) { return (T *)operator_new("shared_circle", count * sizeof(T)); }
};
static NOINLINE void shared_circle() {
    auto one = std::allocate_shared<half>(told_half<half>());
    auto two = std::allocate_shared<other_half>(told_half<other_half>());
    one->other = two;
    two->other = one;
}

// --- threads

thread_local void *own;
static std::atomic<int> waiting{0};
static pthread_key_t key;
static uintptr_t hidden[2];

static NOINLINE void wait_for_ever() {
    waiting++;
    for (;;) pause();
}
static NOINLINE void set_own(const char *shape) { own = block(shape); }
static NOINLINE void set_specific() { pthread_setspecific(key, block("specific")); }

static void *with_variable(void *) {
    set_own("thread_local");
    wait_for_ever();
    return nullptr;
}
static void *with_specific(void *) {
    set_specific();
    wait_for_ever();
    return nullptr;
}
static void *with_stack(void *) {
    void *volatile local = block("thread_stack");
    wait_for_ever();
    return (void *)local;
}
static void *in_arena(void *) {
    block("lost_arena");
    scrub();
    wait_for_ever();
    return nullptr;
}
static void *that_ends(void *) {
    void *volatile local = block("ended_stack");
    set_own("ended_thread_local");
    return local == nullptr ? (void *)1 : nullptr;
}
static NOINLINE void hide(int at, const char *shape) { hidden[at] = (uintptr_t)block(shape) ^ HIDE; }

// The pointer is in one callee-saved register, or in the upper half of a vector register, and nowhere else.
static void *in_register(void *) {
    __asm__ volatile("lock incl %0\n\t"
                     "mov %1, %%r12\n\t"
                     "xor %2, %%r12\n\t"
                     "1: mov $34, %%eax\n\t" // pause
                     "syscall\n\t"
                     "jmp 1b"
                     : "+m"(waiting)
                     : "m"(hidden[0]), "r"(HIDE)
                     : "rax", "rcx", "r11", "r12", "memory");
    return nullptr;
}
// The same of the function that had it made.
static void *keeps_in_register(void *) {
    const size_t size = 900;
    volatile uintptr_t kept = (uintptr_t)malloc(size);
    memset((void *)kept, 0, size);
    tell("kept_in_register", size);
    scrub();
    __asm__ volatile("mov %1, %%r12\n\t"
                     "movq $0, %1\n\t"
                     "xor %%edi, %%edi\n\t"
                     "xor %%esi, %%esi\n\t"
                     "xor %%edx, %%edx\n\t"
                     "xor %%r10d, %%r10d\n\t"
                     "xor %%r8d, %%r8d\n\t"
                     "xor %%r9d, %%r9d\n\t"
                     "lock incl %0\n\t"
                     "1: mov $34, %%eax\n\t"
                     "syscall\n\t"
                     "jmp 1b"
                     : "+m"(waiting), "+m"(kept)
                     :
                     : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "memory");
    return nullptr;
}
static void *in_vector_register(void *) {
    __asm__ volatile("lock incl %0\n\t"
                     "mov %1, %%r12\n\t"
                     "xor %2, %%r12\n\t"
                     "movq %%r12, %%xmm7\n\t"
                     "pslldq $8, %%xmm7\n\t"
                     "xor %%r12, %%r12\n\t"
                     "1: mov $34, %%eax\n\t"
                     "syscall\n\t"
                     "jmp 1b"
                     : "+m"(waiting)
                     : "m"(hidden[1]), "r"(HIDE)
                     : "rax", "rcx", "r11", "r12", "xmm7", "memory");
    return nullptr;
}

// One after the other: what is told is told by one at a time.
static NOINLINE void start(void *(*what)(void *)) {
    static int started = 0;
    pthread_t thread;
    if (pthread_create(&thread, nullptr, what, nullptr) != 0) abort();
    for (started++; waiting < started;) usleep(1000);
}

static NOINLINE void threads() {
    pthread_key_create(&key, nullptr);
    pthread_t ending;
    if (pthread_create(&ending, nullptr, that_ends, nullptr) != 0) abort();
    pthread_join(ending, nullptr);
    hide(0, "register");
    hide(1, "vector_register");
    start(in_register);
    start(in_vector_register);
    start(keeps_in_register);
    start(with_variable);
    start(with_specific);
    start(with_stack);
    start(in_arena);
    memset(hidden, 0, sizeof hidden);
}

// --- coroutines

static ucontext_t back, contexts[2];
static const char *const locals[2] = {"coroutine_block", "coroutine_mapping"};
static void coroutine(int number) {
    void *volatile local = block(locals[number]);
    swapcontext(&contexts[number], &back);
    if (local != nullptr) abort();
}
static NOINLINE void coroutines() {
    void *stacks[2] = {sized("coroutine_stack", 65536 + 8), made(65536)};
    for (int i = 0; i < 2; i++) {
        getcontext(&contexts[i]);
        contexts[i].uc_stack.ss_sp = stacks[i];
        contexts[i].uc_stack.ss_size = 65536;
        makecontext(&contexts[i], (void (*)())coroutine, 1, i);
        swapcontext(&back, &contexts[i]);
    }
    memset(&back, 0, sizeof back);
}

// --- all of it

static NOINLINE void below_stack() {
    void *volatile left[64];
    for (int i = 0; i < 64; i++) left[i] = nullptr;
    left[32] = block("below_stack");
    (void)left[32];
}

static NOINLINE void make_all() {
    plain();
    inner();
    elsewhere();
    in_map();
    in_kernel();
    shared_circle();
    threads();
    coroutines();
    set_own("main_thread_local");
}

int main() {
    static char input[64];
    void *volatile local = block("main_stack");
    make_all();
    scrub();
    below_stack();
    out_length += (size_t)snprintf(out + out_length, sizeof out - out_length, "READY\n");
    if (write(1, out, out_length) < 0) return 1;
    while (read(0, input, sizeof input) <= 0) pause();
    if (__lsan_do_recoverable_leak_check != nullptr) __lsan_do_recoverable_leak_check();
    _exit(local == nullptr);
}
