/* float64 functions that are called by those of templates/runtime/cpu/special*.c, for devices without a C library.
 * They are within 1e-13 of the result, relatively, which is far below a unit of float32. Angles are reduced exactly up to
 * 2^40; beyond, where the phase of float32 arithmetic is lost long since, they count as 0. "DLMF" is the NIST Digital Library of Mathematical Functions.
 */

static const double PI = 3.14159265358979323846;
static const double LOG_ROOT_TWO_PI = 0.91893853320467274178;

/* pi / 2 in parts of 24 bits, so that products with halves of a multiple are exact */
static const double HALF_PI[] = {
  1.570796251296997, 7.549789415861596e-08, 5.390302529957765e-15,
  3.282003415807913e-22, 1.270655753080676e-29, 1.2293330898111133e-36,
};

/* Taylor's series where exp(x) - 1 would cancel */
double expm1(double x) {
  if (fabs(x) > 0.5) return exp(x) - 1;
  double term = x, sum = x;
  for (int k = 2; k < 16; ++k) {
    term *= x / k;
    sum += term;
  }
  return sum;
}

double tanh(double x) {
  double t = expm1(2 * fabs(x));
  return fabs(x) > 20 ? copysign(1, x) : copysign(t / (t + 2), x);
}

static double trunc(double x) { return x < 0 ? -floor(-x) : floor(x); }

/* The number of quarter turns in x, rounded. */
static double quarters(double x) { return floor(x / (0.5 * PI) + 0.5); }

/* x less n quarter turns, |result| <= pi / 4 */
static double reduced(double x, double n) {
  double high = trunc(n / 65536) * 65536, low = n - high, rest = x;
  for (int k = 0; k < 6; ++k) {
    rest -= high * HALF_PI[k];
    rest -= low * HALF_PI[k];
  }
  return rest;
}

/* Taylor's series for |x| <= pi / 4 */
static double sine(double x) {
  double z = x * x, term = x, sum = x;
  for (int k = 1; k < 10; ++k) {
    term *= -z / ((2 * k) * (2 * k + 1));
    sum += term;
  }
  return sum;
}

static double cosine(double x) {
  double z = x * x, term = 1, sum = 1;
  for (int k = 1; k < 10; ++k) {
    term *= -z / ((2 * k - 1) * (2 * k));
    sum += term;
  }
  return sum;
}

static double turned(double x, double shift) {
  if (isinf(x)) return NAN;
  double angle = fabs(x) < 1099511627776.0 ? x : 0;
  double n = quarters(angle), r = reduced(angle, n), turn = n + shift;
  double quadrant = turn - 4 * floor(turn / 4);
  double value = quadrant == 0 || quadrant == 2 ? sine(r) : cosine(r);
  return quadrant < 2 ? value : -value;
}

double sin(double x) { return turned(x, 0); }
double cos(double x) { return turned(x, 1); }
double tan(double x) { return turned(x, 0) / turned(x, 1); }

/* Three halvings of the angle, then the series. */
static double atan_positive(double x) {
  double t = x;
  for (int k = 0; k < 3; ++k) t = t / (1 + sqrt(1 + t * t));
  double z = t * t, sum = 0;
  for (int k = 25; k >= 1; k -= 2) sum = 1.0 / k - z * sum;
  return 8 * t * sum;
}

double acos(double x) { return x <= -1 ? x == -1 ? PI : NAN : 2 * atan_positive(sqrt((1 - x) / (1 + x))); }

/* log(1 + x) with the rounding of 1 + x undone */
double log1p(double x) {
  double u = 1 + x;
  return u == 1 ? x : isinf(u) ? log(u) : log(u) * (x / (u - 1));
}

double modf(double x, double whole) { return x - trunc(x); }
/* of small quotients */
double fmod(double x, double y) { return x - y * trunc(x / y); }

double pow(double x, double y) {
  if (y == 0 || x == 1) return 1;
  if (x == 0) return y > 0 ? 0 : INFINITY;
  if (x < 0 && y != floor(y)) return NAN;
  double size = exp(y * log(fabs(x)));
  /* from 2^53 on all numbers are even */
  return x < 0 && fabs(y) < 9007199254740992.0 && fmod(y, 2) != 0 ? -size : size;
}

/* 0.5 at most: DLMF 7.6.1 */
static double erf_small(double x) {
  double z = x * x, term = x, sum = x;
  for (int k = 1; k < 16; ++k) {
    term *= -z / k;
    sum += term / (2 * k + 1);
  }
  return 1.12837916709551257390 * sum;
}

double erfc(double x) {
  if (fabs(x) < 0.5) return 1 - erf_small(x);
  double size = fabs(x), upper = size > 27.5 ? 0 : exp(-size * size) * tp_math_erfcx(size);
  return isnan(x) ? x : x < 0 ? 2 - upper : upper;
}

double erf(double x) { return fabs(x) < 0.5 ? erf_small(x) : copysign(1 - erfc(fabs(x)), x); }

/* Stirling's series from 12 on (DLMF 5.11.1), below by recurrence: the product is of at most 12 factors. */
static double lgamma_positive(double x) {
  double product = 1, z = x;
  for (; z < 12; ++z) product *= z;
  double w = 1 / (z * z);
  double series = (1.0 / 12 - w * (1.0 / 360 - w * (1.0 / 1260 - w * (1.0 / 1680 - w * (1.0 / 1188
    - w * (691.0 / 360360 - w / 156)))))) / z;
  return (z - 0.5) * log(z) - z + LOG_ROOT_TWO_PI + series - log(product);
}

/* zeta(k) - 1, k = 2, 3, ...: around 1 and 2 the logarithm of the product would cancel, DLMF 5.7.3 takes its place. */
static const double ZETA_LESS_1[] = {
  0.64493406684822643647, 0.20205690315959428540, 0.08232323371113819152, 0.03692775514336992633,
  0.01734306198444913971, 0.00834927738192282684, 0.00407735619794433938, 0.00200839282608221442,
  0.00099457512781808534, 0.00049418860411946456, 0.00024608655330804830, 0.00012271334757848915,
  6.12481350587048293e-05, 3.05882363070204936e-05, 1.52822594086518717e-05, 7.63719763789976228e-06,
  3.81729326499984e-06, 1.90821271655393893e-06, 9.53962033872796113e-07, 4.76932986787806463e-07,
  2.38450502727732990e-07, 1.19219925965311073e-07, 5.96081890512594796e-08, 2.98035035146522801e-08,
};

/* log gamma(2 + t), |t| <= 0.5 */
static double lgamma_near_two(double t) {
  double power = t * t, sum = 0.42278433509846713940 * t;
  for (int k = 2; k < 26; ++k) {
    sum += (k % 2 ? -1.0 : 1.0) * ZETA_LESS_1[k - 2] * power / k;
    power *= t;
  }
  return sum;
}

static double lgamma_above_zero(double x) {
  if (x > 1.5 && x < 2.5) return lgamma_near_two(x - 2);
  if (x > 0.5 && x <= 1.5) return lgamma_near_two(x - 1) - log1p(x - 1);
  return lgamma_positive(x);
}

double lgamma_r(double x, double sign) {
  if (isnan(x)) return x;
  if (isinf(x)) return INFINITY;
  if (x <= 0) {
    double fraction = x - floor(x);
    if (fraction == 0) return INFINITY;
    return log(PI / sin(PI * fraction)) - lgamma_above_zero(1 - x);
  }
  return lgamma_above_zero(x);
}

double tgamma(double x) { return exp(lgamma_positive(x)); }
