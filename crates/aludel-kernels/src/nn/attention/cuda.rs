//! Runs attention on a CUDA device, tile by tile on its units for matrices.
//!
//! Queries of a span are cut into tiles, and keys into others for their own gradient; tables of tiles are made once for the spans of a
//! step. Tiles with the most work come first. How long tiles are is chosen among a few tilings when spans of a size are first met (`cuda/choices`).
//!
//! Kernels are written twice. Those of `warpgroups/` are for Hopper's instructions, by which four warps multiply 64 rows from shared memory at
//! once, and for heads of a width of 64 or 128. All others are for single warps, which any device from capability 8.0 on has.

use crate::cuda::CudaError;
use crate::cuda::choices::{Output, Question, Trials, Way, own_version};
use crate::cuda::driver::Block;
use crate::cuda::operation::{Argument, Grid};
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

    fn way(self) -> Way {
        let Self { parts, across, blocks } = self;
        let words = [parts, across, blocks].map(|number| number as u64).to_vec();
        Way { words, text: format!("{} rows against {across}, {blocks} blocks at once", self.rows()) }
    }
}

/// The three kernels with tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Forward,
    Queries,
    Keys,
}

/// Tilings that are tried for heads of a width; the first is taken where nothing is. All take as many rows as the registers of a thread hold, or not many
/// more, and pieces of 16 columns; those of warpgroups 64 or 128, as their instructions do.
fn tilings(unit: Unit, padded: usize, part: Part) -> Vec<Tiling> {
    let numbers: &[(usize, usize, usize)] = match (unit, padded, part) {
        (Unit::Warps, ..=64, Part::Forward) => &[(2, 64, 1), (1, 64, 1), (2, 32, 1), (1, 128, 1)],
        (Unit::Warps, ..=64, Part::Queries) => &[(1, 64, 1), (1, 32, 1), (2, 32, 1)],
        (Unit::Warps, ..=64, Part::Keys) => &[(2, 32, 1), (1, 32, 1), (1, 64, 1)],
        (Unit::Warps, ..=128, Part::Forward) => &[(1, 64, 1), (1, 32, 1), (2, 32, 1)],
        (Unit::Warps, ..=128, Part::Queries) => &[(1, 32, 1), (1, 16, 1), (1, 64, 1)],
        (Unit::Warps, ..=128, Part::Keys) => &[(1, 32, 1), (1, 16, 1)],
        (Unit::Warps, _, Part::Forward) => &[(1, 32, 1), (1, 16, 1), (1, 64, 1)],
        (Unit::Warps, _, Part::Queries | Part::Keys) => &[(1, 16, 1), (1, 32, 1)],
        (Unit::Warpgroups, ..=64, Part::Forward) => &[(2, 64, 2), (3, 64, 1), (2, 128, 1), (3, 128, 1)],
        (Unit::Warpgroups, ..=64, Part::Queries) => &[(2, 64, 2), (3, 64, 1), (2, 128, 1)],
        (Unit::Warpgroups, ..=64, Part::Keys) => &[(2, 128, 1), (2, 64, 1), (3, 64, 1), (1, 128, 2)],
        (Unit::Warpgroups, _, Part::Forward) => &[(3, 64, 1), (2, 64, 1), (2, 128, 1), (3, 128, 1)],
        (Unit::Warpgroups, _, Part::Queries) => &[(2, 64, 1), (3, 64, 1), (1, 64, 2)],
        (Unit::Warpgroups, _, Part::Keys) => &[(2, 64, 1), (1, 64, 1), (1, 64, 2)],
    };
    numbers.iter().map(|&(parts, across, blocks)| Tiling { parts, across, blocks }).collect()
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

/// The tiles of the spans that were asked for last, for tiles of a length. Those of other spans take the same place.
#[derive(Debug)]
pub(in crate::nn) struct Table {
    /// Rows of a tile; of keys or of queries.
    rows: usize,
    is_of_keys: bool,
    spans: Vec<Span>,
    block: Block,
    count: usize,
}

impl Table {
    /// The place and the number of the tiles of spans.
    fn of(cuda: &Cuda, spans: &[Span], rows: usize, is_of_keys: bool) -> Result<(u64, usize), CudaError> {
        let mut tables = lock(&cuda.tables);
        let at = tables.iter().position(|table| (table.rows, table.is_of_keys) == (rows, is_of_keys));
        if let Some(table) = at.map(|at| &tables[at]).filter(|table| table.spans == spans) {
            return Ok((table.block.address(), table.count));
        }
        let numbers = if is_of_keys { tiles_of_keys(spans, rows) } else { tiles_of_queries(spans, rows) };
        let numbers: Vec<i32> = numbers.concat();
        let (count, bytes) = (numbers.len() / if is_of_keys { 8 } else { 4 }, bytemuck::cast_slice(&numbers));
        let kept = at.map(|at| tables.swap_remove(at).block).filter(|block| block.bytes() >= bytes.len());
        let block = match kept {
            Some(block) => block,
            None => cuda.stream.block(bytes.len().next_power_of_two())?,
        };
        cuda.stream.put(bytes, &block, 0)?;
        let place = (block.address(), count);
        tables.push(Self { rows, is_of_keys, spans: spans.to_vec(), block, count });
        Ok(place)
    }
}

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
    let call = Call { cuda, unit: Unit::of(cuda, attention), attention, spans };
    call.run(Part::Forward, &operands, &[(3, y), (4, lse)]);
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
    let call = Call { cuda, unit, attention, spans };
    let [q, k, v, dy] = [q, k, v, dy].map(Buffer::halves);
    let gradients = [&*dq, &*dk, &*dv].map(Buffer::halves);
    let [to_queries, to_keys, to_values] = gradients;
    match unit {
        Unit::Warpgroups => {
            let Some(pairs) = cuda.scratch(2 * count, Element::F32) else { return };
            let (to_pairs, rows) = (pairs.argument(), Argument::Long(rows as i64));
            let operands = [q, k, v, y.halves(), dy, lse.floats(), to_pairs, rows, to_queries];
            call.run(Part::Queries, &operands, &[(6, &pairs), (8, dq)]);
            let operands = [q, k, v, dy, to_pairs, rows, to_keys, to_values];
            call.run(Part::Keys, &operands, &[(6, dk), (7, dv)]);
        }
        Unit::Warps => {
            let Some(dots) = cuda.scratch(count, Element::F32) else { return };
            let defines = format!("#define WIDTH {}\n", attention.width);
            let name = format!("attention_dots {}", attention.width);
            let text = Text { name: &name, defines: &defines, parts: &[DOTS] };
            let grid = Grid { blocks: [count.div_ceil(8) as u32, 1, 1], threads: 256, shared: 0 };
            let (lse, dots) = (lse.floats(), dots.argument());
            cuda.run(text, "attention_dots", grid, &[y.halves(), dy, dots, Argument::Long(count as i64)]);
            call.run(Part::Queries, &[q, k, v, dy, lse, dots, to_queries], &[(6, dq)]);
            call.run(Part::Keys, &[q, k, v, dy, lse, dots, to_keys, to_values], &[(6, dk), (7, dv)]);
        }
    }
}

