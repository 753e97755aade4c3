// Leaks very many blocks, at sites that lie on top of each other, of one size, of many sizes, and among blocks that are
// released.
//
// usage: million BLOCKS
// phases: READY <go> <ledger> END <end>
#include "ledger.h"

#define MALLOC(name)                                                                                              \
    SITE(site_##name, "heap")                                                                                     \
    static NOINLINE void *site_##name(size_t n) { return noted(&ledger_site_##name, malloc(n), n); }

MALLOC(small)
MALLOC(odd)
MALLOC(varied)
MALLOC(released)
MALLOC(deep)

SITE(site_calloc, "heap")
static NOINLINE void *site_calloc(size_t n) { return noted(&ledger_site_calloc, calloc(3, n), 3 * n); }

// The same site under stacks of many depths.
static NOINLINE void *below(int depth) {
    void *block = depth == 0 ? site_deep(40) : below(depth - 1);
    __asm__ volatile("" ::: "memory"); // a call, and no jump
    return block;
}

static NOINLINE void leak(long number) {
    switch (number % 6) {
    case 0:
    case 1: CHECK(site_small(16)); break;
    case 2: CHECK(site_odd(33)); break;
    case 3: CHECK(site_varied(1 + (size_t)(number / 6 % 300))); break;
    case 4: CHECK(site_calloc(24)); break;
    default: CHECK(below((int)(number / 6 % 20)));
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    long blocks = strtol(argv[1], NULL, 10);
    say("READY"), hear();
    for (long number = 0; number < blocks; number++) {
        leak(number);
        if (number % 100 != 0) continue;
        void *block = site_released(1000);
        CHECK(block);
        if (number % 1000 == 0) continue; // forgotten now and then
        free(block);
        lose(&ledger_site_released, 1000);
    }
    say_ledger(), hear();
    return 0;
}
