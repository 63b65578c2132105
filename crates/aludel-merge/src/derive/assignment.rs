//! Assigns the experts of one model to those of another so that what they have in common adds up to the most.
//!
//! In: for each pair of experts a number, the larger the more they are alike. Out: an order. The assignment is Kuhn's and
//! Munkres's, by the crate `pathfinding`, in whole numbers, so that it ends whatever the numbers are and nothing depends on rounding.
//! Where routers choose among groups of experts, an order keeps groups together: groups are assigned to groups by the best that
//! each pair of them can do.

use pathfinding::kuhn_munkres::{Weights, kuhn_munkres};

/// Experts of a layer at the most: what they have in common is a square of numbers in memory.
pub(crate) const MOST_EXPERTS: usize = 4096;

/// Steps that the numbers are rounded to. Sums over the experts of a layer fit an `i64`.
const STEPS: f64 = (1_u64 << 48) as f64;

/// For each place the expert that takes it, given how much the experts of places (rows) have in common with those that are to be
/// put in order (columns); `count` of them, in so many groups. Where nothing is gained, all stay where they are.
///
/// # Panics
/// Where `common` is no square of `count`, `groups` does not divide `count`, or a number is none.
pub(super) fn assign(common: &[f64], count: usize, groups: usize) -> Vec<usize> {
    assert!(
        common.len() == count * count && count.is_multiple_of(groups),
        "a square, and groups of one size"
    );
    let steps = in_steps(common);
    let size = count / groups;
    let within: Vec<(i64, Vec<usize>)> = (0..groups * groups)
        .map(|pair| {
            let (top, left) = (pair / groups * size, pair % groups * size);
            kuhn_munkres(&Square { values: &steps, width: count, origin: top * count + left, side: size })
        })
        .collect();
    let totals: Vec<i64> = within.iter().map(|(total, _)| *total).collect();
    let (best, of_groups) = kuhn_munkres(&Square { values: &totals, width: groups, origin: 0, side: groups });
    let as_they_are: i64 = (0..count).map(|expert| steps[expert * (count + 1)]).sum();
    if best == as_they_are {
        return (0..count).collect();
    }
    let of_group = |(group, &from): (usize, &usize)| {
        within[group * groups + from].1.iter().map(|&expert| from * size + expert).collect::<Vec<_>>()
    };
    of_groups.iter().enumerate().flat_map(of_group).collect()
}

/// The numbers in whole steps from the least to the largest.
fn in_steps(common: &[f64]) -> Vec<i64> {
    let least = common.iter().copied().fold(f64::INFINITY, f64::min);
    let range = common.iter().copied().fold(f64::NEG_INFINITY, f64::max) - least;
    let step = |&value: &f64| if range > 0.0 { ((value - least) / range * STEPS).round() as i64 } else { 0 };
    common.iter().map(step).collect()
}

/// A square out of another one.
struct Square<'a> {
    values: &'a [i64],
    /// Of the other one.
    width: usize,
    /// Where this one begins in it.
    origin: usize,
    side: usize,
}

impl Weights<i64> for Square<'_> {
    fn rows(&self) -> usize {
        self.side
    }

    fn columns(&self) -> usize {
        self.side
    }

    fn at(&self, row: usize, column: usize) -> i64 {
        self.values[self.origin + row * self.width + column]
    }

    fn neg(&self) -> Self {
        unreachable!("the largest sum is sought, for which nothing is negated")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The best order of all that keep groups together, by trying them.
    fn by_trying(common: &[f64], count: usize, groups: usize) -> f64 {
        let (mut best, size) = (f64::NEG_INFINITY, count / groups);
        let mut order: Vec<usize> = (0..count).collect();
        permutations(&mut order, count, &mut |order| {
            let is_together =
                order.chunks(size).all(|group| group.iter().all(|e| e / size == group[0] / size));
            if is_together {
                best = best.max(total(common, order));
            }
        });
        best
    }

    fn permutations(order: &mut [usize], of: usize, show: &mut dyn FnMut(&[usize])) {
        if of <= 1 {
            return show(order);
        }
        for at in 0..of {
            permutations(order, of - 1, show);
            order.swap(if of.is_multiple_of(2) { at } else { 0 }, of - 1);
        }
    }

    fn total(common: &[f64], order: &[usize]) -> f64 {
        order.iter().enumerate().map(|(place, expert)| common[place * order.len() + expert]).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn no_order_is_better(common in prop::collection::vec(-1e3..1e3, 36), groups in 1_usize..=3) {
            let order = assign(&common, 6, groups);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..6).collect::<Vec<_>>());
            prop_assert!((total(&common, &order) - by_trying(&common, 6, groups)).abs() < 1e-6);
        }
    }

    #[test]
    fn without_gain_all_stay() {
        assert_eq!(assign(&[1.0; 9], 3, 1), [0, 1, 2]);
        assert_eq!(assign(&[0.0, 5.0, 5.0, 0.0], 2, 1), [1, 0]);
        assert_eq!(assign(&[2.0, 1.0, 0.0, 1.0, 2.0, 2.0, 0.0, 2.0, 2.0], 3, 1), [0, 1, 2]);
    }

    #[test]
    fn groups_stay_together() {
        // Without groups the experts 0 and 2 would change places.
        let common = [0.0, 0.0, 9.0, 0.0, 0.0, 5.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 5.0];
        assert_eq!(assign(&common, 4, 1), [2, 1, 0, 3]);
        assert_eq!(assign(&common, 4, 2), [2, 3, 0, 1]);
    }
}
