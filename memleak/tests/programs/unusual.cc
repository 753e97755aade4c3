// Leaves allocator calls without returning from them, at a middling stack depth, then acquires at the same, at greater
// and at smaller depths.
//
// usage: unusual jump|jump_then_deep|signal|exit|cancel|bad_alloc      phases: READY, go, <ledger> END, end
// All but bad_alloc want unusual_allocator preloaded; bad_alloc takes any allocator's operator new.
#include "ledger.h"
#include "unusual.h"

#include <csetjmp>
#include <csignal>
#include <new>
#include <pthread.h>
#include <sys/time.h>

extern "C" {
extern jmp_buf *unusual_jump __attribute__((weak));
extern volatile int unusual_blocked __attribute__((weak));
}

SITE(site_malloc, "heap")
static NOINLINE void *site_malloc(size_t n) { return noted(&ledger_site_malloc, malloc(n), n); }

static NOINLINE void *below_new(size_t n) {
    void *p = ::operator new(n);
    return p;
}

// One level up: see known_leaks.cc.
SITE(site_new, "heap")
static NOINLINE void *site_new(size_t n) { return noted(&ledger_site_new, below_new(n), n); }

// Runs `action` under `depth` frames of some 200 bytes.
static NOINLINE void at_depth(int depth, void (*action)(void)) {
    volatile char filler[200];
    for (size_t i = 0; i < sizeof filler; i++) filler[i] = (char)depth;
    if (depth > 0) at_depth(depth - 1, action);
    else action();
    filler[0]++;
}

static void acquire_some(void) {
    for (int i = 0; i < 4; i++) CHECK(site_malloc(100));
    void *p = site_malloc(31);
    free(p);
    lose(&ledger_site_malloc, 31);
}

static const int MIDDLE = 10;

// Frames that are larger than what they write, so that older values stay on the stack between them.
static NOINLINE void at_depth_unwritten(int depth, void (*action)(void)) {
    volatile char filler[333];
    filler[0] = (char)depth;
    if (depth > 0) at_depth_unwritten(depth - 1, action);
    else action();
    filler[0]++;
}

static void acquire_at_all_depths(void) {
    at_depth(2 * MIDDLE, acquire_some);
    at_depth(MIDDLE, acquire_some);
    at_depth(MIDDLE / 2, acquire_some);
    acquire_some();
}

static NOINLINE void throw_out_of_new(void) { site_new(impossible_size); }

static void do_bad_alloc(void) {
    try {
        at_depth(MIDDLE, throw_out_of_new);
        die("nothing was thrown");
    } catch (const std::bad_alloc &) {
    }
    for (int i = 0; i < 3; i++) CHECK(site_new(50));
}

static jmp_buf out;
static NOINLINE void jump_out(void) { site_malloc(UNUSUAL_JUMP); }

static void do_jump(void) {
    unusual_jump = &out;
    if (setjmp(out) == 0) at_depth(MIDDLE, jump_out);
}

// The calls right after the jump are all deeper than the one that was left, and skip what it left on the stack.
static void do_jump_then_deep(void) {
    do_jump();
    at_depth_unwritten(2 * MIDDLE, acquire_some);
}

static sigjmp_buf out_of_handler;
static NOINLINE void block(void) { site_malloc(UNUSUAL_BLOCK); }

static void on_signal(int) {
    if (!unusual_blocked) {
        // Not there yet: try again.
        itimerval soon = {{0, 0}, {0, 1000}};
        setitimer(ITIMER_REAL, &soon, nullptr);
        return;
    }
    siglongjmp(out_of_handler, 1);
}

static void do_signal(void) {
    signal(SIGALRM, on_signal);
    unusual_blocked = 0;
    itimerval soon = {{0, 0}, {0, 1000}};
    if (sigsetjmp(out_of_handler, 1) == 0) {
        setitimer(ITIMER_REAL, &soon, nullptr);
        at_depth(MIDDLE, block);
    }
}

static NOINLINE void end_inside(void) { site_malloc(UNUSUAL_EXIT); }

static void *exit_thread(void *) {
    acquire_some();
    at_depth(MIDDLE, end_inside);
    die("the thread did not end");
}

static void *later_thread(void *) {
    acquire_at_all_depths();
    return nullptr;
}

static void run_thread(void *(*work)(void *)) {
    pthread_t id;
    CHECK(pthread_create(&id, nullptr, work, nullptr) == 0);
    CHECK(pthread_join(id, nullptr) == 0);
}

static void do_exit(void) {
    run_thread(exit_thread);
    run_thread(later_thread); // most likely on the same stack
}

static void *cancelled_thread(void *) {
    acquire_some();
    at_depth(MIDDLE, block);
    die("the thread did not end");
}

static void do_cancel(void) {
    pthread_t id;
    unusual_blocked = 0;
    CHECK(pthread_create(&id, nullptr, cancelled_thread, nullptr) == 0);
    while (!unusual_blocked) sched_yield();
    CHECK(pthread_cancel(id) == 0 && pthread_join(id, nullptr) == 0);
    run_thread(later_thread);
}

static const struct {
    const char *name;
    void (*run)(void);
} modes[] = {
    {"bad_alloc", do_bad_alloc},
    {"jump", do_jump},
    {"jump_then_deep", do_jump_then_deep},
    {"signal", do_signal},
    {"exit", do_exit},
    {"cancel", do_cancel},
};

int main(int argc, char **argv) {
    CHECK(argc == 2);
    void (*run)(void) = nullptr;
    for (const auto &mode : modes)
        if (!strcmp(mode.name, argv[1])) run = mode.run;
    CHECK(run != nullptr);
    say("READY");
    hear();
    acquire_at_all_depths();
    for (int i = 0; i < 20; i++) {
        run();
        acquire_at_all_depths();
    }
    say_ledger();
    hear();
    return 0;
}
