/* Error functions in double. Kernels of any float dtype call them in double and round once.
 *
 * The error bounds are those of tests/conformance/test_special_functions.py, which compares with mpmath.
 * "DLMF" is the NIST Digital Library of Mathematical Functions, https://dlmf.nist.gov.
 */

#define _DEFAULT_SOURCE
#include "special.h"

#include <math.h>

#include "special_tables.h"

static const double SQRT_HALF = 0.70710678118654752440;

/* exp(x^2) erfc(x) */
double tp_math_erfcx(double x) {
  if (x < 0)
    return x < -26.7 ? INFINITY : 2 * exp(x * x) - tp_math_erfcx(-x);
  if (x > 50) { /* the continued fraction DLMF 7.9.2, cut */
    double y = 1 / x;
    return 0.56418958354775628695 * y / (1 + 0.5 * y * y / (1 + y * y / (1 + 1.5 * y * y / (1 + 2 * y * y))));
  }
  /* y = 4 / (4 + x) from 2/27 to 1 */
  return chebyshev(ERFCX, COUNT(ERFCX), (16 / (4 + x) - 2 * (29.0 / 27)) / (25.0 / 27));
}

/* PyTorch's formula, so that it is 0 where PyTorch's is. */
double tp_math_ndtr(double x) { return 0.5 * (1 + erf(x * SQRT_HALF)); }

double tp_math_log_ndtr(double x) {
  double t = x * SQRT_HALF;
  return x < -1 ? log(0.5 * tp_math_erfcx(-t)) - t * t : log1p(-0.5 * erfc(t));
}

/* One step of Halley's method for erfc(x) = q, x >= 0. */
static double erfc_step(double x, double q) {
  double step = (erfc(x) - q) * exp(x * x) * 0.88622692545275801365; /* sqrt(pi) / 2 */
  return x + step / (1 - x * step);
}

/* x with erfc(x) = q, 0 < q < 0.6. The start is 26.2.23 of Abramowitz and Stegun's handbook. */
static double erfc_inverse(double q) {
  double t = sqrt(-2 * log(0.5 * q));
  double start = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
  return erfc_step(erfc_step(SQRT_HALF * start, q), q);
}

/* The start is M. Giles, "Approximating the erfinv function", GPU Computing Gems 2010, in its central region. */
double tp_math_erfinv(double y) {
  double z = fabs(y);
  if (!(z < 1))
    return z == 1 ? copysign(INFINITY, y) : NAN;
  if (z > 0.5)
    return copysign(erfc_inverse(1 - z), y);
  static const double start[] = {
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
    -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
  };
  double w = -log1p(-y * y) - 2.5, p = 0;
  for (int k = 0; k < COUNT(start); ++k)
    p = p * w + start[k];
  double x = p * y, step = (erf(x) - y) * exp(x * x) * 0.88622692545275801365;
  return x - step / (1 + x * step);
}

double tp_math_ndtri(double p) {
  if (!(p > 0 && p < 1))
    return p == 0 ? -INFINITY : p == 1 ? INFINITY : NAN;
  if (p < 0.25)
    return -erfc_inverse(2 * p) / SQRT_HALF;
  return p > 0.75 ? erfc_inverse(2 * (1 - p)) / SQRT_HALF : tp_math_erfinv(2 * (p - 0.5)) / SQRT_HALF;
}
