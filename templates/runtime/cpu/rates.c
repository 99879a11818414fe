/* What the machine can do, to judge the time of a kernel by: multiply-adds, and bytes read from each level of memory.
 *
 * Compiled for the instruction set of the kernels: TP_VECTOR_BYTES is the size of its registers. Every thread of the
 * pool does the same work on memory of its own; the best of some repeats counts, as others may use the machine too.
 */
#define _GNU_SOURCE
#include "runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef TP_VECTOR_BYTES
#error "TP_VECTOR_BYTES is the size of a vector register in bytes, such as 32"
#endif

typedef float floats __attribute__((vector_size(TP_VECTOR_BYTES)));
typedef uint32_t words __attribute__((vector_size(TP_VECTOR_BYTES)));

#define REPEATS 5
#define SECONDS 1e-3     /* of one repeat */
#define CHAINS 12        /* sums that do not wait for each other: more than the latency of a multiply-add asks for */
#define READS 8          /* vectors read per step of the loop */
#define MEMORY (1ull << 30) /* bytes to read from memory, at most */

/* One measurement: `work` steps on every thread. */
typedef struct {
  void (*run)(const void *memory, uint64_t bytes, uint64_t work);
  char *memory;
  uint64_t bytes, work; /* bytes of every thread's part of `memory` */
  double start[TP_MAX_THREADS], end[TP_MAX_THREADS];
} tp_measurement;

static double seconds_now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* --- the loops ------------------------------------------------------------------------------------------------- */

static volatile float kept_float;
/* Known only when the loop runs: of known numbers the compiler leaves out every chain that stands still. */
static volatile float half = 0.5f, one = 1.0f;
static volatile uint32_t kept_word;

static void multiply_add(const void *memory, uint64_t bytes, uint64_t work) {
  (void)memory, (void)bytes;
  floats a = {0}, b = a + 1, c = a + 2, d = a + 3, e = a + 4, f = a + 5;
  floats g = a + 6, h = a + 7, i = a + 8, j = a + 9, k = a + 10, l = a + 11;
  const floats factor = (floats){0} + half, term = (floats){0} + one;
#define TP_STEP(sum) sum = sum * factor + term
  for (uint64_t step = 0; step < work; ++step) {
    TP_STEP(a), TP_STEP(b), TP_STEP(c), TP_STEP(d), TP_STEP(e), TP_STEP(f);
    TP_STEP(g), TP_STEP(h), TP_STEP(i), TP_STEP(j), TP_STEP(k), TP_STEP(l);
  }
  a += b + c + d + e + f + g + h + i + j + k + l;
  kept_float = a[0];
}

static void read_all(const void *memory, uint64_t bytes, uint64_t work) {
  words sums[READS];
  memset(sums, 0, sizeof sums);
  words s = sums[0], t = s, u = s, v = s, w = s, x = s, y = s, z = s;
  for (uint64_t step = 0; step < work; ++step) {
    const words *from = memory, *end = from + bytes / sizeof(words);
    for (; from < end; from += READS) {
      s ^= from[0], t ^= from[1], u ^= from[2], v ^= from[3];
      w ^= from[4], x ^= from[5], y ^= from[6], z ^= from[7];
    }
  }
  s ^= t ^ u ^ v ^ w ^ x ^ y ^ z;
  kept_word = s[0];
}

/* --- rates ----------------------------------------------------------------------------------------------------- */

static int task(int number, tp_environment *environment, void *data) {
  tp_measurement *measurement = data;
  (void)environment;
  measurement->start[number] = seconds_now();
  measurement->run(measurement->memory + (uint64_t)number * measurement->bytes, measurement->bytes, measurement->work);
  measurement->end[number] = seconds_now();
  return 0;
}

/* Seconds from the first thread's start to the last one's end. */
static double once(tp_measurement *measurement, int32_t threads) {
  tp_launch(task, measurement, threads);
  double start = measurement->start[0], end = measurement->end[0];
  for (int32_t number = 1; number < threads; ++number) {
    if (measurement->start[number] < start) start = measurement->start[number];
    if (measurement->end[number] > end) end = measurement->end[number];
  }
  return end - start;
}

/* Steps per second and thread, times the threads. */
static double steps_per_second(tp_measurement *measurement, int32_t threads) {
  measurement->work = 1;
  while (once(measurement, threads) < SECONDS) measurement->work *= 2;
  double best = once(measurement, threads);
  for (int repeat = 1; repeat < REPEATS; ++repeat) {
    double seconds = once(measurement, threads);
    if (seconds < best) best = seconds;
  }
  return (double)measurement->work * threads / best;
}

/* The size of a cache as the kernel lists it for the first processor (sysconf adds up those of all sockets). */
static uint64_t cache_bytes(int index, uint64_t otherwise) {
  char path[64];
  unsigned long long kilobytes = 0;
  snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
  FILE *file = fopen(path, "r");
  if (!file) return otherwise;
  if (fscanf(file, "%lluK", &kilobytes) != 1) kilobytes = 0;
  fclose(file);
  return kilobytes ? kilobytes << 10 : otherwise;
}

/* The last caches that the threads may run on, all of them together. */
static uint64_t last_caches_bytes(uint64_t one, int32_t threads) {
  uint64_t most = one * (uint64_t)threads;
  long all = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
  all = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  if (all < 0 || (uint64_t)all < one) return one;
  return (uint64_t)all < most ? (uint64_t)all : most;
}

int tp_rates(int32_t threads, double *rates) {
  /* Index 1 is the cache of instructions. */
  const uint64_t l1 = cache_bytes(0, 1 << 15), l2 = cache_bytes(2, 1 << 18), l3 = cache_bytes(3, 1 << 23);
  const uint64_t beyond = 2 * last_caches_bytes(l3, threads), all = beyond < MEMORY ? beyond : MEMORY;
  const uint64_t step = READS * sizeof(words);
  /* What every thread reads; the last cache is shared. */
  const uint64_t sizes[] = {l1 / 2, l2 / 2, l3 / 4 / (uint64_t)threads, all / (uint64_t)threads};
  tp_measurement *measurement = calloc(1, sizeof *measurement);
  char *memory = aligned_alloc(4096, (all + 2 * l2 * (uint64_t)threads + 4095) / 4096 * 4096);
  int failed = !measurement || !memory;
  if (!failed) {
    int32_t before = tp_threads;
    tp_threads = threads;
    memset(memory, 1, all + 2 * l2 * (uint64_t)threads);
    measurement->run = multiply_add;
    rates[0] = steps_per_second(measurement, threads) * 2 * CHAINS * (TP_VECTOR_BYTES / sizeof(float));
    measurement->run = read_all;
    measurement->memory = memory;
    for (int level = 0; level < TP_LEVELS; ++level) {
      measurement->bytes = sizes[level] / step * step;
      rates[1 + level] = steps_per_second(measurement, threads) * (double)measurement->bytes;
    }
    tp_threads = before;
  }
  const uint64_t capacities[] = {l1 * (uint64_t)threads, l2 * (uint64_t)threads, l3, 0};
  for (int level = 0; level < TP_LEVELS; ++level) rates[1 + TP_LEVELS + level] = (double)capacities[level];
  free(memory);
  free(measurement);
  return failed ? TP_FAILED : TP_OK;
}
