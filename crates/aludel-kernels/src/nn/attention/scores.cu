// What all kernels of attention begin with: exponentials and scores. Defined before: SOFT_CAP, 0 or 1.
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define NONE (-__int_as_float(0x7f800000))

// A score times log2(e), from a product of query and key; `slope` is what its derivative is multiplied by beside the scale.
__device__ __forceinline__ float score(float product, float scale, float cap, float* slope) {
#if SOFT_CAP
    float t = tanhf(product * scale / cap);
    *slope = 1.0f - t * t;
    return cap * t * LOG2E;
#else
    *slope = 1.0f;
    return product * (scale * LOG2E);
#endif
}
