"""Triton kernels over pages of K/V. They know pointers and numbers; `triton_attention` chooses shapes and launches.

All follow FlashAttention's online softmax (Dao et al. 2022; split over K/V as in Flash-Decoding, Dao et al. 2023), in
base 2, with float32 sums. A program reads the K/V of its own sequence alone, page by page through the page table:
what lies behind a sequence's length, a stale NaN for one, is never loaded. Dimensions that are no powers of two are
padded in the tile and masked in memory.

Layouts: pages (page, place, kv_head, dim), contiguous; queries (token, head, dim) with strides; outputs contiguous.
"""

# ruff: noqa: N803  # Triton's own style: what is known when a kernel is compiled is in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1.0e30)
"""Where a maximum starts: finite, so that a tile of which a row sees nothing gives weights of 0 and no NaN."""

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def write_kernel(
    cells, key, value, keys, values,
    key_token_stride, key_head_stride, value_token_stride, value_head_stride,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_KEY: tl.constexpr, BLOCK_VALUE: tl.constexpr,
):  # fmt: skip
    """A program per token and KV head: its key and its value go to the token's cell."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    line = tl.load(cells + token) * tl.num_programs(1) + head
    dims = tl.arange(0, BLOCK_KEY)
    new = tl.load(key + token * key_token_stride + head * key_head_stride + dims, mask=dims < KEY_DIM)
    tl.store(keys + line * KEY_DIM + dims, new, mask=dims < KEY_DIM)
    dims = tl.arange(0, BLOCK_VALUE)
    new = tl.load(value + token * value_token_stride + head * value_head_stride + dims, mask=dims < VALUE_DIM)
    tl.store(values + line * VALUE_DIM + dims, new, mask=dims < VALUE_DIM)


@triton.jit
def _lines(table, head, columns, end, KV_HEADS: tl.constexpr, PAGE_SIZE: tl.constexpr):
    """Where the K/V of these positions lie, counted in lines of one head's K or V."""
    pages = tl.load(table + columns // PAGE_SIZE, mask=columns < end, other=0).to(tl.int64)
    return (pages * PAGE_SIZE + columns % PAGE_SIZE) * KV_HEADS + head


@triton.jit
def _dot(left, right, UPCASTS: tl.constexpr):
    if UPCASTS:  # Triton's interpreter cannot multiply bfloat16
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def _scores(query, keys, lines, is_live, scale, softcap, KEY_DIM: tl.constexpr, BLOCK_KEY: tl.constexpr,
            HAS_SOFTCAP: tl.constexpr, UPCASTS: tl.constexpr):  # fmt: skip
    """(rows, columns) float32, in units of log2."""
    dims = tl.arange(0, BLOCK_KEY)
    mask = is_live[:, None] & (dims[None, :] < KEY_DIM)
    tile = tl.load(keys + lines[:, None] * KEY_DIM + dims[None, :], mask=mask, other=0.0)
    scores = _dot(query, tl.trans(tile), UPCASTS) * scale
    if HAS_SOFTCAP:  # tanh(x) = 1 - 2 / (exp(2 x) + 1)
        scores = softcap * (1.0 - 2.0 / (tl.exp2(scores * (2.0 * LOG2_E / softcap)) + 1.0))
    return scores * LOG2_E


@triton.jit
def _accumulate(highest, total, sums, scores, values, lines, is_live, VALUE_DIM: tl.constexpr,
                BLOCK_VALUE: tl.constexpr, UPCASTS: tl.constexpr):  # fmt: skip
    """One step of the online softmax. highest, total: (rows,) float32; sums: (rows, value_dim) float32."""
    new_highest = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp2(scores - new_highest[:, None])
    shrink = tl.exp2(highest - new_highest)
    dims = tl.arange(0, BLOCK_VALUE)
    mask = is_live[:, None] & (dims[None, :] < VALUE_DIM)
    tile = tl.load(values + lines[:, None] * VALUE_DIM + dims[None, :], mask=mask, other=0.0)
    sums = sums * shrink[:, None] + _dot(weights.to(tile.dtype), tile, UPCASTS)
    return new_highest, total * shrink + tl.sum(weights, 1), sums


@triton.jit(do_not_specialize=["num_splits"])
def decode_kernel(
    out, partial_sums, partial_highest, partial_total,
    query, keys, values, page_tables, rows, lengths,
    token_stride, head_stride, table_stride, num_splits, scale, softcap, window,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_KEY: tl.constexpr, BLOCK_VALUE: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, IS_SPLIT: tl.constexpr,
    UPCASTS: tl.constexpr,
):  # fmt: skip
    """A program per sequence, KV head and split. The query heads that share the KV head are the rows of its tile.

    Without splits it writes the result; with them sums, maxima and totals of its part, which `merge_kernel` joins.
    """
    token, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + token).to(tl.int32)
    first = tl.maximum(length - window, 0) if HAS_WINDOW else 0
    per_split = tl.cdiv(tl.cdiv(length - first, num_splits), BLOCK_COLUMNS) * BLOCK_COLUMNS
    begin = first + split * per_split
    end = tl.minimum(begin + per_split, length)
    heads, dims = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_KEY)
    own_query = tl.load(
        query + token * token_stride + (head * GROUP + heads[:, None]) * head_stride + dims[None, :],
        mask=(heads[:, None] < GROUP) & (dims[None, :] < KEY_DIM), other=0.0,
    )  # fmt: skip
    table = page_tables + tl.load(rows + token) * table_stride
    highest = tl.full([BLOCK_GROUP], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    sums = tl.zeros([BLOCK_GROUP, BLOCK_VALUE], tl.float32)
    for start in range(begin, end, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        is_live = columns < end
        lines = _lines(table, head, columns, end, KV_HEADS, PAGE_SIZE)
        scores = _scores(own_query, keys, lines, is_live, scale, softcap, KEY_DIM, BLOCK_KEY, HAS_SOFTCAP, UPCASTS)
        scores = tl.where(is_live[None, :], scores, float("-inf"))
        highest, total, sums = _accumulate(
            highest, total, sums, scores, values, lines, is_live, VALUE_DIM, BLOCK_VALUE, UPCASTS
        )
    line = token * (KV_HEADS * GROUP) + head * GROUP + heads
    dims = tl.arange(0, BLOCK_VALUE)
    mask = (heads[:, None] < GROUP) & (dims[None, :] < VALUE_DIM)
    if IS_SPLIT:
        part = line * num_splits + split
        tl.store(partial_highest + part, highest, mask=heads < GROUP)
        tl.store(partial_total + part, total, mask=heads < GROUP)
        tl.store(partial_sums + part[:, None] * VALUE_DIM + dims[None, :], sums, mask=mask)
    else:
        result = (sums / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + line[:, None] * VALUE_DIM + dims[None, :], result, mask=mask)


@triton.jit(do_not_specialize=["num_splits"])
def merge_kernel(
    out, partial_sums, partial_highest, partial_total, num_splits,
    VALUE_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """A program per sequence and query head joins what the splits found."""
    line = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    splits = tl.arange(0, BLOCK_SPLITS)
    dims = tl.arange(0, BLOCK_VALUE)
    parts = line * num_splits + splits
    highest = tl.load(partial_highest + parts, mask=splits < num_splits, other=LOWEST)
    total = tl.load(partial_total + parts, mask=splits < num_splits, other=0.0)
    mask = (splits[:, None] < num_splits) & (dims[None, :] < VALUE_DIM)
    sums = tl.load(partial_sums + parts[:, None] * VALUE_DIM + dims[None, :], mask=mask, other=0.0)
    weights = tl.exp2(highest - tl.max(highest, 0))
    result = tl.sum(sums * weights[:, None], 0) / tl.sum(total * weights, 0)
    tl.store(out + line * VALUE_DIM + dims, result.to(out.dtype.element_ty), mask=dims < VALUE_DIM)


@triton.jit
def prompt_kernel(
    out, query, keys, values, page_tables, blocks,
    token_stride, head_stride, table_stride, scale, softcap, window,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEY: tl.constexpr, BLOCK_VALUE: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, UPCASTS: tl.constexpr,
):  # fmt: skip
    """A program per query head and block of queries, which follow each other in one sequence.

    The heads of a group and block run side by side, so that one reads the K/V from memory and the others from cache.
    """
    head = tl.program_id(0)
    block = blocks + tl.program_id(1).to(tl.int64) * 4
    first_query = tl.load(block)
    num_queries = tl.load(block + 1).to(tl.int32)
    table = page_tables + tl.load(block + 2) * table_stride
    first_position = tl.load(block + 3).to(tl.int32)
    queries = tl.arange(0, BLOCK_QUERIES)
    positions = first_position + queries
    dims = tl.arange(0, BLOCK_KEY)
    is_query = queries < num_queries
    own_query = tl.load(
        query + (first_query + queries[:, None]) * token_stride + head * head_stride + dims[None, :],
        mask=is_query[:, None] & (dims[None, :] < KEY_DIM), other=0.0,
    )  # fmt: skip
    begin = tl.maximum(first_position - window + 1, 0) if HAS_WINDOW else 0
    end = first_position + num_queries
    highest = tl.full([BLOCK_QUERIES], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    sums = tl.zeros([BLOCK_QUERIES, BLOCK_VALUE], tl.float32)
    for start in range(begin, end, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        is_live = columns < end
        lines = _lines(table, head // GROUP, columns, end, KV_HEADS, PAGE_SIZE)
        scores = _scores(own_query, keys, lines, is_live, scale, softcap, KEY_DIM, BLOCK_KEY, HAS_SOFTCAP, UPCASTS)
        is_seen = is_live[None, :] & (columns[None, :] <= positions[:, None])
        if HAS_WINDOW:
            is_seen = is_seen & (columns[None, :] > positions[:, None] - window)
        scores = tl.where(is_seen, scores, float("-inf"))
        highest, total, sums = _accumulate(
            highest, total, sums, scores, values, lines, is_live, VALUE_DIM, BLOCK_VALUE, UPCASTS
        )
    line = (first_query + queries) * (KV_HEADS * GROUP) + head
    dims = tl.arange(0, BLOCK_VALUE)
    result = sums / tl.where(is_query, total, 1.0)[:, None]
    mask = is_query[:, None] & (dims[None, :] < VALUE_DIM)
    tl.store(out + line[:, None] * VALUE_DIM + dims[None, :], result.to(out.dtype.element_ty), mask=mask)
