// Has the kernel allocate: children, files, sockets and mappings, over and over, until its standard input ends. All that
// it makes it takes away again.
//
//     kernel_load FILE    FILE is made and removed

#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BYTES = 1 << 16, OF_EACH = 20 };

static char block[BYTES];

static void check(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static void child(void) {
    pid_t pid = fork();
    check(pid >= 0, "fork");
    if (pid == 0) {
        block[0]++; // copies a page
        _exit(0);
    }
    int status;
    check(waitpid(pid, &status, 0) == pid && status == 0, "waitpid");
}

static void file(const char *path) {
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    check(fd >= 0, path);
    check(write(fd, block, sizeof block) == sizeof block, "write");
    check(close(fd) == 0 && unlink(path) == 0, path);
}

static void sockets(void) {
    int pair[2];
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    check(send(pair[0], block, 512, 0) == 512, "send");
    check(recv(pair[1], block, 512, 0) == 512, "recv");
    check(close(pair[0]) == 0 && close(pair[1]) == 0, "close");
}

static void mapping(void) {
    char *range = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(range != MAP_FAILED, "mmap");
    for (size_t at = 0; at < BYTES; at += 4096) {
        range[at] = 1;
    }
    check(munmap(range, BYTES) == 0, "munmap");
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    check(argc == 2, "usage: kernel_load FILE");
    puts("READY");
    for (;;) {
        struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
        if (poll(&input, 1, 0) > 0 && (input.revents & POLLHUP)) {
            return 0;
        }
        child();
        for (int i = 0; i < OF_EACH; i++) {
            file(argv[1]);
            sockets();
            mapping();
        }
    }
}
