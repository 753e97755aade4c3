// Holds what it says that it holds: known leaks, what threads have acquired, or all memory there is.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "# ours\nleak:^known_leak$\n"; }

static void *volatile kept;

static __attribute__((noinline)) void known_leak(void) { kept = malloc(100); }
static __attribute__((noinline)) void other_leak(void) { kept = malloc(7); }

static void *works(void *name)
{
    pthread_setname_np(pthread_self(), name);
    for (int i = 0; i < (strcmp(name, "many") == 0 ? 40 : 10); i++)
        kept = malloc(64);
    pause();
    return NULL;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "leaks") == 0) {
        for (int i = 0; i < 10; i++)
            known_leak();
        for (int i = 0; i < 5; i++)
            other_leak();
    } else if (strcmp(what, "threads") == 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, works, "many");
        pthread_create(&thread, NULL, works, "few");
        puts("READY");
        fflush(stdout);
        getchar();
    } else if (strcmp(what, "eats") == 0) {
        puts("READY");
        fflush(stdout);
        getchar();
        for (;;) {
            char *block = malloc(1 << 20);
            if (block)
                memset(block, 1, 1 << 20);
            usleep(5000);
        }
    }
    return 0;
}
