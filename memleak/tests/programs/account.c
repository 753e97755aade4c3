// A process whose memory is known. Reads lines from standard input and obeys, and answers `done`:
//
//   fragments N SIZE   N blocks, every second one is freed again
//   leak N SIZE        N blocks, all kept
//   threads N SIZE     the same as fragments, by four threads, in arenas of their own (the threads stay)
//   raw BYTES          maps and writes memory by no function of the C library's
//   many N             maps N pages that the kernel cannot join
//   free               answers with what mallinfo2(3) says is free: `free BYTES` (with glibc)
//   end
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct work {
    size_t count, size;
    int frees;
    pthread_barrier_t *done;
};

static void fill(const struct work *work) {
    void **blocks = malloc(work->count * sizeof *blocks);
    for (size_t i = 0; i < work->count; i++) {
        blocks[i] = malloc(work->size);
        memset(blocks[i], 0x5a, work->size);
    }
    for (size_t i = 0; work->frees && i < work->count; i += 2) {
        free(blocks[i]);
        blocks[i] = NULL;
    }
}

static void *run(void *argument) {
    struct work *work = argument;
    fill(work);
    pthread_barrier_wait(work->done);
    pause();
    return NULL;
}

static void threads(struct work work) {
    static pthread_barrier_t done;
    pthread_barrier_init(&done, NULL, 5);
    struct work *shared = malloc(sizeof *shared);
    *shared = work;
    shared->done = &done;
    for (int i = 0; i < 4; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, run, shared) != 0) abort();
    }
    pthread_barrier_wait(&done);
}

int main(void) {
    // Standard input's and output's buffers are blocks, too: from the beginning.
    char line[256];
    static char out[BUFSIZ], in[BUFSIZ];
    setvbuf(stdout, out, _IOLBF, sizeof out);
    setvbuf(stdin, in, _IOLBF, sizeof in);
    puts("READY");
    while (fgets(line, sizeof line, stdin)) {
        size_t first = 0, second = 0;
        char word[32] = "";
        sscanf(line, "%31s %zu %zu", word, &first, &second);
        struct work work = {first, second, strcmp(word, "leak") != 0, NULL};
        if (strcmp(word, "fragments") == 0 || strcmp(word, "leak") == 0) {
            fill(&work);
        } else if (strcmp(word, "threads") == 0) {
            threads(work);
        } else if (strcmp(word, "raw") == 0) {
            void *at = (void *)syscall(SYS_mmap, NULL, first, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L);
            memset(at, 0x5a, first);
        } else if (strcmp(word, "many") == 0) {
            for (size_t i = 0; i < first; i++) {
                int protection = i % 2 == 0 ? PROT_READ | PROT_WRITE : PROT_READ;
                if (mmap(NULL, 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED) abort();
            }
        } else if (strcmp(word, "free") == 0) {
#ifdef __GLIBC__
            printf("free %zu\n", mallinfo2().fordblks);
#endif
        } else if (strcmp(word, "end") == 0) {
            return 0;
        }
        puts("done");
    }
    return 1;
}
