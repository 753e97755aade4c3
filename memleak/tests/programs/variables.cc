// Blocks that variables hold: of data, and of memory that begins as zero and is more than a page.
// Prints READY and waits.
#include <cstdio>
#include <cstdlib>

#include <unistd.h>

struct Server {
    char before[100000];
    void *clients;
    char after[1 << 20];
};
Server server;
struct Settings {
    long magic;
    void *loaded;
};
Settings settings = {77, nullptr};

int main() {
    server.clients = std::malloc(30001);
    settings.loaded = std::malloc(30011);
    std::puts("READY");
    std::fflush(stdout);
    for (;;) pause();
}