/// Attention over some spans on a device.
#[derive(Clone, Copy)]
struct Call<'a> {
    cuda: &'a Cuda,
    unit: Unit,
    attention: Attention,
    spans: &'a [Span],
}

impl Call<'_> {
    /// Starts a kernel by the tiling that is chosen for it. `outputs` are those of the operands that it overwrites, with their places among them.
    fn run(&self, part: Part, operands: &[Argument], outputs: &[(usize, &Buffer)]) {
        let Self { cuda, unit, attention, .. } = *self;
        let tilings = tilings(unit, padded(attention), part);
        let at = if cuda.choices.rule().takes(self.work()) {
            let ways: Vec<Way> = tilings.iter().map(|tiling| tiling.way()).collect();
            cuda.choices.choose(&self.question(part), &ways, || {
                let spare = |(_, buffer): &(usize, &Buffer)| {
                    cuda.stream.spare_block(buffer.len() * buffer.element().size())
                };
                let blocks = outputs.iter().map(spare).collect::<Result<Vec<_>, _>>()?;
                let mut elsewhere = operands.to_vec();
                for ((place, _), block) in outputs.iter().zip(&blocks) {
                    elsewhere[*place] = Argument::Address(block.address());
                }
                let run = |way: usize| self.start(part, tilings[way], &elsewhere);
                let results = outputs.iter().zip(&blocks);
                let results: Vec<Output<'_>> =
                    results.map(|((_, buffer), block)| Output { block, element: buffer.element() }).collect();
                Trials { stream: &cuda.stream, prepare: &|| Ok(()), run: &run, outputs: &results }
                    .outcome(tilings.len())
            })
        } else {
            0
        };
        cuda.keep(self.start(part, tilings[at], operands));
    }

    fn start(&self, part: Part, tiling: Tiling, operands: &[Argument]) -> Result<(), CudaError> {
        Tiled::of(self.unit, self.attention, part, tiling).start(
            self.cuda,
            self.attention,
            self.spans,
            operands,
        )
    }

    /// Multiplications and additions of scores and of what they weigh, about.
    fn work(&self) -> f64 {
        let Attention { heads, width, window, .. } = self.attention;
        let seen = |span: &Span| span.keys.len().min(window.unwrap_or(usize::MAX));
        let pairs = self.spans.iter().map(|span| span.queries.len() as f64 * seen(span) as f64);
        2.0 * (heads * width) as f64 * pairs.sum::<f64>()
    }

    /// Spans of about as many rows have the same answer.
    fn question(&self, part: Part) -> Question {
        let Attention { heads, key_heads, width, window, soft_cap, .. } = self.attention;
        let rows: usize = self.spans.iter().map(|span| span.queries.len()).sum();
        let longest = self.spans.iter().map(|span| span.keys.len()).max().unwrap_or(0);
        let (rows, longest) = (rows.next_power_of_two(), longest.next_power_of_two());
        let window = window.map_or_else(String::new, |window| format!(", window {window}"));
        let cap = if soft_cap.is_some() { ", capped" } else { "" };
        let unit = self.unit;
        Question {
            kernel: part.name(),
            shape: format!(
                "{unit:?}, {rows} rows of spans of {longest}, {heads} heads of {width} over {key_heads}{window}{cap}"
            ),
            version: own_version(),
        }
    }
}

