// One site for each thing that a stack can do with what it acquires; for ever.
//
// usage: verdicts   phases: READY, go
#include "ledger.h"

#include <time.h>

#define ACQUIRES(site, size)                 \
    static NOINLINE void *site(void) {       \
        void *block = malloc(size);          \
        CHECK(block != NULL);                \
        return block;                        \
    }

ACQUIRES(slow_leak, 100)  // one in 500 is forgotten
ACQUIRES(growing, 200)    // a queue that nobody reads
ACQUIRES(cache, 300)      // filled, and kept
ACQUIRES(ring, 400)       // the oldest goes when a new one comes
ACQUIRES(single, 500)     // at the start, once
ACQUIRES(draining, 600)   // a queue that grows and is emptied
ACQUIRES(temporary, 700)  // gone at once

enum { CACHED = 500, RING = 64, QUEUE = 3000 };

int main(void) {
    static void *recent[RING], *queue[QUEUE];
    int queued = 0;
    say("READY");
    hear();
    void *volatile kept = single();
    (void)kept;
    for (long i = 0;; i++) {
        void *block = slow_leak();
        if (i % 500 != 0) free(block);
        if (i % 20 == 0) growing();
        if (i < CACHED) cache();
        free(recent[i % RING]);
        recent[i % RING] = ring();
        queue[queued++] = draining();
        if (queued == QUEUE)
            while (queued > 0) free(queue[--queued]);
        for (int k = 0; k < 5; k++) free(temporary());
        struct timespec pause = {0, 1000000};
        nanosleep(&pause, NULL);
    }
}
