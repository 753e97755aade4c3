// Leaks when it is loaded, and twice when it is asked to.
#include <stdlib.h>

void keep(size_t size);

void *volatile plugin_sink;

__attribute__((constructor)) static void plugin_starts(void) {
    keep(16);
    plugin_sink = 0;
}

__attribute__((noinline, noclone)) void plugin_leak(void) {
    keep(24);
    plugin_sink = &plugin_sink;
    keep(40);
    plugin_sink = 0;
}
