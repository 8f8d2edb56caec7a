/* Attention over the grid, as a part of a larger piece of work. */

#pragma once

#include "grid.h"
#include "threads.h"

/* As the caller lays it out: int64 numbers, one line per tile. */
struct tile {
    int64_t begin, num_tokens; /* of the packed row */
    int64_t row, start;        /* of the grid: the tile's first token lies in this row and column */
};

struct attention {
    struct grid grid;
    const char *queries; /* strides in numbers */
    char *out;           /* (tokens, heads, value_dim), contiguous */
    const struct tile *tiles;
    int64_t query_head_stride, query_token_stride;
    int64_t group;    /* query heads that share a KV head */
    int64_t window;   /* columns that a token sees, itself included; 0 for all */
    int64_t max_rows; /* tokens of the largest tile, times `group` */
    int64_t num_items, num_threads;
    float scale, softcap; /* no cap where it is 0 */
};

struct stage attention_stage(struct attention *attention, int64_t num_tiles, int64_t num_threads);
