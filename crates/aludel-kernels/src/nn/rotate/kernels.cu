// Rotary position embedding in place: a thread for each pair of elements. `sign` is 1 forward and -1 backward.
extern "C" __global__ void rotate(
    half_bits* x, const float* cosines, const float* sines, const u32* positions, i64 rows, int heads, int width, int half_rotated, float sign
) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= rows * heads * half_rotated) return;
    int i = (int)(at % half_rotated);
    i64 head = at / half_rotated;
    i64 turn = (i64)positions[head / heads] * half_rotated + i;
    float c = cosines[turn], s = sign * sines[turn];
    half_bits* p = x + head * width + i;
    float a = from_bf16(p[0]), b = from_bf16(p[half_rotated]);
    p[0] = to_bf16(a * c - b * s);
    p[half_rotated] = to_bf16(b * c + a * s);
}
