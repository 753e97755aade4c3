// Blocks without types of their own, held by a variable: what they are is in the debug information of what points to them.

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct body {
    char text[100];
};
struct entry {
    long key;
    struct body *body;
};
struct cache {
    long count;
    struct entry **map;
};
typedef struct cache *cache_pointer;

static cache_pointer g_cache;

__attribute__((always_inline)) static inline void *inlined_calloc(size_t size) { return calloc(1, size); }

__attribute__((noinline)) static struct body *make_body(void) { return inlined_calloc(sizeof(struct body)); }

__attribute__((noinline)) static struct entry *make_entry(long key) {
    struct entry *entry = calloc(1, sizeof *entry);
    entry->key = key;
    entry->body = make_body();
    return entry;
}

int main(void) {
    g_cache = calloc(1, sizeof *g_cache);
    g_cache->count = 16;
    g_cache->map = calloc(16, sizeof *g_cache->map);
    for (long i = 0; i < g_cache->count; i++) g_cache->map[i] = make_entry(i);
    puts("READY");
    fflush(stdout);
    for (;;) pause();
}
