// Threads that sleep, each with a block that its stack alone holds.
//
// usage: many_threads COUNT [lose]     with the second, a block is lost, and the status is 7
// phases: READY <end>
#include "ledger.h"

#include <pthread.h>

static pthread_barrier_t all;

static void *sleeper(void *nothing) {
    void *volatile block = malloc(3001);
    CHECK(block != NULL);
    pthread_barrier_wait(&all);
    pause();
    free(block);
    return nothing;
}

static NOINLINE void leak(int deep) {
    char *volatile block = deep == 0 ? malloc(2003) : NULL;
    if (deep > 0) leak(deep - 1);
    block = NULL, (void)block;
}

// Overwrites what calls have left below the caller's stack.
static NOINLINE void clean(void) {
    volatile char stack[16384];
    memset((char *)stack, 0, sizeof stack);
}

int main(int count, char **arguments) {
    CHECK(count == 2 || count == 3);
    if (count == 3) leak(20), clean();
    int threads = atoi(arguments[1]);
    CHECK(pthread_barrier_init(&all, NULL, (unsigned)threads + 1) == 0);
    pthread_attr_t attributes;
    CHECK(pthread_attr_init(&attributes) == 0);
    CHECK(pthread_attr_setstacksize(&attributes, 128 << 10) == 0);
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, &attributes, sleeper, NULL) == 0);
    }
    pthread_barrier_wait(&all);
    say("READY");
    // Without a line it is there until it is ended: it may be looked at when nobody will write any more.
    char line;
    if (read(0, &line, 1) <= 0) pause();
    return count == 3 ? 7 : 0; // they sleep until they end with the process
}
