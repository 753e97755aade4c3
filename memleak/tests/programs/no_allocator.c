// A program without libc and without any allocator: it waits for a signal to end it. Built with -nostdlib -static.
void _start(void) {
    for (;;) __asm__ volatile("syscall" : : "a"(34 /* pause */) : "rcx", "r11", "memory");
}
