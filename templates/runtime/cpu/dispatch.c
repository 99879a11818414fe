/* lib<package>.so: the C ABI of <package>.h over the best of the package's libraries, one per instruction set.
 *
 * The first call looks for what this processor has and the operating system saves (cpuid and xgetbv on x86-64, the
 * auxiliary vector on ARM), opens that library and keeps the addresses of its functions. This file is compiled for the
 * oldest processors of its family. carried.h, which is generated, says what the package carries.
 */
#define _GNU_SOURCE
#include "carried.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TP_JOIN_(prefix, function) prefix##function
#define TP_JOIN(prefix, function) TP_JOIN_(prefix, function)
#define ABI(function) TP_JOIN(TP_PREFIX, function)

#define TP_PATH_BYTES 4096
#define TP_ERROR_BYTES 1024
#define TP_PLACE "TRANSPILE_WEIGHTS"
#define TP_MAX_HEADER 100000000 /* of a safetensors file, as in Python */

/* What a library exports, but for its prefix: result, name, parameters. */
#define TP_FUNCTIONS(X)                                                                                    \
  X(int32_t, abi_version, (void))                                                                          \
  X(const char *, last_error, (void))                                                                      \
  X(const char *, weights_key, (void))                                                                     \
  X(int, create, (const void *, uint64_t, int32_t, void **))                                               \
  X(void, destroy, (void *))                                                                               \
  X(void, set_threads, (void *, int32_t))                                                                  \
  X(int, reset, (void *, void *))                                                                          \
  X(int, run, (void *, int32_t, void *, const void *const *, void *const *, const int64_t *))              \
  X(int, run_timed, (void *, int32_t, void *, const void *const *, void *const *, const int64_t *, double *)) \
  X(int, sizes, (int32_t, const int64_t *, uint64_t *, uint64_t *, uint64_t *))                            \
  X(int32_t, function_count, (void))                                                                       \
  X(const char *, function_name, (int32_t))                                                                \
  X(int32_t, input_count, (int32_t))                                                                       \
  X(int32_t, output_count, (int32_t))                                                                      \
  X(int32_t, call_count, (int32_t))                                                                        \
  X(int32_t, symbol_count, (int32_t))                                                                      \
  X(const char *, input_name, (int32_t, int32_t))                                                          \
  X(const char *, output_name, (int32_t, int32_t))                                                         \
  X(const char *, input_type, (int32_t, int32_t))                                                          \
  X(const char *, output_type, (int32_t, int32_t))                                                         \
  X(const char *, call_name, (int32_t, int32_t))                                                           \
  X(const char *, call_source, (int32_t, int32_t))                                                         \
  X(const char *, symbol_name, (int32_t, int32_t))                                                         \
  X(int64_t, symbol_low, (int32_t, int32_t))                                                               \
  X(int64_t, symbol_high, (int32_t, int32_t))                                                              \
  X(uint64_t, input_bytes, (int32_t, int32_t))                                                             \
  X(uint64_t, output_bytes, (int32_t, int32_t))                                                            \
  X(uint64_t, arena_bytes, (int32_t))                                                                      \
  X(uint64_t, weight_bytes, (void))                                                                        \
  X(uint64_t, state_bytes, (void))

/* `model` is the library's; `mapping` the weights file that open() mapped, or NULL. */
struct TP_JOIN(TP_PREFIX, model) {
  void *model, *mapping;
  size_t mapped_bytes;
};
typedef struct TP_JOIN(TP_PREFIX, model) tp_handle;

static struct {
#define TP_POINTER(result, name, parameters) result(*name) parameters;
  TP_FUNCTIONS(TP_POINTER)
} native;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const char *chosen;           /* the instruction set; NULL: `refusal` says why */
static char refusal[TP_ERROR_BYTES];
static char folder[TP_PATH_BYTES];   /* of the package: the parent of the one that holds this library */
static _Thread_local char error[TP_ERROR_BYTES];
static _Thread_local int failed_here; /* whether the thread's last failure is in `error`, not in the library */

static int fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error, sizeof error, format, arguments);
  va_end(arguments);
  failed_here = 1;
  return 1;
}

/* --- what the processor has ------------------------------------------------------------------------------------ */

#if defined(__x86_64__)
#include <cpuid.h>

enum { LEAF1_ECX, LEAF7_EBX, EXTENDED_ECX, WORDS };
enum { NOTHING = 0, YMM = 0x6, ZMM = 0xe6 }; /* bits of XCR0: registers that the operating system saves */

