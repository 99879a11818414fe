/* Orthogonal polynomials of a degree that is data, in double.
 *
 * The three-term recurrences are in chapter 18 of the NIST Digital Library of Mathematical Functions, 18.9(i). What is
 * returned beyond the usual domain (negative degrees, high degrees) is what PyTorch returns.
 */

#include "special.h"

#include <math.h>
#include <stdint.h>

/* A degree as an integer: truncated, and -1 (whose polynomial is 0) for what no int64 holds. */
static int64_t degree(double n) { return n > -1 && n < 9.2e18 ? (int64_t)n : -1; }

static double sign_of(int64_t n) { return n % 2 ? -1 : 1; }

/* first(x), then 2 x q - p; 1 for degree 0 */
static double chebyshev_recurrence(double x, int64_t n, double first) {
  double p = 1, q = first;
  if (n == 0)
    return 1;
  for (int64_t k = 2; k <= n && !isnan(q); ++k) {
    double r = 2 * x * q - p;
    p = q;
    q = r;
  }
  return q;
}

double tp_math_chebyshev_t(double x, double order) {
  int64_t n = degree(order);
  if (n < 0)
    return 0;
  if (fabs(x) == 1)
    return x > 0 ? 1 : sign_of(n);
  return n > 6 && fabs(x) < 1 ? cos(n * acos(x)) : chebyshev_recurrence(x, n, x);
}

double tp_math_chebyshev_u(double x, double order) {
  int64_t n = degree(order);
  if (n < 0)
    return 0;
  if (fabs(x) == 1)
    return (x > 0 ? 1 : sign_of(n)) * (n + 1.0);
  return n > 6 && fabs(x) < 1 ? sin((n + 1.0) * acos(x)) / sin(acos(x)) : chebyshev_recurrence(x, n, 2 * x);
}

double tp_math_chebyshev_v(double x, double order) {
  int64_t n = degree(order);
  if (n < 0)
    return 0;
  if (fabs(x) == 1)
    return x > 0 ? 1 : sign_of(n) * (2.0 * n + 1);
  return n > 6 && fabs(x) < 1 ? cos((n + 0.5) * acos(x)) / cos(0.5 * acos(x))
                                : chebyshev_recurrence(x, n, 2 * x - 1);
}

double tp_math_chebyshev_w(double x, double order) {
  int64_t n = degree(order);
  if (n < 0)
    return 0;
  if (fabs(x) == 1)
    return x > 0 ? 2.0 * n + 1 : sign_of(n);
  return n > 4 && fabs(x) < 1 ? sin((n + 0.5) * acos(x)) / sin(0.5 * acos(x))
                                : chebyshev_recurrence(x, n, 2 * x + 1);
}

double tp_math_shifted_chebyshev_t(double x, double n) { return tp_math_chebyshev_t(2 * x - 1, n); }
double tp_math_shifted_chebyshev_u(double x, double n) { return tp_math_chebyshev_u(2 * x - 1, n); }
double tp_math_shifted_chebyshev_v(double x, double n) { return tp_math_chebyshev_v(2 * x - 1, n); }
double tp_math_shifted_chebyshev_w(double x, double n) { return tp_math_chebyshev_w(2 * x - 1, n); }

/* The physicists' polynomials. `limit` is the highest degree that PyTorch computes; it depends on the dtype. */
double tp_math_hermite_h(double x, double order, double limit) {
  int64_t n = degree(order);
  if (n < 0)
    return 0;
  if (n > limit)
    return NAN;
  double p = 1, q = 2 * x;
  for (int64_t k = 1; k < n; ++k) {
    double r = 2 * x * q - 2.0 * k * p;
    p = q;
    q = r;
  }
  return n == 0 ? 1 : q;
}

/* The probabilists' polynomials */
double tp_math_hermite_he(double x, double order, double limit) {
  int64_t n = degree(order);
  if (n < 0)
    return 0;
  if (n > limit)
    return NAN;
  double p = 1, q = x;
  for (int64_t k = 1; k < n; ++k) {
    double r = x * q - k * p;
    p = q;
    q = r;
  }
  return n == 0 ? 1 : q;
}

double tp_math_laguerre_l(double x, double order) {
  int64_t n = degree(order);
  if (n < 0)
    return 0;
  if (n == 0 || x == 0)
    return 1;
  double p = 1, q = 1 - x;
  for (int64_t k = 1; k < n && !isnan(q); ++k) {
    double r = ((2.0 * k + 1 - x) * q - k * p) / (k + 1.0);
    p = q;
    q = r;
  }
  return q;
}

double tp_math_legendre_p(double x, double order) {
  int64_t n = degree(order);
  if (n < 0)
    return 0;
  if (fabs(x) == 1)
    return x > 0 ? 1 : sign_of(n);
  double p = 1, q = x;
  for (int64_t k = 1; k < n && !isnan(q); ++k) {
    double r = ((2.0 * k + 1) * x * q - k * p) / (k + 1.0);
    p = q;
    q = r;
  }
  return n == 0 ? 1 : q;
}
