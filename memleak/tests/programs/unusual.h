// Sizes at which unusual_allocator's malloc does not return.
#pragma once
#include <cstddef>

enum : size_t {
    UNUSUAL_JUMP = 7777772,
    UNUSUAL_BLOCK = 7777773,
    UNUSUAL_EXIT = 7777774,
};
