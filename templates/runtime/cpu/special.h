/* Special functions that kernels call by name; see transpiler/ops/special.py for the ops. */

#ifndef TP_SPECIAL_H
#define TP_SPECIAL_H

#define COUNT(table) (int)(sizeof(table) / sizeof(*(table)))

double tp_math_bessel_j0(double x), tp_math_bessel_j1(double x), tp_math_bessel_y0(double x), tp_math_bessel_y1(double x);
double tp_math_bessel_i0(double x), tp_math_bessel_i1(double x), tp_math_bessel_i0e(double x), tp_math_bessel_i1e(double x);
double tp_math_bessel_k0(double x), tp_math_bessel_k1(double x), tp_math_bessel_k0e(double x), tp_math_bessel_k1e(double x);
double tp_math_spherical_bessel_j0(double x), tp_math_airy_ai(double x);
double tp_math_erfcx(double x), tp_math_erfinv(double y), tp_math_ndtr(double x), tp_math_log_ndtr(double x), tp_math_ndtri(double p);
double tp_math_lgamma(double x), tp_math_digamma(double x), tp_math_trigamma(double x);
double tp_math_polygamma(double n, double x), tp_math_zeta(double s, double q);
double tp_math_igamma(double a, double x), tp_math_igammac(double a, double x);
double tp_math_chebyshev_t(double x, double n), tp_math_shifted_chebyshev_t(double x, double n);
double tp_math_chebyshev_u(double x, double n), tp_math_shifted_chebyshev_u(double x, double n);
double tp_math_chebyshev_v(double x, double n), tp_math_shifted_chebyshev_v(double x, double n);
double tp_math_chebyshev_w(double x, double n), tp_math_shifted_chebyshev_w(double x, double n);
double tp_math_hermite_h(double x, double n, double limit), tp_math_hermite_he(double x, double n, double limit);
double tp_math_laguerre_l(double x, double n), tp_math_legendre_p(double x, double n);

/* Clenshaw's recurrence (Mathematics of Computation 9, 1955) for c[0]/2 + sum of c[k] Tk(y); `twice` is 2 y. */
static inline double chebyshev(const double *c, int count, double twice) {
  double next = 0, beyond = 0;
  for (int k = count - 1; k > 0; --k) {
    double now = twice * next - beyond + c[k];
    beyond = next;
    next = now;
  }
  return 0.5 * (twice * next + c[0]) - beyond;
}

#endif
