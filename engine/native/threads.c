#include "threads.h"

#include <stdatomic.h>
#include <stdlib.h>

/* GOMP_parallel of libgomp; LLVM's and Intel's OpenMP offer the same. */
typedef void parallel_call(void (*function)(void *), void *data, unsigned num_threads, unsigned flags);

static parallel_call *parallel = 0;

struct job {
    work_item *run;
    void *context;
    int64_t num_items, scratch_bytes;
    _Atomic int64_t next, num_failed;
};

void millrace_use_pool(void *entry_point) { parallel = (parallel_call *)entry_point; }

static void take_items(void *data) {
    struct job *job = data;
    void *scratch = 0;
    if (job->scratch_bytes) {
        scratch = aligned_alloc(64, (job->scratch_bytes + 63) / 64 * 64);
        if (!scratch) {
            atomic_fetch_add(&job->num_failed, 1);
            return;
        }
    }
    for (;;) {
        int64_t item = atomic_fetch_add(&job->next, 1);
        if (item >= job->num_items) break;
        job->run(job->context, item, scratch);
    }
    free(scratch);
}

int run_items(work_item *run, void *context, int64_t num_items, int64_t scratch_bytes, int64_t num_threads) {
    struct job job = {.run = run, .context = context, .num_items = num_items, .scratch_bytes = scratch_bytes};
    if (parallel && num_threads > 1 && num_items > 1)
        parallel(take_items, &job, (unsigned)num_threads, 0); /* fewer would end threads of the pool, at every call */
    else
        take_items(&job);
    return atomic_load(&job.num_failed) ? -1 : 0;
}
