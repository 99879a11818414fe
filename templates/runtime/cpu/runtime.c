/* Runs the plan in plan.c. exports.c gives these functions the names of a package.
 *
 * All of them may be called from any thread, one model from many threads at once: each running call has an arena of
 * its own.
 */
#define _GNU_SOURCE
#include "runtime.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PLAN (&tp_the_plan)

/* The memory of one running call: the plan's arena, then room for user buffers that are not aligned. */
typedef struct tp_arena {
  struct tp_arena *next;
  char *memory;
} tp_arena;

struct tp_model {
  const char *weights;
  _Atomic int32_t threads;
  tp_arena *idle;
};

static int fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(tp_error, TP_ERROR_BYTES, format, arguments);
  va_end(arguments);
  return TP_FAILED;
}

static uint64_t round_up(uint64_t bytes) { return (bytes + TP_ALIGNMENT - 1) / TP_ALIGNMENT * TP_ALIGNMENT; }

static int is_aligned(const void *pointer) { return (uintptr_t)pointer % TP_ALIGNMENT == 0; }

static int32_t clamp_threads(int32_t threads) {
  return threads < 1 ? 1 : threads > TP_MAX_THREADS ? TP_MAX_THREADS : threads;
}

/* --- arenas ---------------------------------------------------------------------------------------------------- */

static uint64_t arena_block_bytes(void) {
  uint64_t bytes = round_up(PLAN->arena_bytes) + TP_ALIGNMENT;
  for (uint32_t i = 0; i < PLAN->input_count; ++i) bytes += round_up(PLAN->inputs[i].bytes);
  for (uint32_t i = 0; i < PLAN->output_count; ++i) bytes += round_up(PLAN->outputs[i].bytes);
  return bytes;
}

static tp_arena *acquire(tp_model *model) {
  tp_lock();
  tp_arena *arena = model->idle;
  if (arena) model->idle = arena->next;
  tp_unlock();
  if (arena) return arena;
  arena = malloc(sizeof *arena);
  if (arena && !(arena->memory = aligned_alloc(TP_ALIGNMENT, arena_block_bytes()))) {
    free(arena);
    arena = NULL;
  }
  if (!arena) fail("out of memory: %llu bytes for one call", (unsigned long long)arena_block_bytes());
  return arena;
}

static void release(tp_model *model, tp_arena *arena) {
  tp_lock();
  arena->next = model->idle;
  model->idle = arena;
  tp_unlock();
}

/* --- running --------------------------------------------------------------------------------------------------- */

/* Invoke call `index`; `pointers` holds its inputs and outputs and has room for workspace and status. */
static int invoke(uint32_t index, void **pointers, char *arena) {
  const tp_call *call = &PLAN->calls[index];
  const tp_kernel *kernel = &PLAN->kernels[call->kernel];
  uint32_t count = kernel->input_count + kernel->output_count;
  int32_t status = 0;
  if (kernel->workspace_bytes) pointers[count++] = arena + call->workspace_offset;
  if (kernel->checks_index) pointers[count] = &status;
  tp_error[0] = 0;
  if (kernel->invoke(pointers)) {
    char reason[TP_ERROR_BYTES / 2];
    snprintf(reason, sizeof reason, "%s", tp_error[0] ? tp_error : "no reason given");
    return fail("kernel %s failed (%s): %s", kernel->name, call->source, reason);
  }
  if (status) {
    fail("index out of bounds in kernel %s (%s)", kernel->name, call->source);
    return TP_INDEX_OUT_OF_BOUNDS;
  }
  return TP_OK;
}

static void *resolve(const tp_argument *argument, const char *weights, char *arena, void *const *inputs,
                     void *const *outputs) {
  switch (argument->storage) {
    case TP_INPUT:
      return inputs[argument->index];
    case TP_OUTPUT:
      return outputs[argument->index];
    case TP_WEIGHT:
      return (char *)weights + argument->offset;
    default:
      return arena + argument->offset;
  }
}

