// Two servers, by their names: both acquire 2 MB a second. "sound" releases all of it every 3 seconds, "leaky" never.
//
// usage: sawtooth leaky|sound    phases: READY, then for ever
#include "ledger.h"

#include <sys/prctl.h>

enum { BATCH = 100, SIZE = 1000, PAUSE_US = 50000, BATCHES = 60 };

static void *blocks[BATCHES][BATCH];

int main(int argc, char **argv) {
    CHECK(argc == 2);
    int leaks = strcmp(argv[1], "leaky") == 0;
    CHECK(prctl(PR_SET_NAME, argv[1]) == 0);
    say("READY");
    for (int batch = 0;; batch = (batch + 1) % BATCHES) {
        for (int i = 0; i < BATCHES * BATCH && batch == 0 && !leaks; i++) {
            free(blocks[i / BATCH][i % BATCH]);
            blocks[i / BATCH][i % BATCH] = NULL;
        }
        for (int i = 0; i < BATCH; i++) CHECK(blocks[batch][i] = malloc(SIZE));
        usleep(PAUSE_US);
    }
}
