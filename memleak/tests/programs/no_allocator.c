// A program without libc and without any allocator: it waits for a signal to end it. Built with -nostdlib -static.
void _start(void) {
#if defined(__aarch64__)
    register long number __asm__("x8") = 73; // ppoll
    for (;;)
        __asm__ volatile("mov x0, #0\n\t"
                         "mov x1, #0\n\t"
                         "mov x2, #0\n\t"
                         "mov x3, #0\n\t"
                         "svc #0"
                         :
                         : "r"(number)
                         : "x0", "x1", "x2", "x3", "memory");
#else
    for (;;) __asm__ volatile("syscall" : : "a"(34 /* pause */) : "rcx", "r11", "memory");
#endif
}
