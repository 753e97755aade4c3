// What `cargo xtask bench --stress` traces: threads that allocate, resize, free and hand over blocks as fast as they can,
// and diaries that say of any recent moment what they held then.
//
//     stress THREADS
//
// Says "ready" and waits for a line; then its threads, which are there by then, are at it. Each further line is answered:
//
//     FROM TO    (ns of CLOCK_MONOTONIC) "COUNT_LOW COUNT_HIGH BYTES_LOW BYTES_HIGH": what was held at a moment between
//     stop       "DONE CALLS", once the threads have ended; what they hold is kept
//
// Each call is written down: when it began, when it had ended, and by how many bytes and blocks it changed what is held. So
// the truth of a moment lies between what the calls that had ended by then come to, and what those come to that had begun.

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"

enum { MOST_THREADS = 8, SLOTS = 1 << 15, BOXES = 64, DIARY = 1 << 20 };

struct entry {
    uint64_t began, ended;
    long bytes, count;
};

struct block {
    void *at;
    size_t bytes;
};

// Others put blocks into a worker's boxes; each box has one block at most.
struct box {
    int taken;
    struct block block;
};

struct worker {
    pthread_t thread;
    uint64_t dice;
    struct block slots[SLOTS];
    pthread_mutex_t boxes_lock;
    struct box boxes[BOXES];
    // Under the lock: the last calls, how many there were in all, what they come to, and the call in progress.
    pthread_mutex_t lock;
    struct entry *diary;
    uint64_t calls;
    long bytes, count;
    struct entry current;
};

static struct worker workers[MOST_THREADS];
static unsigned threads;
static volatile int stop;
static pthread_mutex_t start = PTHREAD_MUTEX_INITIALIZER;

static void check(int good, const char *what) {
    if (!good) {
        fprintf(stderr, "stress: %s\n", what);
        exit(1);
    }
}

static uint64_t roll(struct worker *self, uint64_t below) {
    self->dice ^= self->dice >> 12;
    self->dice ^= self->dice << 25;
    self->dice ^= self->dice >> 27;
    return (self->dice * 2685821657736338717ull >> 11) % below;
}

static void begin(struct worker *self, long bytes, long count) {
    pthread_mutex_lock(&self->lock);
    self->current = (struct entry){clock_ns(CLOCK_MONOTONIC), 0, bytes, count};
    pthread_mutex_unlock(&self->lock);
}

static void end(struct worker *self) {
    uint64_t ended = clock_ns(CLOCK_MONOTONIC);
    pthread_mutex_lock(&self->lock);
    self->current.ended = ended;
    self->diary[self->calls++ % DIARY] = self->current;
    self->bytes += self->current.bytes;
    self->count += self->current.count;
    self->current = (struct entry){0};
    pthread_mutex_unlock(&self->lock);
}

// Most blocks are small; one in a thousand is mapped.
static size_t some_bytes(struct worker *self) {
    return roll(self, 1000) == 0 ? (200u << 10) + roll(self, 100000) : 16 + roll(self, 400);
}

__attribute__((noipa)) static void acquire(struct worker *self, struct block *block) {
    size_t bytes = some_bytes(self);
    begin(self, (long)bytes, 1);
    block->at = roll(self, 4) == 0 ? calloc(1, bytes) : malloc(bytes);
    end(self);
    check(block->at != NULL, "no memory");
    block->bytes = bytes;
}

__attribute__((noipa)) static void resize(struct worker *self, struct block *block) {
    size_t bytes = some_bytes(self);
    begin(self, (long)bytes - (long)block->bytes, 0);
    block->at = realloc(block->at, bytes);
    end(self);
    check(block->at != NULL, "no memory");
    block->bytes = bytes;
}

__attribute__((noipa)) static void release(struct worker *self, struct block *block) {
    begin(self, -(long)block->bytes, -1);
    free(block->at);
    end(self);
    *block = (struct block){0};
}

