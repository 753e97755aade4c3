// Blocks that are kept where only the C library's own code leads back to main: under qsort, a signal's handler, a
// thread's start and exit.
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#define NOINLINE __attribute__((noinline, noclone))

void *volatile kept;
volatile int sink;

NOINLINE void keep(int size) {
    kept = malloc(size);
    sink = sink + size;
}

int compare(const void *left, const void *right) {
    static int calls;
    if (++calls == 5) keep(32);
    return *(const int *)left - *(const int *)right;
}

NOINLINE void sort(void) {
    int values[] = {3, 1, 2, 9, 7, 5, 8, 6};
    qsort(values, sizeof values / sizeof values[0], sizeof values[0], compare);
    sink = sink + values[0];
}

void handler(int number) {
    keep(number);
    sink = sink + 1;
}

NOINLINE void interrupt(void) {
    signal(SIGUSR1, handler);
    raise(SIGUSR1);
    sink = sink + 1;
}

void *thread(void *argument) {
    keep(64);
    sink = sink + 1;
    return argument;
}

NOINLINE void run_thread(void) {
    pthread_t id;
    pthread_create(&id, NULL, thread, NULL);
    pthread_join(id, NULL);
    sink = sink + 1;
}

void at_end(void) {
    keep(128);
    sink = sink + 1;
}

int main(void) {
    atexit(at_end);
    sort();
    interrupt();
    run_thread();
    return sink == 0;
}
