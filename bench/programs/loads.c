// What `cargo xtask bench` traces beside pairs.c: threads, bursts, many stacks, blocks that stay. Standard input's end ends
// it.
//
//     loads alternating THREADS   each thread calls malloc and free in turn
//     loads bursts THREADS        each thread makes 64 blocks, then frees them
//     loads handover THREADS      every other thread makes blocks, and the next one frees them
//     loads stacks THREADS        as alternating, through 65,536 different stacks in turn
//     loads leak THREADS          as alternating, but one block in ten is never freed
//
// All stacks have 12 frames: two of the C library's, which begin a thread, and ten of its own. The threads wait until a
// line `turn MS` comes from standard input, and work for so long; then it prints a line: when that was over
// (CLOCK_MONOTONIC, ns), ns for each pair, CPUs that the threads had (2: two all the time), so the product of the last two
// is the CPU time of a pair, whoever else is at work on the machine.
// A line `hold COUNT` makes so many blocks through 64 different stacks, which are kept; then it says "held".
//
// Built with -O2 -fno-omit-frame-pointer -pthread.

#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"

enum { BLOCK = 64, BURST = 64, HANDED = 1024, STACKS = 64, PATHS = 65536, MOST_THREADS = 8 };

enum load { ALTERNATING, BURSTS, HANDOVER, MANY_STACKS, LEAK, LOADS };
static const char *const NAMES[LOADS] = {"alternating", "bursts", "handover", "stacks", "leak"};

static enum load load;

// Written by its thread alone, each on a cache line of its own.
struct worker {
    _Alignas(64) volatile uint64_t pairs;
    pthread_t thread;
    clockid_t cpu;
    // What two threads hand over: two batches that go round, and which of them are empty and full.
    void *handed[2][HANDED];
    sem_t empty, full;
};

static struct worker workers[MOST_THREADS];

static volatile int is_paused = 1;
static unsigned waiting;
static pthread_mutex_t pause_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t pause_over = PTHREAD_COND_INITIALIZER, one_waits = PTHREAD_COND_INITIALIZER;

// Keeps the compiler from dropping a pair of calls whose result nobody uses.
static void use(void *block) { __asm__ volatile("" : : "r"(block) : "memory"); }

static void wait_if_paused(void) {
    if (is_paused) {
        pthread_mutex_lock(&pause_lock);
        waiting++;
        pthread_cond_signal(&one_waits);
        while (is_paused) pthread_cond_wait(&pause_over, &pause_lock);
        waiting--;
        pthread_mutex_unlock(&pause_lock);
    }
}

__attribute__((noipa)) static void alternate(struct worker *self) {
    for (unsigned i = 0;; i = (i + 1) % 1000) {
        void *block = malloc(BLOCK);
        use(block);
        if (load != LEAK || i % 10 != 9) free(block);
        self->pairs++;
        if (i == 0) wait_if_paused();
    }
}

__attribute__((noipa)) static void burst(struct worker *self) {
    void *blocks[BURST];
    for (;;) {
        for (int i = 0; i < BURST; i++) use(blocks[i] = malloc(BLOCK));
        for (int i = 0; i < BURST; i++) free(blocks[i]);
        self->pairs += BURST;
        wait_if_paused();
    }
}

__attribute__((noipa)) static void give(struct worker *to) {
    for (unsigned batch = 0;; batch ^= 1) {
        sem_wait(&to->empty);
        for (int i = 0; i < HANDED; i++) use(to->handed[batch][i] = malloc(BLOCK));
        sem_post(&to->full);
        wait_if_paused();
    }
}

__attribute__((noipa)) static void take(struct worker *self) {
    for (unsigned batch = 0;; batch ^= 1) {
        sem_wait(&self->full);
        for (int i = 0; i < HANDED; i++) free(self->handed[batch][i]);
        self->pairs += HANDED;
        sem_post(&self->empty);
    }
}

__attribute__((noipa)) static void one_pair(void) {
    void *block = malloc(BLOCK);
    use(block);
    free(block);
    use(&block);
}

// A call of its own for each of four ways, so that eight levels make 65,536 stacks; what follows the call tells them apart.
#define WAY(number)                                                                                                    \
    case number:                                                                                                       \
        if (levels == 1) one_pair();                                                                                   \
        else choose(levels - 1, path >> 2);                                                                            \
        __asm__ volatile("# way %0" : : "i"(number) : "memory");                                                       \
        break

