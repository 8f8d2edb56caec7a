/* Normalisation, gated activation and rotary embedding, each in one pass over memory.

Sums and functions are float32; results are rounded where transformers rounds them, so that they are the same. */

#include <math.h>

#include "activation.h"
#include "elementwise.h"
#include "vectors.h"

enum { ELEMENTS_PER_ITEM = 16384 }; /* some microseconds: less is not worth another thread's attention */

struct stage rows_stage(work_item *run, void *context, int64_t num_rows, int64_t row_elements,
                        int64_t *rows_per_item) {
    int64_t rows = ELEMENTS_PER_ITEM / (row_elements ? row_elements : 1);
    *rows_per_item = rows > 0 ? rows : 1;
    return (struct stage){run, context, (num_rows + *rows_per_item - 1) / *rows_per_item, 0};
}

/* ---- RMS norm ---- */

INLINE void normalise_row(const struct norm *norm, int64_t row, const int dtype, const int is_offset) {
    const void *from = at(norm->rows, row * norm->row_stride, dtype);
    void *to = (char *)norm->out + row * norm->dim * size_of(dtype);
    vfloat squares[4] = {0};
    int64_t column = 0;
    for (; column + 4 * LANES <= norm->dim; column += 4 * LANES)
        for (int part = 0; part < 4; part++) {
            vfloat x = load(from, column + part * LANES, dtype);
            squares[part] += x * x;
        }
    for (; column < norm->dim; column += LANES) {
        vfloat x = load_some(from, column, norm->dim - column, dtype);
        squares[0] += x * x;
    }
    float total = sum_of((squares[0] + squares[1]) + (squares[2] + squares[3]));
    float factor = 1.0f / sqrtf(total / (float)norm->dim + norm->epsilon);
    for (column = 0; column < norm->dim; column += LANES) {
        int64_t left = norm->dim - column;
        vfloat x = load_some(from, column, left, dtype) * factor;
        vfloat weight = load_some(norm->weight, column, left, dtype);
        store_some(to, column, left, is_offset ? x * (1.0f + weight) : rounded(x, dtype) * weight, dtype);
    }
}

void normalise_rows(const struct norm *norm, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end && row < norm->num_rows; row++) {
        if (norm->dtype == FLOAT32)
            norm->is_offset ? normalise_row(norm, row, FLOAT32, 1) : normalise_row(norm, row, FLOAT32, 0);
        else
            norm->is_offset ? normalise_row(norm, row, BFLOAT16, 1) : normalise_row(norm, row, BFLOAT16, 0);
    }
}

static void normalise_item(void *context, int64_t item, void *scratch) {
    const struct norm *norm = context;
    (void)scratch;
    normalise_rows(norm, item * norm->rows_per_item, (item + 1) * norm->rows_per_item);
}

struct stage norm_stage(struct norm *norm) {
    return rows_stage(normalise_item, norm, norm->num_rows, norm->dim, &norm->rows_per_item);
}

/* out = weight * round(x / sqrt(mean(x²) + epsilon)), or with `is_offset` (1 + weight) times it, rounded once. */
int millrace_rms_norm(const void *rows, const void *weight, void *out, int64_t num_rows, int64_t dim,
                      int64_t row_stride, double epsilon, int64_t dtype, int64_t is_offset, int64_t num_threads) {
    struct norm norm = {rows, weight, out, num_rows, dim, row_stride, 0, (float)epsilon, (int)dtype, (int)is_offset};
    return run_stage(norm_stage(&norm), num_threads);
}

/* ---- gated activation ---- */

struct gate {
    const void *gate, *up;
    void *out;
    int64_t num_rows, dim, gate_stride, up_stride, rows_per_item;
    int dtype, activation;
};

INLINE void gate_row(const struct gate *gate, int64_t row, const int dtype, const int activation) {
    const void *gates = at(gate->gate, row * gate->gate_stride, dtype);
    const void *ups = at(gate->up, row * gate->up_stride, dtype);
    void *to = (char *)gate->out + row * gate->dim * size_of(dtype);
    int64_t column = 0;
    for (; column + LANES <= gate->dim; column += LANES) {
        vfloat value = rounded(activated(load(gates, column, dtype), activation), dtype);
        store(to, column, value * load(ups, column, dtype), dtype);
    }
    if (column < gate->dim) {
        int64_t left = gate->dim - column;
        vfloat value = rounded(activated(load_part(gates, column, left, dtype), activation), dtype);
        store_part(to, column, left, value * load_part(ups, column, left, dtype), dtype);
    }
}

