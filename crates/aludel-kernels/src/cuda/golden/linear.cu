struct Known {
    u64 in0;
    u64 in1;
    float s0;
    float s1;
    float s2;
};

__device__ __forceinline__ Known known_of(const u64* tensor, const float* scalars) {
    Known known;
    known.in0 = tensor[INPUTS + 0];
    known.in1 = tensor[INPUTS + 1];
    known.s0 = scalars[0];
    known.s1 = scalars[1];
    known.s2 = scalars[2];
    return known;
}

__device__ __forceinline__ void values(
    const Known& known, const u64 base, const u64 elements, float (&out)[OUT][V], u32& met
) {
    u32 in0[V];
    load16(in0, known.in0, base, elements);
    u32 in1[V];
    load32(in1, known.in1, base, elements);
#pragma unroll
    for (int j = 0; j < V; j++) {
        const float v0 = decode_bf16(in0[j]);
        met = max(met, __float_as_uint(v0) & MAGNITUDE);
        const float v1 = v0 * known.s0;
        const float v2 = decode_f32(in1[j]);
        met = max(met, __float_as_uint(v2) & MAGNITUDE);
        const float v3 = v2 * known.s1;
        const float v4 = v1 + v3;
        const float v5 = v4 / known.s2;
        out[0][j] = v5;
    }
}
