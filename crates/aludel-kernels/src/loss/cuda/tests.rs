//! Holds what is decided on the host.

use super::sharing::{NOT_SHARED, Sharing};
use super::sorted;

#[test]
fn rows_are_shared_by_as_few_blocks_as_hold_them() {
    let blocks = |columns, models| Sharing::of(columns, models).blocks;
    assert_eq!([blocks(1000, 2), blocks(16_384, 2), blocks(49_152, 2), blocks(128_256, 2)], [1, 1, 4, 8]);
    assert_eq!(Sharing::of(128_256, 1), Sharing { blocks: 4, threads: 512, pieces: 8, shared: 64 << 10 });
    assert_eq!(Sharing::of(262_144, 2), NOT_SHARED);
}

#[test]
fn one_block_that_reads_again_is_the_first_of_what_is_tried() {
    let tried = |columns, models| -> Vec<(usize, usize, usize)> {
        let tried = Sharing::tried(columns, models);
        assert_eq!(tried[0], NOT_SHARED);
        tried[1..].iter().map(|sharing| (sharing.blocks, sharing.threads, sharing.pieces)).collect()
    };
    assert_eq!(tried(1024, 2), [(2, 512, 0), (1, 512, 1), (1, 256, 1)]);
    let all = [
        (1, 512, 12),
        (2, 512, 6),
        (4, 512, 3),
        (8, 512, 2),
        (1, 256, 24),
        (2, 256, 12),
        (4, 256, 6),
        (8, 256, 3),
    ];
    assert_eq!(tried(49_152, 2), [&[(2, 512, 0)][..], &all].concat());
    // One and two blocks do not have the memory.
    assert_eq!(tried(128_256, 2), [(2, 512, 0), (4, 512, 8), (8, 512, 4), (4, 256, 16), (8, 256, 8)]);
    assert_eq!(tried(262_144, 2), [(2, 512, 0), (8, 512, 8), (8, 256, 16)]);
}

#[test]
fn the_kernel_of_sorted_distances_compiles() {
    sorted::text(&sorted::defines()).assert_compiles();
}
