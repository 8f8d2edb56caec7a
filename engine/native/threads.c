#include "threads.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

/* Some tens of microseconds, for what is left of an item that another thread has begun; then as long again for one whose
   processor was given to somebody else; then its turn is awaited asleep, as a quota of processor time may have run out. */
enum { PAUSES = 4000, OFFERS = 100, SLEEP_NANOSECONDS = 50000 };

/* GOMP_parallel of libgomp; LLVM's and Intel's OpenMP offer the same. */
typedef void parallel_call(void (*function)(void *), void *data, unsigned num_threads, unsigned flags);

static parallel_call *parallel = 0;

/* How many items of a stage were taken, and how many of them are done. */
struct progress {
    _Alignas(64) _Atomic int64_t taken;
    _Atomic int64_t done;
};

struct job {
    const struct stage *stages;
    struct progress *progress;
    int64_t num_stages, scratch_bytes;
    _Atomic int64_t num_failed;
};

void millrace_use_pool(void *entry_point) { parallel = (parallel_call *)entry_point; }

static void take_items(const struct stage *stage, struct progress *progress, void *scratch) {
    int64_t num_done = 0;
    for (;; num_done++) {
        int64_t item = atomic_fetch_add_explicit(&progress->taken, 1, memory_order_relaxed);
        if (item >= stage->num_items) break;
        stage->run(stage->context, item, scratch);
    }
    if (num_done) atomic_fetch_add_explicit(&progress->done, num_done, memory_order_release);
}

/* For items, not for threads: whoever comes late, or not at all, holds nobody up. */
static void wait_for(const struct stage *stage, struct progress *progress) {
    for (int64_t turn = 0; atomic_load_explicit(&progress->done, memory_order_acquire) < stage->num_items; turn++)
        if (turn < PAUSES)
            PAUSE();
        else if (turn < PAUSES + OFFERS)
            sched_yield();
        else
            nanosleep(&(struct timespec){0, SLEEP_NANOSECONDS}, 0);
}

static void take_stages(void *data) {
    struct job *job = data;
    void *scratch = 0;
    if (job->scratch_bytes) {
        scratch = aligned_alloc(64, (job->scratch_bytes + 63) / 64 * 64);
        if (!scratch) {
            atomic_fetch_add(&job->num_failed, 1);
            return;
        }
    }
    for (int64_t index = 0; index < job->num_stages; index++) {
        take_items(job->stages + index, job->progress + index, scratch);
        if (index + 1 < job->num_stages) wait_for(job->stages + index, job->progress + index);
    }
    free(scratch);
}

static int run_job(struct job *job, int64_t most_items, int64_t num_threads) {
    if (parallel && num_threads > 1 && most_items > 1)
        parallel(take_stages, job, (unsigned)num_threads, 0); /* fewer would end threads of the pool, at every call */
    else
        take_stages(job);
    return atomic_load(&job->num_failed) ? -1 : 0;
}

int run_stages(const struct stage *stages, int64_t num_stages, int64_t num_threads) {
    struct job job = {.stages = stages, .num_stages = num_stages};
    int64_t most_items = 0, bytes = num_stages * (int64_t)sizeof(struct progress);
    for (int64_t index = 0; index < num_stages; index++) {
        if (stages[index].num_items > most_items) most_items = stages[index].num_items;
        if (stages[index].scratch_bytes > job.scratch_bytes) job.scratch_bytes = stages[index].scratch_bytes;
    }
    job.progress = aligned_alloc(64, bytes);
    if (!job.progress) return -1;
    memset(job.progress, 0, bytes);
    int failed = run_job(&job, most_items, num_threads);
    free(job.progress);
    return failed;
}

int run_stage(struct stage stage, int64_t num_threads) {
    struct progress progress = {0};
    struct job job = {.stages = &stage, .progress = &progress, .num_stages = 1, .scratch_bytes = stage.scratch_bytes};
    return run_job(&job, stage.num_items, num_threads);
}
