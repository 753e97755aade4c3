// Loads a plugin, has it leak, and unloads it, again and again. The plugin leaks through this program's own function, so
// that a stack has frames of both.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

void *volatile kept;

__attribute__((noinline, noclone)) void keep(size_t size) {
    kept = malloc(size);
    __asm__ volatile("" ::: "memory");
}

int main(int count, char **arguments) {
    char line[16];
    if (count < 3 || !fgets(line, sizeof line, stdin)) return 1;
    for (int round = atoi(arguments[2]); round > 0; round--) {
        void *plugin = dlopen(arguments[1], RTLD_NOW);
        if (!plugin) return 2;
        ((void (*)(void))dlsym(plugin, "plugin_leak"))();
        dlclose(plugin);
    }
    puts("done");
    fflush(stdout);
    return fgets(line, sizeof line, stdin) ? 0 : 0;
}
