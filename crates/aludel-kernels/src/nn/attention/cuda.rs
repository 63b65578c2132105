//! Runs attention on a CUDA device, tile by tile on its units for matrices.
//!
//! Queries of a span are cut into tiles, and keys into others for their own gradient; tables of tiles are made once for the spans of a
//! step. Tiles with the most work come first.

use crate::cuda::driver::{Argument, Block, Grid};
use crate::element::Element;
use crate::nn::cuda::{Buffer, Cuda, Text, lock};
use crate::nn::device::{Attention, Span};

const TILES: &str = include_str!("tiles.cu");
const DOTS: &str = include_str!("dots.cu");

/// Lengths of tiles, in kernels of 4 warps: 16 rows a warp, `parts` times, against `across` at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiling {
    parts: usize,
    across: usize,
}

impl Tiling {
    const fn rows(self) -> usize {
        64 * self.parts
    }
}

/// The three kernels with tiles, for heads of a width: as many rows as the registers of a thread hold.
struct Tilings {
    forward: Tiling,
    queries: Tiling,
    keys: Tiling,
}

fn tilings(padded: usize) -> Tilings {
    let tiling = |parts, across| Tiling { parts, across };
    if padded <= 64 {
        Tilings { forward: tiling(2, 64), queries: tiling(1, 64), keys: tiling(2, 32) }
    } else if padded <= 128 {
        Tilings { forward: tiling(1, 64), queries: tiling(1, 32), keys: tiling(1, 32) }
    } else {
        Tilings { forward: tiling(1, 32), queries: tiling(1, 16), keys: tiling(1, 16) }
    }
}

/// Tables of the tiles of some spans.
#[derive(Debug)]
pub(in crate::nn) struct Tables {
    spans: Vec<Span>,
    /// Rows of a tile; of keys or of queries.
    rows: usize,
    is_of_keys: bool,
    table: Block,
    count: usize,
}

/// Spans whose tables are kept.
const KEPT: usize = 8;

pub(in crate::nn) fn forward(
    cuda: &Cuda,
    attention: Attention,
    spans: &[Span],
    [q, k, v]: [&Buffer; 3],
    y: &mut Buffer,
    lse: &mut Buffer,
) {
    let rows = check(attention, q, k, v);
    assert_eq!((y.len(), lse.len()), (q.len(), rows * attention.heads), "results of attention");
    let operands = [q.halves(), k.halves(), v.halves(), y.halves(), lse.floats()];
    let [kernel, ..] = kernels(attention);
    kernel.run(cuda, attention, spans, &operands);
}

pub(in crate::nn) fn backward(
    cuda: &Cuda,
    attention: Attention,
    spans: &[Span],
    [q, k, v]: [&Buffer; 3],
    [y, lse, dy]: [&Buffer; 3],
    [dq, dk, dv]: [&mut Buffer; 3],
) {
    let rows = check(attention, q, k, v);
    let count = rows * attention.heads;
    let lengths = (y.len(), dy.len(), dq.len(), lse.len());
    assert_eq!(lengths, (q.len(), q.len(), q.len(), count), "operands of attention's gradient");
    assert_eq!((dk.len(), dv.len()), (k.len(), v.len()), "gradients of keys and values");
    let Some(dots) = cuda.scratch(count, Element::F32) else { return };
    let defines = format!("#define WIDTH {}\n", attention.width);
    let name = format!("attention_dots {}", attention.width);
    let text = Text { name: &name, defines: &defines, parts: &[DOTS] };
    let grid = Grid { blocks: [count.div_ceil(8) as u32, 1, 1], threads: 256, shared: 0 };
    let arguments = [y.halves(), dy.halves(), dots.argument(), Argument::Long(count as i64)];
    cuda.run(text, "attention_dots", grid, &arguments);

    let [_, of_queries, of_keys] = kernels(attention);
    let given = [q.halves(), k.halves(), v.halves(), dy.halves(), lse.floats(), dots.floats()];
    let operands: Vec<Argument> = given.into_iter().chain([dq.halves()]).collect();
    of_queries.run(cuda, attention, spans, &operands);
    let operands: Vec<Argument> = given.into_iter().chain([dk.halves(), dv.halves()]).collect();
    of_keys.run(cuda, attention, spans, &operands);
}

/// Forward, and both backward.
fn kernels(attention: Attention) -> [Tiled; 3] {
    let Tilings { forward, queries, keys } = tilings(padded(attention));
    let pitch = 2 * pitch(attention);
    [
        Tiled {
            name: "attention",
            text: include_str!("forward.cu"),
            is_of_keys: false,
            tiling: forward,
            shared: (forward.rows() + 4 * forward.across) * pitch,
        },
        Tiled {
            name: "attention_queries",
            text: include_str!("queries.cu"),
            is_of_keys: false,
            tiling: queries,
            shared: (2 * queries.rows() + 4 * queries.across) * pitch,
        },
        Tiled {
            name: "attention_keys",
            text: include_str!("keys.cu"),
            is_of_keys: true,
            tiling: keys,
            shared: (2 * keys.rows() + 4 * keys.across) * pitch + 16 * keys.across,
        },
    ]
}

/// A kernel over tiles.
struct Tiled {
    name: &'static str,
    text: &'static str,
    is_of_keys: bool,
    tiling: Tiling,
    /// Bytes of shared memory.
    shared: usize,
}

