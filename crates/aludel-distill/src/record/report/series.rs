//! Gathers entries into curves, thinned to what a screen can show.
//!
//! In: entries in the order of their steps. Out: for each name of a value, one curve for each phase that has it. A curve
//! has at most [`MOST_POINTS`] points; a point that stands for several steps has their mean, least and greatest value.

use aludel_document::page::figure::Point;
use indexmap::IndexMap;

use crate::record::{Entry, Phase};

/// Points of a curve: more than a plot has pixels to tell apart.
pub(super) const MOST_POINTS: usize = 400;

/// The values of one name in one phase.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve {
    pub(super) phase: Phase,
    /// At least one.
    pub(super) points: Vec<Point>,
}

/// The curves of every name, in the order in which names first appear. Values that are not finite leave gaps; a name
/// without finite values has no curves.
pub(super) fn curves(entries: &[Entry]) -> IndexMap<String, Vec<Curve>> {
    let mut values: IndexMap<(&str, Phase), Vec<(u64, f64)>> = IndexMap::new();
    for entry in entries {
        for (name, &value) in entry.values.iter().filter(|(_, value)| value.is_finite()) {
            values.entry((name, entry.phase)).or_default().push((entry.step, value));
        }
    }
    let mut curves: IndexMap<String, Vec<Curve>> = IndexMap::new();
    for ((name, phase), values) in values {
        curves.entry(name.to_owned()).or_default().push(Curve { phase, points: thin(&values) });
    }
    for curves in curves.values_mut() {
        curves.sort_by_key(|curve| curve.phase != Phase::Train);
    }
    curves
}

fn thin(values: &[(u64, f64)]) -> Vec<Point> {
    let width = values.len().div_ceil(MOST_POINTS).max(1);
    values.chunks(width).map(point).collect()
}

/// The values are at least one.
fn point(values: &[(u64, f64)]) -> Point {
    let all = || values.iter().map(|&(_, value)| value);
    Point {
        step: values.last().map_or(0, |&(step, _)| step),
        mean: all().sum::<f64>() / values.len() as f64,
        least: all().fold(f64::INFINITY, f64::min),
        greatest: all().fold(f64::NEG_INFINITY, f64::max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(phase: Phase, step: u64, values: &[(&str, f64)]) -> Entry {
        let values = values.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        Entry { phase, step, time: 0.0, values }
    }

    #[test]
    fn names_keep_their_order_and_training_comes_before_validation() {
        let entries = [
            entry(Phase::Validation, 0, &[("loss", 3.0)]),
            entry(Phase::Train, 1, &[("loss", 2.0), ("rate", f64::NAN)]),
            entry(Phase::Train, 2, &[("loss", f64::INFINITY), ("norm", 1.0)]),
        ];
        let curves = curves(&entries);
        assert_eq!(curves.keys().collect::<Vec<_>>(), ["loss", "norm"]);
        let flat = Point::single;
        let expected = [
            Curve { phase: Phase::Train, points: vec![flat(1, 2.0)] },
            Curve { phase: Phase::Validation, points: vec![flat(0, 3.0)] },
        ];
        assert_eq!(curves["loss"], expected);
    }

    #[test]
    fn a_long_curve_is_thinned_without_losing_its_extremes() {
        let entries: Vec<Entry> =
            (1..=1001).map(|step| entry(Phase::Train, step, &[("loss", step as f64)])).collect();
        let points = &curves(&entries)["loss"][0].points;
        assert_eq!(points.len(), 334);
        assert_eq!(points[0], Point { step: 3, mean: 2.0, least: 1.0, greatest: 3.0 });
        assert_eq!(points[333], Point { step: 1001, mean: 1000.5, least: 1000.0, greatest: 1001.0 });
    }
}
