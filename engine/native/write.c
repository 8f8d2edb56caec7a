/* The new K/V of a step into the cells of the grid. */

#include "threads.h"
#include "vectors.h"
#include "write.h"

enum { BYTES_PER_ITEM = 131072 }; /* less is not worth another thread's attention */

static void write_line(char *line, const char *from, int64_t num_heads, int64_t head_bytes, int64_t head_stride) {
    if (head_stride == head_bytes) {
        memcpy(line, from, num_heads * head_bytes);
        return;
    }
    for (int64_t head = 0; head < num_heads; head++)
        memcpy(line + head * head_bytes, from + head * head_stride, head_bytes);
}

void write_tokens(const struct write *write, int64_t begin, int64_t end) {
    const struct grid *grid = &write->grid;
    int64_t size = size_of(grid->dtype), heads = grid->num_heads;
    for (int64_t token = begin; token < end && token < write->num_tokens; token++) {
        int64_t cell = write->cells[token];
        write_line(grid->keys + cell * heads * grid->key_dim * size, write->keys + token * write->key_token_stride * size,
                   heads, grid->key_dim * size, write->key_head_stride * size);
        write_line(grid->values + cell * heads * grid->value_dim * size,
                   write->values + token * write->value_token_stride * size, heads, grid->value_dim * size,
                   write->value_head_stride * size);
    }
}

static void write_item(void *context, int64_t item, void *scratch) {
    const struct write *write = context;
    (void)scratch;
    write_tokens(write, item * write->tokens_per_item, (item + 1) * write->tokens_per_item);
}

/* keys, values: of the new tokens, any strides but the last. cells: row * columns + column of each. */
int millrace_write(void *grid_keys, void *grid_values, int64_t num_heads, int64_t key_dim, int64_t value_dim,
                   int64_t dtype, const void *keys, int64_t key_head_stride, int64_t key_token_stride,
                   const void *values, int64_t value_head_stride, int64_t value_token_stride, const int64_t *cells,
                   int64_t num_tokens, int64_t num_threads) {
    struct grid grid = {grid_keys, grid_values, 0, num_heads, key_dim, value_dim, (int)dtype};
    struct write write = {grid, keys, values, cells, num_tokens, 0,
                          key_token_stride, key_head_stride, value_token_stride, value_head_stride};
    int64_t token_bytes = num_heads * (key_dim + value_dim) * size_of((int)dtype);
    write.tokens_per_item = BYTES_PER_ITEM / token_bytes + 1;
    int64_t num_items = (num_tokens + write.tokens_per_item - 1) / write.tokens_per_item;
    return run_stage((struct stage){write_item, &write, num_items, 0}, num_threads);
}
