// Has an allocator of its own, which takes blocks back by a function that no tracer knows and hands them out again: the
// older record of an address is void then. Others are freed. Blocks are as many as fill some segments of memleak's table.
//
// usage: recycled BLOCKS   phases: READY, N: (held), N: (recycled) <ledger> END, end
#include "ledger.h"

enum { SIZE = 64, MOST = 1 << 20 };

static char arena[MOST][SIZE] __attribute__((aligned(64)));
static int used, spare = -1;

NOINLINE void *malloc(size_t size) {
    if (size > SIZE) return NULL;
    if (spare >= 0) {
        char *block = arena[spare];
        memcpy(&spare, block, sizeof spare);
        return block;
    }
    return used < MOST ? arena[used++] : NULL;
}

NOINLINE void free(void *block) { (void)block; }

// Takes a block back: no function of an allocator that anybody knows.
static NOINLINE void recycle(void *block) {
    int index = (int)((char(*)[SIZE])block - arena);
    memcpy(block, &spare, sizeof spare);
    spare = index;
}

SITE(site_first, "heap")
static NOINLINE void *site_first(void) { return noted(&ledger_site_first, malloc(24), 24); }

SITE(site_second, "heap")
static NOINLINE void *site_second(void) { return noted(&ledger_site_second, malloc(40), 40); }

int main(int argc, char **argv) {
    int blocks = argc > 1 ? atoi(argv[1]) : 0;
    CHECK(blocks > 0 && blocks <= MOST);
    say("READY");
    hear();
    for (int i = 0; i < blocks; i++) CHECK(site_first() != NULL);
    say("HELD");
    hear();
    for (int i = 0; i < blocks; i += 3) {
        recycle(arena[i]);
        lose(&ledger_site_first, 24);
    }
    for (int i = 0; i < blocks; i += 3) CHECK(site_second() != NULL);
    for (int i = 1; i < blocks; i += 3) {
        free(arena[i]);
        lose(&ledger_site_first, 24);
    }
    say_ledger();
    hear();
}
