//! Holds what is decided on the host.

use super::{NOT_SHARED, Sharing};

#[test]
fn rows_are_shared_by_as_few_blocks_as_hold_them() {
    let blocks = |columns, models| Sharing::of(columns, models).blocks;
    assert_eq!([blocks(1000, 2), blocks(16_384, 2), blocks(49_152, 2), blocks(128_256, 2)], [1, 1, 4, 8]);
    assert_eq!(Sharing::of(128_256, 1), Sharing { blocks: 4, pieces: 8, shared: 64 << 10 });
    assert_eq!(Sharing::of(262_144, 2), NOT_SHARED);
}
