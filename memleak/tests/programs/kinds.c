/* Sites of each kind, which a tracer is to tell apart: a slow leak, a queue that only grows, one that
 * piles up, a cache, a pool, what is made once, a ring buffer, a queue that drains, and temporary blocks. Runs until it
 * is killed. */
#include <stdlib.h>
#include <unistd.h>

enum { DELAY = 64, CACHE = 512, POOL = 128, RING = 256, QUEUE = 4096 };

#define SITE __attribute__((noinline, noclone))

static void *delayed[DELAY], *cache[CACHE], *pool[POOL], *ring[RING], *queue[QUEUE];
static void *volatile single;
static int queued;

/* One in 1,000 is forgotten; the others are freed after some milliseconds. */
SITE static void leaks_slowly(long i)
{
    void **slot = &delayed[i % DELAY];
    if (i % 1000 != 7)
        free(*slot);
    *slot = malloc(48);
}

struct node {
    struct node *next;
    char data[56];
};
static struct node *list;

SITE static void only_grows(void)
{
    struct node *node = malloc(sizeof(*node));
    node->next = list;
    list = node;
}

/* Takes in two for each that it gives out, the oldest first. */
SITE static void piles_up(long i)
{
    static struct node *oldest, *newest;
    struct node *node = malloc(sizeof(*node) + 16);
    node->next = NULL;
    if (newest)
        newest->next = node;
    else
        oldest = node;
    newest = node;
    if (i % 2 == 1) {
        struct node *given_out = oldest;
        oldest = oldest->next;
        free(given_out);
    }
}

SITE static void fills_a_cache(long i)
{
    if (i < CACHE)
        cache[i] = malloc(200);
}

/* Many come back, some stay. */
SITE static void *pool_block(void)
{
    return malloc(320);
}

static void uses_a_pool(long tick)
{
    if (tick == 0)
        for (int i = 0; i < POOL; i++)
            pool[i] = pool_block();
    free(pool_block());
}

SITE static void is_made_once(void)
{
    single = malloc(1000);
}

SITE static void goes_round(long i)
{
    void **slot = &ring[i % RING];
    free(*slot);
    *slot = malloc(72);
}

/* Grows for some seconds, and drains. */
SITE static void queues(long tick)
{
    if (tick % 2500 == 2499) {
        while (queued > 0)
            free(queue[--queued]);
        return;
    }
    if (queued < QUEUE)
        queue[queued++] = malloc(88);
}

SITE static void is_temporary(void)
{
    static void *last;
    for (int i = 0; i < 20; i++) {
        void *next = malloc(24);
        free(last);
        last = next;
    }
}

int main(void)
{
    is_made_once();
    for (long tick = 0;; tick++) {
        for (int i = 0; i < 8; i++)
            leaks_slowly(tick * 8 + i);
        if (tick % 20 == 0)
            only_grows();
        if (tick % 10 == 0)
            piles_up(tick / 10);
        fills_a_cache(tick);
        uses_a_pool(tick);
        goes_round(tick);
        queues(tick);
        is_temporary();
        usleep(800);
    }
}
