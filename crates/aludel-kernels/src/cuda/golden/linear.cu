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
    float in0[V];
    load_bf16<true>(in0, known.in0, base, elements, met);
    float in1[V];
    load_f32<true>(in1, known.in1, base, elements, met);
#pragma unroll
    for (int j = 0; j < V; j++) {
        const float v0 = in0[j] * known.s0;
        const float v1 = in1[j] * known.s1;
        const float v2 = v0 + v1;
        const float v3 = v2 / known.s2;
        out[0][j] = v3;
    }
}
