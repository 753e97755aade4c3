// What goes on beside the threads of `busy`: children, libraries that come and go, pages committed into a reservation, and
// signals on an alternate stack that map memory. None of it changes what `site_busy` holds; the reservation is of one size.
#ifndef DISTURB_H
#define DISTURB_H

#include "ledger.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define RESERVED (64ul << 20)
#define PAGE 4096ul

static const char *disturbing_library;
static volatile int *disturbance_ends;

static NOINLINE void *site_child(void) { return malloc(777); }

static void *make_children(void *unused) {
    while (!*disturbance_ends) {
        pid_t child = fork();
        if (child == 0) {
            CHECK(site_child() != NULL);
            _exit(0);
        }
        int status = 1;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        usleep(20000);
    }
    return unused;
}

static void *load_libraries(void *unused) {
    while (!*disturbance_ends) {
        void *library = dlopen(disturbing_library, RTLD_NOW);
        CHECK(library != NULL);
        void (*site)(size_t) = (void (*)(size_t))dlsym(library, "site_loaded");
        void *volatile *kept = (void *volatile *)dlsym(library, "kept");
        CHECK(site != NULL && kept != NULL);
        site(1000);
        free(*kept);
        *kept = NULL;
        CHECK(dlclose(library) == 0);
        usleep(5000);
    }
    return unused;
}

static NOINLINE char *site_reserved(void) {
    return mmap(NULL, RESERVED, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static NOINLINE void site_committed(char *at, size_t bytes) {
    CHECK(mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
}

static void *commit_pages(void *reserved) {
    struct dice dice = {99};
    while (!*disturbance_ends) {
        size_t pages = 1 + roll(&dice, 8);
        site_committed((char *)reserved + roll(&dice, RESERVED / PAGE - 8) * PAGE, pages * PAGE);
        usleep(500);
    }
    return reserved;
}

static NOINLINE void *site_in_handler(void) {
    return mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void map_and_unmap(int signal) {
    int before = errno;
    void *page = site_in_handler();
    CHECK(signal != 0 && page != MAP_FAILED && munmap(page, PAGE) == 0);
    errno = before;
}

// Interrupts each of the threads in turn.
struct interrupted {
    pthread_t *threads;
    int count;
};

static void *interrupt(void *argument) {
    struct interrupted *whom = argument;
    for (long i = 0; !*disturbance_ends; i++) {
        pthread_kill(whom->threads[i % whom->count], SIGUSR1);
        usleep(3000);
    }
    return NULL;
}

// The handler's stack lies above the thread's: each calls this with a place in its own thread-local storage.
static void use_alternate_stack(void *stack, size_t size) {
    stack_t alternate = {.ss_sp = stack, .ss_size = size};
    CHECK(sigaltstack(&alternate, NULL) == 0);
}

static void handle_interrupts(void) {
    struct sigaction action = {.sa_handler = map_and_unmap, .sa_flags = SA_RESTART | SA_ONSTACK};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
}

#endif
