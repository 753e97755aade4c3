// Blocks that are kept, at several depths, one of them in a signal handler and one in a callback of libc's.
#include <signal.h>
#include <stdlib.h>

#define NOINLINE __attribute__((noinline, noclone))

void *volatile kept;
volatile int sink;

NOINLINE void keep(int size) {
    kept = malloc(size);
    sink = sink + size;
}

NOINLINE int recurse(int depth) {
    if (depth == 0) {
        keep(16);
        return 1;
    }
    int result = recurse(depth - 1) + depth;
    sink = sink + result;
    return result;
}

void handler(int number) {
    keep(number);
    sink = sink + 1;
}

int compare(const void *left, const void *right) {
    static int calls;
    if (++calls == 2) keep(32);
    return *(const int *)left - *(const int *)right;
}

int main(void) {
    int values[] = {3, 1, 2};
    keep(8);
    recurse(20);
    qsort(values, 3, sizeof values[0], compare);
    signal(SIGUSR1, handler);
    raise(SIGUSR1);
    return sink == 0;
}
