/* The new K/V of a step into the cells of the grid, as a part of a larger piece of work. */

#pragma once

#include "grid.h"

struct write {
    struct grid grid;
    const char *keys, *values; /* any strides but the last, in numbers */
    const int64_t *cells;
    int64_t num_tokens, tokens_per_item;
    int64_t key_token_stride, key_head_stride, value_token_stride, value_head_stride;
};

/* Tokens `begin` to `end` - 1, as far as there are so many. */
void write_tokens(const struct write *write, int64_t begin, int64_t end);
