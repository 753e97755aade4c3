// A program that copies a part of its code to memory of no file, at the same addresses, as node --use-largepages does.
// An allocator is in that part, and so are functions that call malloc.
//
// Built with -fno-toplevel-reorder: what is in the section must come in the order of this file.
#include "ledger.h"

#include <sys/mman.h>

SITE(site_copied, "heap")

__asm__(".pushsection copied, \"ax\", @progbits\n.balign 4096\n.popsection");

#define COPIED NOINLINE __attribute__((section("copied")))

extern char __start_copied[], __stop_copied[];
static char arena[1 << 16];
static size_t used;

COPIED void *dlmalloc(size_t size) { return &arena[used += (size + 15) & ~15ul]; }
COPIED void dlfree(void *block) { (void)block; }
COPIED static void *site_copied(size_t size) { return noted(&ledger_site_copied, malloc(size), size); }
COPIED static void caller(size_t count) {
    for (size_t i = 0; i < count; i++) site_copied(50 + i);
}

// The end of the last page is the copy's, too.
__asm__(".pushsection copied, \"ax\", @progbits\n.balign 4096, 0xcc\n.popsection");

int main(void) {
    size_t size = (size_t)(__stop_copied - __start_copied);
    CHECK(((uintptr_t)__start_copied | size) % 4096 == 0);
    int both = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
    char *copy = mmap(NULL, size, both, flags, -1, 0);
    CHECK(copy != MAP_FAILED);
    memcpy(copy, __start_copied, size);
    CHECK(mmap(__start_copied, size, both, flags | MAP_FIXED, -1, 0) == __start_copied);
    memcpy(__start_copied, copy, size);
    CHECK(mprotect(__start_copied, size, PROT_READ | PROT_EXEC) == 0 && munmap(copy, size) == 0);
    say("READY");
    hear();
    caller(20);
    dlfree(dlmalloc(100));
    say_ledger();
    hear();
    return 0;
}
