/* The gamma function's family, in double. "DLMF" is the NIST Digital Library of Mathematical Functions. */

#define _DEFAULT_SOURCE
#include "special.h"

#include <math.h>

static const double PI = 3.14159265358979323846;

/* B(2k) / (2k)!, k = 1..12, as reciprocals */
static const double BERNOULLI[] = {
  12, -720, 30240, -1209600, 47900160, -1.8924375803183791606e9, 7.47242496e10, -2.950130727918164224e12,
  1.1646782814350067249e14, -4.5979787224074726105e15, 1.8152105401943546773e17, -7.1661652561756670113e18,
};

double tp_math_lgamma(double x) {
  int sign;
  return lgamma_r(x, &sign);
}

/* Recurrence up to x >= 10, then the asymptotic series DLMF 5.11.2; below 0 by reflection, 5.5.4. */
double tp_math_digamma(double x) {
  static const double series[] = {
    1.0 / 12, -1.0 / 120, 1.0 / 252, -1.0 / 240, 1.0 / 132, -691.0 / 32760, 1.0 / 12,
  };
  if (x == 0)
    return copysign(INFINITY, -x);
  if (x < 0) {
    double whole, fraction = modf(x, &whole);
    return fraction == 0 ? NAN : tp_math_digamma(1 - x) - PI / tan(PI * fraction);
  }
  double shifted = 0, sum = 0;
  for (; x < 10; ++x)
    shifted -= 1 / x;
  double z = 1 / (x * x);
  for (int k = 6; k >= 0; --k)
    sum = (sum + series[k]) * z;
  return shifted + log(x) - 0.5 / x - sum;
}

/* The derivative of digamma: recurrence six times, then DLMF 5.15.8; below 1/2 by reflection, 5.15.6. Like PyTorch's it
 * stops after three terms, which leaves an error of 2e-10.
 */
double tp_math_trigamma(double x) {
  if (x < 0.5) {
    double sine = sin(PI * x);
    return PI * PI / (sine * sine) - tp_math_trigamma(1 - x);
  }
  double shifted = 0;
  for (int k = 0; k < 6; ++k, ++x) shifted += 1 / (x * x);
  double z = 1 / (x * x);
  return shifted + (1 + 0.5 / x + z * (1.0 / 6 - z * (1.0 / 30 - z / 42))) / x;
}

/* The sum of (q + k)^-s over k >= 0: ten terms or more, then Euler and Maclaurin's formula (DLMF 25.11.7). */
double tp_math_zeta(double s, double q) {
  if (s <= 1)
    return s == 1 ? INFINITY : NAN;
  if (q <= 0) {
    if (q == floor(q))
      return INFINITY;
    if (s != floor(s))
      return NAN;
  }
  double sum = pow(q, -s), term = 0;
  for (int k = 0; k < 9 || q <= 9; ++k) {
    term = pow(++q, -s);
    sum += term;
    if (fabs(term) < 1e-16 * fabs(sum))
      return sum;
  }
  sum += term * q / (s - 1) - 0.5 * term;
  double rising = s; /* s (s + 1) ... (s + 2k) */
  for (int k = 0; k < 12; ++k) {
    term /= q;
    sum += rising * term / BERNOULLI[k];
    term /= q;
    rising *= (s + 2 * k + 1) * (s + 2 * k + 2);
  }
  return sum;
}

/* The derivative of digamma of order n >= 0. */
double tp_math_polygamma(double n, double x) {
  if (n < 2)
    return n == 0 ? tp_math_digamma(x) : tp_math_trigamma(x);
  double factor = tgamma(n + 1) * tp_math_zeta(n + 1, x);
  return fmod(n, 2) == 0 ? -factor : factor;
}

/* --- incomplete gamma functions --------------------------------------------------------------------------- */

/* m - log1p(m) */
static double log1p_rest(double m) {
  if (fabs(m) > 0.3)
    return m - log1p(m);
  /* log1p(m) = 2 atanh(r), and m - 2 r = m r */
  double r = m / (2 + m), z = r * r, sum = 0;
  for (int k = 31; k >= 3; k -= 2)
    sum = sum * z + 1.0 / k;
  return r * (m - 2 * z * sum);
}

