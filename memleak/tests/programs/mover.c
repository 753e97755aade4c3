// Holds each of its blocks by one pointer, which moves all the time from one place to another, through a register.
//
// usage: mover   phases: READY, go; for ever
#include "ledger.h"

enum { BLOCKS = 20000, PLACES = 1 << 18 };

static void *volatile places[PLACES];

int main(void) {
    uint64_t x = 88172645463325252u;
    say("READY");
    hear();
    for (int i = 0; i < BLOCKS; i++) places[i] = malloc(100);
    say("HELD");
    for (;;) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        uint32_t from = x % PLACES, to = (x >> 32) % PLACES;
        if (places[from] != NULL && places[to] == NULL) {
            void *block = places[from];
            places[from] = NULL;
            places[to] = block;
        }
    }
}
