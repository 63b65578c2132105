//! Runs attention on a CUDA device, tile by tile on its units for matrices.
//!
//! Queries of a span are cut into tiles, and keys into others for their own gradient; tables of tiles are made once for the spans of a
//! step. Tiles with the most work come first.
//!
//! Kernels are written twice. Those of `warpgroups/` are for Hopper's instructions, by which four warps multiply 64 rows from shared memory at
//! once, and for heads of a width of 64 or 128. All others are for single warps, which any device from capability 8.0 on has.

use crate::cuda::driver::{Argument, Block, Grid};
use crate::element::Element;
use crate::nn::cuda::{Buffer, Cuda, Text, lock};
use crate::nn::device::{Attention, Span};

const SCORES: &str = include_str!("scores.cu");
const TILES: [&str; 2] = [include_str!("units.cu"), include_str!("tiles.cu")];
const DOTS: &str = include_str!("dots.cu");
const WARPGROUP_TILES: [&str; 2] = [include_str!("warpgroups/units.cu"), include_str!("warpgroups/tiles.cu")];

/// Lengths of tiles: 64 rows to four warps, `parts` times, against `across` at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiling {
    parts: usize,
    across: usize,
    /// Blocks that a multiprocessor holds at once, which bounds a thread's registers; warpgroups only.
    blocks: usize,
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

const fn tiling(parts: usize, across: usize) -> Tiling {
    Tiling { parts, across, blocks: 1 }
}

const fn tilings_of_warps(padded: usize) -> Tilings {
    if padded <= 64 {
        Tilings { forward: tiling(2, 64), queries: tiling(1, 64), keys: tiling(2, 32) }
    } else if padded <= 128 {
        Tilings { forward: tiling(1, 64), queries: tiling(1, 32), keys: tiling(1, 32) }
    } else {
        Tilings { forward: tiling(1, 32), queries: tiling(1, 16), keys: tiling(1, 16) }
    }
}

/// The fastest of those tried on an H100.
const fn tilings_of_warpgroups(width: usize) -> Tilings {
    if width == 64 {
        let pair = Tiling { parts: 2, across: 64, blocks: 2 };
        Tilings { forward: pair, queries: pair, keys: tiling(2, 128) }
    } else {
        Tilings { forward: tiling(3, 64), queries: tiling(2, 64), keys: tiling(2, 64) }
    }
}

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Warps,
    Warpgroups,
}

