struct Known {
    u64 in0;
    u64 in1;
    float s0;
    float s1;
    float nothing1;
    u64 key3;
};

__device__ __forceinline__ Known known_of(const u64* tensor, const float* scalars) {
    Known known;
    known.in0 = tensor[INPUTS + 0];
    known.in1 = tensor[INPUTS + 1];
    known.s0 = scalars[0];
    known.s1 = scalars[1];
    known.nothing1 = 0.0f * known.s1;
    known.key3 = ((const u64*)tensor[KEYS])[3];
    return known;
}

__device__ __forceinline__ void values(
    const Known& known, const u64 base, const u64 elements, float (&out)[OUT][V], u32& met
) {
    float in0[V];
    load_f16<true>(in0, known.in0, base, elements, met);
    float in1[V];
    load_f16<true>(in1, known.in1, base, elements, met);
    u32 words3[V];
    draw(words3, known.key3, base);
#pragma unroll
    for (int j = 0; j < V; j++) {
        const float v0 = in1[j] - in0[j];
        const float v1 = v0 * (unit(words3[j]) < known.s0 ? known.s1 : known.nothing1);
        const float v2 = in0[j] + v1;
        const float v3 = __fsqrt_rn(v2);
        out[0][j] = v3;
    }
}
