// Acquires and releases without end in threads, and tells how often when asked.
//
// usage: loops        phases: READY, then for each line a line {"turns":N}
#include "ledger.h"

#include <pthread.h>

static long turns;

SITE(site_loop, "heap")
static NOINLINE void *site_loop(size_t n) { return malloc(n); }

static void *work(void *unused) {
    (void)unused;
    for (;;) {
        void *blocks[8];
        for (int i = 0; i < 8; i++) {
            blocks[i] = site_loop(24 + (size_t)i);
            CHECK(blocks[i] != NULL);
            memset(blocks[i], i, 24);
        }
        for (int i = 0; i < 8; i++) {
            CHECK(((char *)blocks[i])[23] == i);
            free(blocks[i]);
        }
        __atomic_fetch_add(&turns, 1L, __ATOMIC_RELAXED);
    }
}

int main(void) {
    for (int i = 0; i < 2; i++) {
        pthread_t id;
        CHECK(pthread_create(&id, NULL, work, NULL) == 0);
    }
    say("READY");
    for (;;) {
        hear();
        say("{\"turns\":%ld}", __atomic_load_n(&turns, __ATOMIC_RELAXED));
    }
}
