/* Products of rows with packed weights: linear layers, several with the same input at once, and gated pairs of them.

A weight of n columns and depth k lies in panels of `LANES` columns, each as deep as the whole product: float32 as
(k, LANES), bfloat16 as (k / 2, LANES, 2). A tile of some rows by two panels keeps its sums in registers from the first
to the last k, so that the panels are read once in order and nothing is written but the result. Rows are not packed:
blocks of them stay in the second level cache. Sums are float32; bfloat16 is multiplied by the machine's own
instruction where it has one. */

#include "activation.h"
#include "products.h"
#include "vectors.h"

#if defined(__AVX512F__) || defined(__aarch64__)
#define TILE_ROWS 12 /* 24 of 32 registers hold sums */
#else
#define TILE_ROWS 6 /* 12 of 16 */
#endif

enum { BLOCK_BYTES = 384 << 10, ITEMS_PER_THREAD = 3, LINES_AHEAD = 64, LINE_BYTES = 64, NEXT_PANEL_BYTES = 64 << 10 };

INLINE int64_t panels_of(int64_t columns) { return (columns + LANES - 1) / LANES; }

/* Of 16 columns a step of k is one cache line, in float32 and, by pairs of k, in bfloat16. */
INLINE const void *panel(const struct product *product, const struct part *part, int64_t index) {
    return at(part->weight, index * LANES * product->depth, product->dtype);
}

#define ROWS_OF_TILE _Pragma("GCC unroll 12") for (int row = 0; row < num_rows; row++)

/* Lines of two panels that will be wanted later, to be brought into the second level cache: one of each every so many
   steps, so that memory works as evenly as the sums do. */
struct ahead {
    const char *left, *right;
    int64_t every;
};

#define FETCH_AHEAD                            \
    if (!--until) {                            \
        __builtin_prefetch(ahead.left, 0, 2);  \
        __builtin_prefetch(ahead.right, 0, 2); \
        ahead.left += LINE_BYTES;              \
        ahead.right += LINE_BYTES;             \
        until = ahead.every;                   \
    }

/* Every third row's address in a register of its own, with the distance of rows in another, reaches all twelve. Left to
   itself the compiler keeps twelve distances, more than there are registers; hence the empty `asm`. */
#define ADDRESSES(type)                                                            \
    const char *thirds[4];                                                         \
    for (int third = 0; third < 4; third++)                                        \
        thirds[third] = (const char *)(rows + (3 * third < num_rows ? 3 * third : 0) * stride); \
    stride *= sizeof(type)
#define ADDRESS(row) (thirds[(row) / 3] + (row) % 3 * stride)
#define NEXT_COLUMNS(bytes)                                          \
    for (int third = 0; third < 4; third++) {                        \
        thirds[third] += bytes;                                      \
        __asm__("" : "+r"(thirds[third]));                           \
    }

INLINE void add_float32(vfloat (*sums)[2], int num_rows, const float *rows, int64_t stride, const float *left,
                        const float *right, int64_t depth, struct ahead ahead) {
    int64_t until = ahead.every;
    ADDRESSES(float);
    for (int64_t k = 0; k < depth; k++) {
        vfloat b0 = *(const vfloat *)(left + k * LANES), b1 = *(const vfloat *)(right + k * LANES);
        FETCH_AHEAD
        ROWS_OF_TILE {
            vfloat a = splat(*(const float *)ADDRESS(row));
            sums[row][0] += a * b0;
            sums[row][1] += a * b1;
        }
        NEXT_COLUMNS(4)
    }
}

