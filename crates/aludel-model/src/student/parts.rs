//! Decides which heads and units of a layer are kept, and where each parameter of a student comes from.
//!
//! In: importances. Out: for every parameter, the teacher's and the rows and columns of it. It reads no values.

use super::description::HeadCut;
use crate::names::{FeedForwardPlaces, LayerPlaces, Linear};

/// What of one layer is kept; all where nothing is said.
#[derive(Default)]
pub(super) struct Choice {
    /// Norms of queries and keys have a weight for each element of a row.
    pub(super) row_norms: bool,
    pub(super) heads: Option<Vec<usize>>,
    pub(super) key_heads: Option<Vec<usize>>,
    pub(super) units: Option<Vec<usize>>,
}

impl Choice {
    pub(super) fn keep_heads(&mut self, cut: HeadCut, group: usize, importance: &[f64]) {
        let members = |key_head: usize| key_head * group..(key_head + 1) * group;
        match cut {
            HeadCut::Groups(count) => {
                let of_group: Vec<f64> = importance
                    .chunks_exact(group)
                    .map(|heads| heads.iter().map(|head| head * head).sum::<f64>().sqrt())
                    .collect();
                let kept = most_important(&of_group, count);
                self.heads = Some(kept.iter().flat_map(|&key_head| members(key_head)).collect());
                self.key_heads = Some(kept);
            }
            HeadCut::Within(count) => {
                let of_group = importance.chunks_exact(group).enumerate().flat_map(|(key_head, heads)| {
                    most_important(heads, count).into_iter().map(move |head| key_head * group + head)
                });
                self.heads = Some(of_group.collect());
            }
        }
    }

    /// Says for every parameter of a student's layer where it comes from.
    pub(super) fn describe(
        &self,
        from: &LayerPlaces,
        to: &LayerPlaces,
        head_width: usize,
        sources: &mut [Part],
    ) {
        let heads = Side::of(&self.heads, head_width);
        let key_heads = Side::of(&self.key_heads, head_width);
        let units = Side::of(&self.units, 1);
        let mut set = |from: usize, to: usize, rows: &Side, columns: &Side| {
            sources[to] = Part { from, rows: rows.clone(), columns: columns.clone() };
        };
        let mut linear = |from: &Linear, to: &Linear, rows: &Side, columns: &Side| {
            set(from.weight, to.weight, rows, columns);
            if let Some((from, to)) = from.bias.zip(to.bias) {
                set(from, to, rows, &Side::All);
            }
        };
        linear(&from.query, &to.query, &heads, &Side::All);
        linear(&from.key, &to.key, &key_heads, &Side::All);
        linear(&from.value, &to.value, &key_heads, &Side::All);
        linear(&from.output, &to.output, &Side::All, &heads);
        match (&from.feed_forward, &to.feed_forward) {
            (
                FeedForwardPlaces::Dense { gate, up, down },
                FeedForwardPlaces::Dense { gate: to_gate, up: to_up, down: to_down },
            ) => {
                linear(gate, to_gate, &units, &Side::All);
                linear(up, to_up, &units, &Side::All);
                linear(down, to_down, &Side::All, &units);
            }
            (
                FeedForwardPlaces::Experts { router, experts },
                FeedForwardPlaces::Experts { router: to_router, experts: to_experts },
            ) => {
                linear(router, to_router, &Side::All, &Side::All);
                let firsts = [
                    (experts.gate, to_experts.gate),
                    (experts.up, to_experts.up),
                    (experts.down, to_experts.down),
                ];
                for (from, to) in firsts {
                    for expert in 0..experts.count {
                        set(from + expert, to + expert, &Side::All, &Side::All);
                    }
                }
            }
            _ => unreachable!("a student's layer is of its teacher's kind: the configs were compared"),
        }
        // One weight for all elements of a row is cut as the row is, one for each head is not.
        let of_heads = if self.row_norms { &heads } else { &Side::All };
        let of_keys = if self.row_norms { &key_heads } else { &Side::All };
        let norms = [
            (from.query_norm, to.query_norm, of_heads),
            (from.key_norm, to.key_norm, of_keys),
            (from.attention_norms.before, to.attention_norms.before, &Side::All),
            (from.attention_norms.after, to.attention_norms.after, &Side::All),
            (from.feed_forward_norms.before, to.feed_forward_norms.before, &Side::All),
            (from.feed_forward_norms.after, to.feed_forward_norms.after, &Side::All),
        ];
        for (from, to, rows) in norms {
            if let Some((from, to)) = from.zip(to) {
                set(from, to, rows, &Side::All);
            }
        }
    }
}

/// Where a student's parameter comes from.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) from: usize,
    pub(super) rows: Side,
    pub(super) columns: Side,
}

/// What is kept along one side of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Side {
    All,
    /// These runs of so many rows or columns.
    Runs {
        width: usize,
        kept: Vec<usize>,
    },
}

impl Side {
    pub(super) fn of(kept: &Option<Vec<usize>>, width: usize) -> Self {
        kept.clone().map_or(Self::All, |kept| Self::Runs { width, kept })
    }

    pub(super) fn indices(&self, len: usize) -> Vec<usize> {
        match self {
            Self::All => (0..len).collect(),
            Self::Runs { width, kept } => {
                kept.iter().flat_map(|run| run * width..(run + 1) * width).collect()
            }
        }
    }
}

/// The positions of the `count` largest, ascending; of equal ones the first.
pub(super) fn most_important(importance: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..importance.len()).collect();
    order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]));
    order.truncate(count);
    order.sort_unstable();
    order
}
