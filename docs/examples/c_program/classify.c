/* Reads an image of 28 x 28 floats from standard input and prints the probability of every digit.
 *
 *   transpile tests/models/mnist.py --target cpu && pip install ./generated/mnist
 *   export PKG_CONFIG_PATH=$(python -m mnist pkgconfig)
 *   cc classify.c $(pkg-config --cflags --libs mnist) $(pkg-config --variable=rpath mnist) -o classify
 *   ./classify < image.f32            (or with a prepared weights file: ./classify weights < image.f32)
 */
#include <mnist.h>

#include <stdio.h>

static int failed(const char *what) {
  fprintf(stderr, "%s: %s\n", what, mnist_last_error());
  return 1;
}

int main(int argc, char **argv) {
  float image[28 * 28], probabilities[10];
  mnist_model *model;
  if (mnist_abi_version() != MNIST_ABI_VERSION) {
    fprintf(stderr, "libmnist.so is of another version than mnist.h\n");
    return 1;
  }
  if (mnist_input_bytes(MNIST_FUNCTION_FORWARD, 0) != sizeof image) return failed("not the model of this program");
  if (fread(image, sizeof image, 1, stdin) != 1) {
    fprintf(stderr, "expected %zu bytes of floats\n", sizeof image);
    return 1;
  }
  if (mnist_open(argc > 1 ? argv[1] : NULL, 2, &model)) return failed("open");
  const void *inputs[] = {image};
  void *outputs[] = {probabilities};
  int code = mnist_run(model, MNIST_FUNCTION_FORWARD, NULL, inputs, outputs, NULL);
  if (code) failed("run");
  mnist_destroy(model);
  if (code) return 1;
  fprintf(stderr, "kernels for %s\n", mnist_isa());
  for (int digit = 0; digit < 10; ++digit) printf("%d %.9g\n", digit, probabilities[digit]);
  return 0;
}
