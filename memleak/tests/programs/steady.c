/* Makes pairs of malloc and free, RATE of them a second, and counts them. "measure N" on standard input: after N more pairs
 * it says how long they took, and how much of its CPU time.
 *
 * usage: steady RATE */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define DEPTH 8

static long long now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

__attribute__((noinline)) static void nested(volatile int depth) {
    if (depth > 0) {
        nested(depth - 1);
        depth = 0;
        return;
    }
    void *volatile block = malloc(64);
    free(block);
}

/* Written without stdio, whose buffers would be calls that are not counted. */
static void say(long long pairs, long long wall, long long cpu) {
    char line[160];
    int length = snprintf(line, sizeof line, "{\"pairs\":%lld,\"wall_ns\":%lld,\"cpu_ns\":%lld}\n", pairs, wall, cpu);
    if (write(1, line, (size_t)length) != length)
        exit(1);
}

int main(int argc, char **argv) {
    long long rate = argc > 1 ? atoll(argv[1]) : 1000;
    long long begin = now(CLOCK_MONOTONIC), done = 0, until = -1, from = 0, wall = 0, cpu = 0;
    if (write(1, "READY\n", 6) != 6)
        return 1;
    for (;;) {
        struct pollfd input = {0, POLLIN, 0};
        if (poll(&input, 1, 1) == 1) {
            char line[64] = "";
            if (read(0, line, sizeof line - 1) <= 0 || sscanf(line, "measure %lld", &until) != 1)
                return 0;
            from = done;
            until += done;
            wall = now(CLOCK_MONOTONIC);
            cpu = now(CLOCK_PROCESS_CPUTIME_ID);
        }
        long long due = (now(CLOCK_MONOTONIC) - begin) / 1000 * rate / 1000000;
        while (done < due && done != until) {
            nested(DEPTH);
            done++;
        }
        if (done == until) {
            say(done - from, now(CLOCK_MONOTONIC) - wall, now(CLOCK_PROCESS_CPUTIME_ID) - cpu);
            until = -1;
        }
    }
}
