// Leaks ten blocks of 100 bytes through a function of its own, or of a library that is given: the files of both are made
// hostile by the tests. With -DLIBRARY it is that library.
//
// usage: hostile [LIBRARY | maps N | generated]     phases: READY, go, DONE, end
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
#include <sys/syscall.h>
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

// Calls `leak(100)` and returns what it returns, with a frame pointer.
#if defined(__x86_64__)
static const unsigned char call_leak[] = {
    0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0xf8, 0xbf, 100, 0, 0, 0, 0xff, 0xd0, 0x5d, 0xc3,
};
#elif defined(__aarch64__)
static const unsigned call_leak[] = {
    0xa9bf7bfd, 0x910003fd, 0xaa0003e1, 0xd2800c80, 0xd63f0020, 0xa8c17bfd, 0xd65f03c0,
};
#endif

static void *(*generated)(void *(*leak)(size_t));

static void *leak_from_generated_code(size_t size) {
    (void)size;
    return generated(hostile_leak);
}

// Writes code to memory of no file, as a just-in-time compiler does.
static void generate(void) {
    // By no function that is probed.
    void *page = (void *)syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(page, call_leak, sizeof call_leak);
    mprotect(page, 4096, PROT_READ | PROT_EXEC);
    __builtin___clear_cache((char *)page, (char *)page + 4096);
    generated = (void *(*)(void *(*)(size_t)))page;
}

int main(int argc, char **argv) {
    void *(*leak)(size_t) = hostile_leak;
    say("READY\n");
    wait_for_line();
    if (argc > 2) {
        map_often(atol(argv[2]));
    } else if (argc > 1 && strcmp(argv[1], "generated") == 0) {
        generate();
        leak = leak_from_generated_code;
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