// Puts a block into another's box, and takes what is in there: it goes on here.
static void hand_over(struct worker *self, struct block *block) {
    struct worker *to = &workers[roll(self, threads)];
    struct box *box = &to->boxes[roll(self, BOXES)];
    pthread_mutex_lock(&to->boxes_lock);
    struct block other = box->taken ? box->block : (struct block){0};
    *box = (struct box){1, *block};
    pthread_mutex_unlock(&to->boxes_lock);
    *block = other;
}

static void *work(void *argument) {
    struct worker *self = argument;
    pthread_mutex_lock(&start);
    pthread_mutex_unlock(&start);
    while (!stop) {
        struct block *block = &self->slots[roll(self, SLOTS)];
        switch (block->at == NULL ? 0 : roll(self, 4)) {
            case 0:
                if (block->at == NULL) acquire(self, block);
                else hand_over(self, block);
                break;
            case 1: resize(self, block); break;
            case 2: hand_over(self, block); break;
            default: release(self, block); break;
        }
    }
    return NULL;
}

struct bounds {
    long count_low, count_high, bytes_low, bytes_high;
};

// A call of which nobody can say whether it had been done.
static void doubt(struct bounds *bounds, const struct entry *entry) {
    *(entry->count < 0 ? &bounds->count_low : &bounds->count_high) += entry->count;
    *(entry->bytes < 0 ? &bounds->bytes_low : &bounds->bytes_high) += entry->bytes;
}

// Backwards from the last call, until one had ended before.
static void add_worker(struct bounds *bounds, struct worker *worker, uint64_t from, uint64_t to) {
    pthread_mutex_lock(&worker->lock);
    long bytes = worker->bytes, count = worker->count;
    if (worker->current.began != 0 && worker->current.began <= to) doubt(bounds, &worker->current);
    for (uint64_t calls = worker->calls; calls > 0; calls--) {
        check(worker->calls - calls < DIARY, "that moment is too long ago");
        const struct entry *entry = &worker->diary[(calls - 1) % DIARY];
        if (entry->ended < from) break;
        bytes -= entry->bytes;
        count -= entry->count;
        if (entry->began <= to) doubt(bounds, entry);
    }
    pthread_mutex_unlock(&worker->lock);
    bounds->bytes_low += bytes, bounds->bytes_high += bytes;
    bounds->count_low += count, bounds->count_high += count;
}

static void answer(uint64_t from, uint64_t to) {
    struct bounds bounds = {0};
    for (unsigned i = 0; i < threads; i++) add_worker(&bounds, &workers[i], from, to);
    printf("%ld %ld %ld %ld\n", bounds.count_low, bounds.count_high, bounds.bytes_low, bounds.bytes_high);
}

static void finish(void) {
    uint64_t calls = 0;
    stop = 1;
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(workers[i].thread, NULL);
        calls += workers[i].calls;
    }
    printf("DONE %llu\n", (unsigned long long)calls);
}

int main(int argc, char **argv) {
    threads = argc == 2 ? (unsigned)strtoul(argv[1], NULL, 10) : 0;
    if (threads < 1 || threads > MOST_THREADS) {
        fputs("usage: stress THREADS (1 to 8)\n", stderr);
        return 2;
    }
    // The streams' buffers must not be among what is counted.
    static char out[BUFSIZ], in[BUFSIZ], line[128];
    setvbuf(stdout, out, _IOLBF, sizeof out);
    setvbuf(stdin, in, _IOLBF, sizeof in);
    pthread_mutex_lock(&start);
    for (unsigned i = 0; i < threads; i++) {
        workers[i].dice = i * 77 + 5;
        pthread_mutex_init(&workers[i].lock, NULL);
        pthread_mutex_init(&workers[i].boxes_lock, NULL);
        check((workers[i].diary = calloc(DIARY, sizeof(struct entry))) != NULL, "no memory");
        check(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0, "no thread");
    }
    puts("ready");
    if (fgets(line, sizeof line, stdin) == NULL) return 0;
    pthread_mutex_unlock(&start);
    while (fgets(line, sizeof line, stdin) != NULL) {
        unsigned long long from, to;
        if (strcmp(line, "stop\n") == 0) finish();
        else if (sscanf(line, "%llu %llu", &from, &to) == 2) answer(from, to);
    }
    return 0;
}