impl Part {
    const fn name(self) -> &'static str {
        match self {
            Self::Forward => "attention",
            Self::Queries => "attention_queries",
            Self::Keys => "attention_keys",
        }
    }

    const fn text(self, unit: Unit) -> &'static str {
        match (unit, self) {
            (Unit::Warps, Self::Forward) => include_str!("forward.cu"),
            (Unit::Warps, Self::Queries) => include_str!("queries.cu"),
            (Unit::Warps, Self::Keys) => include_str!("keys.cu"),
            (Unit::Warpgroups, Self::Forward) => include_str!("warpgroups/forward.cu"),
            (Unit::Warpgroups, Self::Queries) => include_str!("warpgroups/queries.cu"),
            (Unit::Warpgroups, Self::Keys) => include_str!("warpgroups/keys.cu"),
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
    fn of(unit: Unit, attention: Attention, part: Part, tiling: Tiling) -> Self {
        let pitch = if unit == Unit::Warps { pitch(attention) } else { attention.width };
        // Rows of tiles: of the block's own operands, and of two of the others', by turns.
        let own = if part == Part::Forward { 1 } else { 2 };
        let tiles = (own * tiling.rows() + 4 * tiling.across) * 2 * pitch;
        let is_of_keys = part == Part::Keys;
        let shared = tiles + if is_of_keys { 16 * tiling.across } else { 0 };
        Self { name: part.name(), unit, text: part.text(unit), is_of_keys, tiling, shared }
    }

    fn start(
        &self,
        cuda: &Cuda,
        attention: Attention,
        spans: &[Span],
        operands: &[Argument],
    ) -> Result<(), CudaError> {
        let &Self { name, unit, is_of_keys, tiling, shared, .. } = self;
        let Attention { heads, key_heads, width, scale, window, soft_cap } = attention;
        let (table, count) = Table::of(cuda, spans, tiling.rows(), is_of_keys)?;
        let Tiling { parts, across, blocks: at_once } = tiling;
        let key = format!("{name} {unit:?} {width} {} {parts} {across} {at_once}", soft_cap.is_some());
        let blocks = [if is_of_keys { key_heads } else { heads } as u32, count as u32, 1];
        let threads = if unit == Unit::Warpgroups { 128 * parts as u32 } else { 128 };
        let grid = Grid { blocks, threads, shared: shared as u32 };
        let arguments: Vec<Argument> = [Argument::Address(table)]
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
        cuda.start(text, name, grid, &arguments)
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

    fn all(unit: Unit, attention: Attention) -> impl Iterator<Item = (Part, Tiling)> {
        [Part::Forward, Part::Queries, Part::Keys].into_iter().flat_map(move |part| {
            tilings(unit, padded(attention), part).into_iter().map(move |tiling| (part, tiling))
        })
    }

    #[test]
    fn tiles_fit_shared_memory_and_what_multiplies() {
        const MOST: usize = 227 << 10;
        for (unit, width) in [(Unit::Warps, 64), (Unit::Warps, 128), (Unit::Warps, 256)]
            .into_iter()
            .chain([(Unit::Warpgroups, 64), (Unit::Warpgroups, 128)])
        {
            let attention =
                Attention { heads: 4, key_heads: 2, width, scale: 0.1, window: None, soft_cap: None };
            for (part, tiling) in all(unit, attention) {
                // Of the kernel's own: pairs of numbers for each query.
                let own = 8 * tiling.rows();
                assert!(Tiled::of(unit, attention, part, tiling).shared + own <= MOST, "{width} {tiling:?}");
                match unit {
                    Unit::Warps => assert!(tiling.across.is_multiple_of(16) && tiling.blocks == 1),
                    // A thread brings a number for each of `across`.
                    Unit::Warpgroups => {
                        assert!(matches!(tiling.across, 64 | 128) && tiling.across <= 128 * tiling.parts);
                    }
                }
            }
        }
    }

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
                for (part, tiling) in all(unit, attention) {
                    let kernel = Tiled::of(unit, attention, part, tiling);
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