__attribute__((noipa)) static void choose(unsigned levels, unsigned path) {
    switch (path & 3) {
        WAY(0);
        WAY(1);
        WAY(2);
        WAY(3);
    }
}

// `frames` more frames, then the load in one of its own. What follows the call keeps it from being a jump.
__attribute__((noipa)) static void descend(unsigned frames, struct worker *self) {
    if (frames > 0) {
        descend(frames - 1, self);
    } else if (load == BURSTS) {
        burst(self);
    } else if (load == HANDOVER) {
        (self - workers) % 2 == 0 ? give(self + 1) : take(self);
    } else {
        alternate(self);
    }
    use(&frames);
}

__attribute__((noipa)) static void *work(void *argument) {
    struct worker *self = argument;
    wait_if_paused();
    if (load != MANY_STACKS) descend(7, self);
    for (unsigned path = 0;; path = (path + 1) % PATHS) {
        choose(8, path);
        self->pairs++;
        wait_if_paused();
    }
    return argument;
}

// So many blocks that stay, at a stack of `frames` frames more.
__attribute__((noipa)) static void hold(unsigned frames, size_t blocks) {
    if (frames > 0) hold(frames - 1, blocks);
    else for (size_t i = 0; i < blocks; i++) use(malloc(BLOCK));
    use(&frames);
}

static void hold_all(size_t blocks) {
    for (unsigned i = 0; i < STACKS; i++) hold(i, blocks / STACKS + (i < blocks % STACKS));
    puts("held");
}

// Pairs that all threads have made, and the CPU time that they have used.
static void sum(unsigned threads, uint64_t *pairs, uint64_t *cpu_ns) {
    *pairs = *cpu_ns = 0;
    for (unsigned i = 0; i < threads; i++) {
        *pairs += workers[i].pairs;
        *cpu_ns += clock_ns(workers[i].cpu);
    }
}

// Waits until all that wait between turns do. Those that free what others give have soon nothing to do.
static void wait_for_all(unsigned threads) {
    unsigned givers = load == HANDOVER ? threads / 2 : threads;
    pthread_mutex_lock(&pause_lock);
    while (waiting < givers) pthread_cond_wait(&one_waits, &pause_lock);
    pthread_mutex_unlock(&pause_lock);
}

static void take_turn(unsigned threads, uint64_t length_ms) {
    uint64_t pairs, cpu, pairs_now, cpu_now, start = clock_ns(CLOCK_MONOTONIC);
    sum(threads, &pairs, &cpu);
    pthread_mutex_lock(&pause_lock);
    is_paused = 0;
    pthread_cond_broadcast(&pause_over);
    pthread_mutex_unlock(&pause_lock);
    struct timespec length = {(time_t)(length_ms / 1000), (long)(length_ms % 1000) * 1000000};
    while (nanosleep(&length, &length) != 0) {
    }
    is_paused = 1;
    wait_for_all(threads);
    sum(threads, &pairs_now, &cpu_now);
    uint64_t end = clock_ns(CLOCK_MONOTONIC);
    double elapsed = (double)(end - start);
    printf("%llu %.3f %.3f\n", (unsigned long long)end, elapsed / (double)(pairs_now - pairs),
           (double)(cpu_now - cpu) / elapsed);
}

int main(int argc, char **argv) {
    unsigned long threads = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
    while (argc == 3 && load < LOADS && strcmp(argv[1], NAMES[load]) != 0) load++;
    if (argc != 3 || load == LOADS || threads < 1 || threads > MOST_THREADS || (load == HANDOVER && threads % 2)) {
        fputs("usage: loads alternating|bursts|handover|stacks|leak THREADS (1 to 8, handover: even)\n", stderr);
        return 2;
    }
    // The stream's buffer must not be among what is counted.
    static char out[BUFSIZ];
    setvbuf(stdout, out, _IOLBF, sizeof out);
    for (unsigned i = 0; i < threads; i++) {
        sem_init(&workers[i].empty, 0, 2);
        sem_init(&workers[i].full, 0, 0);
    }
    for (unsigned i = 0; i < threads; i++) {
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0 ||
            pthread_getcpuclockid(workers[i].thread, &workers[i].cpu) != 0) {
            fputs("loads: cannot start a thread\n", stderr);
            return 1;
        }
    }
    wait_for_all((unsigned)threads);
    int is_turn;
    for (uint64_t number; (number = next_order("turn", &is_turn)) != 0;) {
        if (is_turn) take_turn((unsigned)threads, number);
        else hold_all(number);
    }
    return 0;
}
