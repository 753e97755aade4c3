// A traced function switches fibres while it is under way, and another fibre calls it meanwhile.
//
// usage: fibres WHERE
//   low     the fibre that is switched away from has the lower stack
//   high    it has the higher one
//   thread  it goes on in another thread
// phases: READY <go> <ledger> END <end>
#include "ledger.h"

#include <pthread.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { STACK = 1 << 18, ROUNDS = 50 };

static ucontext_t outside, first, second;
static long next = 1000;

NOINLINE void *res_get(int yields);
NOINLINE void *res_get(int yields) {
    void *got = (void *)(next++ * 16);
    if (yields) CHECK(swapcontext(&first, &second) == 0);
    __asm__ volatile("" ::"r"(got) : "memory");
    return got;
}

NOINLINE void res_put(void *resource);
NOINLINE void res_put(void *resource) { __asm__ volatile("" ::"r"(resource) : "memory"); }

SITE(site_yields, "custom")
static NOINLINE void *site_yields(void) { return noted(&ledger_site_yields, res_get(1), 0); }

SITE(site_between, "custom")
static NOINLINE void *site_between(void) { return noted(&ledger_site_between, res_get(0), 0); }

static void run_first(void) {
    site_yields();
    CHECK(swapcontext(&first, &outside) == 0);
}

static int in_thread;

static void run_second(void) {
    site_between();
    // One that is released does not count.
    void *given_back = site_between();
    res_put(given_back);
    lose(&ledger_site_between, 0);
    CHECK(swapcontext(&second, in_thread ? &outside : &first) == 0);
}

static void *resume(void *nothing) {
    CHECK(swapcontext(&outside, &first) == 0);
    return nothing;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    say("READY"), hear();
    char *stacks = mmap(NULL, 2 * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(stacks != MAP_FAILED);
    in_thread = argv[1][0] == 't';
    for (int i = 0; i < ROUNDS; i++) {
        int is_high = argv[1][0] == 'h';
        CHECK(getcontext(&first) == 0 && getcontext(&second) == 0);
        first.uc_stack = (stack_t){.ss_sp = stacks + (is_high ? STACK : 0), .ss_size = STACK};
        second.uc_stack = (stack_t){.ss_sp = stacks + (is_high ? 0 : STACK), .ss_size = STACK};
        makecontext(&first, run_first, 0);
        makecontext(&second, run_second, 0);
        CHECK(swapcontext(&outside, &first) == 0);
        if (!in_thread) continue;
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, resume, NULL) == 0 && pthread_join(thread, NULL) == 0);
    }
    say_ledger(), hear();
    return 0;
}
