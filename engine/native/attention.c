/* Attention of a packed step over the K/V grid.

A tile is a few neighbouring tokens of one sequence; an item is a tile under one KV head, with all query heads that share
it, so that K/V are read once for all of them. Columns go by in strips; scores are float32, and the softmax runs along
(Milakov & Gimelshein 2018; Dao et al. 2022). Only columns that the tile may see are read: no padding, no mask in memory,
nothing of other sequences. */

#include "attention.h"
#include "strips.h"

static int64_t whole_vectors(int64_t dim) { return (dim + LANES - 1) / LANES * LANES; }

static int64_t floats_of(const struct attention *attention, struct work *work, float *base) {
    int64_t rows = attention->max_rows, width = whole_vectors(attention->grid.value_dim);
    int64_t key_width = whole_vectors(attention->grid.key_dim);
    float *next = base;
    work->width = width;
    work->queries = next, next += rows * key_width;
    work->keys = next, next += key_width * STRIP;
    work->values = next, next += STRIP * width;
    work->scores = next, next += rows * STRIP;
    work->sums = next, next += rows * width;
    work->totals = next, next += rows * LANES;
    work->largest = next, next += rows;
    return next - base;
}

/* Scores to weights relative to the largest score so far; returns what earlier sums must be multiplied with.
   The columns that the row may see are `first` to `end` - 1 of the strip; `count` columns hold something. */
INLINE float soften(const struct attention *attention, struct work *work, int64_t row, int64_t first, int64_t end,
                    int64_t count) {
    float *scores = work->scores + row * STRIP;
    vint lanes;
    vfloat best = splat(-__builtin_inff()), sum = {0};
    int is_whole = first <= 0 && end >= count && count % LANES == 0;
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = lane;
    for (int64_t column = 0; column < count; column += LANES) {
        vfloat *place = (vfloat *)(scores + column), score = *place * attention->scale;
        if (attention->softcap > 0) score = hyperbolic_tangent(score / attention->softcap) * attention->softcap;
        if (!is_whole) {
            vint is_seen = (lanes + (int32_t)column >= (int32_t)first) & (lanes + (int32_t)column < (int32_t)end);
            score = choose(is_seen, score, splat(-__builtin_inff()));
        }
        *place = score;
        best = at_least(best, score);
    }
    float before = work->largest[row], now = largest_of(best);
    now = now > before ? now : before; /* a NaN fails the comparison and shows in the exponentials */
    float base = now == -__builtin_inff() ? 0.0f : now;
    for (int64_t column = 0; column < count; column += LANES) {
        vfloat *place = (vfloat *)(scores + column), score = *place;
        vfloat weight = exponential(score - base);
        if (!is_whole) weight = choose(score == -__builtin_inff(), splat(0.0f), weight);
        *place = weight;
        sum += weight;
    }
    float factor = now == before ? 1.0f : before == -__builtin_inff() ? 0.0f : exponential(splat(before - now))[0];
    vfloat *total = (vfloat *)(work->totals + row * LANES);
    *total = *total * factor + sum;
    work->largest[row] = now;
    return factor;
}

static int64_t first_strip(const struct attention *attention, const struct tile *tile) {
    return attention->window && tile->start + 1 > attention->window ? tile->start + 1 - attention->window : 0;
}

/* Where the columns of a tile's strip lie, under one KV head. */
INLINE void look_ahead(const struct attention *attention, const struct tile *tile, int64_t head, int64_t strip,
                       struct ahead *keys, struct ahead *values, int64_t size) {
    const struct grid *grid = &attention->grid;
    int64_t end = tile->start + tile->num_tokens, cell = tile->row * grid->num_columns + strip;
    keys->distance = grid->num_heads * grid->key_dim * size;
    values->distance = grid->num_heads * grid->value_dim * size;
    keys->lines = grid->keys + cell * keys->distance + head * grid->key_dim * size;
    values->lines = grid->values + cell * values->distance + head * grid->value_dim * size;
    keys->count = values->count = end - strip < STRIP ? end - strip : STRIP;
}

INLINE void take_strip(const struct attention *attention, struct work *work, const struct tile *tile, int64_t head,
                       int64_t strip, int64_t end, const struct ahead *keys_ahead, const struct ahead *values_ahead,
                       const int dtype) {
    const struct grid *grid = &attention->grid;
    const struct ahead nothing = {0};
    int64_t count = end - strip < STRIP ? end - strip : STRIP;
    int64_t size = size_of(dtype), cell = tile->row * grid->num_columns + strip;
    int64_t key_distance = grid->num_heads * grid->key_dim * size;
    int64_t value_distance = grid->num_heads * grid->value_dim * size;
    const char *keys = grid->keys + cell * key_distance + head * grid->key_dim * size;
    const char *values = grid->values + cell * value_distance + head * grid->value_dim * size;
    int64_t rows = tile->num_tokens * attention->group;
    for (int64_t column = 0; column < count; column += LANES)
        turn_keys(keys + column * key_distance, key_distance, count - column, grid->key_dim, work->keys + column, dtype);
    struct lines lines = {values, grid->num_heads * grid->value_dim, count, dtype};
    if (rows > ROWS || grid->value_dim % LANES) spread_values(&lines, grid->value_dim, work, dtype);
    for (int64_t row = 0; row < rows; row += ROWS) {
        int64_t block = rows - row < ROWS ? rows - row : ROWS;
        int64_t last_seen = tile->start + (row + block - 1) / attention->group;
        int64_t first_seen = attention->window ? tile->start + row / attention->group + 1 - attention->window : 0;
        if (last_seen < strip || first_seen >= strip + count) continue;
        float factors[ROWS];
        score_rows(work, row, block, grid->key_dim, count, keys_ahead, grid->key_dim * size);
        for (int64_t index = 0; index < block; index++) {
            int64_t position = tile->start + (row + index) / attention->group;
            int64_t first = attention->window ? position + 1 - attention->window - strip : 0;
            factors[index] = soften(attention, work, row + index, first, position + 1 - strip, count);
        }
        sum_rows(work, row, block, factors, &lines, values_ahead, size);
        keys_ahead = values_ahead = &nothing;
    }
}

