// A program that holds what an allocator would print, and not the allocator: WORDS.
#include <stdio.h>

int main(void) {
    static const char *volatile words = WORDS;
    return puts(words) < 0;
}
