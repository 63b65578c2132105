struct Known {
    u64 in0;
    u64 in1;
    u64 in2;
};

__device__ __forceinline__ Known known_of(const u64* tensor, const float* scalars) {
    Known known;
    known.in0 = tensor[INPUTS + 0];
    known.in1 = tensor[INPUTS + 1];
    known.in2 = tensor[INPUTS + 2];
    return known;
}

__device__ __forceinline__ void values(
    const Known& known, const u64 base, const u64 elements, float (&out)[OUT][V], u32& met
) {
    u32 in0[V];
    load16(in0, known.in0, base, elements);
    u32 in1[V];
    load16(in1, known.in1, base, elements);
    u32 in2[V];
    load16(in2, known.in2, base, elements);
#pragma unroll
    for (int j = 0; j < V; j++) {
        const float v0 = decode_bf16(in0[j]);
        met = max(met, __float_as_uint(v0) & MAGNITUDE);
        const float v1 = decode_bf16(in1[j]);
        met = max(met, __float_as_uint(v1) & MAGNITUDE);
        const float v2 = v1 - v0;
        out[0][j] = v2;
        const float v3 = decode_bf16(in2[j]);
        met = max(met, __float_as_uint(v3) & MAGNITUDE);
        const float v4 = v3 - v0;
        out[1][j] = v4;
    }
}
