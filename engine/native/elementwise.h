/* Norms and rotations of rows, as parts of a larger piece of work. */

#pragma once

#include "threads.h"

struct norm {
    const void *rows, *weight;
    void *out; /* (num_rows, dim), contiguous; may be `rows` where these are */
    int64_t num_rows, dim, row_stride, rows_per_item;
    float epsilon;
    int dtype, is_offset;
};

struct rotation {
    const void *cosines, *sines;
    void *heads;
    int64_t num_tokens, num_heads, dim, token_stride, head_stride, angle_stride, rows_per_item;
    int dtype;
};

/* Rows of so many elements, some to an item; how many is noted in `rows_per_item`. */
struct stage rows_stage(work_item *run, void *context, int64_t num_rows, int64_t row_elements, int64_t *rows_per_item);

struct stage norm_stage(struct norm *norm);

/* `begin` to `end` - 1, as far as there are so many. */
void normalise_rows(const struct norm *norm, int64_t begin, int64_t end);
void rotate_tokens(const struct rotation *rotation, int64_t begin, int64_t end);
