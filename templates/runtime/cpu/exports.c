/* The C ABI of a package, version 2: <package>_<isa>_<function> (TRANSPILE_PREFIX). Nothing else is exported.
 *
 * Results are 0 (done), 1 (failed) or 2 (an index was out of bounds); last_error() then says why, per thread.
 * Where sizes vary, `symbols` holds the value of every symbol, in the order of symbol_name(); else it may be NULL.
 * The weights must stay where they are until destroy; user buffers need no alignment. Every function may be called
 * from any thread; destroy only when no call on that model is running.
 */
#include "runtime.h"

#include <stddef.h>

#ifndef TRANSPILE_PREFIX
#error "TRANSPILE_PREFIX is the common prefix of the exported functions, such as mnist_avx2_"
#endif
#define TP_JOIN_(prefix, function) prefix##function
#define TP_JOIN(prefix, function) TP_JOIN_(prefix, function)
#define ABI(function) TP_JOIN(TRANSPILE_PREFIX, function)

#define PLAN (&tp_the_plan)

#pragma GCC visibility push(default)

static int in_range(int32_t index, uint32_t count) { return index >= 0 && (uint32_t)index < count; }

int32_t ABI(abi_version)(void) { return TP_ABI_VERSION; }

/* The text of the last failure on this thread; valid until the next call on it. */
const char *ABI(last_error)(void) { return tp_error; }

/* --- a model ---------------------------------------------------------------------------------------------------- */

/* `weights` is the data section of the prepared weights file, aligned to 64 bytes. */
int ABI(create)(const void *weights, uint64_t weight_bytes, int32_t threads, tp_model **out) {
  return tp_model_create(weights, weight_bytes, threads, out);
}

void ABI(destroy)(tp_model *model) { tp_model_destroy(model); }

/* How many threads later calls may use. */
void ABI(set_threads)(tp_model *model, int32_t threads) { tp_model_set_threads(model, threads); }

/* The whole plan on dense buffers of the sizes below. */
int ABI(run)(tp_model *model, const void *const *inputs, void *const *outputs, const int64_t *symbols) {
  return tp_model_run(model, inputs, outputs, symbols, NULL);
}

/* As run; seconds[i] is the time of call i. */
int ABI(run_timed)(tp_model *model, const void *const *inputs, void *const *outputs, const int64_t *symbols,
                   double *seconds) {
  return tp_model_run(model, inputs, outputs, symbols, seconds);
}

/* One kernel of the plan on the caller's buffers: its inputs, then its outputs. */
int ABI(call)(tp_model *model, int32_t call, void *const *buffers, const int64_t *symbols) {
  return tp_model_call(model, call, buffers, symbols);
}

/* --- the plan: NULL or 0 for an index that does not exist ------------------------------------------------------- */

int32_t ABI(input_count)(void) { return (int32_t)PLAN->input_count; }

int32_t ABI(output_count)(void) { return (int32_t)PLAN->output_count; }

int32_t ABI(call_count)(void) { return (int32_t)PLAN->call_count; }

const char *ABI(input_name)(int32_t index) {
  return in_range(index, PLAN->input_count) ? PLAN->inputs[index].name : NULL;
}

const char *ABI(output_name)(int32_t index) {
  return in_range(index, PLAN->output_count) ? PLAN->outputs[index].name : NULL;
}

/* The name of the kernel that call `index` runs. */
const char *ABI(call_name)(int32_t index) {
  return in_range(index, PLAN->call_count) ? PLAN->kernels[PLAN->calls[index].kernel].name : NULL;
}

int32_t ABI(symbol_count)(void) { return (int32_t)PLAN->symbol_count; }

const char *ABI(symbol_name)(int32_t index) {
  return in_range(index, PLAN->symbol_count) ? PLAN->symbols[index].name : NULL;
}

/* Inclusive bounds of symbol `index`. */
int64_t ABI(symbol_low)(int32_t index) { return in_range(index, PLAN->symbol_count) ? PLAN->symbols[index].low : 0; }

int64_t ABI(symbol_high)(int32_t index) { return in_range(index, PLAN->symbol_count) ? PLAN->symbols[index].high : 0; }

/* Bytes of every input and output, and of the memory a call has for itself, for these symbols; 0, or 1 for a failure. */
int ABI(sizes)(const int64_t *symbols, uint64_t *inputs, uint64_t *outputs, uint64_t *arena) {
  return tp_sizes(symbols, inputs, outputs, arena);
}

/* The same where there are no symbols; 0 where there are. */
uint64_t ABI(input_bytes)(int32_t index) {
  return in_range(index, PLAN->input_count) ? PLAN->inputs[index].bytes : 0;
}

uint64_t ABI(output_bytes)(int32_t index) {
  return in_range(index, PLAN->output_count) ? PLAN->outputs[index].bytes : 0;
}

/* Memory that every running call has for itself. */
uint64_t ABI(arena_bytes)(void) { return PLAN->arena_bytes; }

uint64_t ABI(weight_bytes)(void) { return PLAN->weight_bytes; }
