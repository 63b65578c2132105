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
    float in0[V];
    load_bf16<true>(in0, known.in0, base, elements, met);
    float in1[V];
    load_bf16<true>(in1, known.in1, base, elements, met);
    float in2[V];
    load_bf16<true>(in2, known.in2, base, elements, met);
#pragma unroll
    for (int j = 0; j < V; j++) {
        const float v0 = in1[j] - in0[j];
        out[0][j] = v0;
        const float v1 = in2[j] - in0[j];
        out[1][j] = v1;
    }
}
