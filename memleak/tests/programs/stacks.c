// Comes by any number of different stacks, and holds few of them.
//
// usage: stacks    phases: READY, then any of
//   b   a batch: acquires BATCH blocks, each from a stack of its own, and releases all but each hundredth
//   d   the same from stacks that are deeper by 60 frames
//   q   says how many blocks there were (BLOCKS n) and waits
//
// Block number n is acquired with SIZE + n bytes, below functions whose names, from the outermost on, spell n in binary,
// lowest bit first: zero, one.
#include "ledger.h"

enum { BATCH = 1000, BITS = 17, SIZE = 100000, KEPT = 100, DEEPER = 60 };

static unsigned number;

static NOINLINE void leaf(void) {
    void *block = malloc(SIZE + number);
    CHECK(block);
    if (number % KEPT != 0) free(block);
}

static NOINLINE void next(unsigned bits, int left);

static NOINLINE void zero(unsigned bits, int left) {
    next(bits, left);
    __asm__ volatile("" ::: "memory"); // no tail call
}

static NOINLINE void one(unsigned bits, int left) {
    next(bits, left);
    __asm__ volatile("" ::: "memory");
}

static NOINLINE void next(unsigned bits, int left) {
    if (left == 0) leaf();
    else if (bits & 1) one(bits >> 1, left - 1);
    else zero(bits >> 1, left - 1);
    __asm__ volatile("" ::: "memory");
}

static NOINLINE void deeper(int levels) {
    if (levels == 0) next(number, BITS);
    else deeper(levels - 1);
    __asm__ volatile("" ::: "memory");
}

int main(void) {
    say("READY");
    for (;;) {
        char phase = hear();
        if (phase == 'q') {
            say("BLOCKS %u", number);
            hear();
            return 0;
        }
        for (int i = 0; i < BATCH; i++, number++) deeper(phase == 'd' ? DEEPER : 0);
        say("DONE");
    }
}
