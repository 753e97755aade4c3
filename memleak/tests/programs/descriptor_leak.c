// To be preloaded: every tenth connection that a server accepts leaves a second descriptor behind.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/socket.h>
#include <unistd.h>

__attribute__((noipa)) static void site_planted_leak(int fd) { (void)!dup(fd); }

static int leaky(int fd) {
    static int connections;
    if (fd >= 0 && __atomic_add_fetch(&connections, 1, __ATOMIC_RELAXED) % 10 == 0) site_planted_leak(fd);
    return fd;
}

int accept(int server, struct sockaddr *address, socklen_t *length) {
    int (*next)(int, struct sockaddr *, socklen_t *);
    *(void **)&next = dlsym(RTLD_NEXT, "accept");
    return leaky(next(server, address, length));
}

int accept4(int server, struct sockaddr *address, socklen_t *length, int flags) {
    int (*next)(int, struct sockaddr *, socklen_t *, int);
    *(void **)&next = dlsym(RTLD_NEXT, "accept4");
    return leaky(next(server, address, length, flags));
}
