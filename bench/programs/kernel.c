// What `cargo xtask bench --kernel` traces the kernel under. Standard input's end ends it.
//
//     kernel files PATH   makes the file PATH, writes a page to it and removes it, over and over
//     kernel sockets      makes a pair of sockets, sends a message through it and closes it, over and over
//
// Prints a line for each window of time: its end (CLOCK_MONOTONIC, ns), ns for each turn, share of the window for which
// it had a CPU (1: no other program was in its way).

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"

enum { WINDOW_NS = 250000000, TURNS_BETWEEN_CLOCKS = 64, BLOCK = 4096 };

static const char *path;
static char block[BLOCK];

static void check(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static void file(void) {
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    check(fd >= 0, path);
    check(write(fd, block, sizeof block) == sizeof block, "write");
    check(close(fd) == 0, "close");
    check(unlink(path) == 0, path);
}

static void sockets(void) {
    int pair[2];
    char message[64];
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    check(send(pair[0], block, sizeof message, 0) == sizeof message, "send");
    check(recv(pair[1], message, sizeof message, 0) == sizeof message, "recv");
    check(close(pair[0]) == 0 && close(pair[1]) == 0, "close");
}

static void loop(void (*turn)(void)) {
    while (!input_has_ended()) {
        uint64_t start = clock_ns(CLOCK_MONOTONIC), start_of_cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
        uint64_t end, turns = 0;
        do {
            for (int i = 0; i < TURNS_BETWEEN_CLOCKS; i++) {
                turn();
            }
            turns += TURNS_BETWEEN_CLOCKS;
            end = clock_ns(CLOCK_MONOTONIC);
        } while (end - start < WINDOW_NS);
        double elapsed = (double)(end - start);
        double on_cpu = (double)(clock_ns(CLOCK_THREAD_CPUTIME_ID) - start_of_cpu);
        printf("%llu %.3f %.3f\n", (unsigned long long)end, elapsed / (double)turns, on_cpu / elapsed);
    }
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 3 && strcmp(argv[1], "files") == 0) {
        path = argv[2];
        loop(file);
        return 0;
    }
    if (argc == 2 && strcmp(argv[1], "sockets") == 0) {
        loop(sockets);
        return 0;
    }
    fputs("usage: kernel files PATH | kernel sockets\n", stderr);
    return 2;
}