/* The whole plan. `seconds` is NULL or takes the time of every call. */
static int run_plan(tp_model *model, const void *const *inputs, void *const *outputs, double *seconds) {
  for (uint32_t i = 0; i < PLAN->input_count; ++i) {
    if (!inputs[i] && PLAN->inputs[i].bytes) return fail("input %s is NULL", PLAN->inputs[i].name);
  }
  for (uint32_t i = 0; i < PLAN->output_count; ++i) {
    if (!outputs[i] && PLAN->outputs[i].bytes) return fail("output %s is NULL", PLAN->outputs[i].name);
  }
  tp_arena *arena = acquire(model);
  if (!arena) return TP_FAILED;

  /* Kernels may use aligned vector loads and stores: a buffer that is not aligned is copied. */
  void *in[PLAN->input_count + 1], *out[PLAN->output_count + 1], *pointers[PLAN->max_arguments + 2];
  char *spare = arena->memory + round_up(PLAN->arena_bytes);
  for (uint32_t i = 0; i < PLAN->input_count; ++i) {
    in[i] = (void *)inputs[i];
    if (!is_aligned(in[i])) in[i] = memcpy(spare, inputs[i], PLAN->inputs[i].bytes);
    spare += round_up(PLAN->inputs[i].bytes);
  }
  for (uint32_t i = 0; i < PLAN->output_count; ++i) {
    out[i] = is_aligned(outputs[i]) ? outputs[i] : spare;
    spare += round_up(PLAN->outputs[i].bytes);
  }

  int code = TP_OK;
  int32_t threads = tp_threads;
  tp_threads = atomic_load_explicit(&model->threads, memory_order_relaxed);
  for (uint32_t index = 0; index < PLAN->call_count && code == TP_OK; ++index) {
    const tp_call *call = &PLAN->calls[index];
    const tp_kernel *kernel = &PLAN->kernels[call->kernel];
    struct timespec start, end;
    for (uint32_t i = 0; i < kernel->input_count + kernel->output_count; ++i) {
      pointers[i] = resolve(&call->arguments[i], model->weights, arena->memory, in, out);
    }
    if (seconds) clock_gettime(CLOCK_MONOTONIC, &start);
    code = invoke(index, pointers, arena->memory);
    if (seconds) {
      clock_gettime(CLOCK_MONOTONIC, &end);
      seconds[index] = (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
    }
  }
  tp_threads = threads;

  for (uint32_t i = 0; i < PLAN->copy_count && code == TP_OK; ++i) {
    const tp_copy *copy = &PLAN->copies[i];
    memmove(out[copy->output], resolve(&copy->from, model->weights, arena->memory, in, out),
            PLAN->outputs[copy->output].bytes);
  }
  for (uint32_t i = 0; i < PLAN->output_count && code == TP_OK; ++i) {
    if (out[i] != outputs[i]) memcpy(outputs[i], out[i], PLAN->outputs[i].bytes);
  }
  release(model, arena);
  return code;
}

/* --- the ABI --------------------------------------------------------------------------------------------------- */

int tp_model_create(const void *weights, uint64_t weight_bytes, int32_t threads, tp_model **out) {
  *out = NULL;
  if (weight_bytes < PLAN->weight_bytes) {
    return fail("%llu bytes of weights given, %llu expected", (unsigned long long)weight_bytes,
                (unsigned long long)PLAN->weight_bytes);
  }
  if (PLAN->weight_bytes && (!weights || !is_aligned(weights))) {
    return fail("the weights must be aligned to %d bytes", TP_ALIGNMENT);
  }
  tp_model *model = calloc(1, sizeof *model);
  if (!model) return fail("out of memory");
  model->weights = weights;
  atomic_store(&model->threads, clamp_threads(threads));
  tp_pool_init();
  *out = model;
  return TP_OK;
}

void tp_model_destroy(tp_model *model) {
  if (!model) return;
  while (model->idle) {
    tp_arena *arena = model->idle;
    model->idle = arena->next;
    free(arena->memory);
    free(arena);
  }
  free(model);
}

void tp_model_set_threads(tp_model *model, int32_t threads) {
  atomic_store(&model->threads, clamp_threads(threads));
}

int tp_model_run(tp_model *model, const void *const *inputs, void *const *outputs) {
  return run_plan(model, inputs, outputs, NULL);
}

int tp_model_run_timed(tp_model *model, const void *const *inputs, void *const *outputs, double *seconds) {
  return run_plan(model, inputs, outputs, seconds);
}

/* One kernel of the plan on the caller's buffers: its inputs, then its outputs. */
int tp_model_call(tp_model *model, int32_t call, void *const *buffers) {
  if (call < 0 || (uint32_t)call >= PLAN->call_count) {
    return fail("call %d does not exist; the plan has %u calls", call, PLAN->call_count);
  }
  const tp_kernel *kernel = &PLAN->kernels[PLAN->calls[call].kernel];
  uint32_t count = kernel->input_count + kernel->output_count;
  void *pointers[PLAN->max_arguments + 2];
  int code = TP_OK;
  tp_arena *arena = acquire(model);
  if (!arena) return TP_FAILED;
  for (uint32_t i = 0; i < count; ++i) pointers[i] = NULL;
  for (uint32_t i = 0; i < count && code == TP_OK; ++i) {
    pointers[i] = buffers[i];
    if (is_aligned(buffers[i])) continue;
    pointers[i] = aligned_alloc(TP_ALIGNMENT, round_up(kernel->bytes[i]) + TP_ALIGNMENT);
    if (!pointers[i]) code = fail("out of memory: %llu bytes", (unsigned long long)kernel->bytes[i]);
    else if (i < kernel->input_count) memcpy(pointers[i], buffers[i], kernel->bytes[i]);
  }
  if (code == TP_OK) {
    int32_t threads = tp_threads;
    tp_threads = atomic_load_explicit(&model->threads, memory_order_relaxed);
    code = invoke((uint32_t)call, pointers, arena->memory);
    tp_threads = threads;
  }
  for (uint32_t i = 0; i < count; ++i) {
    if (!pointers[i] || pointers[i] == buffers[i]) continue;
    if (code == TP_OK && i >= kernel->input_count) memcpy(buffers[i], pointers[i], kernel->bytes[i]);
    free(pointers[i]);
  }
  release(model, arena);
  return code;
}
