/* Several callers of the thread pool at once: `pool_stress CALLERS THREADS SECONDS`.
 *
 * Every region counts how often each of its tasks ran; some fail, some start a region of their own. Prints how many
 * regions ran and how many threads were inside of regions at most, or what went wrong.
 */
#define _GNU_SOURCE
#include "runtime.h"

#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MOST_TASKS 97

typedef struct {
  int ran[MOST_TASKS], tasks, failing;
} region;

static _Atomic long regions, failures;
static _Atomic int inside, most_inside, stop;
static int threads;
static _Thread_local int depth;

static int work(int task, tp_environment *environment, void *data) {
  region *own = data;
  if (!depth++) {
    int now = atomic_fetch_add(&inside, 1) + 1;
    for (int most = most_inside; now > most && !atomic_compare_exchange_weak(&most_inside, &most, now);) continue;
  }
  if (!task && !own->tasks) own->tasks = -environment->num_task; /* one per thread, however many there are */
  own->ran[task] += 1;
  int code = 0;
  if (depth == 1 && task % 8 == 3) {
    region inner = {.tasks = 3, .failing = -1};
    code = tp_launch(work, &inner, 3);
    for (int i = 0; i < 3; ++i) code |= inner.ran[i] != 1;
  }
  for (volatile int spin = task % 5 * 100; spin > 0; --spin) continue;
  if (!--depth) atomic_fetch_sub(&inside, 1);
  return task == own->failing ? 7 : code;
}

static void *caller(void *argument) {
  unsigned seed = (unsigned)(uintptr_t)argument;
  while (!stop) {
    static const int counts[] = {0, 1, 2, 3, 16, MOST_TASKS};
    int tasks = counts[rand_r(&seed) % 6];
    tp_threads = 1 + rand_r(&seed) % threads;
    region own = {.tasks = tasks, .failing = rand_r(&seed) % 8 == 0 && tasks ? rand_r(&seed) % tasks : -1};
    int code = tp_launch(work, &own, tasks), wanted = own.tasks < 0 ? -own.tasks : own.tasks;
    int good = code == (own.failing < 0 ? 0 : 7);
    /* After a failure some tasks may be left out. */
    for (int i = 0; i < MOST_TASKS && own.failing < 0; ++i) good &= own.ran[i] == (i < wanted);
    if (!good) atomic_fetch_add(&failures, 1);
    atomic_fetch_add(&regions, 1);
    if (rand_r(&seed) % 512 == 0) usleep(300); /* longer than the workers spin */
  }
  return NULL;
}

static int count_threads(void) {
  int count = 0;
  DIR *folder = opendir("/proc/self/task");
  for (struct dirent *entry; (entry = readdir(folder));) count += entry->d_name[0] != '.';
  closedir(folder);
  return count;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  int callers = atoi(argv[1]);
  double seconds = atof(argv[3]);
  threads = atoi(argv[2]);
  tp_pool_init();
  alarm((unsigned)seconds + 60); /* ends a deadlock */
  pthread_t ids[64];
  for (int i = 0; i < callers; ++i) pthread_create(&ids[i], NULL, caller, (void *)(uintptr_t)(i + 1));
  nanosleep(&(struct timespec){(time_t)seconds, (long)((seconds - (double)(long)seconds) * 1e9)}, NULL);
  int running = count_threads();
  stop = 1;
  for (int i = 0; i < callers; ++i) pthread_join(ids[i], NULL);
  printf("%ld %ld %d %d\n", regions, failures, most_inside, running);
  return 0;
}
