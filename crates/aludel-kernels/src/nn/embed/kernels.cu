// Rows of a table, and their gradients.

// y[t, :] = scale * table[ids[t], :]; one block a row.
extern "C" __global__ void embed(const u32* ids, const void* table, int type, i64 width, float scale, half_bits* y) {
    i64 row = ids[blockIdx.x];
    for (i64 i = threadIdx.x; i < width; i += blockDim.x)
        y[blockIdx.x * width + i] = to_bf16(scale * load(table, row * width + i, type));
}

// d_table[id, :] += scale * the sum of dy over the rows of an id, in their order. `starts` of each id among the `rows`; one block an id.
extern "C" __global__ void embed_backward(
    const u32* ids, const u32* starts, const u32* rows, const half_bits* dy, i64 width, float scale, void* d_table, int type
) {
    i64 id = ids[blockIdx.x];
    u32 first = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = load(d_table, id * width + i, type);
        for (u32 at = first; at < end; at++) sum += scale * from_bf16(dy[(i64)rows[at] * width + i]);
        store(d_table, id * width + i, type, sum);
    }
}
