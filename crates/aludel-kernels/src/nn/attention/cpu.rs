//! Runs attention by tiles: forward over (span, rows, head) and backward over (span, head) on the threads. The gradients of
//! keys and values that several heads share are kept for each head and summed in the order of the heads.

use std::cell::RefCell;
use std::ops::Range;

use crate::nn::cpu::math::{Arithmetic, exp, tanh};
use crate::nn::cpu::window::{Matrix, Window, pieces};
use crate::nn::cpu::{Cpu, dispatch, lanes};
use crate::nn::device::{Accumulate, Attention, Span};

/// Queries of a tile.
const QUERIES: usize = 64;
/// Keys of a tile.
const KEYS: usize = 128;

/// Two tiles of scores, and what is kept for each query.
struct Scratch {
    scores: [f32; QUERIES * KEYS],
    gradients: [f32; QUERIES * KEYS],
    row: [[f32; 2]; QUERIES],
}

thread_local! {
    static SCRATCH: RefCell<Box<Scratch>> = RefCell::new(Box::new(Scratch {
        scores: [0.0; QUERIES * KEYS],
        gradients: [0.0; QUERIES * KEYS],
        row: [[0.0; 2]; QUERIES],
    }));
}

/// One head of one span: where its rows lie.
struct Head<'a> {
    attention: &'a Attention,
    span: &'a Span,
    head: usize,
}

#[expect(clippy::too_many_arguments, reason = "what attention depends on")]
pub(in crate::nn) fn forward(
    cpu: &Cpu,
    attention: Attention,
    spans: &[Span],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    y: &mut [f32],
    lse: &mut [f32],
) {
    let Attention { heads, width, .. } = attention;
    assert_eq!(q.len(), y.len(), "shapes of attention");
    check(&attention, spans, q, k, v, lse.len());
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by_key(|&span| spans[span].queries.start);
    let tiles: Vec<(&Span, Range<usize>)> = order
        .iter()
        .flat_map(|&span| {
            pieces(spans[span].queries.clone(), QUERIES).into_iter().map(move |rows| (span, rows))
        })
        .map(|(span, rows)| (&spans[span], rows))
        .collect();
    let rows: Vec<Range<usize>> = tiles.iter().map(|(_, rows)| rows.clone()).collect();
    let outputs = Window::split(y, heads * width, &rows, &pieces(0..heads * width, width));
    let sums = Window::split(lse, heads, &rows, &pieces(0..heads, 1));
    let jobs = outputs.into_iter().zip(sums).enumerate().map(|(index, windows)| {
        let span = tiles[index / heads].0;
        (Head { attention: &attention, span, head: index % heads }, windows)
    });
    let operations = 4 * pairs(spans) * heads * width;
    cpu.each(jobs.collect(), operations, |(head, (mut y, mut lse))| {
        SCRATCH.with_borrow_mut(|scratch| head.forward(q, k, v, &mut y, &mut lse, scratch));
    });
}

#[expect(clippy::too_many_arguments, reason = "what the gradient depends on")]
pub(in crate::nn) fn backward(
    cpu: &Cpu,
    attention: Attention,
    spans: &[Span],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    y: &[f32],
    lse: &[f32],
    dy: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let Attention { heads, key_heads, width, .. } = attention;
    assert_eq!((q.len(), q.len(), q.len()), (y.len(), dy.len(), dq.len()), "shapes of attention");
    assert_eq!((k.len(), v.len()), (dk.len(), dv.len()), "shapes of attention");
    check(&attention, spans, q, k, v, lse.len());
    dq.fill(0.0);
    dk.fill(0.0);
    dv.fill(0.0);
    if q.is_empty() {
        return;
    }
    let mut spans = spans.to_vec();
    spans.sort_by_key(|span| span.queries.start);
    let queries: Vec<Range<usize>> = spans.iter().map(|span| span.queries.clone()).collect();
    // Keys of spans may lie in any order and overlap: each span has rows of its own here.
    let mut keys = Vec::new();
    let mut end = 0;
    for span in &spans {
        keys.push(end..end + span.keys.len());
        end += span.keys.len();
    }
    let (row, columns) = (heads * width, pieces(0..heads * width, width));
    let (mut of_keys, mut of_values) = (vec![0.0; end * row], vec![0.0; end * row]);
    let dq = Window::split(dq, row, &queries, &columns);
    let windows_of_keys = Window::split(&mut of_keys, row, &keys, &columns);
    let windows_of_values = Window::split(&mut of_values, row, &keys, &columns);
    let jobs = dq.into_iter().zip(windows_of_keys).zip(windows_of_values).enumerate();
    let jobs = jobs.map(|(index, ((dq, dk), dv))| {
        let head = Head { attention: &attention, span: &spans[index / heads], head: index % heads };
        (head, [dq, dk, dv])
    });
    let operations = 10 * pairs(&spans) * heads * width;
    cpu.each(jobs.collect(), operations, |(head, gradients)| {
        SCRATCH.with_borrow_mut(|scratch| head.backward([q, k, v, y, dy], lse, gradients, scratch));
    });
    let group = heads / key_heads;
    let row_of_keys = key_heads * width;
    for (span, own) in spans.iter().zip(&keys) {
        for (position, own) in span.keys.clone().zip(own.clone()) {
            for (from, to) in [(&of_keys, &mut *dk), (&of_values, &mut *dv)] {
                let from = from[own * row..(own + 1) * row].chunks_exact(width);
                for (head, from) in from.enumerate() {
                    let at = position * row_of_keys + head / group * width;
                    dispatch::add(from, 1.0, &mut to[at..at + width]);
                }
            }
        }
    }
}

