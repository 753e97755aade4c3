// Threads of a pool wait for a condition: none of them holds the mutex.
//
// usage: waiting
// phases: READY <go> <ledger> END <end>
#include "ledger.h"

#include <pthread.h>

enum { THREADS = 8 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static pthread_cond_t ready = PTHREAD_COND_INITIALIZER;
static int waiting, work;

static void *worker(void *nothing) {
    CHECK(pthread_mutex_lock(&mutex) == 0);
    waiting++;
    CHECK(pthread_cond_signal(&ready) == 0);
    while (work == 0) CHECK(pthread_cond_wait(&more, &mutex) == 0);
    CHECK(pthread_mutex_unlock(&mutex) == 0);
    return nothing;
}

int main(void) {
    say("READY"), hear();
    for (int i = 0; i < THREADS; i++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, worker, NULL) == 0);
    }
    // A worker that was counted still holds the mutex until it waits, so whoever has it next finds it waiting.
    CHECK(pthread_mutex_lock(&mutex) == 0);
    while (waiting < THREADS) CHECK(pthread_cond_wait(&ready, &mutex) == 0);
    CHECK(pthread_mutex_unlock(&mutex) == 0);
    say_ledger(), hear();
    return 0; // the workers wait until they end with the process
}
