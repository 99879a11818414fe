/* The thread pool that TVM's parallel loops run on, and the other functions that its objects expect.
 *
 * One pool per library, shared by all models. A region has one slot per participating thread. The calling thread
 * opens the slots of the workers, runs its own, then takes over every slot that no worker has claimed yet: a worker
 * that is still asleep never delays a region, and a pool without workers still computes the right result. A caller
 * that finds the pool taken by another caller runs its region alone, so callers never wait for each other.
 */
#define _GNU_SOURCE
#include "runtime.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Longer than the gap between two kernels or two calls in a loop, short enough not to heat an idle core. */
#define SPIN_NANOSECONDS 100000

/* What one thread is to run. `ticket` is odd while the slot is idle or claimed, even while it is open; the rest is written
 * before it is opened. All of it is one cache line: a region reaches a worker in one transfer between two cores, of which
 * a short region has several as it is. */
typedef struct {
  _Alignas(64) _Atomic uint32_t ticket;
  _Atomic uint32_t asleep;
  tp_lambda lambda;
  void *data;
  tp_environment environment;
  const tp_clock *clock;
  int32_t participants;
} tp_slot;

_Thread_local char tp_error[TP_ERROR_BYTES];
_Thread_local int32_t tp_threads = 1;
_Thread_local const tp_clock *tp_region_clock = NULL;

static struct {
  atomic_flag busy;     /* taken by the caller whose region runs */
  int32_t worker_count; /* worker i serves slots[i], i from 1; only the taker of `busy` changes it */
  _Atomic int32_t failure; /* the first error of a region and its text */
  char error[TP_ERROR_BYTES];
  _Alignas(64) _Atomic uint32_t pending; /* slots not finished */
  _Atomic uint32_t caller_asleep;
  tp_slot slots[TP_MAX_THREADS];
} pool = {.busy = ATOMIC_FLAG_INIT};

static pthread_mutex_t arena_lock = PTHREAD_MUTEX_INITIALIZER;

/* --- waiting --------------------------------------------------------------------------------------------------- */

static void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void futex_wait(_Atomic uint32_t *address, uint32_t expected) {
  syscall(SYS_futex, address, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *address) {
  syscall(SYS_futex, address, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* 1 once `*address & mask` equals `wanted`, 0 when the time to spin is over. */
static int spin_until(_Atomic uint32_t *address, uint32_t mask, uint32_t wanted) {
  int64_t deadline = 0;
  for (uint32_t round = 0;; ++round) {
    if ((atomic_load_explicit(address, memory_order_acquire) & mask) == wanted) return 1;
    pause_briefly();
    if (round % 64 == 63) {
      int64_t time = now();
      if (!deadline) deadline = time + SPIN_NANOSECONDS;
      if (time > deadline) return 0;
    }
  }
}

/* --- regions --------------------------------------------------------------------------------------------------- */

double tp_seconds_since(const struct timespec *start) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)(time.tv_sec - start->tv_sec) + 1e-9 * (double)(time.tv_nsec - start->tv_nsec);
}

/* The tasks of one slot, on whichever thread claimed it. */
static void run_slot(int32_t number) {
  tp_slot *slot = &pool.slots[number];
  for (int32_t task = number; task < slot->environment.num_task; task += slot->participants) {
    int code = slot->lambda(task, &slot->environment, slot->data);
    int32_t none = 0;
    if (code && atomic_compare_exchange_strong(&pool.failure, &none, code)) {
      memcpy(pool.error, tp_error, TP_ERROR_BYTES);
    }
  }
}

static int claim(tp_slot *slot) {
  uint32_t ticket = atomic_load(&slot->ticket);
  return ticket % 2 == 0 && atomic_compare_exchange_strong(&slot->ticket, &ticket, ticket + 1);
}

static void finish_slot(void) {
  if (atomic_fetch_sub(&pool.pending, 1) == 1 && atomic_load(&pool.caller_asleep)) futex_wake(&pool.pending);
}

static void *worker(void *argument) {
  int32_t id = (int32_t)(intptr_t)argument;
  tp_slot *slot = &pool.slots[id];
  for (;;) {
    if (!spin_until(&slot->ticket, 1, 0)) {
      atomic_store(&slot->asleep, 1);
      uint32_t ticket = atomic_load(&slot->ticket);
      if (ticket % 2) futex_wait(&slot->ticket, ticket);
      atomic_store(&slot->asleep, 0);
    }
    if (claim(slot)) {
      const tp_clock *clock = slot->clock;
      double *lane = clock && id < clock->threads ? clock->lanes + 2 * id : NULL;
      if (lane && lane[1] <= 0) lane[0] = tp_seconds_since(&clock->start);
      run_slot(id);
      if (lane) lane[1] = tp_seconds_since(&clock->start);
      finish_slot();
    }
  }
  return NULL;
}

/* Workers start on first use; if the system gives no more threads, those that exist share the work. */
static void start_workers(int32_t wanted) {
  sigset_t all, before;
  if (pool.worker_count >= wanted) return;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* signals belong to the program's own threads */
  while (pool.worker_count < wanted) {
    pthread_t thread;
    int32_t id = pool.worker_count + 1;
    atomic_store(&pool.slots[id].ticket, 1);
    if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)id)) break;
    pthread_detach(thread);
    pool.worker_count = id;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static int run_alone(tp_lambda lambda, void *data, int32_t tasks) {
  tp_environment environment = {NULL, tasks};
  int32_t threads = tp_threads;
  int code = 0;
  tp_threads = 1;
  for (int32_t task = 0; task < tasks && !code; ++task) code = lambda(task, &environment, data);
  tp_threads = threads;
  return code;
}

