/* Included before every C file of a package under test: memory of aligned_alloc ends where a page that cannot be touched
 * begins, and such a page comes before it. A kernel that reads or writes past its arena stops the process. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { FENCE_PAGE = 4096, FENCE_COUNT = 4096 };

static struct {
  void *memory;
  char *base;
  size_t bytes;
} fences[FENCE_COUNT];
static pthread_mutex_t fence_lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((unused)) static void *fenced_alloc(size_t alignment, size_t size) {
  size_t rounded = (size + alignment - 1) / alignment * alignment;
  size_t bytes = (rounded + FENCE_PAGE - 1) / FENCE_PAGE * FENCE_PAGE;
  char *base = mmap(NULL, bytes + 2 * FENCE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return NULL;
  if (mprotect(base + FENCE_PAGE, bytes, PROT_READ | PROT_WRITE)) abort();
  char *memory = base + FENCE_PAGE + bytes - rounded;
  /* What was never written is not zero. */
  for (size_t i = 0; i < rounded; ++i) memory[i] = (char)0xA5;
  pthread_mutex_lock(&fence_lock);
  for (int i = 0; i < FENCE_COUNT; ++i) {
    if (!fences[i].memory) {
      fences[i].memory = memory;
      fences[i].base = base;
      fences[i].bytes = bytes + 2 * FENCE_PAGE;
      pthread_mutex_unlock(&fence_lock);
      return memory;
    }
  }
  abort();
}

__attribute__((unused)) static void fenced_free(void *memory) {
  pthread_mutex_lock(&fence_lock);
  for (int i = 0; memory && i < FENCE_COUNT; ++i) {
    if (fences[i].memory == memory) {
      char *base = fences[i].base;
      size_t bytes = fences[i].bytes;
      fences[i].memory = NULL;
      pthread_mutex_unlock(&fence_lock);
      munmap(base, bytes);
      return;
    }
  }
  pthread_mutex_unlock(&fence_lock);
  free(memory);
}

#define aligned_alloc fenced_alloc
#define free fenced_free
