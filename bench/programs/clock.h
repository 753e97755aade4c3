// What the programs of the bench have in common: clocks, what standard input asks for, and its end, which ends them.

#pragma once

#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t clock_ns(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline int input_has_ended(void) {
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    return poll(&input, 1, 0) > 0 && (input.revents & POLLHUP);
}

// Waits for a line from standard input, `WORD NUMBER`; gives the number and whether the word is this one, or 0 at its end.
static inline uint64_t next_order(const char *word, int *is_it) {
    char line[64];
    ssize_t length = read(STDIN_FILENO, line, sizeof line - 1);
    if (length <= 0) return 0;
    line[length] = 0;
    size_t word_length = strlen(word);
    *is_it = strncmp(line, word, word_length) == 0 && line[word_length] == ' ';
    char *number = strchr(line, ' ');
    return number == NULL ? 0 : strtoull(number, NULL, 10);
}
