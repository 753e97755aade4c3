// Acquires 5000 blocks of 48 bytes at one site: 3000 are released at once, 1000 after 300 ms, 1000 are held.
//
// usage: released   phases: READY, go, DONE
#include "ledger.h"

#include <time.h>

static NOINLINE void *site(void) {
    void *block = malloc(48);
    CHECK(block != NULL);
    return block;
}

int main(void) {
    static void *held[2000];
    volatile int at_once = 3000; // so that the compiler makes no two loops, and sites, of one
    say("READY");
    hear();
    for (int i = 0; i < 5000; i++) {
        void *block = site();
        if (i < at_once)
            free(block);
        else
            held[i - 3000] = block;
    }
    struct timespec pause = {0, 300000000};
    nanosleep(&pause, NULL);
    for (int i = 0; i < 1000; i++) free(held[i]);
    say("DONE");
    hear();
}
