/* All layers of a decoder in one call: for each its norm, its queries, keys and values, their norms and rotation, the
   new K/V into the grid, attention, and the gated layer, both added to what went in. Of the last layer only those
   tokens go on behind attention that somebody asks for.

The same stages as by themselves, in the same order and with the same rounding: what is saved is the way back to the
caller, and the waking of threads, between them. */

#include "attention.h"
#include "elementwise.h"
#include "products.h"
#include "vectors.h"
#include "write.h"

#include <stdlib.h>

enum { STAGES_PER_LAYER = 8, STAGES_AT_THE_END = 2, ALIGNMENT = 64 };

/* As the caller lays them out: addresses and numbers of 64 bits. */
struct norm_weight {
    const void *weight; /* null: there is none */
    double epsilon;
    int64_t is_offset;
};

struct layer {
    struct norm_weight input_norm, query_norm, key_norm, inner_norm;
    struct part query, key, value, output, gate, up, down; /* each `out` is filled in for a step */
    int64_t window;
    double scale, softcap;
};

struct decoder {
    int64_t num_layers, dtype, activation, width, num_heads, num_kv_heads, key_dim, value_dim, inner;
};

struct step {
    char *hidden;          /* (tokens, width): in, and out where wanted */
    char *scratch;         /* as large as `millrace_decoder_bytes` says */
    const void *cosines, *sines;
    const int64_t *cells;  /* (tokens,) */
    const struct tile *tiles, *last_tiles; /* of all tokens, and of those that are wanted, by themselves */
    const int64_t *wanted; /* of which tokens the last layer's output is asked for, ascending */
    char *const *grids;    /* keys and values of each layer */
    int64_t num_tokens, num_tiles, num_wanted, num_columns, rotary_dim, angle_stride, max_tokens;
};

/* Where the numbers between two stages lie. */
struct places {
    char *normed, *queries, *keys, *values, *attended, *between, *wanted_hidden, *wanted_attended;
};

struct heads {
    struct norm query_norm, key_norm;
    struct rotation queries, keys;
    struct write write;
    int64_t tokens_per_item;
};

struct rows {
    const char *from[2];
    char *to[2];
    const int64_t *rows;
    int64_t num_rows, row_bytes[2], rows_per_item;
    int is_gathered; /* else scattered, of the first pair */
};

struct work_of_layer {
    struct norm input_norm, inner_norm;
    struct product projections, output, gated, down;
    struct heads heads;
    struct attention attention;
};

