// dots[t, h] = dy . y of a row and head; a warp each.
extern "C" __global__ void attention_dots(const half_bits* y, const half_bits* dy, float* dots, i64 count) {
    i64 at = (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x & 31;
    if (at >= count) return;
    float sum = 0.0f;
    for (int i = 2 * lane; i < WIDTH; i += 64) {
        u32 a = *(const u32*)(y + at * WIDTH + i), b = *(const u32*)(dy + at * WIDTH + i);
        sum += low(a) * low(b) + high(a) * high(b);
    }
    sum = sum_of_warp(sum);
    if (lane == 0) dots[at] = sum;
}

