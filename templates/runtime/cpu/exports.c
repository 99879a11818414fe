/* The C ABI of a package, version 6, as every library of one instruction set exports it: <package>_<isa>_<function>
 * (TRANSPILE_PREFIX). dispatch.c stands before these libraries for C programs; Python calls them as they are.
 *
 * Results are 0 (done), 1 (failed), 2 (an index was out of bounds) or 8 (an integer was divided by zero); unless it is
 * 0, last_error() says why, per thread. 4 is added if the call had changed the state before it failed: it is then
 * neither the old nor the new one.
 *
 * A program has functions, which share weights and state. The state is memory of the caller's, state_bytes() long and
 * aligned to 64 bytes; NULL if that is 0. Two calls must not use one state at the same time.
 *
 * Where sizes vary, `symbols` holds the value of every symbol, in the order of symbol_name(); else it may be NULL.
 * The weights must stay where they are until destroy; user buffers need no alignment, and an output overlaps no other
 * buffer: kernels write it while inputs are read. Every function may be called from any thread; destroy only when no call
 * on that model is running.
 */
#include "runtime.h"

#include <stddef.h>

#ifndef TRANSPILE_PREFIX
#error "TRANSPILE_PREFIX is the common prefix of the exported functions, such as mnist_avx2_"
#endif
#define TP_JOIN_(prefix, function) prefix##function
#define TP_JOIN(prefix, function) TP_JOIN_(prefix, function)
#define ABI(function) TP_JOIN(TRANSPILE_PREFIX, function)

#define PROGRAM (&tp_the_program)

#pragma GCC visibility push(default)

static int in_range(int32_t index, uint32_t count) { return index >= 0 && (uint32_t)index < count; }

static const tp_function *at(int32_t function) {
  static const tp_function none = {0};
  return in_range(function, PROGRAM->function_count) ? &PROGRAM->functions[function] : &none;
}

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

/* Fills a state with what it is before the first call. */
int ABI(reset)(tp_model *model, void *state) { return tp_model_reset(model, state); }

/* A whole function on dense buffers of the sizes below. */
int ABI(run)(tp_model *model, int32_t function, void *state, const void *const *inputs, void *const *outputs,
             const int64_t *symbols) {
  return tp_model_run(model, function, state, inputs, outputs, symbols, NULL);
}

/* As run, with everything in one array of words, which takes less to pass from other languages: model, function, state,
 * the value of every symbol, the address of every input, the address of every output. */
int ABI(run_packed)(void *const *request) { return tp_model_run_packed(request); }

/* For Python alone (python.c): a function of the interpreter's kind that runs a whole function on its arrays. */
tp_python_method *ABI(python_call)(void *(*to_address)(void *number)) { return tp_python_call(to_address); }

/* As run; call i lasts from seconds[2 * i] to seconds[2 * i + 1], counted from the first one's start. */
int ABI(run_timed)(tp_model *model, int32_t function, void *state, const void *const *inputs, void *const *outputs,
                   const int64_t *symbols, double *seconds) {
  tp_clock clock = {.seconds = seconds};
  return tp_model_run(model, function, state, inputs, outputs, symbols, &clock);
}

/* As run_timed; `lanes` has room for `threads` pairs per call and gets those of the threads that helped: pair t of call i is
 * when thread t began its first part of that call and ended its last one. The others stay, pair 0 (the caller's) too. */
int ABI(run_traced)(tp_model *model, int32_t function, void *state, const void *const *inputs, void *const *outputs,
                    const int64_t *symbols, double *seconds, double *lanes, int32_t threads) {
  tp_clock clock = {.seconds = seconds, .lanes = lanes, .threads = threads};
  return tp_model_run(model, function, state, inputs, outputs, symbols, &clock);
}

/* One kernel of a function on the caller's buffers: its inputs, then its outputs. */
int ABI(call)(tp_model *model, int32_t function, int32_t call, void *const *buffers, const int64_t *symbols) {
  return tp_model_call(model, function, call, buffers, symbols);
}

