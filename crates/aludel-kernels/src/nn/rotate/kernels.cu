// Rotary position embedding in place: a thread for each pair of elements, or for eight pairs where halves are multiples of eight. `sign` is 1
// forward and -1 backward.
extern "C" __global__ void rotate(
    half_bits* x, const float* cosines, const float* sines, const u32* positions, u32 pieces, int heads, int width, int half_rotated, float sign, int eight
) {
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= pieces) return;
    u32 each = half_rotated / (eight ? 8 : 1), head = at / each, i = at % each * (eight ? 8 : 1);
    i64 turn = (i64)positions[head / heads] * half_rotated + i;
    half_bits* p = x + (i64)head * width + i;
    if (!eight) {
        float c = cosines[turn], s = sign * sines[turn];
        float a = from_bf16(p[0]), b = from_bf16(p[half_rotated]);
        p[0] = to_bf16(a * c - b * s);
        p[half_rotated] = to_bf16(b * c + a * s);
        return;
    }
    float a[8], b[8], c[8], s[8], turned[8];
    load8(p, 0, 2, a);
    load8(p, half_rotated, 2, b);
    load8(cosines, turn, 0, c);
    load8(sines, turn, 0, s);
    for (int j = 0; j < 8; j++) turned[j] = a[j] * c[j] - b[j] * (sign * s[j]);
    store8(p, 0, 2, turned);
    for (int j = 0; j < 8; j++) turned[j] = b[j] * c[j] + a[j] * (sign * s[j]);
    store8(p, half_rotated, 2, turned);
}