INLINE void begin_tile(const struct attention *attention, struct work *work, const struct tile *tile, int64_t head,
                       const int dtype) {
    int64_t group = attention->group, dim = attention->grid.key_dim, size = size_of(dtype);
    for (int64_t row = 0; row < tile->num_tokens * group; row++) {
        const char *query = attention->queries + (tile->begin + row / group) * attention->query_token_stride * size +
                            (head * group + row % group) * attention->query_head_stride * size;
        float *to = work->queries + row * dim;
        for (int64_t index = 0; index < dim; index += LANES)
            store_some(to, index, dim - index, load_some(query, index, dim - index, dtype), FLOAT32);
        for (int64_t index = 0; index < work->width; index += LANES)
            *(vfloat *)(work->sums + row * work->width + index) = (vfloat){0};
        *(vfloat *)(work->totals + row * LANES) = (vfloat){0};
        work->largest[row] = -__builtin_inff();
    }
}

INLINE void end_tile(const struct attention *attention, struct work *work, const struct tile *tile, int64_t head,
                     const int dtype) {
    int64_t group = attention->group, dim = attention->grid.value_dim, heads = attention->grid.num_heads * group;
    for (int64_t row = 0; row < tile->num_tokens * group; row++) {
        int64_t line = ((tile->begin + row / group) * heads + head * group + row % group) * dim;
        float factor = 1.0f / sum_of(*(vfloat *)(work->totals + row * LANES));
        for (int64_t index = 0; index < dim; index += LANES)
            store_some(attention->out, line + index, dim - index,
                       *(vfloat *)(work->sums + row * work->width + index) * factor, dtype);
    }
}

INLINE void attend_tile(const struct attention *attention, struct work *work, int64_t item, const int dtype) {
    const struct tile *tile = attention->tiles + item / attention->grid.num_heads;
    int64_t head = item % attention->grid.num_heads;
    int64_t end = tile->start + tile->num_tokens, next = item + attention->num_threads; /* probably this thread's */
    begin_tile(attention, work, tile, head, dtype);
    for (int64_t strip = first_strip(attention, tile); strip < end; strip += STRIP) {
        struct ahead keys = {0}, values = {0};
        if (strip + STRIP < end)
            look_ahead(attention, tile, head, strip + STRIP, &keys, &values, size_of(dtype));
        else if (next < attention->num_items) {
            const struct tile *other = attention->tiles + next / attention->grid.num_heads;
            look_ahead(attention, other, next % attention->grid.num_heads, first_strip(attention, other), &keys, &values,
                       size_of(dtype));
        }
        take_strip(attention, work, tile, head, strip, end, &keys, &values, dtype);
    }
    end_tile(attention, work, tile, head, dtype);
}

static void attend_item(void *context, int64_t item, void *scratch) {
    const struct attention *attention = context;
    struct work work;
    floats_of(attention, &work, scratch);
    if (attention->grid.dtype == FLOAT32)
        attend_tile(attention, &work, item, FLOAT32);
    else
        attend_tile(attention, &work, item, BFLOAT16);
}

struct stage attention_stage(struct attention *attention, int64_t num_tiles, int64_t num_threads) {
    struct work work;
    attention->num_items = num_tiles * attention->grid.num_heads;
    attention->num_threads = num_threads;
    int64_t scratch_bytes = floats_of(attention, &work, 0) * (int64_t)sizeof(float);
    return (struct stage){attend_item, attention, attention->num_items, scratch_bytes};
}

/* window: columns that a token sees, itself included; 0 for all. softcap: 0 for none.
   tiles: (num_tiles, 4) int64, see `struct tile`, of at most `max_tokens` tokens each. */
int millrace_attend(void *grid_keys, void *grid_values, int64_t num_columns, int64_t num_kv_heads, int64_t key_dim,
                    int64_t value_dim, int64_t dtype, const void *queries, int64_t num_heads, int64_t query_head_stride,
                    int64_t query_token_stride, void *out, const void *tiles, int64_t num_tiles, int64_t max_tokens,
                    int64_t window, double scale, double softcap, int64_t num_threads) {
    struct grid grid = {grid_keys, grid_values, num_columns, num_kv_heads, key_dim, value_dim, (int)dtype};
    int64_t group = num_heads / num_kv_heads;
    struct attention attention = {grid, queries, out, tiles, query_head_stride, query_token_stride, group, window,
                                  max_tokens * group, 0, 0, (float)scale, (float)softcap};
    return run_stage(attention_stage(&attention, num_tiles, num_threads), num_threads);
}
