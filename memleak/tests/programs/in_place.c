// Blocks whose size changes where they are, strings that an allocator copies, and blocks that are released all at once.
// With -DMIMALLOC by mimalloc's functions, else by jemalloc's.
#include "ledger.h"

#ifdef MIMALLOC
#include <mimalloc.h>
#else
#include <jemalloc/jemalloc.h>
#endif

#define BLOCKS 50

SITE(site_resized, "heap")
SITE(site_copied, "heap")
SITE(site_swept, "heap")

#ifdef MIMALLOC
NOINLINE static void *site_resized(size_t size) { return noted(&ledger_site_resized, mi_malloc(size), size); }
// A block of 100 bytes is one of 112.
static int changes(void *block, size_t size) { return mi_expand(block, size) != NULL; }
NOINLINE static void site_copied(void) {
    static char text[1500];
    memset(text, 'x', sizeof text - 1);
    char *copies[] = {mi_strdup("seven"), mi_strdup(text), mi_strndup("seven", 3), mi_realpath("/usr/..", NULL)};
    CHECK(strcmp(copies[3], "/") == 0);
    size_t sizes[] = {6, sizeof text, 4, 2};
    for (int i = 0; i < 4; i++) gain(&ledger_site_copied, sizes[i]);
    char *released = mi_strdup("released");
    mi_free(released);
}
NOINLINE static void site_swept(void) {
    mi_heap_t *heap = mi_heap_new();
    for (int i = 0; i < BLOCKS; i++) CHECK(mi_heap_malloc(heap, 64) != NULL);
    mi_heap_destroy(heap);
}
#else
NOINLINE static void *site_resized(size_t size) { return noted(&ledger_site_resized, mallocx(size, 0), size); }
static int changes(void *block, size_t size) { return xallocx(block, size, 0, 0) >= size; }
NOINLINE static void site_copied(void) {}
NOINLINE static void site_swept(void) {
    unsigned arena;
    size_t length = sizeof arena;
    CHECK(mallctl("arenas.create", &arena, &length, NULL, 0) == 0);
    for (int i = 0; i < BLOCKS; i++) CHECK(mallocx(64, MALLOCX_ARENA(arena) | MALLOCX_TCACHE_NONE) != NULL);
    char name[32];
    snprintf(name, sizeof name, "arena.%u.reset", arena);
    CHECK(mallctl(name, NULL, NULL, NULL, 0) == 0);
}
#endif

int main(void) {
    say("READY");
    hear();
    for (int i = 0; i < BLOCKS; i++) {
        void *block = site_resized(100);
        // Within the block's size class, beyond it, which fails, and within it again.
        size_t size = 100;
        size_t wanted[] = {105, 100000, (size_t)(90 + i % 10)};
        int done = 0;
        for (int j = 0; j < 3; j++) {
            if (!changes(block, wanted[j])) continue;
            ledger_site_resized.bytes += (long)wanted[j] - (long)size;
            size = wanted[j];
            done++;
        }
        CHECK(done == 2);
    }
    site_copied();
    say_ledger();
    hear();
    site_swept();
    say("swept");
    hear();
    return 0;
}