INLINE void add_bfloat16(vfloat (*sums)[2], int num_rows, const uint16_t *rows, int64_t stride, const uint16_t *left,
                         const uint16_t *right, int64_t depth, struct ahead ahead) {
    int64_t until = ahead.every;
    ADDRESSES(uint16_t);
    for (int64_t k = 0; k < depth; k += 2) {
        vuint b0 = *(const vuint *)(left + k * LANES), b1 = *(const vuint *)(right + k * LANES);
        FETCH_AHEAD
#if defined(__AVX512BF16__)
        ROWS_OF_TILE {
            int32_t pair;
            memcpy(&pair, ADDRESS(row), 4);
            __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
            sums[row][0] = (vfloat)_mm512_dpbf16_ps((__m512)sums[row][0], a, (__m512bh)b0);
            sums[row][1] = (vfloat)_mm512_dpbf16_ps((__m512)sums[row][1], a, (__m512bh)b1);
        }
#else
        vfloat even0 = (vfloat)(b0 << 16), even1 = (vfloat)(b1 << 16);
        ROWS_OF_TILE {
            vfloat a = (vfloat)((vuint){0} + ((uint32_t)((const uint16_t *)ADDRESS(row))[0] << 16));
            sums[row][0] += a * even0;
            sums[row][1] += a * even1;
        }
        vfloat odd0 = (vfloat)(b0 & 0xffff0000), odd1 = (vfloat)(b1 & 0xffff0000);
        ROWS_OF_TILE {
            vfloat a = (vfloat)((vuint){0} + ((uint32_t)((const uint16_t *)ADDRESS(row))[1] << 16));
            sums[row][0] += a * odd0;
            sums[row][1] += a * odd1;
        }
#endif
        NEXT_COLUMNS(4)
    }
}

INLINE void put(const struct product *product, const struct part *part, int64_t place, int64_t left, vfloat sum) {
    if (product->is_added)
        sum = rounded(sum, product->dtype) + load_some(part->out, place, left, product->dtype);
    store_some(part->out, place, left, sum, product->dtype);
}

/* What becomes of a tile's sums. Apart from the products, so that it is compiled once and not for every tile. */
static __attribute__((noinline)) void finish_tile(const struct product *product, const struct part *left,
                                                  int64_t left_panel, int64_t right_panel, int64_t first, int num_rows,
                                                  const vfloat (*sums)[2]) {
    int64_t column0 = left_panel * LANES, column1 = right_panel * LANES;
    int dtype = product->dtype;
    if (product->activation != NO_GATE) {
        for (int row = 0; row < num_rows; row++) {
            vfloat gate = rounded(activated(rounded(sums[row][0], dtype), product->activation), dtype);
            store_some(left->out, (first + row) * left->columns + column0, left->columns - column0,
                       gate * rounded(sums[row][1], dtype), dtype);
        }
        return;
    }
    for (int row = 0; row < num_rows; row++) {
        int64_t place = (first + row) * left->columns;
        put(product, left, place + column0, left->columns - column0, sums[row][0]);
        if (right_panel != left_panel) put(product, left, place + column1, left->columns - column1, sums[row][1]);
    }
}

/* One tile: `num_rows` rows from `first` on by two panels, whose numbers are given. A missing right one is the left. */
INLINE void multiply_tile(const struct product *product, const struct part *left, const struct part *right,
                          int64_t left_panel, int64_t right_panel, int64_t first, struct ahead ahead,
                          const int num_rows, const int dtype) {
    vfloat sums[TILE_ROWS][2];
    const void *rows = at(product->rows, first * product->row_stride, dtype);
    const void *b0 = panel(product, left, left_panel), *b1 = panel(product, right, right_panel);
    int64_t column0 = left_panel * LANES, column1 = right_panel * LANES;
    vfloat start0 = {0}, start1 = {0};
    if (left->bias) start0 = load_some(left->bias, column0, left->columns - column0, dtype);
    if (right->bias) start1 = load_some(right->bias, column1, right->columns - column1, dtype);
    ROWS_OF_TILE {
        sums[row][0] = start0;
        sums[row][1] = start1;
    }
    if (dtype == FLOAT32)
        add_float32(sums, num_rows, rows, product->row_stride, b0, b1, product->depth, ahead);
    else
        add_bfloat16(sums, num_rows, rows, product->row_stride, b0, b1, product->depth, ahead);
    vfloat done[TILE_ROWS][2];
    ROWS_OF_TILE {
        done[row][0] = sums[row][0];
        done[row][1] = sums[row][1];
    }
    finish_tile(product, left, left_panel, right_panel, first, num_rows, (const vfloat (*)[2])done);
}

