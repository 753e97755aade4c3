// Signals land while a thread allocates; their handler maps memory, as profilers and crash handlers do.
//
// usage: signals WHERE
//   below     the handler runs on the thread's own stack
//   above     on an alternate stack above it
//   storage   on an alternate stack in the thread's storage, which is above its stack too
// phases: READY <go> <ledger> END <end>
#include "ledger.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

enum { PAGE = 4096, STACK = 1 << 20, ALLOCATIONS = 20000, SIGNALS = 400 };

static _Thread_local char storage[1 << 16];
static char *region;
static void *volatile sink;
static volatile int done;
static volatile long handled;
static pthread_t thread;

SITE(site_mmap, "mmap")
static NOINLINE void site_mmap(void) {
    void *got = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(got != MAP_FAILED);
    gain(&ledger_site_mmap, PAGE);
}

SITE(site_malloc, "heap")
static NOINLINE void site_malloc(void) { sink = noted(&ledger_site_malloc, malloc(50), 50); }

static void handler(int signal) {
    (void)signal;
    site_mmap();
    handled++;
}

static void *allocate(void *where) {
    stack_t alternate = {.ss_sp = *(char *)where == 'a' ? region + STACK : storage, .ss_size = sizeof storage};
    if (*(char *)where != 'b') CHECK(sigaltstack(&alternate, NULL) == 0);
    // Until enough of them have landed, most of them in malloc or in the way to it.
    for (int i = 0; i < ALLOCATIONS || handled < SIGNALS; i++) site_malloc();
    done = 1;
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    say("READY"), hear();
    region = mmap(NULL, 2 * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(region != MAP_FAILED);
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART | SA_ONSTACK};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    pthread_attr_t attributes;
    CHECK(pthread_attr_init(&attributes) == 0);
    if (argv[1][0] != 's') CHECK(pthread_attr_setstack(&attributes, region, STACK) == 0);
    CHECK(pthread_create(&thread, &attributes, allocate, argv[1]) == 0);
    // One at a time: a signal that is pending already is not sent twice.
    for (long sent = 0; !done; sent = handled) {
        pthread_kill(thread, SIGUSR1);
        while (!done && handled == sent) usleep(100);
    }
    CHECK(pthread_join(thread, NULL) == 0);
    say_ledger(), hear();
    return 0;
}
