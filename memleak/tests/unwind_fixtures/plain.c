// C for compilers that have no C++ library at hand (musl-gcc, clang for another machine): frames of several sizes.
typedef unsigned long Word;
extern void *malloc(Word size);
volatile Word sink;

__attribute__((noinline)) Word leaf(Word value) {
    return value * 3 + sink;
}

__attribute__((noinline)) Word many_arguments(Word a, Word b, Word c, Word d, Word e, Word f, Word g, Word h, Word i) {
    Word array[40];
    for (int at = 0; at < 40; at++) array[at] = leaf(a + at) ^ i;
    sink = array[b & 31] + c + d + e + f + g + h;
    return (Word)malloc(array[3] & 255) + leaf(array[5]);
}

__attribute__((noinline)) Word variable(Word size) {
    char bytes[size];
    for (Word at = 0; at < size; at++) bytes[at] = (char)leaf(at);
    return bytes[size / 2] + many_arguments(1, 2, 3, 4, 5, 6, 7, 8, size);
}

__attribute__((noinline)) Word large(Word size) {
    volatile char bytes[40000];
    bytes[size] = 1;
    return variable(size) + bytes[size];
}

#if defined(__aarch64__)
// As gcc makes it with -fomit-frame-pointer: x19 and x20 at the bottom of a large frame, then x30 alone.
__asm__(".type large_by_gcc, %function\n"
        "large_by_gcc:\n"
        ".cfi_startproc\n"
        "sub sp, sp, #175, lsl #12\n"
        ".cfi_def_cfa_offset 716800\n"
        "stp x19, x20, [sp]\n"
        ".cfi_offset 19, -716800\n"
        ".cfi_offset 20, -716792\n"
        "str x30, [sp, 16]\n"
        ".cfi_offset 30, -716784\n"
        "bl leaf\n"
        "ldr x30, [sp, 16]\n"
        ".cfi_restore 30\n"
        "ldp x19, x20, [sp]\n"
        ".cfi_restore 19\n"
        ".cfi_restore 20\n"
        "add sp, sp, #175, lsl #12\n"
        ".cfi_def_cfa_offset 0\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size large_by_gcc, .-large_by_gcc\n"
        // As clang makes it: x29 and x30 apart from each other, here also below arguments on the stack.
        ".type apart, %function\n"
        "apart:\n"
        ".cfi_startproc\n"
        "str x29, [sp, #-32]!\n"
        ".cfi_def_cfa_offset 32\n"
        ".cfi_offset 29, -32\n"
        "stp x30, x19, [sp, 16]\n"
        ".cfi_offset 19, -8\n"
        ".cfi_offset 30, -16\n"
        "sub sp, sp, #175, lsl #12\n"
        ".cfi_def_cfa_offset 716832\n"
        "bl leaf\n"
        "add sp, sp, #175, lsl #12\n"
        ".cfi_def_cfa_offset 32\n"
        "ldp x30, x19, [sp, 16]\n"
        "ldr x29, [sp], 32\n"
        ".cfi_def_cfa_offset 0\n"
        ".cfi_restore 19\n"
        ".cfi_restore 29\n"
        ".cfi_restore 30\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size apart, .-apart\n"
        // Both at the bottom of a large frame, x30 first; and with what is out of a row's reach.
        ".type apart_below, %function\n"
        "apart_below:\n"
        ".cfi_startproc\n"
        "sub sp, sp, #175, lsl #12\n"
        ".cfi_def_cfa_offset 716800\n"
        "str x30, [sp, 8]\n"
        ".cfi_offset 30, -716792\n"
        "str x29, [sp, 40]\n"
        ".cfi_offset 29, -716760\n"
        "bl leaf\n"
        "str x29, [sp, 4096]\n"
        ".cfi_offset 29, -712704\n"
        "ldr x30, [sp, 8]\n"
        ".cfi_restore 29\n"
        ".cfi_restore 30\n"
        "add sp, sp, #175, lsl #12\n"
        ".cfi_def_cfa_offset 0\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size apart_below, .-apart_below\n"
        // A signal handler's way back without unwind information, as in the vdso and in musl.
        "nop\n"
        ".globl restore\n"
        ".type restore, %function\n"
        "restore:\n"
        "mov x8, #139\n"
        "svc #0\n"
        ".size restore, .-restore\n"
        "nop\n");
#endif

int main(int argc, char **argv) {
    (void)argv;
    return (int)large((Word)argc + 10);
}