impl Head<'_> {
    /// Of the rows that `y` covers.
    fn forward(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        y: &mut Window<'_>,
        lse: &mut Window<'_>,
        scratch: &mut Scratch,
    ) {
        let rows = y.rows();
        let attention = self.attention;
        let row = &mut scratch.row[..rows.len()];
        row.fill([f32::NEG_INFINITY, 0.0]);
        y.fill(0.0);
        for keys in pieces(self.visible(&rows), KEYS) {
            let scores = &mut scratch.scores[..rows.len() * keys.len()];
            let mut tile = Window::whole(scores, rows.len(), keys.len());
            tile.multiply(
                attention.scale,
                self.of_queries(q, &rows),
                self.of_keys(k, &keys).transposed(),
                Accumulate::Overwrite,
            );
            let each = scores.chunks_exact_mut(keys.len()).zip(row.iter_mut());
            for (index, (scores, [most, sum])) in each.enumerate() {
                let seen = self.seen(rows.start + index, &keys);
                scores[..seen.start].fill(0.0);
                scores[seen.end..].fill(0.0);
                if seen.is_empty() {
                    continue;
                }
                let (greatest, added) = dispatch::exponentials(&mut scores[seen], attention.soft_cap, *most);
                if greatest > *most && *sum > 0.0 {
                    let shrink = (*most - greatest).exp();
                    *sum *= shrink;
                    dispatch::scale(y.row(index), shrink);
                }
                *most = greatest;
                *sum += added;
            }
            let scores = Matrix::dense(scores, rows.len(), keys.len());
            y.multiply(1.0, scores, self.of_keys(v, &keys), Accumulate::Add);
        }
        for (index, [most, sum]) in row.iter().enumerate() {
            dispatch::scale(y.row(index), 1.0 / sum);
            lse.row(index)[0] = most + sum.ln();
        }
    }

    /// Adds to `dq` of the span's queries and to `dk` and `dv` of its keys, which are windows of this head.
    fn backward(
        &self,
        [q, k, v, y, dy]: [&[f32]; 5],
        lse: &[f32],
        [mut dq, mut dk, mut dv]: [Window<'_>; 3],
        scratch: &mut Scratch,
    ) {
        let attention = self.attention;
        let (first_query, first_key) = (self.span.queries.start, self.span.keys.start);
        for rows in pieces(self.span.queries.clone(), QUERIES) {
            for (index, row) in rows.clone().enumerate() {
                let at = (row * attention.heads + self.head) * attention.width;
                let delta = dispatch::dot(&y[at..at + attention.width], &dy[at..at + attention.width]);
                scratch.row[index] = [lse[row * attention.heads + self.head], delta];
            }
            let (q, dy) = (self.of_queries(q, &rows), self.of_queries(dy, &rows));
            for keys in pieces(self.visible(&rows), KEYS) {
                let (k, v) = (self.of_keys(k, &keys), self.of_keys(v, &keys));
                let scores = &mut scratch.scores[..rows.len() * keys.len()];
                let gradients = &mut scratch.gradients[..rows.len() * keys.len()];
                Window::whole(scores, rows.len(), keys.len()).multiply(
                    attention.scale,
                    q,
                    k.transposed(),
                    Accumulate::Overwrite,
                );
                Window::whole(gradients, rows.len(), keys.len()).multiply(
                    1.0,
                    dy,
                    v.transposed(),
                    Accumulate::Overwrite,
                );
                let each = scores.chunks_exact_mut(keys.len()).zip(gradients.chunks_exact_mut(keys.len()));
                for (index, (scores, gradients)) in each.enumerate() {
                    let seen = self.seen(rows.start + index, &keys);
                    for tile in [&mut *scores, &mut *gradients] {
                        tile[..seen.start].fill(0.0);
                        tile[seen.end..].fill(0.0);
                    }
                    let [lse, delta] = scratch.row[index];
                    let (scores, gradients) = (&mut scores[seen.clone()], &mut gradients[seen]);
                    dispatch::score_gradients(scores, gradients, attention.soft_cap, lse, delta);
                }
                let scores = Matrix::dense(scores, rows.len(), keys.len());
                let gradients = Matrix::dense(gradients, rows.len(), keys.len());
                let own = rows.start - first_query..rows.end - first_query;
                dq.part(own).multiply(attention.scale, gradients, k, Accumulate::Add);
                let own = keys.start - first_key..keys.end - first_key;
                dk.part(own.clone()).multiply(attention.scale, gradients.transposed(), q, Accumulate::Add);
                dv.part(own).multiply(1.0, scores.transposed(), dy, Accumulate::Add);
            }
        }
    }

    /// The keys that any of these queries sees.
    fn visible(&self, rows: &Range<usize>) -> Range<usize> {
        self.sight(rows.start).start..self.sight(rows.end - 1).end
    }

    /// The keys that a query sees.
    fn sight(&self, query: usize) -> Range<usize> {
        let Span { queries, keys } = self.span;
        let end = keys.end - (queries.end - 1 - query);
        let start =
            self.attention.window.map_or(keys.start, |window| end.saturating_sub(window).max(keys.start));
        start..end
    }

    /// The part of a tile of keys that a query sees, counted from the tile's first.
    fn seen(&self, query: usize, keys: &Range<usize>) -> Range<usize> {
        let sight = self.sight(query);
        let inside = |key: usize| key.clamp(keys.start, keys.end) - keys.start;
        inside(sight.start)..inside(sight.end)
    }

    /// Rows of this head in an array of query heads.
    fn of_queries<'v>(&self, values: &'v [f32], rows: &Range<usize>) -> Matrix<'v> {
        let Attention { heads, width, .. } = *self.attention;
        let stride = heads * width;
        Matrix::new(&values[rows.start * stride + self.head * width..], rows.len(), width, stride)
    }

    /// Rows of the key and value head that this head reads.
    fn of_keys<'v>(&self, values: &'v [f32], keys: &Range<usize>) -> Matrix<'v> {
        let Attention { heads, key_heads, width, .. } = *self.attention;
        let (stride, head) = (key_heads * width, self.head / (heads / key_heads));
        Matrix::new(&values[keys.start * stride + head * width..], keys.len(), width, stride)
    }
}

