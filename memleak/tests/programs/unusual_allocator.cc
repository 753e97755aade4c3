// An allocator (preloaded, in front of glibc's) whose malloc does not always return: by the size it is asked for it
// jumps, blocks, or ends its thread.
#include "unusual.h"

#include <csetjmp>
#include <pthread.h>
#include <unistd.h>

extern "C" {
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void __libc_free(void *);

jmp_buf *unusual_jump;
volatile int unusual_blocked;

// Declared apart from <cstdlib>, which says that malloc never throws.
void *unusual_malloc(size_t size) __asm__("malloc");

void *unusual_malloc(size_t size) {
    switch (size) {
    case UNUSUAL_JUMP: longjmp(*unusual_jump, 1);
    case UNUSUAL_BLOCK:
        unusual_blocked = 1;
        for (;;) pause();
    case UNUSUAL_EXIT: pthread_exit(nullptr);
    default: return __libc_malloc(size);
    }
}
void *unusual_calloc(size_t members, size_t size) __asm__("calloc");
void *unusual_calloc(size_t members, size_t size) { return __libc_calloc(members, size); }
void *unusual_realloc(void *old, size_t size) __asm__("realloc");
void *unusual_realloc(void *old, size_t size) { return __libc_realloc(old, size); }
void unusual_free(void *block) __asm__("free");
void unusual_free(void *block) { __libc_free(block); }
}