/* x^a exp(-x) / Gamma(a + 1); for large a by Stirling's series (DLMF 5.11.1), where the logarithms would cancel. */
static double gamma_density(double a, double x) {
  if (a < 20)
    return exp(a * log(x) - x - tp_math_lgamma(a + 1));
  double z = 1 / (a * a);
  double stirling = (1.0 / 12 - z * (1.0 / 360 - z * (1.0 / 1260 - z * (1.0 / 1680 - z / 1188)))) / a;
  return exp(-a * log1p_rest((x - a) / a) - stirling) / sqrt(2 * PI * a);
}

/* P by its power series, DLMF 8.11.4 */
static double lower_series(double a, double x) {
  double term = 1, sum = 1;
  for (double k = 1; term > 1e-17 * sum && k < 1e5; ++k) {
    term *= x / (a + k);
    sum += term;
  }
  return gamma_density(a, x) * sum;
}

/* Q by its continued fraction, DLMF 8.9.2, evaluated forwards as W. J. Lentz does (Applied Optics 15, 1976). */
static double upper_fraction(double a, double x) {
  double b = x + 1 - a, front = 1e300, back = 1 / b, value = back;
  for (double k = 1; k < 1e5; ++k) {
    double numerator = -k * (k - a);
    b += 2;
    back = 1 / (numerator * back + b);
    front = b + numerator / front;
    value *= front * back;
    if (fabs(front * back - 1) < 1e-16)
      break;
  }
  return a * gamma_density(a, x) * value;
}

/* Q for a > 1e6: Temme's uniform expansion (DLMF 8.12.4), with its coefficients near x = a, where they matter. */
static double upper_uniform(double a, double x) {
  double m = (x - a) / a, eta = copysign(sqrt(2 * log1p_rest(m)), m);
  double c0 = -1.0 / 3 + eta * (1.0 / 12 + eta * (-2.0 / 135 + eta * (1.0 / 864 + eta / 2835)));
  double c1 = -1.0 / 540 - eta / 288;
  double rest = fabs(eta) > 0.1 ? 0 : exp(-0.5 * a * eta * eta) / sqrt(2 * PI * a) * (c0 + c1 / a);
  return 0.5 * erfc(eta * sqrt(0.5 * a)) + rest;
}

/* Where PyTorch sums Temme's expansion it divides the part beside erfc by the root of a float32 pi. */
static double as_pytorch(double a, double x, double lower) {
  double distance = fabs(x - a) / a;
  if (!(a > 20 && distance < (a < 200 ? 0.3 : 4.5 / sqrt(a)))) return lower;
  double m = (x - a) / a, erf_part = 0.5 * erfc(-copysign(sqrt(a * log1p_rest(m)), m));
  return erf_part + (lower - erf_part) * (1 - 1.3913767e-08); /* sqrt(pi / (float)pi) */
}

/* The values on the border of the quadrant; -1 inside. */
static double igamma_border(double a, double x) {
  if (x < 0 || a < 0) return NAN;
  if (a == 0) return x > 0 ? 1 : NAN;
  if (x == 0) return 0;
  if (isinf(a)) return isinf(x) ? NAN : 0;
  return isinf(x) ? 1 : -1;
}

/* Regularized: P(a, x), from 0 at x = 0 to 1 */
double tp_math_igamma(double a, double x) {
  double border = igamma_border(a, x);
  if (border != -1) return border;
  if (a > 1e6) return as_pytorch(a, x, 1 - upper_uniform(a, x));
  return as_pytorch(a, x, x > a && x > 1 ? 1 - upper_fraction(a, x) : lower_series(a, x));
}

/* Q = 1 - P */
double tp_math_igammac(double a, double x) {
  double border = igamma_border(a, x);
  if (border != -1) return 1 - border;
  if (a > 20) return 1 - tp_math_igamma(a, x);
  return x > a && x > 1 ? upper_fraction(a, x) : 1 - lower_series(a, x);
}
