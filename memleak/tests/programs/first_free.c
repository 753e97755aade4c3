// Threads whose first call of the allocator is free: glibc maps an arena in it for each.
//
// usage: first_free THREADS   phases: READY, go, <ledger> END, end
#include "ledger.h"

#include <pthread.h>
#include <sys/mman.h>

SITE(site_mmap, "mmap")
static NOINLINE void *site_mmap(size_t n) {
    return noted(&ledger_site_mmap, mmap(NULL, n, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), n);
}

static pthread_barrier_t freed, done;

static void *frees(void *p) {
    free(p);
    pthread_barrier_wait(&freed);
    pthread_barrier_wait(&done);
    return NULL;
}

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 0;
    CHECK(count > 0 && count < 64);
    pthread_t threads[64];
    CHECK(pthread_barrier_init(&freed, NULL, (unsigned)count + 1) == 0);
    CHECK(pthread_barrier_init(&done, NULL, (unsigned)count + 1) == 0);
    say("READY");
    hear();
    for (int i = 0; i < count; i++) CHECK(pthread_create(&threads[i], NULL, frees, malloc(100)) == 0);
    pthread_barrier_wait(&freed);
    CHECK(site_mmap(8192) != MAP_FAILED);
    say_ledger();
    hear();
    pthread_barrier_wait(&done);
    for (int i = 0; i < count; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}
