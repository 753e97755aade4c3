// Two threads allocate and free all the time; the first one maps three pages at a time and unmaps two of them.
//
// usage: flood PAIRS ROUNDS    phases: READY, go, <ledger> END, end
#include "ledger.h"

#include <pthread.h>
#include <sys/mman.h>

#define PAGE 4096ul

static long pairs;

static void *allocate_and_free(void *unused) {
    for (long i = 0; i < pairs; i++) {
        void *volatile block = malloc(32);
        free(block);
    }
    return unused;
}

SITE(site_kept_page, "mmap")
static NOINLINE void site_kept_page(void) {
    char *p = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED && munmap(p + PAGE, 2 * PAGE) == 0);
    gain(&ledger_site_kept_page, PAGE);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    pairs = atol(argv[1]);
    say("READY");
    hear();
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, allocate_and_free, NULL) == 0);
    for (long i = 0; i < atol(argv[2]); i++) site_kept_page();
    for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    say_ledger();
    hear();
    return 0;
}
