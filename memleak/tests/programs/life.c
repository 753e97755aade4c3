/* Processes that make others: what each mode holds in the end it says itself, `EXPECT BYTES COUNT`. A mode with a T in the
 * margin is started by hand (READY, then a line is waited for). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static void *blocks[100];

static void line(void)
{
    char text[64];
    if (!fgets(text, sizeof text, stdin))
        exit(2);
}

static void expect(long bytes, long count)
{
    printf("EXPECT %ld %ld\n", bytes, count);
    fflush(stdout);
    line();
}

static void hold(size_t size)
{
    volatile char *block = malloc(size);
    block[0] = 1;
}

static int frees_half(void *unused)
{
    (void)unused;
    for (int i = 0; i < 50; i++)
        free(blocks[i]);
    return 0;
}

/* T: a process that shares the memory and not the descriptors frees what the other one has acquired. */
static void clone_vm(void)
{
    enum { STACK = 1 << 20 };
    char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pid_t child = clone(frees_half, stack + STACK, CLONE_VM | SIGCHLD, NULL);
    waitpid(child, NULL, 0);
    munmap(stack, STACK);
    expect(500, 50);
}

/* T: so does one that borrows it until it ends. */
static void vfork_child(void)
{
    if (!vfork()) {
        hold(77);
        free(blocks[3]);
        _exit(0);
    }
    wait(NULL);
    expect(990 + 77, 100);
}

/* T: children that replace their programs at once take nothing along. */
static void spawns(void)
{
    for (int i = 0; i < 10; i++) {
        pid_t child;
        char *argv[] = {"true", NULL};
        posix_spawnp(&child, "true", NULL, NULL, argv, environ);
        waitpid(child, NULL, 0);
    }
    expect(1000, 100);
}

/* Children, one after the other: each holds 1000 bytes when it ends. */
static void forks(int number)
{
    for (int i = 0; i < number; i++) {
        pid_t child = fork();
        if (!child) {
            hold(1000);
            _exit(0);
        }
        waitpid(child, NULL, 0);
    }
}

/* The code of the C library in memory is that of its file: there is no breakpoint in it. */
static int is_untouched(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char text[512];
    int compared = 0;
    while (fgets(text, sizeof text, maps)) {
        unsigned long start, end, offset;
        char access[8], path[256] = "";
        sscanf(text, "%lx-%lx %7s %lx %*s %*s %255s", &start, &end, access, &offset, path);
        if (!strstr(path, "/libc.so") || !strchr(access, 'x'))
            continue;
        int file = open(path, O_RDONLY);
        char *there = mmap(NULL, end - start, PROT_READ, MAP_PRIVATE, file, (off_t)offset);
        if (memcmp(there, (void *)start, end - start))
            return 0;
        compared++;
    }
    return compared > 0;
}

/* Leaves children behind for ever: a line for each. */
static void forks_for_ever(void)
{
    for (long i = 0;; i++) {
        pid_t child = fork();
        if (!child) {
            hold(10);
            _exit(0);
        }
        int status;
        waitpid(child, &status, 0);
        if (status)
            exit(3);
        printf("child %ld\n", i);
        fflush(stdout);
    }
}

/* Starts itself again under a number of the caller's choice, which nobody may have: TAKEN if somebody does. */
static int starts_as(pid_t number, char **argv)
{
    struct clone_args how = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&number, .set_tid_size = 1};
    pid_t child = (pid_t)syscall(SYS_clone3, &how, sizeof how);
    if (!child) {
        execv("/proc/self/exe", argv);
        _exit(127);
    }
    if (child < 0) {
        puts(errno == EEXIST ? "TAKEN" : strerror(errno));
        return 1;
    }
    int status;
    waitpid(child, &status, 0);
    return status != 0;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    if (!strcmp(mode, "forks")) {
        forks(atoi(argv[2]));
        return 0;
    }
    if (!strcmp(mode, "as"))
        return starts_as(atoi(argv[2]), argv + 2);
    if (!strcmp(mode, "untouched"))
        return is_untouched() ? 0 : 9;
    if (!strcmp(mode, "files")) {
        for (int i = 0; i < atoi(argv[2]); i++)
            if (open("/dev/null", O_RDONLY) < 0)
                return 1;
        puts("OPEN");
        fflush(stdout);
        line();
        return 0;
    }
    puts("READY");
    fflush(stdout);
    line();
    if (!strcmp(mode, "for-ever"))
        forks_for_ever();
    for (int i = 0; i < 100; i++)
        blocks[i] = malloc(10);
    if (!strcmp(mode, "clone-vm"))
        clone_vm();
    if (!strcmp(mode, "vfork"))
        vfork_child();
    if (!strcmp(mode, "spawns"))
        spawns();
    return 0;
}
