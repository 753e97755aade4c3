/* A library with resources of its own, one for each way in which a handle is handed out. What it does is written down by
   its caller; the library itself only makes handles. */
#include <stdint.h>
#include <stdlib.h>

/* By return value: a number that grows, no memory. */
static uintptr_t next = 0x1000;

void *ticket_take(void) { return (void *)(next += 0x10); }
void ticket_drop(void *ticket) { (void)ticket; }

/* Behind the first argument, with a size; fails (and still writes something there) where the size is 0. */
int lease_open(void **out, size_t size) {
    *out = (void *)(next += 0x10);
    return size == 0 ? -1 : 0;
}
/* Fails for a null mode, and then it is still open. */
int lease_close(void *lease, const char *mode) {
    (void)lease;
    return mode == NULL ? -1 : 0;
}

/* An int, from 0 up; -1 where it fails. The upper half of the register is not 0. */
long slot_get(int wanted) {
    static int last = 0;
    int slot = wanted < 0 ? -1 : last++;
    return (long)0x7777777700000000 | (uint32_t)slot;
}
void slot_put(long slot) { (void)slot; }

/* Two ints in memory, at an offset, as pipe(2) has it. */
struct couple {
    long other;
    int ends[2];
};
int couple_make(struct couple *couple) {
    static int last = 100;
    couple->ends[0] = last++;
    couple->ends[1] = last++;
    return 0;
}
void couple_end(int end) { (void)end; }

/* Counted: the same handle again and again. */
static char shared[4];
char *const shared_0 = shared;
char *shared_get(int which) { return &shared[which]; }
void shared_put(char *handle) { (void)handle; }

/* Moved: the old one goes, a new one comes; or, for size 0, neither. */
void *block_new(size_t count, size_t each) {
    (void)(count * each);
    return (void *)(next += 0x10);
}
void *block_move(void *block, size_t size) {
    (void)block;
    return size == 0 ? NULL : (void *)(next += 0x10);
}
/* Takes a pointer to the handle, as some libraries do. */
void block_free(void **block) { *block = NULL; }
