//! Chooses the vector instructions: the one place where a CPU feature is asked for.
//!
//! The same Rust code is compiled three times. No level contracts a multiplication and an addition or reorders a sum,
//! so all levels give the same bits (held by a test).
#![expect(
    unsafe_code,
    reason = "calls of functions compiled for CPU features, after the features were found"
)]

use std::sync::OnceLock;

use super::low_rank::{self, Factors};
use super::machine::{Machine, run_block};
use super::rank::{self, Bracket, Tally};
use super::tile::{self, Tile};
#[cfg(target_arch = "x86_64")]
use super::{x86, x86_random};
use crate::random::{self, StreamKey};

/// A set of vector instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every machine of this architecture has.
    Baseline,
    /// AVX2 on x86-64.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL) on x86-64.
    Avx512,
}

/// The highest level of this machine.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt");
    let has_avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (has_avx2, has_avx512) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        _ => Level::Baseline,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Baseline
}

/// Runs one block with the instructions of `wanted`, or of the machine's level where that is lower.
pub(super) fn run(wanted: Level, machine: &mut Machine<'_>) {
    match wanted.min(level()) {
        // SAFETY: `level` found the features that the function was compiled for.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { run_avx512(machine) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { run_avx2(machine) },
        _ => run_block(machine),
    }
}

/// Multiplies as [`low_rank::multiply`] defines it.
pub(super) fn low_rank(wanted: Level, factors: Factors<'_>, to: &mut [f32]) {
    match wanted.min(level()) {
        // SAFETY: `level` found the features that the function was compiled for.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { low_rank_avx512(factors, to) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { low_rank_avx2(factors, to) },
        _ => low_rank::multiply(factors, to),
    }
}

/// Adds a product of tiles as [`tile::multiply`] defines it.
pub(super) fn add_product(wanted: Level, to: &mut [f64], left: &[f64], right: &Tile) {
    match wanted.min(level()) {
        // SAFETY: `level` found the features that the function was compiled for.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { add_product_avx512(to, left, right) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { add_product_avx2(to, left, right) },
        _ => tile::multiply::<4>(to, left, right),
    }
}

/// Counts a block as [`rank::tally`] defines it.
pub(super) fn tally(wanted: Level, x: &[f32], bracket: Bracket, tally: &mut Tally, inside: &mut Vec<u32>) {
    match wanted.min(level()) {
        // SAFETY: `level` found the features that the function was compiled for.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { x86::tally_avx512(x, bracket, tally, inside) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::tally_avx2(x, bracket, tally, inside) },
        _ => rank::tally(x, bracket, tally, inside),
    }
}

/// Draws the random words of a block as [`random::fill_words`] defines them.
pub(super) fn fill_words(wanted: Level, key: StreamKey, start: u64, out: &mut [u32]) {
    match wanted.min(level()) {
        // SAFETY: `level` found the features that the function was compiled for.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { x86_random::fill_words_avx512(key, start, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { fill_words_avx2(key, start, out) },
        _ => random::fill_words(key, start, out),
    }
}

/// Calls bytes into the cache that will be read soon.
#[inline(always)]
pub(super) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    x86::prefetch(bytes);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,popcnt")]
fn fill_words_avx2(key: StreamKey, start: u64, out: &mut [u32]) {
    random::fill_words(key, start, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,popcnt")]
fn run_avx512(machine: &mut Machine<'_>) {
    run_block(machine);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,popcnt")]
fn run_avx2(machine: &mut Machine<'_>) {
    run_block(machine);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,popcnt")]
fn low_rank_avx512(factors: Factors<'_>, to: &mut [f32]) {
    low_rank::multiply(factors, to);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,popcnt")]
fn low_rank_avx2(factors: Factors<'_>, to: &mut [f32]) {
    low_rank::multiply(factors, to);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,popcnt")]
fn add_product_avx512(to: &mut [f64], left: &[f64], right: &Tile) {
    tile::multiply::<16>(to, left, right);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,popcnt")]
fn add_product_avx2(to: &mut [f64], left: &[f64], right: &Tile) {
    tile::multiply::<8>(to, left, right);
}
