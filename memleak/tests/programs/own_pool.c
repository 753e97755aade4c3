// Has an allocator of its own that nothing names once the program is stripped: a pool that it maps, of which it hands out
// blocks. And blocks of malloc's, large and small, on several threads.
//
// usage: own_pool BYTES   phases: READY (so many bytes of the pool and as many of malloc's are in use), N, done (N more of
// the pool's), end
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static char *pool;
static size_t left;

static __attribute__((noinline)) void *take(size_t size) {
    if (size > left) {
        left = 4 << 20;
        pool = mmap(NULL, left, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pool == MAP_FAILED) abort();
    }
    left -= size;
    return pool + left;
}

static void use(size_t bytes) {
    for (size_t i = 0; i < bytes; i += 1000) memset(take(1000), 0x5a, 1000);
}

static void *waits(void *argument) {
    memset(malloc(100000), 0x5a, 100000);
    pthread_barrier_wait(argument);
    pause();
    return NULL;
}

int main(int argc, char **argv) {
    size_t bytes = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    use(bytes);
    for (size_t i = 0; i < 10; i++) memset(malloc(500000), 0x5a, 500000);
    for (size_t i = 0; i < 20000; i++) memset(malloc(100), 0x5a, 100);
    pthread_barrier_t ready;
    pthread_barrier_init(&ready, NULL, 4);
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, waits, &ready) != 0) abort();
    }
    pthread_barrier_wait(&ready);
    puts("READY");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin) && line[0] != 'e') {
        use(strtoul(line, NULL, 10));
        puts("done");
        fflush(stdout);
    }
    return 0;
}
