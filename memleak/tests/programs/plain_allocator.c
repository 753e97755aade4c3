// A small allocator of its own that takes nothing from libc: blocks come from a static arena, each behind a header with
// its size, and are used again by size. Built as a library, to be preloaded or opened, with whatever code generation
// a test wants (endbr64, no optimisation, ...).
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ARENA_BYTES (64ul << 20)
#define CLASSES 512

struct header {
    size_t size;
    struct header *next;
};

static char arena[ARENA_BYTES] __attribute__((aligned(4096)));
static size_t used;
static struct header *released[CLASSES];
static volatile char lock;

static void enter(void) {
    while (__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE)) {
    }
}

static void leave(void) { __atomic_clear(&lock, __ATOMIC_RELEASE); }

static size_t class_of(size_t size) { return (size + 15) / 16; }

static void *take(size_t alignment, size_t size) {
    size_t class = class_of(size);
    if (size > ARENA_BYTES) return NULL;
    enter();
    if (alignment <= 16 && class < CLASSES && released[class] != NULL) {
        struct header *header = released[class];
        released[class] = header->next;
        header->size = size;
        leave();
        return header + 1;
    }
    if (alignment < 16) alignment = 16;
    size_t at = (used + sizeof(struct header) + alignment - 1) / alignment * alignment;
    if (at + class * 16 > ARENA_BYTES) {
        leave();
        return NULL;
    }
    used = at + class * 16;
    leave();
    struct header *header = (struct header *)(arena + at) - 1;
    header->size = size;
    return header + 1;
}

void *malloc(size_t size) { return take(16, size); }

void free(void *block) {
    if (block == NULL) return;
    struct header *header = (struct header *)block - 1;
    size_t class = class_of(header->size);
    if (class >= CLASSES) return;
    enter();
    header->next = released[class];
    released[class] = header;
    leave();
}

void *calloc(size_t members, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(members, size, &bytes)) return NULL;
    void *block = malloc(bytes);
    return block == NULL ? NULL : memset(block, 0, bytes);
}

void *realloc(void *old, size_t size) {
    if (old == NULL) return malloc(size);
    if (size == 0) {
        free(old);
        return NULL;
    }
    void *block = malloc(size);
    if (block == NULL) return NULL;
    size_t old_size = ((struct header *)old - 1)->size;
    memcpy(block, old, old_size < size ? old_size : size);
    free(old);
    return block;
}

void *memalign(size_t alignment, size_t size) { return take(alignment, size); }

void *aligned_alloc(size_t alignment, size_t size) { return take(alignment, size); }

void *valloc(size_t size) { return take(4096, size); }

int posix_memalign(void **out, size_t alignment, size_t size) {
    if (alignment < sizeof(void *) || (alignment & (alignment - 1))) return EINVAL;
    void *block = take(alignment, size);
    if (block == NULL) return ENOMEM;
    *out = block;
    return 0;
}
