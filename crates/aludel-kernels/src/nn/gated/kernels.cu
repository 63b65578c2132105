// Gated activations: 0 is silu, 1 gelu, 2 its approximation by tanh. Eight elements to a thread.

__device__ __forceinline__ float activate(int kind, float x, float* slope) {
    if (kind == 0) {
        float s = 1.0f / (1.0f + __expf(-x));
        *slope = s * (1.0f + x * (1.0f - s));
        return x * s;
    }
    if (kind == 1) {
        float p = 0.5f * (1.0f + erff(x * 0.70710678f));
        *slope = p + x * 0.39894228f * expf(-0.5f * x * x);
        return x * p;
    }
    float inner = 0.79788456f * (x + 0.044715f * x * x * x), t = tanhf(inner);
    *slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.79788456f * (1.0f + 3.0f * 0.044715f * x * x);
    return 0.5f * x * (1.0f + t);
}

__device__ __forceinline__ void some(const half_bits* x, i64 at, i64 n, float v[8]) {
    if (at + 8 <= n) { load8(x, at, 2, v); return; }
    for (int i = 0; i < 8; i++) v[i] = at + i < n ? from_bf16(x[at + i]) : 0.0f;
}

__device__ __forceinline__ void put(half_bits* y, i64 at, i64 n, const float v[8]) {
    if (at + 8 <= n) { store8(y, at, 2, v); return; }
    for (int i = 0; i < 8; i++) if (at + i < n) y[at + i] = to_bf16(v[i]);
}

extern "C" __global__ void gated(int kind, const half_bits* gate, const half_bits* up, half_bits* y, i64 n) {
    i64 at = 8 * ((i64)blockIdx.x * blockDim.x + threadIdx.x);
    if (at >= n) return;
    float g[8], u[8], slope;
    some(gate, at, n, g);
    some(up, at, n, u);
    for (int i = 0; i < 8; i++) u[i] *= activate(kind, g[i], &slope);
    put(y, at, n, u);
}

// In place: dy becomes y.
extern "C" __global__ void gated_backward(int kind, half_bits* dy, half_bits* gate, half_bits* up, i64 n) {
    i64 at = 8 * ((i64)blockIdx.x * blockDim.x + threadIdx.x);
    if (at >= n) return;
    float d[8], g[8], u[8];
    some(dy, at, n, d);
    some(gate, at, n, g);
    some(up, at, n, u);
    for (int i = 0; i < 8; i++) {
        float slope, f = activate(kind, g[i], &slope), product = u[i] * f;
        g[i] = d[i] * u[i] * slope;
        u[i] = d[i] * f;
        d[i] = product;
    }
    put(gate, at, n, g);
    put(up, at, n, u);
    put(dy, at, n, d);
}
