// Does one thing at each line that it is told, and nothing in between: what is outstanding changes by one call.
//
// usage: one_by_one   phases: READY, then for each line of one letter a ledger:
//   m malloc, f free, r realloc, a mmap, h unmaps half of the last mapping, u unmaps the rest, x munmap that fails, q ends
//   s gives the last block another size in place (with -DJEMALLOC)
#include "ledger.h"

#include <sys/mman.h>
#ifdef JEMALLOC
#include <jemalloc/jemalloc.h>
#endif

#define MAPPED (8 * 4096L)

SITE(site_malloc, "heap")
static NOINLINE void *site_malloc(size_t n) { return noted(&ledger_site_malloc, malloc(n), n); }

SITE(site_realloc, "heap")
static NOINLINE void *site_realloc(void *block, size_t n) {
    return noted(&ledger_site_realloc, realloc(block, n), n);
}

SITE(site_mmap, "mmap")
static NOINLINE char *site_mmap(size_t n) {
    void *at = mmap(NULL, n, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return noted(&ledger_site_mmap, at, n);
}

int main(void) {
    void *blocks[64];
    int held = 0;
    char *mapping = NULL;
    say("READY");
    for (char told; (told = hear()) != 'q'; say_ledger()) {
        CHECK(held < 63);
        if (told == 'm') blocks[held++] = site_malloc(100);
        if (told == 'f') {
            free(blocks[--held]);
            lose(&ledger_site_malloc, 100);
        }
        if (told == 'r') {
            blocks[held - 1] = site_realloc(blocks[held - 1], 5000);
            lose(&ledger_site_malloc, 100);
        }
#ifdef JEMALLOC
        if (told == 's') {
            // A block of 100 bytes is one of 112.
            CHECK(xallocx(blocks[held - 1], 105, 0, 0) >= 105);
            ledger_site_malloc.bytes += 5;
        }
#endif
        if (told == 'a') mapping = site_mmap(MAPPED);
        if (told == 'h') {
            CHECK(munmap(mapping, MAPPED / 2) == 0);
            ledger_site_mmap.bytes -= MAPPED / 2;
        }
        if (told == 'u') {
            CHECK(munmap(mapping + MAPPED / 2, MAPPED / 2) == 0);
            lose(&ledger_site_mmap, MAPPED / 2);
        }
        if (told == 'x') CHECK(munmap(mapping + 1, MAPPED) != 0);
    }
}
