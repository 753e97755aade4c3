// A heap for --why to look through: N blocks of about 216 bytes, each with three pointers to others, all held by one
// table but for one of a thousand, which nothing holds. Then it reads blocks at random, and says every 100 ms how often:
// `PACE ns count`, CLOCK_MONOTONIC.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"

static void ***table;

static uint64_t next(void) {
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

int main(int count, char **words) {
    uint64_t blocks = count > 1 ? strtoull(words[1], NULL, 10) : 1000, sum = 0, reads = 0;
    table = calloc(blocks, sizeof *table);
    for (uint64_t i = 0; i < blocks; i++) {
        size_t size = 200 + i % 5 * 8;
        table[i] = malloc(size);
        memset(table[i], 0, size);
    }
    for (uint64_t i = 0; i < blocks; i++) {
        for (int k = 0; k < 3; k++) {
            uint64_t to = next() % blocks;
            // What is to be lost is held by nothing else.
            table[i][3 + k * 5] = to % 1000 == 0 ? NULL : (void *)table[to];
        }
    }
    for (uint64_t i = 0; i < blocks; i += 1000) table[i] = table[i + 1 < blocks ? i + 1 : 1];
    puts("READY");
    fflush(stdout);
    for (uint64_t said = clock_ns(CLOCK_MONOTONIC);;) {
        for (int k = 0; k < 1000; k++) sum += (uint64_t)table[next() % blocks][0];
        reads += 1000;
        uint64_t now = clock_ns(CLOCK_MONOTONIC);
        if (now - said < 100000000) continue;
        printf("PACE %llu %llu\n", (unsigned long long)now, (unsigned long long)(reads + (sum & 1)));
        if (fflush(stdout) != 0) return 1;
        reads = 0;
        said = now;
    }
}
