// Attaches segments of System V's shared memory, by the C library's functions or (`raw`) by system calls. It has an IPC
// namespace of its own, and more segments there than one node of the kernel's tree holds.
//
// phases: READY, go, <ledger> END, end
#include "ledger.h"

#include <sched.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { PAGE = 4096, MANY = 70 };

static int is_raw;

static int segment(size_t bytes) {
    int number = shmget(IPC_PRIVATE, bytes, IPC_CREAT | 0600);
    CHECK(number >= 0);
    return number;
}

static NOINLINE char *attach(int number, void *at, int flags) {
    return is_raw ? (char *)syscall(SYS_shmat, number, at, flags) : shmat(number, at, flags);
}

static int detach(const void *at) { return is_raw ? (int)syscall(SYS_shmdt, at) : shmdt(at); }

SITE(site_attach, "mmap")
static NOINLINE char *site_attach(int number, size_t bytes) {
    return noted(&ledger_site_attach, attach(number, NULL, 0), bytes);
}

SITE(site_removed, "mmap")
static NOINLINE char *site_removed(size_t bytes) {
    int number = segment(bytes);
    char *at = noted(&ledger_site_removed, attach(number, NULL, SHM_RDONLY), bytes);
    CHECK(shmctl(number, IPC_RMID, NULL) == 0);
    return at;
}

SITE(site_over, "mmap")
static NOINLINE char *site_over(int number, size_t bytes, char *at) {
    return noted(&ledger_site_over, attach(number, at, SHM_REMAP), bytes);
}

SITE(site_failing, "mmap")
static NOINLINE void site_failing(void) {
    CHECK(attach(-1, NULL, 0) == (void *)-1);
    CHECK(detach((void *)(uintptr_t)PAGE) == -1);
}

SITE(site_child, "mmap")
static NOINLINE void site_child(int number, const char *inherited) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(detach(inherited) == 0);
        CHECK(attach(number, NULL, 0) != (void *)-1);
        _exit(0);
    }
    CHECK(waitpid(child, NULL, 0) == child);
}

int main(int argc, char **argv) {
    (void)argv;
    is_raw = argc > 1;
    CHECK(unshare(CLONE_NEWIPC) == 0);
    say("READY");
    hear();
    // The first of all: alone in the tree it is its root.
    int first = segment(5000);
    char *at = site_attach(first, 5000);
    CHECK(detach(at) == 0);
    lose(&ledger_site_attach, 5000);
    at = site_attach(first, 5000);
    CHECK(site_attach(first, 5000) != at); // a second time
    int last = 0;
    for (int i = 0; i < MANY; i++) last = segment(100 * PAGE);
    char *large = site_attach(last, 100 * PAGE);
    CHECK(munmap(large + 90 * PAGE, 10 * PAGE) == 0); // its end
    ledger_site_attach.bytes -= 10 * PAGE;
    char *gone = site_attach(last, 100 * PAGE);
    CHECK(munmap(gone + 90 * PAGE, 10 * PAGE) == 0);
    CHECK(detach(gone) == 0); // all that is left of it
    lose(&ledger_site_attach, 100 * PAGE);
    CHECK(site_removed(7 * PAGE) != NULL);
    CHECK(detach(site_removed(11 * PAGE)) == 0);
    lose(&ledger_site_removed, 11 * PAGE);
    site_failing();
    // In the place of another's first page, which is two pages long.
    CHECK(site_over(segment(3000), 3000, at) == at);
    ledger_site_attach.bytes -= PAGE;
    site_child(last, large);
    say_ledger();
    hear();
}
