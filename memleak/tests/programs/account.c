// A process whose memory is known. Reads lines from standard input and obeys, and answers `done`:
//
//   fragments N SIZE   N blocks, every second one is freed again
//   leak N SIZE        N blocks, all kept
//   threads N SIZE     the same as fragments, by four threads, in arenas of their own (the threads stay)
//   raw BYTES          maps and writes memory by no function of the C library's
//   many N             maps N pages that the kernel cannot join
//   free               answers with what the allocator itself says is free: `free BYTES` (of musl nothing)
//   end
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
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

// Of other allocators than the C library's; they are there if the program is linked with them.
__attribute__((weak)) int mallctl(const char *name, void *old, size_t *old_size, void *new, size_t new_size);
__attribute__((weak)) int MallocExtension_GetNumericProperty(const char *property, size_t *value);
__attribute__((weak)) void *mi_heap_get_default(void);
__attribute__((weak)) int mi_heap_visit_blocks(const void *heap, int all, int (*visit)(const void *heap, const void *area,
                                               void *block, size_t size, void *sum), void *sum);

static size_t of_jemalloc(const char *name) {
    size_t value = 0, size = sizeof value;
    if (mallctl(name, &value, &size, NULL, 0) != 0) abort();
    return value;
}

static size_t of_tcmalloc(const char *property) {
    size_t value = 0;
    if (!MallocExtension_GetNumericProperty(property, &value)) abort();
    return value;
}

// mimalloc.h, `mi_heap_area_t`: of each area what is in memory less what is in use.
struct area {
    void *blocks;
    size_t reserved, committed, used, block_size;
};

static int add_area(const void *heap, const void *area, void *block, size_t size, void *sum) {
    (void)heap, (void)block, (void)size;
    const struct area *of = area;
    *(size_t *)sum += of->committed - of->used * of->block_size;
    return 1;
}

// 1 if the allocator says what is free in it.
static int own_word(size_t *bytes) {
    *bytes = 0;
    if (mallctl != NULL) {
        uint64_t epoch = 1;
        if (mallctl("epoch", NULL, NULL, &epoch, sizeof epoch) != 0) abort();
        *bytes = of_jemalloc("stats.resident") - of_jemalloc("stats.allocated") - of_jemalloc("stats.metadata");
    } else if (MallocExtension_GetNumericProperty != NULL) {
        *bytes = of_tcmalloc("generic.heap_size") - of_tcmalloc("generic.current_allocated_bytes") -
                 of_tcmalloc("tcmalloc.pageheap_unmapped_bytes");
    } else if (mi_heap_get_default != NULL) {
        return mi_heap_visit_blocks(mi_heap_get_default(), 0, add_area, bytes);
    } else {
#ifdef __GLIBC__
        *bytes = mallinfo2().fordblks;
#else
        return 0;
#endif
    }
    return 1;
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
            size_t bytes;
            if (own_word(&bytes)) printf("free %zu\n", bytes);
        } else if (strcmp(word, "end") == 0) {
            return 0;
        }
        puts("done");
    }
    return 1;
}
