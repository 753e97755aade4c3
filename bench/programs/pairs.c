// What `cargo xtask bench` traces. Standard input's end ends it.
//
//     pairs loop DEPTH    at a line `turn MS` from standard input calls malloc and free in turn for so long, with DEPTH
//                         frames of its own on the stack (main is the first), and prints a line: when it ended
//                         (CLOCK_MONOTONIC, ns), ns for each pair, share of the time for which it had a CPU (1: no other
//                         program was in its way)
//     pairs hold COUNT    at a line from standard input acquires COUNT blocks, through 64 different stacks; prints
//                         "held" and keeps them
//     pairs tick COUNT    the same, and from then on makes a call each 100 ms: malloc and free in turn
//
// Built with -O2 -fno-omit-frame-pointer.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"

enum { PAIRS_BETWEEN_CLOCKS = 256, BLOCK = 64, STACKS = 64, TICK_MS = 100 };

// Keeps the compiler from dropping a pair of calls whose result nobody uses.
static void use(void *block) { __asm__ volatile("" : : "r"(block) : "memory"); }

enum work { LOOP, HOLD };

__attribute__((noinline)) static void loop(void) {
    int is_turn;
    for (uint64_t length_ms; (length_ms = next_order("turn", &is_turn)) != 0;) {
        uint64_t start = clock_ns(CLOCK_MONOTONIC), start_of_cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
        uint64_t end, pairs = 0;
        do {
            for (int i = 0; i < PAIRS_BETWEEN_CLOCKS; i++) {
                void *block = malloc(BLOCK);
                use(block);
                free(block);
            }
            pairs += PAIRS_BETWEEN_CLOCKS;
            end = clock_ns(CLOCK_MONOTONIC);
        } while (end - start < length_ms * 1000000);
        double elapsed = (double)(end - start);
        double on_cpu = (double)(clock_ns(CLOCK_THREAD_CPUTIME_ID) - start_of_cpu);
        printf("%llu %.3f %.3f\n", (unsigned long long)end, elapsed / (double)pairs, on_cpu / elapsed);
    }
}

__attribute__((noinline)) static void hold(size_t blocks) {
    for (size_t i = 0; i < blocks; i++) {
        use(malloc(BLOCK));
    }
}

// Until standard input ends.
__attribute__((noinline)) static void tick(void) {
    void *block = NULL;
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    while (poll(&input, 1, TICK_MS) == 0) {
        if (block == NULL) {
            use(block = malloc(BLOCK));
        } else {
            free(block);
            block = NULL;
        }
    }
}

static size_t blocks_at_the_bottom;

// `frames` more frames, then `work` in one of its own. What follows the call keeps it from being a jump.
__attribute__((noinline)) static void descend(unsigned frames, enum work work) {
    if (frames > 0) {
        descend(frames - 1, work);
    } else if (work == HOLD) {
        hold(blocks_at_the_bottom);
    } else {
        loop();
    }
    use(&frames);
}

int main(int argc, char **argv) {
    unsigned long number = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
    // The streams' buffers must not be among what is counted.
    static char out[BUFSIZ], in[BUFSIZ];
    setvbuf(stdout, out, _IOLBF, sizeof out);
    setvbuf(stdin, in, _IOLBF, sizeof in);
    if (argc == 3 && strcmp(argv[1], "loop") == 0 && number >= 3) {
        descend((unsigned)number - 3, LOOP);
        return 0;
    }
    int ticks = argc == 3 && strcmp(argv[1], "tick") == 0;
    if (argc == 3 && (ticks || strcmp(argv[1], "hold") == 0) && number > 0) {
        if (getchar() == EOF) {
            return 0;
        }
        for (unsigned i = 0; i < STACKS; i++) {
            blocks_at_the_bottom = number / STACKS + (i < number % STACKS);
            descend(i, HOLD);
        }
        puts("held");
        if (ticks) tick();
        while (getchar() != EOF) {
        }
        return 0;
    }
    fputs("usage: pairs loop DEPTH (at least 3) | pairs hold|tick COUNT\n", stderr);
    return 2;
}
