// An allocator that samples and says so by probes of its own, as OpenTelemetry asks for: otel_memory:alloc(ptr, size,
// weight) and otel_memory:free(ptr). It counts how often anybody has listened. It frees blocks that it has not chosen,
// too, which is to be of no consequence.
//
// usage: usdt   phases: READY, then for each line: go (allocates and frees, a ledger of weights, "listened N"), q ends
// With -DNO_COUNTERS its probes have none, and it tells of samples whether anybody listens or not.
#ifndef NO_COUNTERS
#define _SDT_HAS_SEMAPHORES 1
#endif
#include <sys/sdt.h>

#include "ledger.h"

#include <sys/mman.h>

#ifdef NO_COUNTERS
static const unsigned short otel_memory_alloc_semaphore = 1, otel_memory_free_semaphore = 1;
#else
unsigned short otel_memory_alloc_semaphore __attribute__((section(".probes")));
unsigned short otel_memory_free_semaphore __attribute__((section(".probes")));
#endif

#define SAMPLE 10
static char *pool;
static size_t used;
static unsigned long number, listened;

// What the probe's arguments are in is the compiler's choice: registers, memory, a constant.
static NOINLINE char *take(struct site *site, size_t size, uint64_t weight) {
    char *block = pool + used;
    used += (size + 15) & ~15ul;
    if (number++ % SAMPLE == 0) {
        if (*(const volatile unsigned short *)&otel_memory_alloc_semaphore) {
            listened++;
            DTRACE_PROBE3(otel_memory, alloc, block, size, weight);
        }
        gain(site, weight);
    }
    return block;
}

static NOINLINE void put(struct site *site, char *block, uint64_t weight, int chosen) {
    if (*(const volatile unsigned short *)&otel_memory_free_semaphore) DTRACE_PROBE1(otel_memory, free, block);
    if (chosen) lose(site, weight);
}

SITE(site_kept, "otel-memory")
static NOINLINE void site_kept(void) {
    for (int i = 0; i < 100; i++) take(&ledger_site_kept, 24, 240 + i);
}

SITE(site_passing, "otel-memory")
static NOINLINE void site_passing(void) {
    for (int i = 0; i < 100; i++) {
        int chosen = number % SAMPLE == 0;
        char *block = take(&ledger_site_passing, 4096, 40960);
        if (i % 20 != 0) put(&ledger_site_passing, block, 40960, chosen);
    }
}

SITE(site_constant, "otel-memory")
static NOINLINE void site_constant(void) {
    volatile struct { int a; unsigned int size; char *block; } frame = {0, 7, pool + used};
    used += 16;
    if (*(const volatile unsigned short *)&otel_memory_alloc_semaphore)
        DTRACE_PROBE3(otel_memory, alloc, frame.block, frame.size, 524288);
    gain(&ledger_site_constant, 524288);
}

int main(void) {
    pool = mmap(NULL, 1 << 28, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pool != MAP_FAILED);
    say("READY");
    for (char told; (told = hear()) != 'q';) {
        site_kept();
        site_passing();
        site_constant();
        say_ledger();
        say("listened %lu, now %d and %d", listened, otel_memory_alloc_semaphore, otel_memory_free_semaphore);
    }
}