/* The names are Linux's, as in /proc/cpuinfo; the bits those of the manuals of AMD and Intel. */
static const struct {
  const char *name;
  int word, bit;
  uint32_t saved;
} known[] = {
    {"ssse3", LEAF1_ECX, 9, NOTHING},     {"fma", LEAF1_ECX, 12, YMM},        {"sse4_1", LEAF1_ECX, 19, NOTHING},
    {"sse4_2", LEAF1_ECX, 20, NOTHING},   {"movbe", LEAF1_ECX, 22, NOTHING},  {"popcnt", LEAF1_ECX, 23, NOTHING},
    {"avx", LEAF1_ECX, 28, YMM},          {"f16c", LEAF1_ECX, 29, YMM},       {"bmi1", LEAF7_EBX, 3, NOTHING},
    {"avx2", LEAF7_EBX, 5, YMM},          {"bmi2", LEAF7_EBX, 8, NOTHING},    {"avx512f", LEAF7_EBX, 16, ZMM},
    {"avx512dq", LEAF7_EBX, 17, ZMM},     {"avx512cd", LEAF7_EBX, 28, ZMM},   {"avx512bw", LEAF7_EBX, 30, ZMM},
    {"avx512vl", LEAF7_EBX, 31, ZMM},     {"abm", EXTENDED_ECX, 5, NOTHING},
};

static int has_feature(const char *name, size_t length) {
  uint32_t words[WORDS] = {0}, saved = 0, eax, ebx, ecx, edx;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) words[LEAF1_ECX] = ecx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) words[LEAF7_EBX] = ebx;
  if (__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx)) words[EXTENDED_ECX] = ecx;
  if (words[LEAF1_ECX] >> 27 & 1) __asm__ volatile("xgetbv" : "=a"(saved), "=d"(edx) : "c"(0));
  for (size_t i = 0; i < sizeof known / sizeof *known; ++i) {
    if (strlen(known[i].name) != length || memcmp(known[i].name, name, length)) continue;
    return (words[known[i].word] >> known[i].bit & 1) && (saved & known[i].saved) == known[i].saved;
  }
  return 0;
}
#elif defined(__aarch64__)
#include <sys/auxv.h>

static const struct {
  const char *name;
  int bit;
} known[] = {{"fp", 0}, {"asimd", 1}}; /* of HWCAP, with the names of /proc/cpuinfo */

static int has_feature(const char *name, size_t length) {
  for (size_t i = 0; i < sizeof known / sizeof *known; ++i) {
    if (strlen(known[i].name) != length || memcmp(known[i].name, name, length)) continue;
    return getauxval(AT_HWCAP) >> known[i].bit & 1;
  }
  return 0;
}
#else
#error "kernels exist for x86-64 and AArch64 only"
#endif

/* The first feature of a list, separated by spaces, that is not there; its length is 0 if all are. */
static const char *missing(const char *features, size_t *length) {
  for (; *features; features += *length + (features[*length] == ' ')) {
    *length = strcspn(features, " ");
    if (!has_feature(features, *length)) return features;
  }
  *length = 0;
  return features;
}

static const tp_carried *find(const char *isa) {
  for (size_t i = 0; i < TP_CARRIED; ++i) {
    if (!strcmp(carried[i].isa, isa)) return &carried[i];
  }
  return NULL;
}

static void list_carried(char *text, size_t bytes) {
  *text = 0;
  for (size_t i = 0, used = 0; i < TP_CARRIED && used < bytes; ++i) {
    used += (size_t)snprintf(text + used, bytes - used, "%s%s", i ? ", " : "", carried[i].isa);
  }
}

/* Whether this machine runs a library of the package; if not, `error` says why. */
static int runs_here(const char *isa) {
  char list[256];
  size_t length;
  const tp_carried *entry = find(isa);
  if (!entry) {
    list_carried(list, sizeof list);
    fail("this package has no kernels for %.64s, only for %s", isa, list);
    return 0;
  }
  const char *lacks = missing(entry->features, &length);
  if (length) {
    fail("%s needs %.*s, which this processor or its operating system does not have", isa, (int)length, lacks);
    return 0;
  }
  return 1;
}

/* --- loading --------------------------------------------------------------------------------------------------- */

/* The instruction set to use, or NULL. */
static const char *choose(void) {
  const char *forced = getenv("TRANSPILE_ISA");
  if (forced && *forced) {
    char reason[TP_ERROR_BYTES / 2];
    if (runs_here(forced)) return find(forced)->isa;
    snprintf(reason, sizeof reason, "%s", error);
    fail("TRANSPILE_ISA=%.64s: %s", forced, reason);
    return NULL;
  }
  for (size_t i = 0; i < TP_CARRIED; ++i) {
    if (runs_here(carried[i].isa)) return carried[i].isa;
  }
  char list[256];
  list_carried(list, sizeof list);
  fail("this package has kernels for %s only; this processor runs none of them", list);
  return NULL;
}

