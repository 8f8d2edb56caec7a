/* Work shared by the threads of the OpenMP pool that torch has, so that no second pool competes for the cores.

The pool's entry point is handed over at run time: nothing is linked, so it cannot be another library's pool. */

#pragma once

#include <stdint.h>

/* A piece of work: `context` is what all pieces share, `scratch` is the thread's own memory. */
typedef void work_item(void *context, int64_t item, void *scratch);

/* Runs items 0 to `num_items` - 1 in any order, by `num_threads` threads or, where it is 1, by this one.
   Returns 0, or -1 where memory for scratch is lacking; then some items were not run. */
int run_items(work_item *run, void *context, int64_t num_items, int64_t scratch_bytes, int64_t num_threads);
