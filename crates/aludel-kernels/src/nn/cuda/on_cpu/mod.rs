//! Runs kernels' text on the CPU, for tests where there is no GPU.
//!
//! In: a text, a kernel's name, its grid and arguments. Out: the buffers among the arguments, as the kernel leaves them. The text is compiled as C++ behind
//! `block.h`, which has threads take turns and stands in for the device's own instructions. It says whether a kernel computes what it should. It does not
//! say how fast, finds no race, and knows nothing of the units for matrices.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::context::Text;
use crate::cuda::driver::Grid;

const BLOCK: &str = include_str!("block.h");

/// What a kernel is told.
#[derive(Clone, Debug)]
pub(crate) enum Given {
    /// A buffer, empty where there is none.
    Buffer(Vec<u8>),
    Long(i64),
    Int(i32),
    Float(f32),
}

impl Given {
    pub(crate) fn none() -> Self {
        Self::Buffer(Vec::new())
    }

    pub(crate) fn floats(values: &[f32]) -> Self {
        Self::Buffer(bytemuck::cast_slice(values).to_vec())
    }

    pub(crate) fn numbers(values: &[u32]) -> Self {
        Self::Buffer(bytemuck::cast_slice(values).to_vec())
    }

    /// Values that are bf16 already.
    pub(crate) fn halves(values: &[f32]) -> Self {
        Self::Buffer(crate::element::Element::BF16.encode(values))
    }

    /// The values of a buffer of f32.
    pub(crate) fn to_floats(&self) -> Vec<f32> {
        self.bytes().as_chunks().0.iter().map(|&raw| f32::from_le_bytes(raw)).collect()
    }

    /// The values of a buffer of bf16.
    pub(crate) fn to_halves(&self) -> Vec<f32> {
        let half = |raw: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*raw)) << 16);
        self.bytes().as_chunks().0.iter().map(half).collect()
    }

    fn bytes(&self) -> &[u8] {
        if let Self::Buffer(bytes) = self { bytes } else { &[] }
    }

    /// As `block.h` reads it.
    fn told(&self) -> Vec<u8> {
        let number: &[u8] = match self {
            Self::Buffer(bytes) => return [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat(),
            Self::Long(number) => &number.to_le_bytes(),
            Self::Int(number) => &number.to_le_bytes(),
            Self::Float(number) => &number.to_le_bytes(),
        };
        [&(number.len() as u64).to_le_bytes()[..], number].concat()
    }
}

/// Values as bf16 has them.
pub(crate) fn rounded(values: &[f32]) -> Vec<f32> {
    Given::halves(values).to_halves()
}

/// How far values are from others, norm-wise; infinite where one is no number.
pub(crate) fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "values to compare");
    let pairs = || got.iter().zip(want).map(|(&got, &want)| (f64::from(got), f64::from(want)));
    let (apart, norm) = pairs().fold((0.0, 0.0), |(apart, norm), (got, want)| {
        (apart + (got - want) * (got - want), norm + want * want)
    });
    let distance = f64::sqrt(apart / f64::max(norm, 1e-30));
    if distance.is_nan() { f64::INFINITY } else { distance }
}

/// Runs a kernel of a text, with so many blocks to a cluster, and writes its buffers back into the arguments; `false` where there is nothing to compile it by.
pub(crate) fn run(text: &Text<'_>, name: &str, grid: Grid, cluster: usize, arguments: &mut [Given]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("kernel.cpp"), folder.path().join("kernel"));
    std::fs::write(&source, of(text, name, grid)).unwrap();
    if !compile(&source, &program) {
        return false;
    }
    let words = [grid.blocks[0], grid.blocks[1], grid.blocks[2], grid.threads, cluster as u32];
    let mut child = Command::new(&program)
        .args(words.map(|word| word.to_string()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let told: Vec<u8> = arguments.iter().flat_map(Given::told).collect();
    // It reads everything before it writes anything.
    child.stdin.take().unwrap().write_all(&told).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{name} has failed");
    let mut rest = &output.stdout[..];
    for argument in arguments {
        if let Given::Buffer(bytes) = argument {
            let (own, others) = rest.split_at(bytes.len());
            bytes.copy_from_slice(own);
            rest = others;
        }
    }
    assert!(rest.is_empty(), "{name} has written more than its buffers");
    true
}

/// All of the program.
fn of(text: &Text<'_>, name: &str, grid: Grid) -> String {
    let mut source = format!("{BLOCK}\n{}", text.in_cpp());
    // Memory that the launch sizes is declared without a length; sixteen bytes are the unit.
    if let Some(at) = source.find("extern __shared__ ") {
        let length = grid.shared.div_ceil(16).max(1).to_string();
        source.replace_range(at..at + "extern ".len(), "");
        let open = at + source[at..].find("[]").unwrap() + 1;
        source.insert_str(open, &length);
    }
    source + "\nint main(int, char** words) { return run(" + name + ", words); }\n"
}

/// Compiles; `false` where there is nothing to do it by, which ALUDEL_REQUIRE_CXX forbids. Coroutines are those of Linux.
fn compile(source: &Path, program: &Path) -> bool {
    if !cfg!(target_os = "linux") {
        return false;
    }
    let flags = ["-std=c++17", "-O1", "-w", "-ffp-contract=off", "-pthread", "-o"];
    match Command::new("c++").args(flags).arg(program).arg(source).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            true
        }
        Err(_) => {
            assert!(std::env::var_os("ALUDEL_REQUIRE_CXX").is_none(), "no compiler of C++ is found");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::Element;

    /// Types that kernels read and write, as the CPU has them: numbers of every size, ties, and what does not fit.
    #[test]
    fn types_are_stored_as_the_cpu_stores_them() {
        let mut values = crate::nn::cpu::testing::values(2000, 1);
        for (at, value) in values.iter_mut().enumerate() {
            *value *= 2.0f32.powi(at as i32 % 48 - 30);
        }
        values.extend([
            0.0,
            -0.0,
            1.0,
            65_504.0,
            65_519.9,
            65_520.0,
            -1e9,
            f32::INFINITY,
            2.0f32.powi(-25),
            3e-8,
        ]);
        let len = values.len();
        for (number, element) in [(0, Element::F32), (1, Element::F16), (2, Element::BF16)] {
            let mut arguments = [
                Given::floats(&values),
                Given::Int(0),
                Given::Buffer(vec![0xff; len * element.size()]),
                Given::Int(number),
                Given::Long(len as i64),
                Given::Int(i32::from(len.is_multiple_of(8))),
            ];
            let grid = Grid { blocks: [2, 1, 1], threads: 256, shared: 0 };
            if !run(&crate::nn::elementwise::cuda::text(), "convert", grid, 1, &mut arguments) {
                return;
            }
            assert!(arguments[2].bytes() == element.encode(&values), "{element:?}");
            let mut back = [
                Given::Buffer(element.encode(&values)),
                Given::Int(number),
                Given::floats(&vec![0.0; len]),
                Given::Int(0),
                Given::Long(len as i64),
                Given::Int(0),
            ];
            run(&crate::nn::elementwise::cuda::text(), "convert", grid, 1, &mut back);
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert!(
                bits(&back[2].to_floats()) == bits(&element.decode(&element.encode(&values))),
                "{element:?}"
            );
        }
    }
}
