// Exponentials and logarithms of additions, multiplications and bits alone: formula/elementary.rs, operation by operation.

#define LN_2_HIGH __longlong_as_double(0x3fe62e4200000000LL)
#define LN_2_LOW 4.7493250390316726e-7
#define LOG2_E __longlong_as_double(0x3ff71547652b82feLL)
#define SQRT_2 __longlong_as_double(0x3ff6a09e667f3bcdLL)
#define NAN_F64 __longlong_as_double(0x7ff8000000000000LL)
#define INFINITY_F64 __longlong_as_double(0x7ff0000000000000LL)

__device__ double exponential(double x) {
    const double within = x < -708.0 ? -708.0 : (x > 708.0 ? 708.0 : x);
    const double rounded = within * LOG2_E + 6755399441055744.0;
    const double whole = rounded - 6755399441055744.0;
    const double rest = within - whole * LN_2_HIGH - whole * LN_2_LOW;
    const double factorials[14] = {6227020800.0, 479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0,
                                   720.0,        120.0,       24.0,       6.0,       2.0,      1.0,     1.0};
    double sum = 1.0 / factorials[0];
#pragma unroll
    for (int i = 1; i < 14; i++) sum = sum * rest + 1.0 / factorials[i];
    const u64 power = ((u64)__double_as_longlong(rounded) << 52) + (1023ULL << 52);
    const double value = sum * __longlong_as_double((long long)power);
    const double above = x > 708.0 ? INFINITY_F64 : value;
    return x < -708.0 ? 0.0 : above;
}

__device__ double logarithm(double x) {
    const bool is_subnormal = x < 2.2250738585072014e-308;
    const double normal = is_subnormal ? x * 18014398509481984.0 : x;
    const u64 bits = (u64)__double_as_longlong(normal);
    double mantissa = __longlong_as_double((long long)((bits & 0x000fffffffffffffULL) | 0x3ff0000000000000ULL));
    double exponent = __longlong_as_double((long long)((bits >> 52) | 0x4330000000000000ULL)) - 4503599627370496.0 - 1023.0;
    exponent = is_subnormal ? exponent - 54.0 : exponent;
    const bool is_large = mantissa > SQRT_2;
    mantissa = is_large ? mantissa * 0.5 : mantissa;
    exponent = is_large ? exponent + 1.0 : exponent;
    const double ratio = (mantissa - 1.0) / (mantissa + 1.0);
    const double square = ratio * ratio;
    double sum = 1.0 / 23.0;
#pragma unroll
    for (int odd = 21; odd >= 1; odd -= 2) sum = sum * square + 1.0 / (double)odd;
    double value = exponent * LN_2_HIGH + (2.0 * ratio * sum + exponent * LN_2_LOW);
    value = x == INFINITY_F64 ? x : value;
    value = x == 0.0 ? -INFINITY_F64 : value;
    return x >= 0.0 ? value : NAN_F64;
}

__device__ double exponential_less_one(double x) {
    const double near = x + x * x * (0.5 + x * (1.0 / 6.0));
    const double far = exponential(x) - 1.0;
    return fabs(x) < 1e-5 ? near : far;
}

__device__ double logarithm_of_one_more(double x) {
    const double near = x - x * x * (0.5 - x * (1.0 / 3.0));
    const double far = logarithm(1.0 + x);
    return fabs(x) < 1e-5 ? near : far;
}
