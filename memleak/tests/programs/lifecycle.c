// What happens to processes and threads: they end, fork, exec, spawn, and open libraries.
//
// usage: lifecycle threads|fork|exec|exec-thread|spawn|dlopen [ARGUMENT]
#include "ledger.h"

#ifndef NO_DLOPEN
#include <dlfcn.h>
#endif
#include <pthread.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>

extern char **environ;

SITE(site_parent, "heap")
static NOINLINE void *site_parent(size_t n) { return noted(&ledger_site_parent, malloc(n), n); }

SITE(site_thread, "heap")
static NOINLINE void *site_thread(size_t n) { return noted(&ledger_site_thread, malloc(n), n); }

SITE(site_child, "heap")
static NOINLINE void *site_child(size_t n) { return noted(&ledger_site_child, malloc(n), n); }

static void *blocks[1000];

static void *thread_work(void *argument) {
    size_t index = (size_t)argument;
    for (int i = 0; i < 50; i++) CHECK(site_thread(10 + index));
    void *mine = site_thread(1000);
    free(blocks[index]); // the parent's
    lose(&ledger_site_parent, 100);
    blocks[index] = mine; // the parent releases it when this thread is gone
    if (index % 2) pthread_exit(NULL);
    return NULL;
}

static void threads(void) {
    say("READY");
    hear();
    for (int i = 0; i < 100; i++) blocks[i] = site_parent(100);
    for (size_t round = 0; round < 64; round += 8) { // thread ids and stacks are used again
        pthread_t ids[8];
        for (size_t i = 0; i < 8; i++) CHECK(pthread_create(&ids[i], NULL, thread_work, (void *)(round + i)) == 0);
        for (size_t i = 0; i < 8; i++) CHECK(pthread_join(ids[i], NULL) == 0);
    }
    for (int i = 0; i < 32; i++) {
        free(blocks[i]);
        lose(&ledger_site_thread, 1000);
    }
    say_ledger();
    hear();
}

// The child releases its copies of the parent's blocks and acquires its own; then it waits for the parent's end.
static void fork_child(int to_parent, int from_parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 0; i < 100; i++) free(blocks[i]);
    for (int i = 0; i < 70; i++) CHECK(site_child(33));
    char c = 'x';
    CHECK(write(to_parent, &c, 1) == 1);
    if (read(from_parent, &c, 1) < 0) _exit(1);
    _exit(0);
}

static void fork_one(void) {
    int up[2], down[2];
    CHECK(pipe(up) == 0 && pipe(down) == 0);
    say("READY");
    hear();
    for (int i = 0; i < 100; i++) blocks[i] = site_parent(64);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(down[1]);
        fork_child(up[1], down[0]);
    }
    char c;
    CHECK(read(up[0], &c, 1) == 1);
    for (int i = 0; i < 40; i++) { // at addresses that the child has too
        free(blocks[i]);
        lose(&ledger_site_parent, 64);
    }
    for (int i = 0; i < 5; i++) CHECK(site_parent(80));
    for (int i = 0; i < 70; i++) gain(&ledger_site_child, 33); // the child's own ledger
    say("{\"child\":%d}", child);
    say_ledger();
    hear();
    close(down[1]);
    CHECK(waitpid(child, NULL, 0) == child);
}

// Before and after an exec; ARGUMENT is the program to go on as.
static void exec_other(const char *program) {
    say("READY");
    hear();
    for (int i = 0; i < 100; i++) CHECK(site_parent(64));
    say("BEFORE");
    hear();
    execl(program, program, "after-exec", (char *)NULL);
    die("exec");
}

static const char *next_program;

static void *exec_in_thread(void *unused) {
    (void)unused;
    for (int i = 0; i < 10; i++) CHECK(site_thread(20));
    execl(next_program, next_program, "after-exec", (char *)NULL);
    die("exec");
}

// The thread that executes takes over the id of the one that began.
static void exec_thread(const char *program) {
    say("READY");
    hear();
    for (int i = 0; i < 100; i++) CHECK(site_parent(64));
    say("BEFORE");
    hear();
    next_program = program;
    pthread_t id;
    CHECK(pthread_create(&id, NULL, exec_in_thread, NULL) == 0);
    pthread_join(id, NULL);
    die("exec");
}

static void after_exec(void) {
    say("EXECUTED");
    hear();
    for (int i = 0; i < 30; i++) CHECK(site_child(48));
    say_ledger();
    hear();
}

// Children that share this process's memory until they exec must not void its blocks.
static void spawn(void) {
    say("READY");
    hear();
    for (int i = 0; i < 100; i++) blocks[i] = site_parent(64);
    for (int i = 0; i < 10; i++) {
        char *arguments[] = {(char *)"true", NULL};
        pid_t child;
        CHECK(posix_spawn(&child, "/bin/true", NULL, NULL, arguments, environ) == 0);
        CHECK(waitpid(child, NULL, 0) == child);
        child = vfork();
        CHECK(child >= 0);
        if (child == 0) {
            execl("/bin/true", "true", (char *)NULL);
            _exit(1);
        }
        CHECK(waitpid(child, NULL, 0) == child);
        CHECK(site_parent(10));
    }
    for (int i = 0; i < 40; i++) {
        free(blocks[i]);
        lose(&ledger_site_parent, 64);
    }
    say_ledger();
    hear();
}

#ifndef NO_DLOPEN
SITE(site_library, "heap")
static NOINLINE void *site_library(void *(*library_malloc)(size_t), size_t n) {
    return noted(&ledger_site_library, library_malloc(n), n);
}

// A library that defines malloc and free for whoever asks it for them, loaded when tracing is under way.
static void open_library(const char *path) {
    say("READY");
    hear();
    for (int i = 0; i < 100; i++) CHECK(site_parent(64));
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    CHECK(library != NULL);
    void *(*library_malloc)(size_t) = (void *(*)(size_t))dlsym(library, "malloc");
    void (*library_free)(void *) = (void (*)(void *))dlsym(library, "free");
    CHECK(library_malloc != NULL && library_free != NULL && library_malloc != malloc);
    say("OPENED");
    hear();
    for (int i = 0; i < 50; i++) {
        void *p = site_library(library_malloc, 500);
        CHECK(p != NULL);
        if (i % 5) continue;
        library_free(p);
        lose(&ledger_site_library, 500);
    }
    say_ledger();
    hear();
}
#endif

int main(int argc, char **argv) {
    CHECK(argc >= 2);
    const char *mode = argv[1];
    if (!strcmp(mode, "threads")) threads();
    else if (!strcmp(mode, "fork")) fork_one();
    else if (!strcmp(mode, "exec") && argc == 3) exec_other(argv[2]);
    else if (!strcmp(mode, "exec-thread") && argc == 3) exec_thread(argv[2]);
    else if (!strcmp(mode, "after-exec")) after_exec();
    else if (!strcmp(mode, "spawn")) spawn();
#ifndef NO_DLOPEN
    else if (!strcmp(mode, "dlopen") && argc == 3) open_library(argv[2]);
#endif
    else die("no such mode");
    return 0;
}