static int64_t lay_out(const struct decoder *decoder, int64_t num_tokens, int64_t num_wanted, char *base,
                       struct places *places) {
    int64_t size = size_of((int)decoder->dtype), bytes = 0;
    int64_t heads = decoder->num_heads, kv_heads = decoder->num_kv_heads;
    struct {
        char **place;
        int64_t rows, columns;
    } parts[] = {
        {&places->normed, num_tokens, decoder->width},
        {&places->queries, num_tokens, heads * decoder->key_dim},
        {&places->keys, num_tokens, kv_heads * decoder->key_dim},
        {&places->values, num_tokens, kv_heads * decoder->value_dim},
        {&places->attended, num_tokens, heads * decoder->value_dim},
        {&places->between, num_tokens, decoder->inner},
        {&places->wanted_hidden, num_wanted, decoder->width},
        {&places->wanted_attended, num_wanted, heads * decoder->value_dim},
    };
    for (size_t index = 0; index < sizeof parts / sizeof *parts; index++) {
        *parts[index].place = base ? base + bytes : 0;
        bytes += (parts[index].rows * parts[index].columns * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    return bytes;
}

int64_t millrace_decoder_bytes(const struct decoder *decoder, int64_t num_tokens, int64_t num_wanted) {
    struct places places;
    return lay_out(decoder, num_tokens, num_wanted, 0, &places);
}

static void work_on_heads(void *context, int64_t item, void *scratch) {
    const struct heads *heads = context;
    int64_t begin = item * heads->tokens_per_item, end = begin + heads->tokens_per_item;
    (void)scratch;
    if (heads->query_norm.weight)
        normalise_rows(&heads->query_norm, begin * heads->queries.num_heads, end * heads->queries.num_heads);
    if (heads->key_norm.weight)
        normalise_rows(&heads->key_norm, begin * heads->keys.num_heads, end * heads->keys.num_heads);
    rotate_tokens(&heads->queries, begin, end);
    rotate_tokens(&heads->keys, begin, end);
    write_tokens(&heads->write, begin, end);
}

static void move_rows(void *context, int64_t item, void *scratch) {
    const struct rows *rows = context;
    int64_t begin = item * rows->rows_per_item, end = begin + rows->rows_per_item;
    (void)scratch;
    for (int64_t row = begin; row < end && row < rows->num_rows; row++)
        for (int pair = 0; pair < 2 && rows->from[pair]; pair++) {
            int64_t bytes = rows->row_bytes[pair], other = rows->rows[row];
            memcpy(rows->to[pair] + (rows->is_gathered ? row : other) * bytes,
                   rows->from[pair] + (rows->is_gathered ? other : row) * bytes, bytes);
        }
}

static struct norm norm_of(const struct decoder *decoder, const struct norm_weight *weight, const void *rows, void *out,
                           int64_t num_rows, int64_t dim) {
    return (struct norm){rows, weight->weight, out, num_rows, dim, dim, 0, (float)weight->epsilon, (int)decoder->dtype,
                         (int)weight->is_offset};
}

static struct product product_of(const struct decoder *decoder, const void *rows, int64_t num_rows, int64_t depth) {
    return (struct product){.rows = rows, .num_rows = num_rows, .depth = depth, .row_stride = depth,
                            .dtype = (int)decoder->dtype, .activation = NO_GATE};
}

static void add_part(struct product *product, const struct part *weight, void *out) {
    product->parts[product->num_parts] = *weight;
    product->parts[product->num_parts++].out = out;
}

static struct rotation rotation_of(const struct decoder *decoder, const struct step *step, void *heads,
                                   int64_t num_heads) {
    return (struct rotation){step->cosines, step->sines, heads, step->num_tokens, num_heads, step->rotary_dim,
                             num_heads * decoder->key_dim, decoder->key_dim, step->angle_stride, 0,
                             (int)decoder->dtype};
}

static struct stage heads_stage(struct heads *heads, const struct decoder *decoder, const struct layer *layer,
                                const struct step *step, const struct places *places, struct grid grid) {
    int64_t num_tokens = step->num_tokens, dim = decoder->key_dim, kv_heads = decoder->num_kv_heads;
    heads->query_norm = norm_of(decoder, &layer->query_norm, places->queries, places->queries,
                                num_tokens * decoder->num_heads, dim);
    heads->key_norm = norm_of(decoder, &layer->key_norm, places->keys, places->keys, num_tokens * kv_heads, dim);
    heads->queries = rotation_of(decoder, step, places->queries, decoder->num_heads);
    heads->keys = rotation_of(decoder, step, places->keys, kv_heads);
    heads->write = (struct write){.grid = grid, .keys = places->keys, .values = places->values, .cells = step->cells,
                                  .num_tokens = num_tokens, .key_token_stride = kv_heads * dim, .key_head_stride = dim,
                                  .value_token_stride = kv_heads * decoder->value_dim,
                                  .value_head_stride = decoder->value_dim};
    return rows_stage(work_on_heads, heads, num_tokens, (decoder->num_heads + kv_heads) * dim,
                      &heads->tokens_per_item);
}

/* The stages up to and with attention. pair: the layer's keys and values in the grid. Returns behind the last. */
static struct stage *attending(struct stage *next, struct work_of_layer *work, const struct decoder *decoder,
                               const struct layer *layer, const struct step *step, const struct places *places,
                               char *const *pair, int is_last, int64_t num_threads) {
    int64_t num_tokens = step->num_tokens, dim = decoder->key_dim;
    struct grid grid = {pair[0], pair[1], step->num_columns, decoder->num_kv_heads, dim, decoder->value_dim,
                        (int)decoder->dtype};
    int64_t group = decoder->num_heads / decoder->num_kv_heads;
    work->input_norm = norm_of(decoder, &layer->input_norm, step->hidden, places->normed, num_tokens, decoder->width);
    work->projections = product_of(decoder, places->normed, num_tokens, decoder->width);
    add_part(&work->projections, &layer->query, places->queries);
    add_part(&work->projections, &layer->key, places->keys);
    add_part(&work->projections, &layer->value, places->values);
    work->attention = (struct attention){grid, places->queries, places->attended,
                                         is_last ? step->last_tiles : step->tiles, dim, decoder->num_heads * dim, group,
                                         layer->window, (is_last ? 1 : step->max_tokens) * group, 0, 0,
                                         (float)layer->scale, (float)layer->softcap};
    *next++ = norm_stage(&work->input_norm);
    *next++ = product_stage(&work->projections, num_threads);
    *next++ = heads_stage(&work->heads, decoder, layer, step, places, grid);
    *next++ = attention_stage(&work->attention, is_last ? step->num_wanted : step->num_tiles,
                              num_threads);
    return next;
}

/* The stages behind attention, on `num_rows` rows of `attended` and `hidden`. */
static struct stage *going_on(struct stage *next, struct work_of_layer *work, const struct decoder *decoder,
                              const struct layer *layer, const struct places *places, const char *attended,
                              char *hidden, int64_t num_rows, int64_t num_threads) {
    work->output = product_of(decoder, attended, num_rows, decoder->num_heads * decoder->value_dim);
    add_part(&work->output, &layer->output, hidden);
    work->inner_norm = norm_of(decoder, &layer->inner_norm, hidden, places->normed, num_rows, decoder->width);
    work->gated = product_of(decoder, places->normed, num_rows, decoder->width);
    work->gated.activation = (int)decoder->activation;
    add_part(&work->gated, &layer->gate, places->between);
    add_part(&work->gated, &layer->up, 0);
    work->down = product_of(decoder, places->between, num_rows, decoder->inner);
    add_part(&work->down, &layer->down, hidden);
    work->output.is_added = work->down.is_added = 1;
    *next++ = product_stage(&work->output, num_threads);
    *next++ = norm_stage(&work->inner_norm);
    *next++ = product_stage(&work->gated, num_threads);
    *next++ = product_stage(&work->down, num_threads);
    return next;
}

/* Runs one step. layers: (num_layers,). Returns 0, or -1 where memory is lacking. */
int millrace_decode(const struct decoder *decoder, const struct layer *layers, const struct step *step,
                    int64_t num_threads) {
    int64_t num_layers = decoder->num_layers, size = size_of((int)decoder->dtype);
    int64_t attended_width = decoder->num_heads * decoder->value_dim;
    struct places places;
    struct stage *stages = calloc(num_layers * STAGES_PER_LAYER + STAGES_AT_THE_END, sizeof *stages), *next = stages;
    struct work_of_layer *work = calloc(num_layers, sizeof *work);
    struct rows gathered = {{step->hidden, 0}, {0}, step->wanted, step->num_wanted,
                            {decoder->width * size, attended_width * size}, 0, 1};
    struct rows scattered = {{0}, {step->hidden}, step->wanted, step->num_wanted, {decoder->width * size}, 0, 0};
    int failed = -1;
    if (!stages || !work) goto end;
    lay_out(decoder, step->num_tokens, step->num_wanted, step->scratch, &places);
    for (int64_t index = 0; index < num_layers; index++) {
        const struct layer *layer = layers + index;
        int is_last = index == num_layers - 1;
        next = attending(next, work + index, decoder, layer, step, &places, step->grids + 2 * index, is_last,
                         num_threads);
        if (!is_last) {
            next = going_on(next, work + index, decoder, layer, &places, places.attended, step->hidden,
                            step->num_tokens, num_threads);
            continue;
        }
        gathered.from[1] = places.attended, gathered.to[0] = places.wanted_hidden;
        gathered.to[1] = places.wanted_attended, scattered.from[0] = places.wanted_hidden;
        *next++ = rows_stage(move_rows, &gathered, step->num_wanted, decoder->width + attended_width,
                             &gathered.rows_per_item);
        next = going_on(next, work + index, decoder, layer, &places, places.wanted_attended, places.wanted_hidden,
                        step->num_wanted, num_threads);
        *next++ = rows_stage(move_rows, &scattered, step->num_wanted, decoder->width, &scattered.rows_per_item);
    }
    failed = run_stages(stages, next - stages, num_threads);
end:
    free(work);
    free(stages);
    return failed;
}