/* Called from kernels through TVM's function pointer. */
int tp_launch(tp_lambda lambda, void *data, int tasks) {
  int32_t threads = tp_threads;
  if (tasks && tasks < threads) threads = tasks;
  if (threads <= 1 || atomic_flag_test_and_set_explicit(&pool.busy, memory_order_acquire)) {
    return run_alone(lambda, data, tasks ? tasks : 1);
  }
  start_workers(threads - 1);
  if (atomic_load_explicit(&pool.failure, memory_order_relaxed)) atomic_store(&pool.failure, 0);
  atomic_store_explicit(&pool.pending, (uint32_t)threads - 1, memory_order_relaxed);
  for (int32_t id = 0; id < threads; ++id) {
    tp_slot *slot = &pool.slots[id];
    slot->lambda = lambda;
    slot->data = data;
    slot->environment = (tp_environment){NULL, tasks ? tasks : threads};
    slot->clock = tp_region_clock;
    slot->participants = threads;
    if (!id) continue;
    /* An odd ticket is nobody else's to change; a slot that never had a worker is 0. */
    atomic_store(&slot->ticket, (atomic_load_explicit(&slot->ticket, memory_order_relaxed) | 1) + 1);
    if (atomic_load(&slot->asleep)) futex_wake(&slot->ticket);
  }

  int32_t caller_threads = tp_threads;
  tp_threads = 1; /* a region inside of a region runs alone */
  run_slot(0);
  for (int32_t id = 1; id < threads && atomic_load(&pool.pending); ++id) {
    if (claim(&pool.slots[id])) {
      run_slot(id);
      atomic_fetch_sub(&pool.pending, 1);
    }
  }
  tp_threads = caller_threads;

  if (!spin_until(&pool.pending, UINT32_MAX, 0)) {
    atomic_store(&pool.caller_asleep, 1);
    for (uint32_t left; (left = atomic_load(&pool.pending)) != 0;) futex_wait(&pool.pending, left);
    atomic_store(&pool.caller_asleep, 0);
  }
  int code = atomic_load(&pool.failure);
  if (code) memcpy(tp_error, pool.error, TP_ERROR_BYTES);
  atomic_flag_clear_explicit(&pool.busy, memory_order_release);
  return code;
}

/* --- fork: the child has no workers ---------------------------------------------------------------------------- */

void tp_lock(void) { pthread_mutex_lock(&arena_lock); }

void tp_unlock(void) { pthread_mutex_unlock(&arena_lock); }

static void reset_in_child(void) {
  for (int32_t id = 0; id < TP_MAX_THREADS; ++id) {
    atomic_store(&pool.slots[id].ticket, 1);
    atomic_store(&pool.slots[id].asleep, 0);
  }
  pool.worker_count = 0;
  atomic_store(&pool.pending, 0);
  atomic_store(&pool.caller_asleep, 0);
  atomic_flag_clear(&pool.busy);
  tp_unlock();
}

static void register_handlers(void) { pthread_atfork(tp_lock, tp_unlock, reset_in_child); }

void tp_pool_init(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, register_handlers);
}

/* --- what TVM's objects call ----------------------------------------------------------------------------------- */

static void *allocate_workspace(int device_type, int device_id, uint64_t bytes, int code, int bits) {
  (void)device_type, (void)device_id, (void)code, (void)bits;
  return aligned_alloc(TP_ALIGNMENT, (bytes + TP_ALIGNMENT - 1) / TP_ALIGNMENT * TP_ALIGNMENT);
}

static int free_workspace(int device_type, int device_id, void *pointer) {
  (void)device_type, (void)device_id;
  free(pointer);
  return 0;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  size_t used = (size_t)snprintf(tp_error, TP_ERROR_BYTES, "%s: ", kind);
  for (int32_t i = 0; i < count && used < TP_ERROR_BYTES; ++i) {
    if (parts[i]) used += (size_t)snprintf(tp_error + used, TP_ERROR_BYTES - used, "%s", parts[i]);
  }
}

/* TVM's objects declare these weak: the definitions here win. */
int (*__TVMBackendParallelLaunch)(tp_lambda, void *, int) = tp_launch;
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate_workspace;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = free_workspace;
