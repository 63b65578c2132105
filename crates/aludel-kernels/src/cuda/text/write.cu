// Computes the output of all tensors of a batch. A block takes one part of a chunk.

extern "C" __global__ void __launch_bounds__(THREADS)
write_tensors(const u64* tensors, const uint2* blocks, const float* scalars, u32* flags) {
    const uint2 at = blocks[blockIdx.x / PARTS];
    const u64* tensor = tensors + (u64)at.x * WORDS;
    const Known known = known_of(tensor, scalars + (u64)at.x * SCALARS);
    const u64 elements = tensor[ELEMENTS], output = tensor[OUTPUT];
    const u64 start = at.y * CHUNK + (blockIdx.x % PARTS) * (CHUNK / PARTS);
    const u64 end = least(start + CHUNK / PARTS, elements);
    u32 met = 0;
    float made = 0.0f;
    for (u64 base = start + (u64)threadIdx.x * V; base < end; base += THREADS * V) {
        float out[OUT][V];
        values(known, base, elements, out, met);
        // 0 times what is not finite is NaN, and stays.
        if (base + V <= elements) {
#pragma unroll
            for (int j = 0; j < V; j++) made = __fmaf_rn(out[0][j], 0.0f, made);
        } else {
#pragma unroll
            for (int j = 0; j < V; j++) {
                if (base + j < elements) made = __fmaf_rn(out[0][j], 0.0f, made);
            }
        }
        STORE(out[0], output, base, elements);
    }
    // NaN has other bits here than on the CPU, which then computes the tensor.
    if (met & NOT_FINITE) atomicOr(flags + at.x, 1u);
    if (made != 0.0f) atomicOr(flags + at.x, 2u);
}
