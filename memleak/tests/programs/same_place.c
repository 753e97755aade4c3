// The same function is called from many places with the same stack pointer and the same frame pointer, in runs and mixed:
// stacks that differ in nothing but the return addresses further out.
//
// usage: same_place CALLS    phases: READY, go, <ledger> END, end
#include "ledger.h"

#define KEPT_OF 8

static struct site *current;

static NOINLINE void leaf(size_t bytes, int is_kept) {
    void *block = noted(current, malloc(bytes), bytes);
    CHECK(block != NULL);
    if (!is_kept) {
        free(block);
        lose(current, bytes);
    }
}

static NOINLINE void middle(size_t bytes, int is_kept) {
    leaf(bytes, is_kept);
    __asm__ volatile("" ::: "memory"); // no tail call
}

#define CALLER(name)                                                                                              \
    SITE(name, "heap")                                                                                            \
    static NOINLINE void name(size_t bytes, int is_kept) {                                                        \
        current = &ledger_##name;                                                                                 \
        middle(bytes, is_kept);                                                                                   \
        __asm__ volatile("" ::: "memory");                                                                        \
    }

CALLER(site_a)
CALLER(site_b)
CALLER(site_c)
CALLER(site_d)
CALLER(site_e)

static void (*const callers[])(size_t, int) = {site_a, site_b, site_c, site_d, site_e};
enum { CALLERS = sizeof callers / sizeof callers[0] };

// The stack of the same depth, with the callers' frames at the same addresses.
static NOINLINE void deeper(int levels, unsigned which, size_t bytes, int is_kept) {
    if (levels == 0) callers[which](bytes, is_kept);
    else deeper(levels - 1, which, bytes, is_kept);
    __asm__ volatile("" ::: "memory");
}

int main(int argc, char **argv) {
    long calls = argc == 2 ? atol(argv[1]) : 1000;
    struct dice dice = {88172645463325252u};
    say("READY");
    hear();
    for (long i = 0; i < calls; i++) {
        // Runs of one caller, then all mixed, then two in turn, near the stack's end and far from it.
        unsigned which = i % 3000 < 1000 ? (unsigned)(i / 100) : i % 3000 < 2000 ? (unsigned)roll(&dice, CALLERS) : (unsigned)i & 1;
        deeper((int)(i / 3000 % 5) * 15, which % CALLERS, 16 + roll(&dice, 1000), i % KEPT_OF == 0);
    }
    say_ledger();
    hear();
    return 0;
}