/// See `dispatch::exponentials`.
#[inline(always)]
pub(in crate::nn) fn exponentials(
    a: impl Arithmetic,
    scores: &mut [f32],
    soft_cap: Option<f32>,
    most: f32,
) -> (f32, f32) {
    if let Some(cap) = soft_cap {
        for score in scores.iter_mut() {
            *score = cap * tanh(a, *score / cap);
        }
    }
    let most = lanes::greatest(scores, most);
    for score in scores.iter_mut() {
        *score = exp(a, *score - most);
    }
    (most, lanes::sum(scores, scores, |x, _, sum| sum + x))
}

/// See `dispatch::score_gradients`.
#[inline(always)]
pub(in crate::nn) fn score_gradients(
    a: impl Arithmetic,
    scores: &mut [f32],
    gradients: &mut [f32],
    soft_cap: Option<f32>,
    lse: f32,
    delta: f32,
) {
    match soft_cap {
        None => {
            for (score, gradient) in scores.iter_mut().zip(gradients) {
                let p = exp(a, *score - lse);
                *gradient = p * (*gradient - delta);
                *score = p;
            }
        }
        Some(cap) => {
            for (score, gradient) in scores.iter_mut().zip(gradients) {
                let t = tanh(a, *score / cap);
                let p = exp(a, a.mul_add(cap, t, -lse));
                *gradient = p * (*gradient - delta) * (1.0 - t * t);
                *score = p;
            }
        }
    }
}

/// Pairs of a query and a key, about.
fn pairs(spans: &[Span]) -> usize {
    spans.iter().map(|span| span.queries.len() * span.keys.len()).sum()
}

fn check(attention: &Attention, spans: &[Span], q: &[f32], k: &[f32], v: &[f32], lse: usize) {
    let Attention { heads, key_heads, width, window, .. } = *attention;
    assert!(key_heads > 0 && heads.is_multiple_of(key_heads), "heads of attention");
    assert!(window != Some(0), "a window holds the query's own key");
    assert_eq!(q.len(), lse * width, "queries of attention");
    assert_eq!(k.len(), v.len(), "keys and values of attention");
    let (rows, keys) = (lse / heads, k.len() / (key_heads * width).max(1));
    let fits = |span: &Span| {
        span.queries.len() <= span.keys.len() && span.queries.end <= rows && span.keys.end <= keys
    };
    assert!(spans.iter().all(fits), "spans of attention");
    let covered: usize = spans.iter().map(|span| span.queries.len()).sum();
    assert_eq!(covered, rows, "spans cover every query once");
}