#define TILE_OF(count)                                                                                                \
    case count:                                                                                                       \
        if (product->dtype == FLOAT32)                                                                                \
            multiply_tile(product, left, right, left_panel, right_panel, first, ahead, count, FLOAT32);               \
        else                                                                                                          \
            multiply_tile(product, left, right, left_panel, right_panel, first, ahead, count, BFLOAT16);              \
        break;

/* Two panels by all rows of a block. While they are at it, they have memory send what the thread will probably do next,
   `next_panels` further on: a panel whose last lines were just fetched has no time to come from memory. Deep panels, of
   which two pairs would not stay in the cache, are fetched a page ahead of the sums instead, which is no gain for a few
   rows: memory is their bound. */
static void multiply_block(const struct product *product, const struct part *left, const struct part *right,
                           int64_t left_panel, int64_t right_panel, int64_t next_panels, int64_t begin, int64_t end) {
    int64_t num_tiles = (end - begin + TILE_ROWS - 1) / TILE_ROWS;
    int64_t panel_bytes = LANES * product->depth * size_of(product->dtype);
    int64_t is_next = panel_bytes <= NEXT_PANEL_BYTES;
    int64_t bytes = is_next ? next_panels * panel_bytes : LINES_AHEAD * LINE_BYTES;
    struct ahead ahead = {.every = is_next ? num_tiles : end - begin >= 6 ? 1 : INT64_MAX};
    for (int64_t tile = 0; tile < num_tiles; tile++) {
        int64_t first = begin + (end - begin) * tile / num_tiles;
        int64_t begun = bytes + (is_next ? tile * panel_bytes / num_tiles : 0);
        ahead.left = (const char *)panel(product, left, left_panel) + begun;
        ahead.right = (const char *)panel(product, right, right_panel) + begun;
        switch (begin + (end - begin) * (tile + 1) / num_tiles - first) {
            TILE_OF(1) TILE_OF(2) TILE_OF(3) TILE_OF(4) TILE_OF(5) TILE_OF(6)
#if TILE_ROWS == 12
            TILE_OF(7) TILE_OF(8) TILE_OF(9) TILE_OF(10) TILE_OF(11) TILE_OF(12)
#endif
        }
    }
}

static void multiply_item(void *context, int64_t item, void *scratch) {
    const struct product *product = context;
    int64_t block = item / product->num_groups, group = item % product->num_groups;
    int64_t begin = product->num_rows * block / product->num_blocks;
    int64_t end = product->num_rows * (block + 1) / product->num_blocks;
    const struct part *part = product->parts;
    (void)scratch;
    if (product->activation != NO_GATE) {
        multiply_block(product, part, part + 1, group, group, product->num_threads, begin, end);
        return;
    }
    for (; group >= (panels_of(part->columns) + 1) / 2; part++) group -= (panels_of(part->columns) + 1) / 2;
    int64_t left = 2 * group, right = left + 1 < panels_of(part->columns) ? left + 1 : left;
    multiply_block(product, part, part, left, right, 2 * product->num_threads, begin, end);
}

static int64_t ceiling(int64_t number, int64_t divisor) { return (number + divisor - 1) / divisor; }

struct stage product_stage(struct product *product, int64_t num_threads) {
    product->num_groups = 0;
    product->num_threads = num_threads;
    if (product->activation != NO_GATE)
        product->num_groups = panels_of(product->parts[0].columns);
    else
        for (int64_t part = 0; part < product->num_parts; part++)
            product->num_groups += ceiling(panels_of(product->parts[part].columns), 2);
    if (!product->num_rows || !product->num_groups) return (struct stage){multiply_item, product, 0, 0};
    int64_t by_cache = ceiling(product->num_rows * product->depth * size_of(product->dtype), BLOCK_BYTES);
    int64_t by_threads = num_threads > 1 ? ceiling(ITEMS_PER_THREAD * num_threads, product->num_groups) : 1;
    int64_t at_most = ceiling(product->num_rows, TILE_ROWS);
    product->num_blocks = by_cache > by_threads ? by_cache : by_threads;
    if (product->num_blocks > at_most) product->num_blocks = at_most;
    return (struct stage){multiply_item, product, product->num_blocks * product->num_groups, 0};
}

