/* What plan.c (generated), exports.c, runtime.c and pool.c share. Nothing here is exported from the library. */
#ifndef TRANSPILE_RUNTIME_H
#define TRANSPILE_RUNTIME_H

#include <stdint.h>
#include <time.h>

#define TP_ABI_VERSION 6
#define TP_ALIGNMENT 64     /* of arenas, of the weights and of the state: a vector never spans two cache lines */
#define TP_USER_ALIGNMENT 8 /* of inputs and outputs that kernels read and write where they are */

/* Results of run, run_timed and call; TP_STATE_CHANGED is added if the call had changed the state before it failed. */
enum { TP_OK = 0, TP_FAILED = 1, TP_INDEX_OUT_OF_BOUNDS = 2, TP_STATE_CHANGED = 4, TP_DIVISION_BY_ZERO = 8 };
/* What kernels report in their status word. */
enum { TP_STATUS_INDEX = 1, TP_STATUS_SINGULAR = 2, TP_STATUS_DIVISION = 3 };

/* --- the program: one static const table, defined in plan.c ---------------------------------------------------- */

typedef enum { TP_INPUT, TP_OUTPUT, TP_WEIGHT, TP_ARENA, TP_BLOCK, TP_STATE } tp_storage;

/* Where one argument of a call lives: user input or output `index`, byte `offset` of the weights, arena or state, or
 * block `index`, which is placed in the arena when the sizes are known. */
typedef struct {
  tp_storage storage;
  uint32_t index;
  uint64_t offset;
} tp_argument;

/* A kernel: `invoke` takes pointers to its inputs, outputs, then workspace and status where it has them, and the values
 * of all symbols. One that has symbols computes its sizes: `measure` fills those of every input and output and gives
 * the number of its operations; `bytes` is NULL then. */
typedef struct {
  const char *name;
  int32_t (*invoke)(void *const *arguments, const int64_t *symbols);
  uint32_t input_count;
  uint32_t output_count;
  int32_t has_workspace;    /* 1: has a workspace parameter */
  int32_t checks_index;     /* 1: has a status parameter, an int32 set to a TP_STATUS when data do not fit */
  int32_t in_place;         /* 1: its only output holds the old content, and it changes a part of it */
  const uint64_t *bytes;    /* size of every input, then of every output */
  double (*measure)(const int64_t *symbols, uint64_t *bytes);
} tp_kernel;

/* One call: its kernel, its arguments (inputs, then outputs), and the user's source line for error texts. */
typedef struct {
  uint32_t kernel;
  const tp_argument *arguments;
  uint64_t workspace_offset; /* in the arena, */
  int32_t workspace_block;   /* or a block; -1: none */
  const char *source;
} tp_call;

/* An output that no kernel writes (a model that returns an input, or one value twice). */
typedef struct {
  uint32_t output;
  tp_argument from;
} tp_copy;

/* `type` is a text such as "float32[1, 3]". */
typedef struct {
  const char *name, *type;
  uint64_t bytes;
} tp_tensor;

/* A size that varies from call to call, within inclusive bounds. The functions of a program number symbols alike; one
 * that a function does not have is 0 in its calls. */
typedef struct {
  const char *name;
  int64_t low, high;
} tp_symbol;

/* Memory in the arena that is in use from call `first` to call `last`. */
typedef struct {
  uint32_t first, last;
} tp_block;

/* New content of `bytes` bytes of the state from `offset` on, copied there when all calls have succeeded. */
typedef struct {
  uint64_t offset;
  uint64_t bytes;
  tp_argument from;
} tp_update;

/* Bytes of the state that begin as a part of the weights; all others begin as zeros. */
typedef struct {
  uint64_t offset, bytes, weight_offset;
} tp_initial;

