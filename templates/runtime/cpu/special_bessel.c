/* Bessel and Airy functions in double: the modified ones as Chebyshev series, the others after the Cephes library. */

#include "special.h"

#include <math.h>

#include "special_cephes.h"
#include "special_tables.h"

static const double PI = 3.14159265358979323846;

/* Horner's scheme, the highest power first. */
static double horner(const double *c, int count, double x) {
  double sum = 0;
  for (int k = 0; k < count; ++k) sum = sum * x + c[k];
  return sum;
}

#define RATIO(numerator, denominator, x) \
  (horner(numerator, COUNT(numerator), x) / horner(denominator, COUNT(denominator), x))

static double j0_wave(double x, int second) {
  double z = 25 / (x * x), t = x - 0.25 * PI, p = RATIO(J0_PP, J0_PQ, z), q = 5 / x * RATIO(J0_QP, J0_QQ, z);
  return (second ? p * sin(t) + q * cos(t) : p * cos(t) - q * sin(t)) * sqrt(2 / PI) / sqrt(x);
}

static double j1_wave(double x, int second) {
  double z = 25 / (x * x), t = x - 0.75 * PI, p = RATIO(J1_PP, J1_PQ, z), q = 5 / x * RATIO(J1_QP, J1_QQ, z);
  return (second ? p * sin(t) + q * cos(t) : p * cos(t) - q * sin(t)) * sqrt(2 / PI) / sqrt(x);
}

double tp_math_bessel_j0(double x) {
  double z = x * x;
  if (fabs(x) > 5) return j0_wave(fabs(x), 0);
  if (fabs(x) < 1e-5) return 1 - z / 4;
  return (z - 5.78318596294678452118) * (z - 30.4712623436620863991) * RATIO(J0_RP, J0_RQ, z);
}

double tp_math_bessel_j1(double x) {
  double z = x * x;
  if (fabs(x) > 5) return copysign(1.0, x) * j1_wave(fabs(x), 0);
  return RATIO(J1_RP, J1_RQ, z) * x * (z - 14.6819706421238932572) * (z - 49.2184563216946036703);
}

double tp_math_bessel_y0(double x) {
  if (!(x > 0)) return x == 0 ? -INFINITY : NAN;
  if (x > 5) return j0_wave(x, 1);
  return RATIO(Y0_YP, Y0_YQ, x * x) + 2 / PI * log(x) * tp_math_bessel_j0(x);
}

double tp_math_bessel_y1(double x) {
  if (!(x > 0)) return x == 0 ? -INFINITY : NAN;
  if (x > 5) return j1_wave(x, 1);
  return x * RATIO(Y1_YP, Y1_YQ, x * x) + 2 / PI * (tp_math_bessel_j1(x) * log(x) - 1 / x);
}

double tp_math_bessel_i0e(double x) {
  double z = fabs(x);
  if (z <= 8)
    return chebyshev(I0_SMALL, COUNT(I0_SMALL), 0.5 * z - 2);
  return chebyshev(I0_LARGE, COUNT(I0_LARGE), 32 / z - 2) / sqrt(z);
}

double tp_math_bessel_i1e(double x) {
  double z = fabs(x);
  if (z <= 8)
    return chebyshev(I1_SMALL, COUNT(I1_SMALL), 0.5 * z - 2) * x;
  return copysign(chebyshev(I1_LARGE, COUNT(I1_LARGE), 32 / z - 2) / sqrt(z), x);
}

/* exp(z) times a scaled function, without an overflow that the product does not have. inf * 0 is NaN in PyTorch too. */
static double unscale(double scaled, double z) {
  double half = exp(0.5 * z);
  return z < 700 ? exp(z) * scaled : half * scaled * half;
}

double tp_math_bessel_i0(double x) { return unscale(tp_math_bessel_i0e(x), fabs(x)); }
double tp_math_bessel_i1(double x) { return unscale(tp_math_bessel_i1e(x), fabs(x)); }

static double k0_small(double x) {
  return chebyshev(K0_SMALL, COUNT(K0_SMALL), x * x - 2) - log(0.5 * x) * tp_math_bessel_i0(x);
}
static double k0_large(double x) { return chebyshev(K0_LARGE, COUNT(K0_LARGE), 8 / x - 2) / sqrt(x); }
static double k1_small(double x) {
  return chebyshev(K1_SMALL, COUNT(K1_SMALL), x * x - 2) / x + log(0.5 * x) * tp_math_bessel_i1(x);
}
static double k1_large(double x) { return chebyshev(K1_LARGE, COUNT(K1_LARGE), 8 / x - 2) / sqrt(x); }

double tp_math_bessel_k0(double x) {
  if (!(x > 0))
    return x == 0 ? INFINITY : NAN;
  return x <= 2 ? k0_small(x) : exp(-x) * k0_large(x);
}

double tp_math_bessel_k1(double x) {
  if (!(x > 0))
    return x == 0 ? INFINITY : NAN;
  return x <= 2 ? k1_small(x) : exp(-x) * k1_large(x);
}

double tp_math_bessel_k0e(double x) {
  if (!(x > 0))
    return x == 0 ? INFINITY : NAN;
  return x <= 2 ? exp(x) * k0_small(x) : k0_large(x);
}

double tp_math_bessel_k1e(double x) {
  if (!(x > 0))
    return x == 0 ? INFINITY : NAN;
  return x <= 2 ? exp(x) * k1_small(x) : k1_large(x);
}

/* sin(x) / x, and its limits. */
double tp_math_spherical_bessel_j0(double x) { return x == 0 ? 1 : isinf(x) ? 0 : sin(x) / x; }

/* Ai. Near 0 its Maclaurin series (DLMF 9.4.1), elsewhere the asymptotic forms with fitted factors. */
double tp_math_airy_ai(double x) {
  if (isinf(x)) return NAN; /* as PyTorch has it */
  if (x > 103.892) return 0;
  if (fabs(x) > 2.09) {
    double size = fabs(x), zeta = size * sqrt(size) / 1.5, scale = 1 / sqrt(PI * sqrt(size));
    if (x > 0) return 0.5 * scale * exp(-zeta) * RATIO(AIRY_N, AIRY_D, 1 / zeta);
    double t = zeta + 0.25 * PI, z = 1 / (zeta * zeta);
    return scale * (sin(t) * (1 + z * RATIO(AIRY_FN, AIRY_FD, z)) - cos(t) * RATIO(AIRY_GN, AIRY_GD, z) / zeta);
  }
  double f = 1, g = x, a = 1, b = x, cube = x * x * x;
  for (int k = 3; k < 90 && (fabs(a) > 1e-18 || fabs(b) > 1e-18); k += 3) {
    a *= cube / (k * (k - 1));
    b *= cube / (k * (k + 1));
    f += a;
    g += b;
  }
  return 0.35502805388781723926 * f - 0.25881940379280679841 * g;
}