/* `folder`: symbolic links are followed, so that a link to this library finds what lies beside it. */
static int find_folder(void) {
  Dl_info info;
  if (!dladdr((void *)(uintptr_t)&find_folder, &info) || !realpath(info.dli_fname, folder)) {
    return fail("the folder of lib%s.so cannot be found: %s", TP_PACKAGE, strerror(errno));
  }
  for (int up = 0; up < 2; ++up) {
    char *slash = strrchr(folder, '/');
    if (slash) *slash = 0;
  }
  return 0;
}

static int bind(void *library, const char *path) {
  char symbol[512];
#define TP_BIND(result, name, parameters)                                         \
  snprintf(symbol, sizeof symbol, "%s_%s_%s", TP_PACKAGE, chosen, #name);          \
  *(void **)&native.name = dlsym(library, symbol);                                \
  if (!native.name) return fail("%s has no function %s: it is of another version", path, symbol);
  TP_FUNCTIONS(TP_BIND)
  if (native.abi_version() != TP_ABI_VERSION) {
    return fail("%s has version %d of the C ABI, lib%s.so version %d", path, (int)native.abi_version(), TP_PACKAGE,
                TP_ABI_VERSION);
  }
  return 0;
}

static void load(void) {
  char path[TP_PATH_BYTES + 256];
  if (!find_folder() && (chosen = choose())) {
    snprintf(path, sizeof path, "%s/kernels/cpu/%s/%s.so", folder, chosen, TP_PACKAGE);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const char *reason = library ? NULL : dlerror();
    if (library ? !bind(library, path) : !fail("%s", reason ? reason : path)) return;
  }
  chosen = NULL;
  snprintf(refusal, sizeof refusal, "%s", error);
}

/* Whether the functions of the library are there; if not, the text of a failure says why. */
static int ready(void) {
  pthread_once(&once, load);
  failed_here = 0;
  return chosen ? 1 : !fail("%s", refusal);
}

/* --- the weights file ------------------------------------------------------------------------------------------ */

/* Where the weights begin in a mapped safetensors file that was prepared for this model; 0: it was not. */
static uint64_t data_offset(const char *file, size_t bytes) {
  char wanted[TP_ERROR_BYTES];
  uint64_t header = 0;
  if (bytes < 8) return 0;
  for (int i = 7; i >= 0; --i) header = header << 8 | (unsigned char)file[i];
  if (header > TP_MAX_HEADER || header > bytes - 8 || (header + 8) % 64) return 0;
  int length = snprintf(wanted, sizeof wanted, "\"transpile.prepared\":\"%s\"", native.weights_key());
  return memmem(file + 8, header, wanted, (size_t)length) ? header + 8 : 0;
}

/* Where the weights are that the package was built with: in it, or, if its wheel left them out, in the file that was
 * made with the wheel, in the folder $TRANSPILE_WEIGHTS. */
static int own_weights(char *path, size_t bytes) {
  const char *place = getenv(TP_PLACE);
  snprintf(path, bytes, "%s/" TP_OWN_WEIGHTS, folder);
  if (!access(path, F_OK)) return 0;
  if (!place || !*place) {
    return fail("%s is missing; open a file of weights, or let " TP_PLACE " name the folder of " TP_BESIDE, path);
  }
  size_t length = (size_t)snprintf(path, bytes, "%s/" TP_BESIDE, place);
  if (length < bytes && !access(path, F_OK)) return 0;
  return fail("the folder " TP_PLACE "=%s has no " TP_BESIDE, place);
}

static int map_file(const char *path, tp_handle *handle) {
  struct stat status;
  int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* which does not wait for the writer of a pipe */
  if (file < 0) return fail("%s: %s", path, strerror(errno));
  int bad = fstat(file, &status) || !S_ISREG(status.st_mode) || status.st_size < 8;
  if (!bad) {
    handle->mapped_bytes = (size_t)status.st_size;
    handle->mapping = mmap(NULL, handle->mapped_bytes, PROT_READ, MAP_SHARED, file, 0);
    if (handle->mapping == MAP_FAILED) handle->mapping = NULL;
  }
  int number = errno;
  close(file);
  if (bad) return fail("%s is not a weights file", path);
  return handle->mapping ? 0 : fail("%s: %s", path, strerror(number));
}

static void forget(tp_handle *handle) {
  if (handle->mapping) munmap(handle->mapping, handle->mapped_bytes);
  free(handle);
}

/* --- the ABI, described in the package's header ---------------------------------------------------------------- */

#pragma GCC visibility push(default)

int32_t ABI(abi_version)(void) { return TP_ABI_VERSION; }

const char *ABI(last_error)(void) {
  if (failed_here) return error;
  pthread_once(&once, load);
  return chosen ? native.last_error() : error;
}

const char *ABI(isa)(void) { return ready() ? chosen : NULL; }

int ABI(isa_supported)(const char *isa) {
  failed_here = 0;
  return isa ? runs_here(isa) : !fail("no instruction set named");
}

int ABI(create)(const void *weights, uint64_t weight_bytes, int32_t threads, tp_handle **out) {
  *out = NULL;
  if (!ready()) return 1;
  tp_handle *handle = calloc(1, sizeof *handle);
  if (!handle) return fail("out of memory");
  int code = native.create(weights, weight_bytes, threads, &handle->model);
  if (code) forget(handle);
  else *out = handle;
  return code;
}

int ABI(open)(const char *weights_file, int32_t threads, tp_handle **out) {
  char own[TP_PATH_BYTES + 256];
  *out = NULL;
  if (!ready() || (!weights_file && own_weights(own, sizeof own))) return 1;
  tp_handle *handle = calloc(1, sizeof *handle);
  if (!handle) return fail("out of memory");
  const char *path = weights_file ? weights_file : own;
  int code = map_file(path, handle);
  uint64_t offset = code ? 0 : data_offset(handle->mapping, handle->mapped_bytes);
  if (!code && !offset) code = fail("%s was not prepared for this model", path);
  if (!code) {
    code = native.create((char *)handle->mapping + offset, handle->mapped_bytes - offset, threads, &handle->model);
  }
  if (code) forget(handle);
  else *out = handle;
  return code;
}

void ABI(destroy)(tp_handle *handle) {
  if (!handle) return;
  native.destroy(handle->model);
  forget(handle);
}

void ABI(set_threads)(tp_handle *handle, int32_t threads) { native.set_threads(handle->model, threads); }

int ABI(reset)(tp_handle *handle, void *state) {
  failed_here = 0;
  return native.reset(handle->model, state);
}

int ABI(run)(tp_handle *handle, int32_t function, void *state, const void *const *inputs, void *const *outputs,
             const int64_t *symbols) {
  failed_here = 0;
  return native.run(handle->model, function, state, inputs, outputs, symbols);
}

int ABI(run_timed)(tp_handle *handle, int32_t function, void *state, const void *const *inputs, void *const *outputs,
                   const int64_t *symbols, double *seconds) {
  failed_here = 0;
  return native.run_timed(handle->model, function, state, inputs, outputs, symbols, seconds);
}

int ABI(sizes)(int32_t function, const int64_t *symbols, uint64_t *inputs, uint64_t *outputs, uint64_t *arena) {
  return ready() ? native.sizes(function, symbols, inputs, outputs, arena) : 1;
}

#define TP_OF_PROGRAM(result, name) \
  result ABI(name)(void) { return ready() ? native.name() : 0; }
TP_OF_PROGRAM(int32_t, function_count)
TP_OF_PROGRAM(uint64_t, weight_bytes)
TP_OF_PROGRAM(uint64_t, state_bytes)

#define TP_OF_FUNCTION(result, name) \
  result ABI(name)(int32_t function) { return ready() ? native.name(function) : 0; }
TP_OF_FUNCTION(const char *, function_name)
TP_OF_FUNCTION(int32_t, input_count)
TP_OF_FUNCTION(int32_t, output_count)
TP_OF_FUNCTION(int32_t, call_count)
TP_OF_FUNCTION(int32_t, symbol_count)
TP_OF_FUNCTION(uint64_t, arena_bytes)

#define TP_OF_ITEM(result, name) \
  result ABI(name)(int32_t function, int32_t index) { return ready() ? native.name(function, index) : 0; }
TP_OF_ITEM(const char *, input_name)
TP_OF_ITEM(const char *, output_name)
TP_OF_ITEM(const char *, input_type)
TP_OF_ITEM(const char *, output_type)
TP_OF_ITEM(const char *, call_name)
TP_OF_ITEM(const char *, call_source)
TP_OF_ITEM(const char *, symbol_name)
TP_OF_ITEM(int64_t, symbol_low)
TP_OF_ITEM(int64_t, symbol_high)
TP_OF_ITEM(uint64_t, input_bytes)
TP_OF_ITEM(uint64_t, output_bytes)
