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

int main(int argc, char **argv) {
    (void)argv;
    return (int)large((Word)argc + 10);
}
