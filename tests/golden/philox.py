"""Draw aludel's DARE masks in Python: Philox4x32-7 (Salmon et al., SC 2011), one stream per seed, model and tensor.

In:  seed, position of the model in the recipe's `models`, tensor name, density. Out: a boolean mask over the flat elements.
This is the definition that the goldens of the random methods are made with; `python philox.py` checks it against the
published known answers. It does not sparsify anything.
"""

import hashlib
import struct

import numpy as np

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 7
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def kept(seed: int, model_index: int, tensor: str, elements: int, density: np.float32) -> np.ndarray:
    """An element is kept if its uniform number lies below the density, both in f32."""
    return uniform(stream_key(seed, model_index, tensor), elements) < np.float32(density)


def stream_key(seed: int, model_index: int, tensor: str) -> tuple[int, int]:
    message = struct.pack("<QI", seed, model_index) + tensor.encode()
    return struct.unpack("<II", hashlib.sha256(message).digest()[:8])


def uniform(key: tuple[int, int], elements: int) -> np.ndarray:
    """The upper 24 bits of word `i % 4` of block `i / 4`, as a multiple of 2^-24: exact in f32."""
    block = np.arange((elements + 3) // 4, dtype=np.uint64)
    zero = np.zeros_like(block)
    words = np.stack(philox([block & LOW, block >> HALF, zero, zero], key), axis=1).reshape(-1)[:elements]
    return (words >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)


def philox(counter: list[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Seven rounds; each word is the low half of a uint64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> HALF) ^ c1 ^ np.uint64(k0), p1 & LOW, (p0 >> HALF) ^ c3 ^ np.uint64(k1), p0 & LOW
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
    ),
]


def check() -> None:
    for counter, key, expected in KNOWN_ANSWERS:
        words = philox([np.array([word], dtype=np.uint64) for word in counter], key)
        if tuple(int(word[0]) for word in words) != expected:
            raise SystemExit(f"philox disagrees with the published answer for counter {counter}, key {key}")


if __name__ == "__main__":
    check()
    print("philox agrees with the published answers")
