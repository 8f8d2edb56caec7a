/* Products with packed weights, as parts of a larger piece of work. */

#pragma once

#include "threads.h"

enum { NO_GATE = -1, MAX_PARTS = 4 };

struct part {
    const void *weight, *bias; /* bias may be null */
    void *out;                 /* (rows, columns), contiguous */
    int64_t columns;
};

/* Rows times each part's weight. With an `activation` of two parts, the first of which is gated by it: to its `out`. */
struct product {
    struct part parts[MAX_PARTS];
    const void *rows;
    int64_t num_parts, num_rows, depth, row_stride, num_blocks, num_groups, num_threads;
    int dtype, activation;
    int is_added; /* to what is in `out`, after rounding */
};

struct stage product_stage(struct product *product, int64_t num_threads);