/* The plan of one function. */
typedef struct {
  const char *name;
  uint32_t input_count, output_count, call_count, copy_count, update_count, symbol_count, block_count;
  const tp_tensor *inputs;
  const tp_tensor *outputs;
  const tp_call *calls;
  const tp_copy *copies;
  const tp_update *updates;
  const tp_symbol *symbols;
  const tp_block *blocks; /* the largest first, as far as that is known */
  /* Sizes in bytes of inputs, outputs and blocks for these symbols; NULL, or what is too large. */
  const char *(*measure)(const int64_t *symbols, uint64_t *inputs, uint64_t *outputs, uint64_t *blocks);
  uint64_t arena_bytes; /* without blocks */
} tp_function;

/* Functions that share kernels, weights and state. */
typedef struct {
  uint32_t function_count, kernel_count, max_arguments, symbol_count;
  const tp_function *functions;
  const tp_kernel *kernels;
  uint64_t weight_bytes;
  const char *weights_key; /* names the layout of the weights */
  uint64_t state_bytes;
  uint32_t initial_count;
  const tp_initial *initials;
} tp_program;

extern const tp_program tp_the_program;

/* --- pool.c ---------------------------------------------------------------------------------------------------- */

#define TP_MAX_THREADS 256
#define TP_ERROR_BYTES 1024

/* The text of the last failure on this thread. */
extern _Thread_local char tp_error[TP_ERROR_BYTES];

/* How many threads the parallel regions that this thread starts may use (1 outside of a model's call). */
extern _Thread_local int32_t tp_threads;

/* What a parallel loop of TVM runs for each of its tasks; the types are TVM's. */
typedef struct {
  void *sync_handle;
  int32_t num_task;
} tp_environment;
typedef int (*tp_lambda)(int task, tp_environment *environment, void *data);

/* Where the times of a call go: see run_traced. `lanes` points to the pairs of the kernel that runs. */
typedef struct {
  double *seconds, *lanes;
  int32_t threads;
  struct timespec start;
} tp_clock;

/* The clock that times the regions which this thread starts, or NULL. */
extern _Thread_local const tp_clock *tp_region_clock;

double tp_seconds_since(const struct timespec *start);

/* Runs `lambda` for every task; `tasks` 0 means one per thread. */
int tp_launch(tp_lambda lambda, void *data, int tasks);

/* Registers the fork handlers, once. */
void tp_pool_init(void);

/* Guards the arena lists of all models; held across fork(), so that the child never finds it taken. */
void tp_lock(void);
void tp_unlock(void);

/* --- rates.c --------------------------------------------------------------------------------------------------- */

#define TP_LEVELS 4 /* of memory: three caches and what is behind them */

/* Of this machine with so many threads: multiply-adds as operations per second, bytes read per second from every level,
 * then what every level holds in bytes (0: any amount). */
int tp_rates(int32_t threads, double *rates);

/* --- python.c -------------------------------------------------------------------------------------------------- */

/* A function of Python with METH_FASTCALL. */
typedef void *tp_python_method(void *self, void *const *values, intptr_t count);

/* What runs a function of a model on Python's arrays; `to_address` is PyLong_AsVoidPtr. */
tp_python_method *tp_python_call(void *(*to_address)(void *number));

/* --- runtime.c: the functions behind the C ABI, described in exports.c ------------------------------------------ */

typedef struct tp_model tp_model;

int tp_model_create(const void *weights, uint64_t weight_bytes, int32_t threads, tp_model **out);
void tp_model_destroy(tp_model *model);
void tp_model_set_threads(tp_model *model, int32_t threads);
int tp_model_reset(tp_model *model, void *state);
int tp_model_run(tp_model *model, int32_t function, void *state, const void *const *inputs, void *const *outputs,
                 const int64_t *symbols, tp_clock *clock);
int32_t tp_clamp_threads(int32_t threads);
int tp_model_run_packed(void *const *request);
int tp_model_call(tp_model *model, int32_t function, int32_t call, void *const *buffers, const int64_t *symbols);
int tp_sizes(int32_t function, const int64_t *symbols, uint64_t *inputs, uint64_t *outputs, uint64_t *arena);

#endif
