// Elements of arrays as libraries read and write them: f32, or bf16.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace soft_cuda {

inline float load(const void* at, bool is_half, size_t index) {
    if (!is_half) return ((const float*)at)[index];
    uint32_t word = (uint32_t)((const uint16_t*)at)[index] << 16;
    float x;
    memcpy(&x, &word, 4);
    return x;
}

// To the nearest, ties to even.
inline void store(void* at, bool is_half, size_t index, float x) {
    if (!is_half) {
        ((float*)at)[index] = x;
        return;
    }
    uint32_t word;
    memcpy(&word, &x, 4);
    ((uint16_t*)at)[index] = x != x ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16;
}

}  // namespace soft_cuda
