// What `cargo xtask bench --attach` traces: a process that maps much text.
//
//     maps AT_LEAST AT_MOST LIBRARY [FILE...]
//
// It loads LIBRARY, then maps the executable segments of one FILE after the other (none whose text would be too much),
// until it has AT_LEAST bytes of text, and says "mapped". A line of input later it leaves a dozen objects of LLVM's behind,
// each by another function, and says "made"; LIBRARY has LLVM, or needs a library that has. It ends with its input.
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul

// Bytes of executable mappings.
static unsigned long text_bytes(void) {
    unsigned long start, end, bytes = 0;
    char line[8192], access[8];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx %7s", &start, &end, access) == 3 && access[2] == 'x') {
            bytes += end - start;
        }
    }
    if (maps) {
        fclose(maps);
    }
    return bytes;
}

// Maps the executable segments of a file at their distances from each other, where they have at most so many bytes.
static void map_text(const char *path, unsigned long at_most) {
    Elf64_Ehdr header;
    Elf64_Phdr segments[32];
    unsigned long bytes = 0, first = ~0ul, end = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return;
    }
    int is_elf = pread(fd, &header, sizeof header, 0) == sizeof header && !memcmp(header.e_ident, ELFMAG, SELFMAG);
    unsigned long count = is_elf && header.e_phnum <= 32 ? header.e_phnum : 0;
    size_t size = count * sizeof *segments;
    if (pread(fd, segments, size, header.e_phoff) != (ssize_t)size) {
        count = 0;
    }
    for (unsigned long at = 0; at < count; at++) {
        Elf64_Phdr *segment = &segments[at];
        if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_X)) {
            segment->p_type = PT_NULL;
            continue;
        }
        unsigned long before = segment->p_vaddr % PAGE;
        segment->p_vaddr -= before;
        segment->p_offset -= before;
        segment->p_filesz = (segment->p_filesz + before + PAGE - 1) & ~(PAGE - 1);
        bytes += segment->p_filesz;
        first = segment->p_vaddr < first ? segment->p_vaddr : first;
        end = segment->p_vaddr + segment->p_filesz > end ? segment->p_vaddr + segment->p_filesz : end;
    }
    if (bytes > 0 && bytes <= at_most) {
        char *base = mmap(NULL, end - first, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (unsigned long at = 0; at < count && base != MAP_FAILED; at++) {
            Elf64_Phdr *segment = &segments[at];
            if (segment->p_type == PT_LOAD) {
                mmap(base + (segment->p_vaddr - first), segment->p_filesz, PROT_READ | PROT_EXEC,
                     MAP_PRIVATE | MAP_FIXED, fd, (off_t)segment->p_offset);
            }
        }
    }
    close(fd);
}

static void *library;

static void *find(const char *name) {
    void *function = dlsym(library, name);
    if (!function) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return function;
}

// Calls a function of LLVM's C interface (llvm-c/Core.h), whose arguments and result are as said.
#define CALL(result, name, types, ...) (((result(*) types)find(#name))(__VA_ARGS__))

static void make(void) {
    void *context = CALL(void *, LLVMContextCreate, (void));
    void *module = CALL(void *, LLVMModuleCreateWithNameInContext, (const char *, void *), "module", context);
    void *builder = CALL(void *, LLVMCreateBuilderInContext, (void *), context);
    void *integer = CALL(void *, LLVMIntTypeInContext, (void *, unsigned), context, 77);
    void *array = CALL(void *, LLVMVectorType, (void *, unsigned), integer, 7);
    void *type = CALL(void *, LLVMFunctionType, (void *, void *, unsigned, int), array, &integer, 1, 0);
    void *function = CALL(void *, LLVMAddFunction, (void *, const char *, void *), module, "function", type);
    CALL(void *, LLVMStructCreateNamed, (void *, const char *), context, "structure");
    CALL(void *, LLVMAddGlobal, (void *, void *, const char *), module, array, "global");
    CALL(void *, LLVMAppendBasicBlockInContext, (void *, void *, const char *), context, function, "block");
    CALL(void *, LLVMConstStringInContext, (void *, const char *, unsigned, int), context, "a constant", 10, 0);
    CALL(void *, LLVMMDStringInContext2, (void *, const char *, size_t), context, "metadata", 8);
    CALL(void *, LLVMCreateTargetData, (const char *), "e-m:e-i64:64");
    CALL(void *, LLVMCreateDIBuilder, (void *), module);
    CALL(void *, LLVMCreatePassManager, (void));
    CALL(void, LLVMSetTarget, (void *, const char *), module, "x86_64-unknown-linux-gnu-long-enough-for-the-heap");
    (void)builder;
}

int main(int count, char **arguments) {
    char line[16];
    if (count < 4 || !(library = dlopen(arguments[3], RTLD_LAZY))) {
        fprintf(stderr, "%s\n", count < 4 ? "usage: maps AT_LEAST AT_MOST LIBRARY [FILE...]" : dlerror());
        return 1;
    }
    unsigned long at_least = strtoul(arguments[1], NULL, 10), at_most = strtoul(arguments[2], NULL, 10);
    for (int at = 4; at < count && text_bytes() < at_least; at++) {
        map_text(arguments[at], at_most - text_bytes());
    }
    puts("mapped");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        make();
        puts("made");
        fflush(stdout);
    }
    return 0;
}
