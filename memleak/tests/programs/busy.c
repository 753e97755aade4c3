// Threads that allocate, resize and free all the time, and a diary that says of any moment what each of them held then.
//
// Each thread keeps blocks of one site in slots, and writes down every call: when it began, when it had ended, and by how
// many bytes and blocks it changed what is held. So at any moment the truth lies between what the calls that had ended
// by then come to, and what those come to that had begun: exact but for the calls in progress.
//
// usage: busy THREADS STANDING CALLS [PAUSE LIBRARY]
// CALLS: as many as a thread makes at most. PAUSE: us after each 50 calls; with a LIBRARY all that disturb.h has goes on.
// phases: READY, go, (STANDING blocks more) FILLED, go, (the threads are at it) stop, DONE, <moments> -> bounds, end
// A moment is a line `from to` in ns of CLOCK_MONOTONIC; the answer is `count_low count_high bytes_low bytes_high`.
#include "disturb.h"
#include "ledger.h"

#include <pthread.h>
#include <time.h>

#define SLOTS 64
#define MAX_THREADS 8

struct entry {
    uint64_t began, ended;
    long bytes, count;
};

static struct entry *diaries[MAX_THREADS];
static long calls, made[MAX_THREADS];
static volatile int stop;
static unsigned pause_us = 500;
static __thread char alternate_stack[64 << 10];

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

static NOINLINE void *site_busy(void *old, size_t bytes) { return old == NULL ? malloc(bytes) : realloc(old, bytes); }
static NOINLINE void *site_standing(size_t bytes) { return malloc(bytes); }

static void *work(void *argument) {
    struct entry *diary = diaries[(uintptr_t)argument];
    struct dice dice = {(uintptr_t)argument * 77 + 5};
    void *blocks[SLOTS] = {NULL};
    size_t sizes[SLOTS] = {0};
    use_alternate_stack(alternate_stack, sizeof alternate_stack);
    for (long i = 0; i < calls && !stop; i++) {
        if (i % 50 == 49) usleep(pause_us); // the diary is not to fill the memory
        size_t slot = roll(&dice, SLOTS), bytes = 16 + roll(&dice, 4000);
        int frees = blocks[slot] != NULL && roll(&dice, 3) != 0;
        struct entry entry = {now(), 0, (long)(frees ? 0 : bytes) - (long)sizes[slot], frees ? -1 : blocks[slot] == NULL};
        if (frees) {
            free(blocks[slot]);
            blocks[slot] = NULL;
            sizes[slot] = 0;
        } else {
            blocks[slot] = site_busy(blocks[slot], bytes);
            CHECK(blocks[slot] != NULL);
            sizes[slot] = bytes;
        }
        entry.ended = now();
        diary[i] = entry;
        made[(uintptr_t)argument] = i + 1;
    }
    return NULL;
}

// What is held at a moment that is not before `from` and not after `to`.
static void answer(int threads, uint64_t from, uint64_t to) {
    long count_low = 0, count_high = 0, bytes_low = 0, bytes_high = 0;
    for (int t = 0; t < threads; t++) {
        for (long i = 0; i < made[t] && diaries[t][i].began <= to; i++) {
            struct entry entry = diaries[t][i];
            int is_sure = entry.ended < from;
            if (is_sure || entry.count < 0) count_low += entry.count;
            if (is_sure || entry.count > 0) count_high += entry.count;
            if (is_sure || entry.bytes < 0) bytes_low += entry.bytes;
            if (is_sure || entry.bytes > 0) bytes_high += entry.bytes;
        }
    }
    say("%ld %ld %ld %ld", count_low, count_high, bytes_low, bytes_high);
}

int main(int argc, char **argv) {
    CHECK(argc == 4 || argc == 6);
    int threads = atoi(argv[1]);
    long standing = atol(argv[2]);
    calls = atol(argv[3]);
    CHECK(threads <= MAX_THREADS);
    for (int t = 0; t < threads; t++) CHECK((diaries[t] = calloc((size_t)calls, sizeof(struct entry))) != NULL);
    if (argc == 6) pause_us = (unsigned)atol(argv[4]);
    handle_interrupts();
    say("READY");
    hear();
    for (long i = 0; i < standing; i++) CHECK(site_standing(16) != NULL);
    say("FILLED");
    hear();
    pthread_t ids[MAX_THREADS];
    for (int t = 0; t < threads; t++) CHECK(pthread_create(&ids[t], NULL, work, (void *)(uintptr_t)t) == 0);
    pthread_t disturbers[4];
    struct interrupted interrupted = {ids, threads};
    if (argc == 6) {
        void *reserved = site_reserved();
        CHECK(reserved != MAP_FAILED);
        disturbance_ends = &stop;
        disturbing_library = argv[5];
        CHECK(pthread_create(&disturbers[0], NULL, make_children, NULL) == 0);
        CHECK(pthread_create(&disturbers[1], NULL, load_libraries, NULL) == 0);
        CHECK(pthread_create(&disturbers[2], NULL, commit_pages, reserved) == 0);
        CHECK(pthread_create(&disturbers[3], NULL, interrupt, &interrupted) == 0);
    }
    hear();
    stop = 1;
    for (int d = 0; argc == 6 && d < 4; d++) CHECK(pthread_join(disturbers[d], NULL) == 0);
    for (int t = 0; t < threads; t++) {
        CHECK(pthread_join(ids[t], NULL) == 0);
        CHECK(made[t] < calls); // they were at it all the time
    }
    say("DONE");
    for (char line[128];;) {
        size_t length = 0;
        while (length + 1 < sizeof line && read(0, line + length, 1) == 1 && line[length] != '\n') length++;
        line[length] = 0;
        uint64_t from, to;
        if (sscanf(line, "%lu %lu", &from, &to) != 2) return 0;
        answer(threads, from, to);
    }
}
