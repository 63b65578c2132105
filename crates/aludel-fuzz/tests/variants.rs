//! Runs every reader on its seeds, on variants of them, and on what a fuzzer once found: no panic, and no more memory than files of this
//! size justify. What is tried is the same in every run.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::alloc::System;
use std::fs;
use std::path::Path;

use aludel_fuzz::{TARGETS, Target};
use cap::Cap;

/// Seeds have at most some hundred kilobytes, and their readers run side by side: whoever believes a lying length exceeds this, and the
/// allocator refuses.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, 512 << 20);

/// Variants of a seed: more would be for the fuzzer, which sees what code they reach.
const VARIANTS: usize = 300;

/// Numbers that lengths and offsets are tried with.
const NUMBERS: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX / 2];

fn variant(seed: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..random.usize(1..4) {
        let at = random.usize(0..=bytes.len());
        match random.usize(0..7) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.u8(..)),
            2 => drop(
                bytes.splice(at..at, seed[at.min(seed.len())..].iter().take(random.usize(..64)).copied()),
            ),
            3 => drop(bytes.drain(at..bytes.len().min(at + random.usize(..16)))),
            4 => {
                let number = random.choice(NUMBERS).unwrap().to_le_bytes();
                let length = [1, 2, 4, 8][random.usize(..4)].min(bytes.len() - at);
                bytes[at..at + length].copy_from_slice(&number[..length]);
            }
            5 => {
                let digits =
                    random.choice(["-1", "0", "1e999", "18446744073709551615", "[", "{", "\"", ":"]).unwrap();
                drop(bytes.splice(at..at, digits.bytes()));
            }
            _ if at < bytes.len() => bytes[at] ^= 1 << random.u32(..8),
            _ => {}
        }
    }
    bytes
}

#[test]
fn no_reader_panics_or_takes_more_memory_than_its_file_justifies() {
    let work = |target: &Target| {
        let (seeds, found) = ((target.seeds)(), target.corpus().unwrap());
        found.iter().for_each(|input| (target.run)(input));
        let mut random = fastrand::Rng::with_seed(target.name.bytes().map(u64::from).sum());
        for seed in &seeds {
            (target.run)(seed);
            for _ in 0..VARIANTS {
                let bytes = variant(seed, &mut random);
                let outcome = std::panic::catch_unwind(|| (target.run)(&bytes));
                if outcome.is_err() {
                    let file = std::env::temp_dir().join(format!("aludel-found-{}", target.name));
                    fs::write(&file, &bytes).unwrap();
                    panic!("`{}` panics; the bytes are in {}", target.name, file.display());
                }
            }
        }
        seeds.len()
    };
    std::thread::scope(|scope| {
        let works: Vec<_> =
            TARGETS.iter().map(|target| (target.name, scope.spawn(move || work(target)))).collect();
        for (name, work) in works {
            assert!(work.join().unwrap() > 0, "`{name}` has no seeds");
        }
    });
}

#[test]
fn readers_have_names_of_their_own_and_archives_have_readers() {
    let mut names: Vec<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "two readers have one name: {names:?}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(names.iter().any(|own| own == name), "{} is of no reader", path.display());
    }
}

#[test]
#[ignore = "a tool: FOUND=target=file runs one file"]
fn one_file() {
    let found = std::env::var("FOUND").unwrap();
    let (name, file) = found.split_once('=').unwrap();
    (aludel_fuzz::target(name).run)(&fs::read(file).unwrap());
}
