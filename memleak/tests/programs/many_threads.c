// Threads that sleep, each with a block that its stack alone holds.
//
// usage: many_threads COUNT
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

int main(int count, char **arguments) {
    CHECK(count == 2);
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
    say("READY"), hear();
    return 0; // they sleep until they end with the process
}