/* out = rows @ weight.T + bias for each of up to four weights. parts: weight, bias, out and columns of each. */
int millrace_multiply(const void *rows, int64_t num_rows, int64_t depth, int64_t row_stride, const void *parts,
                      int64_t num_parts, int64_t dtype, int64_t num_threads) {
    struct product product = {.rows = rows, .num_parts = num_parts, .num_rows = num_rows, .depth = depth,
                              .row_stride = row_stride, .dtype = (int)dtype, .activation = NO_GATE};
    memcpy(product.parts, parts, num_parts * sizeof(struct part));
    return run_stage(product_stage(&product, num_threads), num_threads);
}

/* out = (round(activation(rows @ gate.T)) * (rows @ up.T)) @ down.T. parts: gate, up, down; gate's out holds what lies
   between, up's is not used. */
int millrace_gated_mlp(const void *rows, int64_t num_rows, int64_t depth, int64_t row_stride, const void *parts,
                       int64_t dtype, int64_t activation, int64_t num_threads) {
    struct product inner = {.rows = rows, .num_parts = 2, .num_rows = num_rows, .depth = depth,
                            .row_stride = row_stride, .dtype = (int)dtype, .activation = (int)activation};
    struct product outer = {.num_parts = 1, .num_rows = num_rows, .dtype = (int)dtype, .activation = NO_GATE};
    memcpy(inner.parts, parts, 2 * sizeof(struct part));
    memcpy(outer.parts, (const struct part *)parts + 2, sizeof(struct part));
    outer.rows = inner.parts[0].out;
    outer.depth = outer.row_stride = inner.parts[0].columns;
    struct stage stages[] = {product_stage(&inner, num_threads), product_stage(&outer, num_threads)};
    return run_stages(stages, 2, num_threads);
}

/* ---- packing ---- */

struct packing {
    const void *weight;
    void *packed;
    int64_t columns, depth;
    int dtype;
};

static void pack_panel(void *context, int64_t index, void *scratch) {
    const struct packing *packing = context;
    int64_t depth = packing->depth, first = index * LANES;
    (void)scratch;
    for (int64_t lane = 0; lane < LANES; lane++) {
        int is_there = first + lane < packing->columns;
        if (packing->dtype == FLOAT32) {
            const float *from = (const float *)packing->weight + (first + lane) * depth;
            float *to = (float *)packing->packed + first * depth + lane;
            for (int64_t k = 0; k < depth; k++) to[k * LANES] = is_there ? from[k] : 0;
        } else {
            const uint16_t *from = (const uint16_t *)packing->weight + (first + lane) * depth;
            uint16_t *to = (uint16_t *)packing->packed + first * depth + 2 * lane;
            for (int64_t k = 0; k < depth; k++) to[k / 2 * 2 * LANES + k % 2] = is_there ? from[k] : 0;
        }
    }
}

/* weight: (columns, depth), contiguous; depth even for bfloat16. packed: columns in whole panels, times depth. */
int millrace_pack(const void *weight, void *packed, int64_t columns, int64_t depth, int64_t dtype,
                  int64_t num_threads) {
    struct packing packing = {weight, packed, columns, depth, (int)dtype};
    return run_stage((struct stage){pack_panel, &packing, panels_of(columns), 0}, num_threads);
}

/* Whether these products are what the processor is best at: 1 or 0. Machines with tiles of their own (AMX) and those
   with narrow registers are left to torch. */
int millrace_multiplies_well(int64_t dtype) {
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#if defined(__AMX_BF16__)
    return dtype == FLOAT32;
#else
    (void)dtype;
    return 1;
#endif
#else
    (void)dtype;
    return 0;
#endif
}
