struct Known {
    u64 in0;
    u64 in1;
    float s0;
    u64 key3;
};

__device__ __forceinline__ Known known_of(const u64* tensor, const float* scalars) {
    Known known;
    known.in0 = tensor[INPUTS + 0];
    known.in1 = tensor[INPUTS + 1];
    known.s0 = scalars[0];
    known.key3 = ((const u64*)tensor[KEYS])[3];
    return known;
}

__device__ __forceinline__ void values(
    const Known& known, const u64 base, const u64 elements, float (&out)[OUT][V], u32& met
) {
    u32 in0[V];
    load16(in0, known.in0, base, elements);
    u32 in1[V];
    load16(in1, known.in1, base, elements);
    u32 words3[V];
    draw(words3, known.key3, base);
#pragma unroll
    for (int j = 0; j < V; j++) {
        const float v0 = decode_f16(in0[j]);
        met = max(met, __float_as_uint(v0) & MAGNITUDE);
        const float v1 = decode_f16(in1[j]);
        met = max(met, __float_as_uint(v1) & MAGNITUDE);
        const float v2 = v1 - v0;
        out[0][j] = v2;
        const float v3 = v2 * number(unit(words3[j]) < known.s0);
        out[1][j] = v3;
    }
}
