/* The shortest way from Python's arrays to the kernels: a function that the interpreter calls without ctypes between them.
 *
 * Python gives the functions of its stable ABI that are needed, so that the library neither includes its headers nor
 * needs its symbols. Whatever does not fit is left to the caller, who knows how to convert it or what to say of it.
 */
#include "runtime.h"

#include <string.h>

/* Py_buffer. */
typedef struct {
  void *memory, *owner;
  intptr_t bytes, item_bytes;
  int read_only, rank;
  char *format;
  intptr_t *shape, *strides, *suboffsets;
  void *internal;
} tp_buffer;

enum { SIMPLE = 0, WRITABLE = 1, FORMAT = 4, SHAPE = 8 }; /* PyBUF_*; without strides an array must be dense */
enum { NOT_TAKEN = -1 };

/* What an input must be: its element as the struct module writes it, its rank and its shape. */
typedef struct {
  const char *format;
  intptr_t rank;
  const intptr_t *shape;
} tp_expected;

/* A function of a model as Python calls it; the fields are words, which Python writes. */
typedef struct {
  int (*get_buffer)(void *array, tp_buffer *buffer, int flags);
  void (*release_buffer)(tp_buffer *buffer);
  void (*clear_error)(void);
  void *(*save_thread)(void);
  void (*restore_thread)(void *thread);
  void *(*to_int)(long value);
  void *(*type_of)(void *object);
  void (*release)(void *object);
  void *array_type;
  tp_model *model;
  intptr_t function, input_count, output_count;
  tp_expected inputs[];
} tp_python_function;

static int is_array(const tp_python_function *self, void *value) {
  void *type = self->type_of(value);
  if (type) self->release(type);
  return type == self->array_type;
}

/* Takes the buffer of an input if it is what the kernels read. */
static int take(const tp_python_function *self, void *value, const tp_expected *expected, tp_buffer *buffer) {
  if (!is_array(self, value)) return 0;
  if (self->get_buffer(value, buffer, FORMAT | SHAPE)) {
    self->clear_error();
    return 0;
  }
  if (buffer->rank == expected->rank && buffer->format && !strcmp(buffer->format, expected->format) &&
      (!expected->rank || !memcmp(buffer->shape, expected->shape, (size_t)expected->rank * sizeof *expected->shape))) {
    return 1;
  }
  self->release_buffer(buffer);
  return 0;
}

static void *(*address_of)(void *number);

/* `number` is the address of a tp_python_function; `values` are its inputs, then arrays that it fills, which nobody else
 * has. An int object: -1 if an input was not taken, else what `run` gives. */
static void *call(void *number, void *const *values, intptr_t count) {
  const tp_python_function *self = address_of(number);
  const intptr_t total = self->input_count + self->output_count;
  if (count != total) return self->to_int(NOT_TAKEN);
  tp_buffer buffers[total + 1];
  void *memory[total + 1];
  intptr_t taken = 0;
  long code = NOT_TAKEN;
  for (; taken < total; ++taken) {
    tp_buffer *buffer = &buffers[taken];
    if (taken < self->input_count) {
      if (!take(self, values[taken], &self->inputs[taken], buffer)) break;
    } else if (self->get_buffer(values[taken], buffer, SIMPLE | WRITABLE)) {
      self->clear_error();
      break;
    }
    memory[taken] = buffer->memory;
  }
  if (taken == total) {
    void *thread = self->save_thread();
    code = tp_model_run(self->model, (int32_t)self->function, NULL, (const void *const *)memory,
                        memory + self->input_count, NULL, NULL);
    self->restore_thread(thread);
  }
  while (taken) self->release_buffer(&buffers[--taken]);
  return self->to_int(code);
}

tp_python_method *tp_python_call(void *(*to_address)(void *number)) {
  address_of = to_address;
  return call;
}
