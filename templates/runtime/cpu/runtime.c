/* Runs the functions in plan.c. exports.c gives these functions the names of a package.
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
#include <sys/mman.h>
#include <time.h>

#define PROGRAM (&tp_the_program)

#define TP_HUGE_PAGE (2ull << 20)
#define TP_LAYOUTS 8 /* that an arena remembers */

/* All sizes for some values of the symbols, and where the blocks lie in the arena. */
typedef struct {
  uint64_t *inputs, *outputs, *offsets;
  uint64_t arena_bytes, total_bytes;
  char *small; /* kernels that are not worth the threads */
  int64_t *symbols;
  const tp_function *function;
} tp_layout;

/* The memory of one running call: the plan's arena, then room for user buffers that are not aligned. */
typedef struct tp_arena {
  struct tp_arena *next;
  char *memory;
  uint64_t bytes;
  tp_layout *layouts[TP_LAYOUTS];
  uint32_t turn;
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

static int is_user_aligned(const void *pointer) { return (uintptr_t)pointer % TP_USER_ALIGNMENT == 0; }

int32_t tp_clamp_threads(int32_t threads) {
  return threads < 1 ? 1 : threads > TP_MAX_THREADS ? TP_MAX_THREADS : threads;
}

static const tp_function *function_at(int32_t index) {
  if (index >= 0 && (uint32_t)index < PROGRAM->function_count) return &PROGRAM->functions[index];
  fail("function %d does not exist; there are %u", index, PROGRAM->function_count);
  return NULL;
}

static int check_state(const void *state) {
  if (!PROGRAM->state_bytes || (state && is_aligned(state))) return TP_OK;
  return fail("the state must be aligned to %d bytes", TP_ALIGNMENT);
}

/* --- sizes ----------------------------------------------------------------------------------------------------- */

/* Kernels of less work than this run on the calling thread: starting others costs more than they give. */
#define TP_PARALLEL_WORK 16384

static int check_symbols(const tp_function *function, const int64_t *symbols) {
  for (uint32_t i = 0; i < function->symbol_count; ++i) {
    const tp_symbol *symbol = &function->symbols[i];
    if (!symbols) return fail("no values of symbols given");
    if (symbols[i] < symbol->low || symbols[i] > symbol->high) {
      return fail("%s is %lld, allowed %lld..%lld", symbol->name, (long long)symbols[i], (long long)symbol->low,
                  (long long)symbol->high);
    }
  }
  return TP_OK;
}

/* Give every block an offset where it overlaps none that is alive at the same time: the largest first, as low as
 * possible (greedy by size: Pisarchyk and Lee, 2020). Returns the bytes of the whole. */
static uint64_t place_blocks(const tp_function *function, const uint64_t *sizes, uint64_t *offsets, uint32_t *order) {
  const tp_block *blocks = function->blocks;
  uint64_t total = 0;
  for (uint32_t i = 0; i < function->block_count; ++i) {
    uint32_t at = i;
    for (; at && sizes[order[at - 1]] < sizes[i]; --at) order[at] = order[at - 1];
    order[at] = i;
  }
  for (uint32_t i = 0; i < function->block_count; ++i) {
    uint32_t block = order[i];
    uint64_t size = round_up(sizes[block]), offset = 0;
    for (int moved = 1; moved;) {
      moved = 0;
      for (uint32_t j = 0; j < i; ++j) {
        uint32_t other = order[j];
        uint64_t end = offsets[other] + round_up(sizes[other]);
        int alive = blocks[other].first <= blocks[block].last && blocks[block].first <= blocks[other].last;
        if (alive && offset < end && offsets[other] < offset + size) offset = end, moved = 1;
      }
    }
    offsets[block] = offset;
    if (offset + size > total) total = offset + size;
  }
  return total;
}

/* The layout of a function for some symbols, or NULL. */
static tp_layout *make_layout(const tp_function *function, const int64_t *symbols) {
  uint32_t tensors = function->input_count + function->output_count, blocks = function->block_count;
  size_t words = tensors + 2 * blocks + PROGRAM->symbol_count + PROGRAM->max_arguments;
  size_t bytes = sizeof(tp_layout) + words * sizeof(uint64_t) + blocks * sizeof(uint32_t) + PROGRAM->kernel_count;
  tp_layout *layout = calloc(1, bytes);
  if (!layout) {
    fail("out of memory");
    return NULL;
  }
  layout->function = function;
  layout->inputs = (uint64_t *)(layout + 1);
  layout->outputs = layout->inputs + function->input_count;
  layout->offsets = layout->outputs + function->output_count;
  uint64_t *sizes = layout->offsets + blocks, *scratch = sizes + blocks;
  layout->symbols = (int64_t *)(scratch + PROGRAM->max_arguments);
  uint32_t *order = (uint32_t *)(layout->symbols + PROGRAM->symbol_count);
  layout->small = (char *)(order + blocks);
  layout->arena_bytes = function->arena_bytes;
  if (!function->symbol_count) {
    for (uint32_t i = 0; i < function->input_count; ++i) layout->inputs[i] = function->inputs[i].bytes;
    for (uint32_t i = 0; i < function->output_count; ++i) layout->outputs[i] = function->outputs[i].bytes;
  } else {
    memcpy(layout->symbols, symbols, function->symbol_count * sizeof *symbols);
    const char *large = function->measure(symbols, layout->inputs, layout->outputs, sizes);
    if (large) {
      free(layout);
      fail("%s would have 2^31 elements or more", large);
      return NULL;
    }
    /* Without blocks what the calls need has one size for all symbols. */
    if (blocks) layout->arena_bytes = place_blocks(function, sizes, layout->offsets, order);
    for (uint32_t i = 0; i < PROGRAM->kernel_count; ++i) {
      const tp_kernel *kernel = &PROGRAM->kernels[i];
      layout->small[i] = kernel->measure && kernel->measure(layout->symbols, scratch) < TP_PARALLEL_WORK;
    }
  }
  layout->total_bytes = round_up(layout->arena_bytes) + TP_ALIGNMENT;
  for (uint32_t i = 0; i < tensors; ++i) layout->total_bytes += round_up(layout->inputs[i]);
  return layout;
}

int tp_sizes(int32_t index, const int64_t *symbols, uint64_t *inputs, uint64_t *outputs, uint64_t *arena) {
  const tp_function *function = function_at(index);
  tp_layout *layout = !function || check_symbols(function, symbols) ? NULL : make_layout(function, symbols);
  if (!layout) return TP_FAILED;
  memcpy(inputs, layout->inputs, function->input_count * sizeof *inputs);
  memcpy(outputs, layout->outputs, function->output_count * sizeof *outputs);
  *arena = layout->arena_bytes;
  free(layout);
  return TP_OK;
}

/* --- arenas ---------------------------------------------------------------------------------------------------- */

static void release(tp_model *model, tp_arena *arena) {
  tp_lock();
  arena->next = model->idle;
  model->idle = arena;
  tp_unlock();
}

/* The layout of a function for some symbols, from those that the arena remembers if it is among them. */
static const tp_layout *find_layout(tp_arena *arena, const tp_function *function, const int64_t *symbols) {
  for (uint32_t i = 0; i < TP_LAYOUTS && (symbols || !function->symbol_count); ++i) {
    const tp_layout *layout = arena->layouts[i];
    if (!layout) break;
    if (layout->function != function) continue;
    if (!function->symbol_count || !memcmp(layout->symbols, symbols, function->symbol_count * sizeof *symbols)) return layout;
  }
  tp_layout *layout = check_symbols(function, symbols) ? NULL : make_layout(function, symbols);
  if (layout) {
    tp_layout **place = &arena->layouts[arena->turn++ % TP_LAYOUTS];
    free(*place);
    *place = layout;
  }
  return layout;
}

/* Memory of an arena. Larger ones lie in huge pages where the system gives any: pages of 4 KB from all over the memory fall
 * into the sets of L2 as chance has it, and the hardware fetches ahead within a page only. */
static void *allocate(uint64_t bytes) {
  if (bytes < TP_HUGE_PAGE) return aligned_alloc(TP_ALIGNMENT, bytes);
  uint64_t whole = (bytes + TP_HUGE_PAGE - 1) / TP_HUGE_PAGE * TP_HUGE_PAGE;
  void *memory = aligned_alloc(TP_HUGE_PAGE, whole);
  if (memory) (void)madvise(memory, whole, MADV_HUGEPAGE); /* a wish: systems without them refuse it */
  return memory;
}

/* An arena that no other call uses, with room for the layout of these symbols; NULL for a failure. */
static tp_arena *acquire(tp_model *model, const tp_function *function, const int64_t *symbols,
                         const tp_layout **layout) {
  tp_lock();
  tp_arena *arena = model->idle;
  if (arena) model->idle = arena->next;
  tp_unlock();
  if (!arena && !(arena = calloc(1, sizeof *arena))) {
    fail("out of memory");
    return NULL;
  }
  if ((*layout = find_layout(arena, function, symbols)) && arena->bytes < (*layout)->total_bytes) {
    free(arena->memory);
    arena->memory = allocate((*layout)->total_bytes);
    arena->bytes = arena->memory ? (*layout)->total_bytes : 0;
    if (!arena->memory) {
      fail("out of memory: %llu bytes for one call", (unsigned long long)(*layout)->total_bytes);
      *layout = NULL;
    }
  }
  if (*layout) return arena;
  release(model, arena);
  return NULL;
}

/* --- running --------------------------------------------------------------------------------------------------- */

/* Invoke a call; `pointers` holds its inputs and outputs and has room for workspace and status. */
static int invoke(tp_model *model, const tp_call *call, void **pointers, char *arena, const tp_layout *layout) {
  const tp_kernel *kernel = &PROGRAM->kernels[call->kernel];
  uint32_t count = kernel->input_count + kernel->output_count;
  int32_t status = 0;
  if (kernel->has_workspace) {
    pointers[count++] = arena + (call->workspace_block < 0 ? call->workspace_offset : layout->offsets[call->workspace_block]);
  }
  if (kernel->checks_index) pointers[count] = &status;
  tp_error[0] = 0;
  int32_t threads = tp_threads;
  tp_threads = layout->small[call->kernel] ? 1 : atomic_load_explicit(&model->threads, memory_order_relaxed);
  int32_t code = kernel->invoke(pointers, layout->symbols);
  tp_threads = threads;
  if (code) {
    char reason[TP_ERROR_BYTES / 2];
    snprintf(reason, sizeof reason, "%s", tp_error[0] ? tp_error : "no reason given");
    return fail("kernel %s failed (%s): %s", kernel->name, call->source, reason);
  }
  if (status == TP_STATUS_SINGULAR) {
    return fail("a matrix is singular, not positive definite or not finite in kernel %s (%s)", kernel->name,
                call->source);
  }
  if (status == TP_STATUS_DIVISION) {
    fail("integer division by zero in kernel %s (%s)", kernel->name, call->source);
    return TP_DIVISION_BY_ZERO;
  }
  if (status) {
    fail("index out of bounds in kernel %s (%s)", kernel->name, call->source);
    return TP_INDEX_OUT_OF_BOUNDS;
  }
  return TP_OK;
}

/* Where the arguments of a running function are. */
typedef struct {
  const char *weights;
  char *arena, *state;
  const tp_layout *layout;
  void *const *inputs, *const *outputs;
} tp_places;

static void *resolve(const tp_argument *argument, const tp_places *places) {
  switch (argument->storage) {
    case TP_INPUT:
      return places->inputs[argument->index];
    case TP_OUTPUT:
      return places->outputs[argument->index];
    case TP_WEIGHT:
      return (char *)places->weights + argument->offset;
    case TP_BLOCK:
      return places->arena + places->layout->offsets[argument->index];
    case TP_STATE:
      return places->state + argument->offset;
    default:
      return places->arena + argument->offset;
  }
}

/* What is left when all calls are done: outputs that no kernel wrote, outputs that are not aligned, and the state. */
static void finish(const tp_function *function, const tp_places *places, void *const *outputs) {
  const uint64_t *bytes = places->layout->outputs;
  void *const *out = places->outputs;
  for (uint32_t i = 0; i < function->copy_count; ++i) {
    const tp_copy *copy = &function->copies[i];
    memmove(out[copy->output], resolve(&copy->from, places), bytes[copy->output]);
  }
  for (uint32_t i = 0; i < function->output_count; ++i) {
    if (out[i] != outputs[i]) memcpy(outputs[i], out[i], bytes[i]);
  }
  for (uint32_t i = 0; i < function->update_count; ++i) {
    const tp_update *update = &function->updates[i];
    memmove(places->state + update->offset, resolve(&update->from, places), update->bytes);
  }
}

int tp_model_run(tp_model *model, int32_t index, void *state, const void *const *inputs, void *const *outputs,
                 const int64_t *symbols, tp_clock *clock) {
  const tp_function *function = function_at(index);
  if (!function) return TP_FAILED;
  if (check_state(state)) return TP_FAILED;
  const tp_layout *layout;
  tp_arena *arena = acquire(model, function, symbols, &layout);
  if (!arena) return TP_FAILED;
  int code = TP_OK, changed = 0;
  for (uint32_t i = 0; i < function->input_count && code == TP_OK; ++i) {
    if (!inputs[i] && layout->inputs[i]) code = fail("input %s is NULL", function->inputs[i].name);
  }
  for (uint32_t i = 0; i < function->output_count && code == TP_OK; ++i) {
    if (!outputs[i] && layout->outputs[i]) code = fail("output %s is NULL", function->outputs[i].name);
  }
  if (code) {
    release(model, arena);
    return code;
  }

  /* Kernels expect the alignment of an element, not that of a vector: a buffer that has less is copied. */
  void *in[function->input_count + 1], *out[function->output_count + 1], *pointers[PROGRAM->max_arguments + 2];
  char *spare = arena->memory + round_up(layout->arena_bytes);
  for (uint32_t i = 0; i < function->input_count; ++i) {
    in[i] = (void *)inputs[i];
    if (!is_user_aligned(in[i])) in[i] = memcpy(spare, inputs[i], layout->inputs[i]);
    spare += round_up(layout->inputs[i]);
  }
  for (uint32_t i = 0; i < function->output_count; ++i) {
    out[i] = is_user_aligned(outputs[i]) ? outputs[i] : spare;
    spare += round_up(layout->outputs[i]);
  }

  const tp_places places = {model->weights, arena->memory, state, layout, in, out};
  if (clock) clock_gettime(CLOCK_MONOTONIC, &clock->start);
  if (clock && clock->lanes) tp_region_clock = clock;
  for (uint32_t number = 0; number < function->call_count && code == TP_OK; ++number) {
    const tp_call *call = &function->calls[number];
    const tp_kernel *kernel = &PROGRAM->kernels[call->kernel];
    for (uint32_t i = 0; i < kernel->input_count + kernel->output_count; ++i) {
      pointers[i] = resolve(&call->arguments[i], &places);
    }
    if (clock) clock->seconds[2 * number] = number ? tp_seconds_since(&clock->start) : 0.0;
    code = invoke(model, call, pointers, arena->memory, layout);
    if (kernel->in_place && code == TP_OK) changed = TP_STATE_CHANGED;
    if (clock) clock->seconds[2 * number + 1] = tp_seconds_since(&clock->start);
    if (clock && clock->lanes) clock->lanes += 2 * clock->threads;
  }
  tp_region_clock = NULL;

  if (code == TP_OK) finish(function, &places, outputs);
  release(model, arena);
  return code == TP_OK ? TP_OK : code | changed;
}

/* `request`: model, function, state, the values of the symbols, then the addresses of the inputs and of the outputs. */
int tp_model_run_packed(void *const *request) {
  int32_t index = (int32_t)(intptr_t)request[1];
  const tp_function *function = function_at(index);
  if (!function) return TP_FAILED;
  int64_t symbols[function->symbol_count + 1];
  for (uint32_t i = 0; i < function->symbol_count; ++i) symbols[i] = (int64_t)(intptr_t)request[3 + i];
  void *const *inputs = request + 3 + function->symbol_count, *const *outputs = inputs + function->input_count;
  return tp_model_run(request[0], index, request[2], (const void *const *)inputs, outputs, symbols, NULL);
}

/* --- the ABI --------------------------------------------------------------------------------------------------- */

int tp_model_create(const void *weights, uint64_t weight_bytes, int32_t threads, tp_model **out) {
  *out = NULL;
  if (weight_bytes < PROGRAM->weight_bytes) {
    return fail("%llu bytes of weights given, %llu expected", (unsigned long long)weight_bytes,
                (unsigned long long)PROGRAM->weight_bytes);
  }
  if (PROGRAM->weight_bytes && (!weights || !is_aligned(weights))) {
    return fail("the weights must be aligned to %d bytes", TP_ALIGNMENT);
  }
  tp_model *model = calloc(1, sizeof *model);
  if (!model) return fail("out of memory");
  model->weights = weights;
  atomic_store(&model->threads, tp_clamp_threads(threads));
  tp_pool_init();
  *out = model;
  return TP_OK;
}

void tp_model_destroy(tp_model *model) {
  if (!model) return;
  while (model->idle) {
    tp_arena *arena = model->idle;
    model->idle = arena->next;
    for (uint32_t i = 0; i < TP_LAYOUTS; ++i) free(arena->layouts[i]);
    free(arena->memory);
    free(arena);
  }
  free(model);
}

void tp_model_set_threads(tp_model *model, int32_t threads) {
  atomic_store(&model->threads, tp_clamp_threads(threads));
}

int tp_model_reset(tp_model *model, void *state) {
  if (check_state(state)) return TP_FAILED;
  if (PROGRAM->state_bytes) memset(state, 0, PROGRAM->state_bytes);
  for (uint32_t i = 0; i < PROGRAM->initial_count; ++i) {
    const tp_initial *initial = &PROGRAM->initials[i];
    memcpy((char *)state + initial->offset, model->weights + initial->weight_offset, initial->bytes);
  }
  return TP_OK;
}

/* One kernel of a function on the caller's buffers: its inputs, then its outputs. */
int tp_model_call(tp_model *model, int32_t index, int32_t call, void *const *buffers, const int64_t *symbols) {
  const tp_function *function = function_at(index);
  if (!function) return TP_FAILED;
  if (call < 0 || (uint32_t)call >= function->call_count) {
    return fail("call %d does not exist; %s has %u calls", call, function->name, function->call_count);
  }
  const tp_kernel *kernel = &PROGRAM->kernels[function->calls[call].kernel];
  uint32_t count = kernel->input_count + kernel->output_count;
  void *pointers[PROGRAM->max_arguments + 2];
  uint64_t measured[PROGRAM->max_arguments + 1];
  const uint64_t *bytes = kernel->bytes;
  int code = TP_OK;
  const tp_layout *layout;
  tp_arena *arena = acquire(model, function, symbols, &layout);
  if (!arena) return TP_FAILED;
  if (kernel->measure) kernel->measure(layout->symbols, measured), bytes = measured;
  for (uint32_t i = 0; i < count; ++i) pointers[i] = NULL;
  for (uint32_t i = 0; i < count && code == TP_OK; ++i) {
    pointers[i] = buffers[i];
    if (is_user_aligned(buffers[i])) continue;
    pointers[i] = aligned_alloc(TP_ALIGNMENT, round_up(bytes[i]) + TP_ALIGNMENT);
    if (!pointers[i]) code = fail("out of memory: %llu bytes", (unsigned long long)bytes[i]);
    else if (i < kernel->input_count || kernel->in_place) memcpy(pointers[i], buffers[i], bytes[i]);
  }
  if (code == TP_OK) code = invoke(model, &function->calls[call], pointers, arena->memory, layout);
  for (uint32_t i = 0; i < count; ++i) {
    if (!pointers[i] || pointers[i] == buffers[i]) continue;
    if (code == TP_OK && i >= kernel->input_count) memcpy(buffers[i], pointers[i], bytes[i]);
    free(pointers[i]);
  }
  release(model, arena);
  return code;
}
