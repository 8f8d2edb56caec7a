/* Work shared by the threads of the OpenMP pool that torch has, so that no second pool competes for the cores.

The pool's entry point is handed over at run time: nothing is linked, so it cannot be another library's pool. */

#pragma once

#include <stdint.h>

/* A piece of work: `context` is what all pieces share, `scratch` is the thread's own memory. */
typedef void work_item(void *context, int64_t item, void *scratch);

/* Items 0 to `num_items` - 1 of a piece of work, in any order. */
struct stage {
    work_item *run;
    void *context;
    int64_t num_items, scratch_bytes;
};

/* Runs stages one after the other, each begun when all before it are done, by `num_threads` threads or, where it is 1,
   by this one. Returns 0, or -1 where memory is lacking; then some items may not have been run. */
int run_stages(const struct stage *stages, int64_t num_stages, int64_t num_threads);

/* The same for a single one. */
int run_stage(struct stage stage, int64_t num_threads);
