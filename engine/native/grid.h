/* One layer's K/V as engine/kv/grid.py lays them out. */

#pragma once

#include <stdint.h>

struct grid {
    char *keys, *values; /* (rows, columns, heads, dim), contiguous */
    int64_t num_columns, num_heads, key_dim, value_dim;
    int dtype;
};
