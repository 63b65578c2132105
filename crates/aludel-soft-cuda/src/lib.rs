//! CUDA without a GPU: libraries that stand in for the driver, its compiler, cuBLASLt and NCCL, and compute on the CPU.
//!
//! For tests only, and for Linux on x86-64. A process that finds these libraries first runs the program's own path to a device, unchanged: kernels are compiled
//! as C++ and run thread by thread, copies and launches are done as late as their streams allow, memory begins as bytes that are no number and is watched
//! at both ends. So what a test sees is whether kernels compute what they should, are told what they take, and are waited for. It sees neither speed nor
//! races between threads of a block, and each sum over matrices has an order of its own.
//!
//! Set up by variables of the environment: `SOFT_CUDA_ARCHITECTURE` (90, which has clusters and warpgroups; 80 has neither), `SOFT_CUDA_MEMORY` (bytes of
//! the device, 8 GiB), `SOFT_CUDA_DEVICES` (1), `SOFT_CUDA_CLUSTERS` (1; with 0 launches of clusters fail), `SOFT_CUDA_WRONG_PRODUCT` (where it is set, one of
//! cuBLASLt's ways to multiply gives something else).

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Files that libraries are compiled from, and kernels behind.
const TEXTS: [(&str, &str); 10] = [
    ("blocks.h", include_str!("cpp/blocks.h")),
    ("elements.h", include_str!("cpp/elements.h")),
    ("instructions.h", include_str!("cpp/instructions.h")),
    ("kernel.h", include_str!("cpp/kernel.h")),
    ("turns.h", include_str!("cpp/turns.h")),
    ("turns.cpp", include_str!("cpp/turns.cpp")),
    ("driver.cpp", include_str!("cpp/driver.cpp")),
    ("compiler.cpp", include_str!("cpp/compiler.cpp")),
    ("products.cpp", include_str!("cpp/products.cpp")),
    ("collectives.cpp", include_str!("cpp/collectives.cpp")),
];

/// Libraries, and what they are compiled from; all but the first lean on it.
const LIBRARIES: [(&str, &[&str]); 4] = [
    ("libcuda.so", &["driver.cpp", "turns.cpp"]),
    ("libnvrtc.so", &["compiler.cpp"]),
    ("libcublasLt.so", &["products.cpp"]),
    ("libnccl.so", &["collectives.cpp"]),
];

/// What `LD_LIBRARY_PATH` is for a process that is to find CUDA here; `None` where there is nothing to compile it by, which `ALUDEL_REQUIRE_CXX` forbids.
///
/// # Panics
/// Where the libraries do not compile, or their folder cannot be written.
pub fn library_path() -> Option<OsString> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let own = FOLDER.get_or_init(libraries).clone()?;
    let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = std::iter::once(own).chain(std::env::split_paths(&others));
    Some(std::env::join_paths(folders).expect("a folder has a colon in its name"))
}

/// The folder of the libraries, which are compiled where they are not there yet.
fn libraries() -> Option<PathBuf> {
    let is_there = cfg!(all(target_os = "linux", target_arch = "x86_64"));
    if !is_there || Command::new("c++").arg("--version").output().is_err() {
        assert!(std::env::var_os("ALUDEL_REQUIRE_CXX").is_none(), "no compiler of C++ is found");
        eprintln!("NOT TESTED: there is no compiler of C++ for x86-64 and Linux");
        return None;
    }
    Some(compiled().expect("CUDA on the CPU is compiled"))
}

fn compiled() -> io::Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    TEXTS.hash(&mut hasher);
    let program = std::env::current_exe()?;
    let above = program.parent().unwrap_or(Path::new("."));
    let version = format!("soft-cuda-{:016x}", hasher.finish());
    let folder = above.join(&version);
    if folder.is_dir() {
        return Ok(folder);
    }
    // Made under another name: whoever finds the folder finds all of it.
    let own = tempfile::Builder::new().prefix("soft-cuda-").tempdir_in(above)?;
    for (name, text) in TEXTS {
        std::fs::write(own.path().join(name), text)?;
    }
    for (name, sources) in LIBRARIES {
        let flags = [
            "-std=c++20",
            "-O2",
            "-Wall",
            "-Wno-attributes",
            "-shared",
            "-fPIC",
            "-ffp-contract=off",
            "-pthread",
        ];
        let leans = if name == "libcuda.so" { &[][..] } else { &["./libcuda.so"] };
        let output = Command::new("c++")
            .current_dir(own.path())
            .args(flags)
            .arg(format!("-Wl,-soname,{name}"))
            .arg(format!("-DSOFT_CUDA_VERSION=\"{version}\""))
            .args(["-o", name])
            .args(sources)
            .args(leans)
            .arg("-ldl")
            .output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr)));
        }
    }
    match std::fs::rename(own.path(), &folder) {
        Ok(()) => drop(own.keep()),
        // Another process was first.
        Err(error) if !folder.is_dir() => return Err(error),
        Err(_) => {}
    }
    Ok(folder)
}
