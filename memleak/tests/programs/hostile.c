// Leaks ten blocks of 100 bytes through a function of its own, or of a library that is given: the files of both are made
// hostile by the tests. With -DLIBRARY it is that library.
//
// usage: hostile [LIBRARY | maps N]     phases: READY, go, DONE, end
#include <stdlib.h>

__attribute__((noipa)) void *hostile_leak(size_t size) {
    void *volatile block = malloc(size);
    return block;
}

#ifndef LIBRARY
#include <dlfcn.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void say(const char *line) {
    if (write(1, line, strlen(line)) < 0) _exit(3);
}

static void wait_for_line(void) {
    char byte = 0;
    while (byte != '\n')
        if (read(0, &byte, 1) != 1) _exit(0);
}

// Maps the program's own first page again and again, executable and not in turn: none is joined with its neighbour.
static void map_often(long count) {
    int file = open("/proc/self/exe", O_RDONLY);
    for (long i = 0; i < count; i++)
        mmap(NULL, 4096, i % 2 ? PROT_READ : PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
    close(file);
}

int main(int argc, char **argv) {
    void *(*leak)(size_t) = hostile_leak;
    say("READY\n");
    wait_for_line();
    if (argc > 2) {
        map_often(atol(argv[2]));
    } else if (argc > 1) {
        void *library = dlopen(argv[1], RTLD_NOW);
        if (library == NULL) {
            say(dlerror());
            return 2;
        }
        leak = (void *(*)(size_t))dlsym(library, "hostile_leak");
    }
    for (int i = 0; i < 10; i++) leak(100);
    say("DONE\n");
    wait_for_line();
    return 0;
}
#endif