/* What this machine can do with so many threads, to compare kernels with; takes some tenths of a second. The results are
 * operations per second of multiply-adds; bytes per second that are read from the three levels of cache and from memory;
 * bytes that each of them holds, 0 for memory. 1 if there is no memory to measure with. */
int ABI(rates)(int32_t threads, double *rates) { return tp_rates(tp_clamp_threads(threads), rates); }

/* --- the functions: NULL or 0 for an index that does not exist -------------------------------------------------- */

int32_t ABI(function_count)(void) { return (int32_t)PROGRAM->function_count; }

const char *ABI(function_name)(int32_t function) { return at(function)->name; }

int32_t ABI(input_count)(int32_t function) { return (int32_t)at(function)->input_count; }

int32_t ABI(output_count)(int32_t function) { return (int32_t)at(function)->output_count; }

int32_t ABI(call_count)(int32_t function) { return (int32_t)at(function)->call_count; }

const char *ABI(input_name)(int32_t function, int32_t index) {
  return in_range(index, at(function)->input_count) ? at(function)->inputs[index].name : NULL;
}

const char *ABI(output_name)(int32_t function, int32_t index) {
  return in_range(index, at(function)->output_count) ? at(function)->outputs[index].name : NULL;
}

/* Texts such as "float32[1, 3]", with the names of sizes that vary. */
const char *ABI(input_type)(int32_t function, int32_t index) {
  return in_range(index, at(function)->input_count) ? at(function)->inputs[index].type : NULL;
}

const char *ABI(output_type)(int32_t function, int32_t index) {
  return in_range(index, at(function)->output_count) ? at(function)->outputs[index].type : NULL;
}

/* The name of the kernel that call `index` runs. */
const char *ABI(call_name)(int32_t function, int32_t index) {
  return in_range(index, at(function)->call_count) ? PROGRAM->kernels[at(function)->calls[index].kernel].name : NULL;
}

/* The line of the user's source that call `index` comes from. */
const char *ABI(call_source)(int32_t function, int32_t index) {
  return in_range(index, at(function)->call_count) ? at(function)->calls[index].source : NULL;
}

int32_t ABI(symbol_count)(int32_t function) { return (int32_t)at(function)->symbol_count; }

const char *ABI(symbol_name)(int32_t function, int32_t index) {
  return in_range(index, at(function)->symbol_count) ? at(function)->symbols[index].name : NULL;
}

/* Inclusive bounds of symbol `index`. */
int64_t ABI(symbol_low)(int32_t function, int32_t index) {
  return in_range(index, at(function)->symbol_count) ? at(function)->symbols[index].low : 0;
}

int64_t ABI(symbol_high)(int32_t function, int32_t index) {
  return in_range(index, at(function)->symbol_count) ? at(function)->symbols[index].high : 0;
}

/* Bytes of every input and output, and of the memory a call has for itself, for these symbols; 0, or 1 for a failure. */
int ABI(sizes)(int32_t function, const int64_t *symbols, uint64_t *inputs, uint64_t *outputs, uint64_t *arena) {
  return tp_sizes(function, symbols, inputs, outputs, arena);
}

/* The same where there are no symbols; 0 where there are. */
uint64_t ABI(input_bytes)(int32_t function, int32_t index) {
  return in_range(index, at(function)->input_count) ? at(function)->inputs[index].bytes : 0;
}

uint64_t ABI(output_bytes)(int32_t function, int32_t index) {
  return in_range(index, at(function)->output_count) ? at(function)->outputs[index].bytes : 0;
}

/* Memory that every running call of the function has for itself. */
uint64_t ABI(arena_bytes)(int32_t function) { return at(function)->arena_bytes; }

uint64_t ABI(weight_bytes)(void) { return PROGRAM->weight_bytes; }

/* What the metadata of a weights file in the layout of this model says under "transpile.prepared". */
const char *ABI(weights_key)(void) { return PROGRAM->weights_key; }

/* Memory that the caller keeps between calls. */
uint64_t ABI(state_bytes)(void) { return PROGRAM->state_bytes; }