impl Tiled {
    fn run(&self, cuda: &Cuda, attention: Attention, spans: &[Span], operands: &[Argument]) {
        let &Self { name, text, is_of_keys, tiling, shared } = self;
        let Attention { heads, key_heads, width, scale, window, soft_cap } = attention;
        let mut tables = lock(&cuda.tables);
        let rows = tiling.rows();
        let fits =
            |tables: &Tables| tables.rows == rows && tables.is_of_keys == is_of_keys && tables.spans == spans;
        let at = match tables.iter().position(fits) {
            Some(at) => at,
            None => {
                let numbers =
                    if is_of_keys { tiles_of_keys(spans, rows) } else { tiles_of_queries(spans, rows) };
                let numbers: Vec<i32> = numbers.concat();
                let Some(table) = cuda.sent(bytemuck::cast_slice(&numbers)) else { return };
                let count = numbers.len() / if is_of_keys { 8 } else { 4 };
                tables.insert(0, Tables { spans: spans.to_vec(), rows, is_of_keys, table, count });
                tables.truncate(KEPT);
                0
            }
        };
        let Tables { table, count, .. } = &tables[at];
        let key = format!("{name} {width} {}", soft_cap.is_some());
        let blocks = [*count as u32, if is_of_keys { key_heads } else { heads } as u32, 1];
        let grid = Grid { blocks, threads: 128, shared: shared as u32 };
        let arguments: Vec<Argument> = [Argument::Address(table.address())]
            .into_iter()
            .chain(operands.iter().copied())
            .chain([
                Argument::Int(heads as i32),
                Argument::Int(key_heads as i32),
                Argument::Float(scale),
                Argument::Int(window.map_or(0, |window| i32::try_from(window).unwrap_or(i32::MAX / 2))),
                Argument::Float(soft_cap.unwrap_or(0.0)),
            ])
            .collect();
        let defines = self.defines(attention);
        let text = Text { name: &key, defines: &defines, parts: &[TILES, text] };
        cuda.run(text, name, grid, &arguments);
    }

    fn defines(&self, attention: Attention) -> String {
        let across = if self.is_of_keys { "SEEN" } else { "KEYS" };
        format!(
            "#define WIDTH {}\n#define PADDED {}\n#define SOFT_CAP {}\n#define PARTS {}\n#define {across} {}\n",
            attention.width,
            padded(attention),
            u8::from(attention.soft_cap.is_some()),
            self.tiling.parts,
            self.tiling.across,
        )
    }
}

/// First query, how many, first key of the span, and the last key, counted within the span, that the first query sees.
fn tiles_of_queries(spans: &[Span], rows: usize) -> Vec<Vec<i32>> {
    let mut tiles = Vec::new();
    for Span { queries, keys } in spans {
        let shift = keys.len() - queries.len();
        for start in (0..queries.len()).step_by(rows) {
            let count = rows.min(queries.len() - start);
            tiles.push([queries.start + start, count, keys.start, start + shift].map(|n| n as i32).to_vec());
        }
    }
    tiles.sort_by_key(|tile| std::cmp::Reverse(tile[3]));
    tiles
}

/// First key, how many, place of the first within the span, first query of the span, queries of the span, how far a query's last key is
/// ahead of its own place, and two numbers that make a row of eight.
fn tiles_of_keys(spans: &[Span], rows: usize) -> Vec<Vec<i32>> {
    let mut tiles = Vec::new();
    for Span { queries, keys } in spans {
        let shift = keys.len() - queries.len();
        for start in (0..keys.len()).step_by(rows) {
            let count = rows.min(keys.len() - start);
            let tile = [keys.start + start, count, start, queries.start, queries.len(), shift, 0, 0];
            tiles.push(tile.map(|n| n as i32).to_vec());
        }
    }
    // Queries that see the first key.
    tiles.sort_by_key(|tile| std::cmp::Reverse(tile[4] - (tile[2] - tile[5]).max(0)));
    tiles
}

/// Holds lengths against the shape; returns the rows of queries.
fn check(attention: Attention, q: &Buffer, k: &Buffer, v: &Buffer) -> usize {
    let Attention { heads, key_heads, width, .. } = attention;
    assert!(width.is_multiple_of(8), "heads of a width that is a multiple of 8");
    assert!(heads.is_multiple_of(key_heads.max(1)), "heads that share keys evenly");
    assert!(k.len() == v.len() && k.len().is_multiple_of(key_heads * width), "keys and values");
    assert!(q.len().is_multiple_of(heads * width), "queries");
    q.len() / (heads * width)
}

const fn padded(attention: Attention) -> usize {
    attention.width.next_multiple_of(16)
}

/// Elements from row to row of a tile in shared memory.
const fn pitch(attention: Attention) -> usize {
    padded(attention) + 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_compile_for_heads_of_every_width() {
        for width in [8, 64, 72, 128, 256] {
            for soft_cap in [None, Some(30.0)] {
                let attention =
                    Attention { heads: 4, key_heads: 2, width, scale: 0.1, window: None, soft_cap };
                for kernel in kernels(attention) {
                    let defines = kernel.defines(attention);
                    Text { name: "", defines: &defines, parts: &[TILES, kernel.text] }.assert_compiles();
                }
            }
            Text { name: "", defines: &format!("#define WIDTH {width}\n"), parts: &[DOTS] }.assert_compiles();
        }
    }

    #[test]
    fn tiles_cover_spans_and_come_in_the_order_of_their_work() {
        let spans = [Span { queries: 0..130, keys: 0..130 }, Span { queries: 130..140, keys: 130..145 }];
        let queries = tiles_of_queries(&spans, 64);
        assert_eq!(
            queries,
            [vec![128, 2, 0, 128], vec![64, 64, 0, 64], vec![130, 10, 130, 5], vec![0, 64, 0, 0]]
        );
        let keys = tiles_of_keys(&spans, 128);
        assert_eq!(
            keys,
            [
                vec![0, 128, 0, 0, 130, 0, 0, 0],
                vec![130, 15, 0, 130, 10, 5, 0, 0],
                vec![128, 2, 128, 0, 130, 0, 0, 0]
            ]
        );
    }
}
