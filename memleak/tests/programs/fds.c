// Threads that open, duplicate, replace and close descriptors at random, each other's too. What is open in the end
// only the kernel can say (/proc/PID/fd).
//
// usage: fds random THREADS CALLS SEED     phases: READY <go> END <end>
//        fds unseen                        phases: READY <go> <ledger> END <end>
//        fds exec                          phases: READY <go> (becomes itself) <go> <ledger> END <go> <ledger> END <end>
#include "ledger.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>

// Numbers that the threads use. Those below are the program's own.
enum { FIRST = 10, LAST = 150 };

static unsigned long calls, seed;

static void *act(void *argument) {
    struct dice dice = {seed + 977 * (unsigned long)(uintptr_t)argument};
    int fds[2];
    for (unsigned long i = 0; i < calls; i++) {
        int some = FIRST + (int)roll(&dice, LAST - FIRST), other = FIRST + (int)roll(&dice, LAST - FIRST);
        switch (roll(&dice, 16)) {
        case 0: case 1: open("/dev/null", O_RDONLY); break;
        case 2: dup(some); break;
        case 3: case 4: dup2(some, other); break;
        case 5: dup3(some, other, O_CLOEXEC); break;
        case 6: pipe(fds); break;
        case 7: socketpair(AF_UNIX, SOCK_STREAM, 0, fds); break;
        case 8: fcntl(some, F_DUPFD, other); break;
        case 9: eventfd(0, 0); break;
        case 10: syscall(SYS_openat, AT_FDCWD, "/dev/zero", O_RDONLY); break;
        case 11: syscall(SYS_close_range, some, some + 3, 0); break;
        default: close(some);
        }
    }
    return NULL;
}

static void at_random(char **argv) {
    pthread_t threads[64];
    unsigned long count = strtoul(argv[2], NULL, 10);
    calls = strtoul(argv[3], NULL, 10), seed = strtoul(argv[4], NULL, 10);
    CHECK(count <= 64);
    struct rlimit limit = {LAST, LAST};
    CHECK(syscall(SYS_close_range, 3, ~0u, 0) == 0 && setrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (int fd = 3; fd < FIRST; fd++) dup2(0, fd);
    say("READY");
    hear();
    for (unsigned long i = 0; i < count; i++) CHECK(pthread_create(&threads[i], NULL, act, (void *)(i + 1)) == 0);
    for (unsigned long i = 0; i < count; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    say("END");
    hear();
}

// A descriptor that comes in a message.
SITE(site_receive, "fd")
static NOINLINE void site_receive(int from) {
    char byte, space[CMSG_SPACE(2 * sizeof(int))];
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    CHECK(recvmsg(from, &message, 0) == 1);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    CHECK(header && header->cmsg_type == SCM_RIGHTS && header->cmsg_len == CMSG_LEN(2 * sizeof(int)));
    gain(&ledger_site_receive, 0), gain(&ledger_site_receive, 0);
}

static void send_two(int to, int fd) {
    int sent[2] = {fd, fd};
    union {
        char space[CMSG_SPACE(sizeof sent)];
        struct cmsghdr header;
    } control = {.header = {CMSG_LEN(sizeof sent), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.header), sent, sizeof sent);
    struct iovec data = {"x", 1};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    CHECK(sendmsg(to, &message, 0) == 1);
}

// Ways in which no call returns the descriptor: a message, and an ioctl.
static void unseen(void) {
    int pair[2], terminal = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    CHECK(terminal >= 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && unlockpt(terminal) == 0);
    say("READY");
    hear();
    send_two(pair[0], terminal);
    site_receive(pair[1]);
    CHECK(ioctl(terminal, TIOCGPTPEER, O_RDWR | O_NOCTTY) >= 0);
    say_ledger();
    hear();
}

SITE(site_kept, "fd")
static NOINLINE int site_kept(void) { return open("/dev/null", O_RDONLY); }
SITE(site_dropped, "fd")
static NOINLINE int site_dropped(void) { return open("/dev/null", O_RDONLY | O_CLOEXEC); }
SITE(site_after, "fd")
static NOINLINE int site_after(void) { return open("/dev/null", O_RDONLY); }

// What an exec keeps, and what it closes.
static void replace(char **argv, int has_been) {
    if (!has_been) {
        say("READY");
        hear();
        int kept = site_kept(), dropped = site_dropped();
        CHECK(kept == 3 && dropped == 4);
        execl("/proc/self/exe", argv[0], "exec", "again", NULL);
        die("exec");
    }
    hear(); // until the tracer knows the new program
    CHECK(site_after() == 4 && site_after() == 5); // the number that the exec has closed
    gain(&ledger_site_kept, 0), gain(&ledger_site_after, 0), gain(&ledger_site_after, 0);
    say_ledger();
    hear();
    CHECK(close(3) == 0 && close(4) == 0);
    lose(&ledger_site_kept, 0), lose(&ledger_site_after, 0);
    say_ledger();
    hear();
}

int main(int argc, char **argv) {
    CHECK(argc > 1);
    switch (argv[1][0]) {
    case 'r': at_random(argv); break;
    case 'u': unseen(); break;
    case 'e': replace(argv, argc > 2); break;
    default: die("no such phase");
    }
    return 0;
}
