/* Calls pairs_library.c, leaks known numbers of each resource, and says so: a ledger line for each site. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

void *ticket_take(void);
void ticket_drop(void *ticket);
int lease_open(void **out, size_t size);
int lease_close(void *lease, const char *mode);
int slot_get(int wanted);
void slot_put(int slot);
struct couple {
    long other;
    int ends[2];
};
int couple_make(struct couple *couple);
void couple_end(int end);
char *shared_get(int which);
extern char *const shared_0;
void shared_put(char *handle);
void *block_new(size_t count, size_t each);
void *block_move(void *block, size_t size);
void block_free(void **block);

static void ledger(const char *site, const char *resource, long bytes, long count) {
    printf("{\"site\":\"%s\",\"resource\":\"%s\",\"bytes\":%ld,\"count\":%ld}\n", site, resource, bytes, count);
}

#define SITE __attribute__((noinline)) static void

/* 30 tickets, every third of them dropped, the first two of those twice. */
SITE site_tickets(void) {
    for (int i = 0; i < 30; i++) {
        void *ticket = ticket_take();
        if (i % 3 == 0)
            ticket_drop(ticket);
        if (i < 6 && i % 3 == 0)
            ticket_drop(ticket);
    }
}

/* 12 leases of 100 bytes, 4 of them closed, 3 closed in vain; 5 that fail. */
SITE site_leases(void) {
    for (int i = 0; i < 12; i++) {
        void *lease;
        if (lease_open(&lease, 100) != 0)
            abort();
        if (i < 4)
            lease_close(lease, "now");
        else if (i < 7)
            lease_close(lease, NULL);
    }
    for (int i = 0; i < 5; i++) {
        void *lease;
        lease_open(&lease, 0);
    }
}

/* 10 slots from 0 up, the last 3 of them put back; 4 that fail. */
SITE site_slots(void) {
    for (int i = 0; i < 10; i++) {
        int slot = slot_get(1);
        if (i >= 7)
            slot_put(slot);
    }
    for (int i = 0; i < 4; i++)
        slot_get(-1);
}

/* 6 couples: of 12 ends 5 are ended. */
SITE site_couples(void) {
    for (int i = 0; i < 6; i++) {
        struct couple couple;
        couple_make(&couple);
        if (i < 5)
            couple_end(couple.ends[i & 1]);
    }
}

/* Three handles: one taken 5 times and put back 4 times, one taken and put back 3 times, one taken once. */
SITE site_shared(void) {
    for (int i = 0; i < 5; i++)
        shared_get(0);
    for (int i = 0; i < 3; i++)
        shared_get(1);
    shared_get(2);
    for (int i = 0; i < 4; i++)
        shared_put(shared_0);
    for (int i = 0; i < 3; i++)
        shared_put(shared_0 + 1);
}

/* 8 blocks of 3 * 7 bytes; 2 freed. */
SITE site_blocks(void) {
    for (int i = 0; i < 8; i++) {
        void *block = block_new(3, 7);
        if (i < 2)
            block_free(&block);
    }
}
/* 3 moved to 50 bytes, 1 of those then moved in vain. */
SITE site_moved(void) {
    for (int i = 0; i < 3; i++) {
        void *block = block_new(3, 7);
        block = block_move(block, 50);
        if (i == 0)
            block_move(block, 0);
    }
}

int main(void) {
    char word[16];
    printf("READY\n");
    fflush(stdout);
    if (fgets(word, sizeof word, stdin) == NULL)
        return 1;
    site_tickets();
    site_leases();
    site_slots();
    site_couples();
    site_shared();
    site_blocks();
    site_moved();
    ledger("site_tickets", "ticket", 0, 20);
    ledger("site_leases", "lease", 800, 8);
    ledger("site_slots", "slot", 0, 7);
    ledger("site_couples", "couple", 0, 7);
    ledger("site_shared", "shared", 0, 2);
    ledger("site_blocks", "block", 126, 6);
    ledger("site_moved", "block", 150, 3);
    printf("END\n");
    fflush(stdout);
    if (fgets(word, sizeof word, stdin) == NULL)
        return 1;
    return 0;
}