static void gate_rows(void *context, int64_t item, void *scratch) {
    const struct gate *gate = context;
    int64_t begin = item * gate->rows_per_item, end = begin + gate->rows_per_item;
    (void)scratch;
    for (int64_t row = begin; row < end && row < gate->num_rows; row++) {
        if (gate->dtype == FLOAT32)
            gate->activation == SILU ? gate_row(gate, row, FLOAT32, SILU) : gate_row(gate, row, FLOAT32, GELU_TANH);
        else
            gate->activation == SILU ? gate_row(gate, row, BFLOAT16, SILU) : gate_row(gate, row, BFLOAT16, GELU_TANH);
    }
}

/* out = round(activation(gate)) * up. */
int millrace_gated(const void *gates, const void *ups, void *out, int64_t num_rows, int64_t dim, int64_t gate_stride,
                   int64_t up_stride, int64_t dtype, int64_t activation, int64_t num_threads) {
    struct gate gate = {gates, ups, out, num_rows, dim, gate_stride, up_stride, 0, (int)dtype, (int)activation};
    return run_stage(rows_stage(gate_rows, &gate, num_rows, dim, &gate.rows_per_item), num_threads);
}

/* ---- rotary embedding ---- */

/* x * cos + rotate_half(x) * sin, every product and the sum rounded, in place. */
INLINE void rotate_head(const struct rotation *rotation, void *head, const void *cosines, const void *sines,
                        const int dtype) {
    int64_t half = rotation->dim / 2;
    for (int64_t column = 0; column < half; column += LANES) {
        int64_t left = half - column;
        vfloat low = load_some(head, column, left, dtype), high = load_some(head, half + column, left, dtype);
        vfloat cos_low = load_some(cosines, column, left, dtype), sin_low = load_some(sines, column, left, dtype);
        vfloat cos_high = load_some(cosines, half + column, left, dtype);
        vfloat sin_high = load_some(sines, half + column, left, dtype);
        store_some(head, column, left, rounded(low * cos_low, dtype) - rounded(high * sin_low, dtype), dtype);
        store_some(head, half + column, left, rounded(high * cos_high, dtype) + rounded(low * sin_high, dtype), dtype);
    }
}

void rotate_tokens(const struct rotation *rotation, int64_t begin, int64_t end) {
    int dtype = rotation->dtype;
    for (int64_t token = begin; token < end && token < rotation->num_tokens; token++) {
        const void *cosines = at(rotation->cosines, token * rotation->angle_stride, dtype);
        const void *sines = at(rotation->sines, token * rotation->angle_stride, dtype);
        for (int64_t head = 0; head < rotation->num_heads; head++) {
            int64_t offset = token * rotation->token_stride + head * rotation->head_stride;
            void *place = (char *)rotation->heads + offset * size_of(dtype);
            if (dtype == FLOAT32)
                rotate_head(rotation, place, cosines, sines, FLOAT32);
            else
                rotate_head(rotation, place, cosines, sines, BFLOAT16);
        }
    }
}

static void rotate_item(void *context, int64_t item, void *scratch) {
    const struct rotation *rotation = context;
    (void)scratch;
    rotate_tokens(rotation, item * rotation->rows_per_item, (item + 1) * rotation->rows_per_item);
}

int millrace_rotate(void *heads, const void *cosines, const void *sines, int64_t num_tokens, int64_t num_heads,
                    int64_t dim, int64_t token_stride, int64_t head_stride, int64_t angle_stride, int64_t dtype,
                    int64_t num_threads) {
    struct rotation rotation = {cosines,      sines,       heads,        num_tokens, num_heads, dim,
                                token_stride, head_stride, angle_stride, 0,          (int)dtype};
    return run_stage(rows_stage(rotate_item, &rotation, num_tokens, num_heads * dim, &rotation.rows_per_item),
                     num_threads);
}
