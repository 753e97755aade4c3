// A process whose first thread ends, and that goes on by two others, one after the other.
//
//   headless            the first thread ends before READY
//   headless LIBRARY    it ends at the line "leave"; after that LIBRARY, an allocator, is loaded and used
//
// The older thread obeys until the line "next", and then ends; the other one obeys from there on. Each "go" takes blocks
// and gives some back. The process ends with the last of its threads, at the second "next".
#include "ledger.h"

#include <dlfcn.h>
#include <pthread.h>

SITE(site_kept, "heap")
SITE(site_freed, "heap")
SITE(site_loaded, "heap")

static pthread_t first;
static pthread_barrier_t change;
static void *(*loaded_malloc)(size_t);
static void *volatile sink;

NOINLINE static void *site_kept(size_t size) { return noted(&ledger_site_kept, malloc(size), size); }
NOINLINE static void *site_freed(size_t size) { return noted(&ledger_site_freed, malloc(size), size); }
NOINLINE static void *site_loaded(size_t size) { return noted(&ledger_site_loaded, loaded_malloc(size), size); }

static void go(void) {
    for (size_t i = 0; i < 1000; i++) {
        sink = site_kept(100 + i % 7);
        void *block = site_freed(300);
        sink = block;
        if (i % 4 != 0) {
            free(block);
            lose(&ledger_site_freed, 300);
        }
        if (loaded_malloc != NULL) sink = site_loaded(40);
    }
    say_ledger();
}

static void obey(void) {
    for (;;) {
        switch (hear()) {
        case 'g': go(); break;
        case 'n': return;
        default: die("what?");
        }
    }
}

static void *older(void *library) {
    CHECK(pthread_join(first, NULL) == 0);
    if (library != NULL) {
        void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
        CHECK(handle != NULL);
        *(void **)&loaded_malloc = dlsym(handle, "malloc");
        CHECK(loaded_malloc != NULL && loaded_malloc != malloc);
    }
    say(library != NULL ? "LEFT" : "READY");
    obey();
    pthread_barrier_wait(&change);
    return NULL;
}

static void *younger(void *unused) {
    (void)unused;
    pthread_barrier_wait(&change);
    obey();
    return NULL;
}

int main(int count, char **arguments) {
    char *library = count > 1 ? arguments[1] : NULL;
    first = pthread_self();
    pthread_barrier_init(&change, NULL, 2);
    pthread_t threads[2];
    CHECK(pthread_create(&threads[0], NULL, older, library) == 0);
    CHECK(pthread_create(&threads[1], NULL, younger, NULL) == 0);
    CHECK(pthread_detach(threads[0]) == 0 && pthread_detach(threads[1]) == 0);
    if (library != NULL) {
        say("READY");
        CHECK(hear() == 'l');
    }
    pthread_exit(NULL);
}