impl Unit {
    /// Scores are compared before they are scaled, so that a scale must not turn them round.
    fn of(cuda: &Cuda, attention: Attention) -> Self {
        let fits = matches!(attention.width, 64 | 128) && attention.scale > 0.0;
        if fits && cuda.has_warpgroups() { Self::Warpgroups } else { Self::Warps }
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
    let [kernel, ..] = kernels(Unit::of(cuda, attention), attention);
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
    let unit = Unit::of(cuda, attention);
    let [_, of_queries, of_keys] = kernels(unit, attention);
    let [q, k, v, dy] = [q, k, v, dy].map(Buffer::halves);
    let (dq, dk, dv) = (dq.halves(), dk.halves(), dv.halves());
    match unit {
        Unit::Warpgroups => {
            let Some(pairs) = cuda.scratch(2 * count, Element::F32) else { return };
            let (pairs, rows) = (pairs.argument(), Argument::Long(rows as i64));
            let operands = [q, k, v, y.halves(), dy, lse.floats(), pairs, rows, dq];
            of_queries.run(cuda, attention, spans, &operands);
            of_keys.run(cuda, attention, spans, &[q, k, v, dy, pairs, rows, dk, dv]);
        }
        Unit::Warps => {
            let Some(dots) = cuda.scratch(count, Element::F32) else { return };
            let defines = format!("#define WIDTH {}\n", attention.width);
            let name = format!("attention_dots {}", attention.width);
            let text = Text { name: &name, defines: &defines, parts: &[DOTS] };
            let grid = Grid { blocks: [count.div_ceil(8) as u32, 1, 1], threads: 256, shared: 0 };
            let (lse, dots) = (lse.floats(), dots.argument());
            cuda.run(text, "attention_dots", grid, &[y.halves(), dy, dots, Argument::Long(count as i64)]);
            of_queries.run(cuda, attention, spans, &[q, k, v, dy, lse, dots, dq]);
            of_keys.run(cuda, attention, spans, &[q, k, v, dy, lse, dots, dk, dv]);
        }
    }
}

/// Forward, and both backward.
fn kernels(unit: Unit, attention: Attention) -> [Tiled; 3] {
    let tiled =
        |name, text, is_of_keys, tiling, shared| Tiled { name, unit, text, is_of_keys, tiling, shared };
    match unit {
        Unit::Warps => {
            let Tilings { forward, queries, keys } = tilings_of_warps(padded(attention));
            // Rows of tiles: of the block's own operands, and of two of the others', by turns.
            let bytes =
                |tiling: Tiling, own| (own * tiling.rows() + 4 * tiling.across) * 2 * pitch(attention);
            let of_keys = bytes(keys, 2) + 16 * keys.across;
            [
                tiled("attention", include_str!("forward.cu"), false, forward, bytes(forward, 1)),
                tiled("attention_queries", include_str!("queries.cu"), false, queries, bytes(queries, 2)),
                tiled("attention_keys", include_str!("keys.cu"), true, keys, of_keys),
            ]
        }
        Unit::Warpgroups => {
            let Tilings { forward, queries, keys } = tilings_of_warpgroups(attention.width);
            let bytes = |tiling: Tiling, own| (own * tiling.rows() + 4 * tiling.across) * 2 * attention.width;
            let of_keys = bytes(keys, 2) + 16 * keys.across;
            let [forward_text, queries_text, keys_text] = [
                include_str!("warpgroups/forward.cu"),
                include_str!("warpgroups/queries.cu"),
                include_str!("warpgroups/keys.cu"),
            ];
            [
                tiled("attention", forward_text, false, forward, bytes(forward, 1)),
                tiled("attention_queries", queries_text, false, queries, bytes(queries, 2)),
                tiled("attention_keys", keys_text, true, keys, of_keys),
            ]
        }
    }
}

/// A kernel over tiles.
struct Tiled {
    name: &'static str,
    unit: Unit,
    text: &'static str,
    is_of_keys: bool,
    tiling: Tiling,
    /// Bytes of shared memory.
    shared: usize,
}

impl Tiled {
    fn run(&self, cuda: &Cuda, attention: Attention, spans: &[Span], operands: &[Argument]) {
        let &Self { name, unit, is_of_keys, tiling, shared, .. } = self;
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
        let key = format!("{name} {unit:?} {width} {}", soft_cap.is_some());
        let blocks = [if is_of_keys { key_heads } else { heads } as u32, *count as u32, 1];
        let threads = if unit == Unit::Warpgroups { 128 * tiling.parts as u32 } else { 128 };
        let grid = Grid { blocks, threads, shared: shared as u32 };
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
        let (defines, parts) = (self.defines(attention), self.parts());
        let text = Text { name: &key, defines: &defines, parts: &parts };
        cuda.run(text, name, grid, &arguments);
    }

    const fn parts(&self) -> [&'static str; 4] {
        let tiles = match self.unit {
            Unit::Warps => TILES,
            Unit::Warpgroups => WARPGROUP_TILES,
        };
        [SCORES, tiles[0], tiles[1], self.text]
    }

    fn defines(&self, attention: Attention) -> String {
        let Tiling { parts, across, blocks } = self.tiling;
        let others = if self.is_of_keys { "SEEN" } else { "KEYS" };
        let mut numbers = vec![
            ("WIDTH", attention.width),
            ("SOFT_CAP", usize::from(attention.soft_cap.is_some())),
            (others, across),
        ];
        match self.unit {
            Unit::Warps => numbers.extend([("PADDED", padded(attention)), ("PARTS", parts)]),
            Unit::Warpgroups => numbers.extend([("GROUPS", parts), ("BLOCKS", blocks)]),
        }
        numbers.into_iter().map(|(name, number)| format!("#define {name} {number}\n")).collect()
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
        for (unit, width) in [8, 64, 72, 128, 256]
            .map(|width| (Unit::Warps, width))
            .into_iter()
            .chain([64, 128].map(|width| (Unit::Warpgroups, width)))
        {
            for soft_cap in [None, Some(30.0)] {
                let attention =
                    Attention { heads: 4, key_heads: 2, width, scale: 0.1, window: None, soft_cap };
                for kernel in kernels(unit, attention) {
                    let defines = kernel.defines(attention);
                    Text { name: "", defines: &defines, parts: &kernel.parts() }.assert_compiles();
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
