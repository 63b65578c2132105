//! Prints what kernels of losses are told of an objective.
//!
//! In: an objective and the shape of a call. Out: definitions that stand before a kernel's text, which name kinds of terms and how many temperatures
//! there are, and numbers that the kernel reads: an annealed target compiles nothing anew.

use std::fmt::Write;

use super::THREADS;
use super::sharing::Sharing;
use crate::element::Element;
use crate::loss::device::{Mode, RowLoss};
use crate::loss::objective::{Divergence, Target};
use crate::loss::sparse::{Known, SparseRows, Tail};
use crate::nn::cuda::code;

/// What an objective is to a kernel: what is printed before its text, and the numbers that it is told.
#[derive(Debug, PartialEq)]
pub(super) struct Printed {
    pub(super) defines: String,
    pub(super) settings: Vec<f32>,
    /// The temperatures that the kernel sums exponentials at, of which 1 is the first.
    temperatures: Vec<f32>,
}

impl Printed {
    fn new(loss: &RowLoss<'_>, is_aligned: bool) -> Self {
        let objective = loss.objective;
        let mut temperatures = vec![1.0];
        let (mut kinds, mut places, mut parameters) = (Vec::new(), Vec::new(), Vec::new());
        let (mut values, mut gradients) = (Vec::new(), Vec::new());
        for term in objective.terms() {
            let (kind, parameter) = kind_of(term.divergence);
            let place =
                temperatures.iter().position(|&known| known == term.temperature).unwrap_or_else(|| {
                    temperatures.push(term.temperature);
                    temperatures.len() - 1
                });
            kinds.push(kind);
            places.push(place);
            parameters.push(parameter);
            values.push(term.squared_temperature() as f32);
            gradients.push((f64::from(term.weight) * term.squared_temperature() * loss.factor) as f32);
        }
        let most = temperatures.len().max(kinds.len());
        let inverses = temperatures.iter().map(|temperature| 1.0 / temperature).collect();
        let mut settings = Vec::new();
        for mut list in [inverses, values, gradients, parameters] {
            list.resize(most, 0.0);
            settings.extend(list);
        }
        let (t, a, difficulty) = match objective.target() {
            Target::Teacher => (1.0, 1.0, 0.0),
            Target::InterpolatedLogits { t } => (t, 1.0, 0.0),
            Target::Mixture { a, difficulty } => (1.0, a, difficulty),
        };
        let labels = objective.labels().map_or(0.0, |labels| (f64::from(labels.weight) * loss.factor) as f32);
        settings.extend([t, a, difficulty, labels, loss.soft_cap.unwrap_or(0.0)]);
        let mut printed = Self { defines: String::new(), settings, temperatures };
        printed.define([
            ("TERMS", kinds.len()),
            ("STATS", printed.temperatures.len()),
            ("MOST", most),
            ("GRADIENT", usize::from(loss.mode == Mode::Gradient)),
            ("LABELS", usize::from(objective.labels().is_some())),
            ("ALIGNED", usize::from(is_aligned)),
        ]);
        printed.defines += &chosen("kind_of", &kinds);
        printed.defines += &chosen("stat_of", &places);
        printed
    }

    /// Against whole rows of a teacher with logits of a type, or without one.
    pub(super) fn of_rows(
        loss: &RowLoss<'_>,
        teacher: Option<Element>,
        is_aligned: bool,
        sharing: Sharing,
    ) -> Self {
        let mut printed = Self::new(loss, is_aligned);
        let target = match loss.objective.target() {
            Target::Teacher => 0,
            Target::InterpolatedLogits { .. } => 1,
            Target::Mixture { .. } => 2,
        };
        printed.define([
            ("TARGET", target),
            ("TEACHER", usize::from(teacher.is_some())),
            ("TEACHER_TYPE", code(teacher.unwrap_or(Element::BF16)) as usize),
            ("CLUSTER", sharing.blocks),
            ("HELD", sharing.pieces),
            ("THREADS", sharing.threads),
        ]);
        printed
    }

    /// Against known columns.
    pub(super) fn of_known(loss: &RowLoss<'_>, teacher: &SparseRows) -> Self {
        let mut printed = Self::new(loss, loss.student.stored.is_multiple_of(8));
        let known = match teacher.known {
            Known::Likeliest(Tail::Bucket) => 0,
            Known::Likeliest(Tail::Renormalize) => 1,
            Known::Likeliest(Tail::Ignore) => 2,
            Known::Drawn => 3,
        };
        let tails = teacher.temperatures.len();
        let place = |temperature: &f32| teacher.temperatures.iter().position(|known| known == temperature);
        let places: Vec<usize> =
            printed.temperatures.iter().map(|temperature| place(temperature).unwrap_or(tails)).collect();
        printed.define([
            ("KNOWN", known),
            ("TAILS", tails),
            ("ONE", usize::from(place(&1.0).is_some())),
            ("THREADS", THREADS),
        ]);
        printed.defines += &chosen("tail_of", &places);
        printed
    }

    fn define<const N: usize>(&mut self, numbers: [(&str, usize); N]) {
        for (name, number) in numbers {
            let _ = writeln!(self.defines, "#define {name} {number}");
        }
    }
}

/// A function of a term's number: `__device__ constexpr int name(int term) { return term == 0 ? 2 : 0; }`.
fn chosen(name: &str, numbers: &[usize]) -> String {
    let mut text = format!("__device__ constexpr int {name}(int term) {{ return ");
    for (term, number) in numbers.iter().enumerate() {
        let _ = write!(text, "term == {term} ? {number} : ");
    }
    text + "0; }\n"
}

/// How the kernel names a divergence, and its parameter.
fn kind_of(divergence: Divergence) -> (usize, f32) {
    match divergence {
        Divergence::JensenShannon { beta: 1.0 } | Divergence::SkewedReverseKl { lambda: 0.0 } => (1, 0.0),
        divergence if divergence.is_forward() && divergence != Divergence::SoftCrossEntropy => (0, 0.0),
        Divergence::ForwardKl => (0, 0.0),
        Divergence::ReverseKl => (1, 0.0),
        Divergence::JensenShannon { beta } => (2, beta),
        Divergence::SkewedForwardKl { lambda } => (3, lambda),
        Divergence::SkewedReverseKl { lambda } => (4, lambda),
        Divergence::TotalVariation => (5, 0.0),
        Divergence::SoftCrossEntropy => (6, 0.0),
        Divergence::LogitsMse => (7, 0.0),
        Divergence::SortedDistance => unreachable!("sorted distances have a call of their own"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sharing::{NOT_SHARED, Sharing};
    use super::super::{ROWS, SPARSE, text};
    use super::*;
    use crate::loss::{Columns, LabelTerm, Objective, Term};
    use crate::nn::cuda::Text;

    fn objective(target: Target, labels: Option<LabelTerm>) -> Objective {
        let divergences =
            [Divergence::ForwardKl, Divergence::JensenShannon { beta: 0.3 }, Divergence::TotalVariation];
        let terms = divergences.into_iter().zip([1.0, 2.0, 2.0]).map(|(divergence, temperature)| Term {
            divergence,
            weight: 0.5,
            temperature,
            scale_by_t2: true,
        });
        Objective::new(terms.collect(), labels, target).unwrap()
    }

    fn loss(objective: &Objective, mode: Mode, teacher: Option<Element>) -> RowLoss<'_> {
        let columns = Columns { stored: 96, valid: 90 };
        RowLoss {
            objective,
            rows: 3,
            student: columns,
            teacher: teacher.map(|_| columns),
            soft_cap: None,
            factor: 0.25,
            mode,
        }
    }

    fn printed(objective: &Objective, mode: Mode, teacher: Option<Element>) -> Printed {
        Printed::of_rows(&loss(objective, mode, teacher), teacher, true, NOT_SHARED)
    }

    #[test]
    fn kernels_compile_for_every_target() {
        text().assert_compiles();
        let mixture = Target::Mixture { a: 0.5, difficulty: 0.1 };
        for target in [Target::Teacher, Target::InterpolatedLogits { t: 0.5 }, mixture] {
            for mode in [Mode::Gradient, Mode::Values] {
                let objective = objective(target, Some(LabelTerm { weight: 1.0 }));
                let printed = printed(&objective, mode, Some(Element::F32));
                Text { name: "", defines: &printed.defines, parts: ROWS }.assert_compiles();
            }
        }
        for blocks in [1, 2, 4, 8] {
            let objective = objective(Target::InterpolatedLogits { t: 0.5 }, None);
            let loss = loss(&objective, Mode::Gradient, Some(Element::BF16));
            let sharing = Sharing { blocks, threads: 256, pieces: 4, shared: 32 << 10 };
            let printed = Printed::of_rows(&loss, Some(Element::BF16), true, sharing);
            Text { name: "", defines: &printed.defines, parts: ROWS }.assert_compiles();
        }
        let labels = Objective::new(vec![], Some(LabelTerm { weight: 1.0 }), Target::Teacher).unwrap();
        let printed = printed(&labels, Mode::Gradient, None);
        Text { name: "", defines: &printed.defines, parts: ROWS }.assert_compiles();
    }

    fn known(known: Known) -> SparseRows {
        SparseRows {
            known,
            columns: 90,
            temperatures: vec![1.0, 2.0],
            starts: vec![0],
            ids: vec![],
            log_p: vec![],
            tails: vec![],
            log_sums: vec![],
            entropies: vec![],
        }
    }

    #[test]
    fn kernels_of_known_columns_compile_for_every_tail() {
        let tails = [Tail::Bucket, Tail::Renormalize, Tail::Ignore].map(Known::Likeliest);
        for known in tails.into_iter().chain([Known::Drawn]).map(self::known) {
            for mode in [Mode::Gradient, Mode::Values] {
                let objective = objective(Target::Teacher, Some(LabelTerm { weight: 1.0 }));
                let printed = Printed::of_known(&loss(&objective, mode, None), &known);
                Text { name: "", defines: &printed.defines, parts: SPARSE }.assert_compiles();
            }
        }
    }

    #[test]
    fn places_of_tails_are_those_of_the_teacher() {
        let mut teacher = known(Known::Likeliest(Tail::Renormalize));
        teacher.temperatures = vec![4.0, 2.0];
        let objective = objective(Target::Teacher, None);
        let Printed { defines, .. } = Printed::of_known(&loss(&objective, Mode::Values, None), &teacher);
        assert!(
            defines.contains("#define KNOWN 1\n#define TAILS 2\n#define ONE 0\n#define THREADS 512\n"),
            "{defines}"
        );
        // The kernel's temperatures are 1, which is not stored, and 2.
        let want = "int tail_of(int term) { return term == 0 ? 2 : term == 1 ? 1 : 0; }";
        assert!(defines.contains(want), "{defines}");
    }

    /// An annealed target changes numbers, and nothing that is compiled.
    #[test]
    fn numbers_are_told_and_kinds_are_printed() {
        let of = |t| {
            printed(&objective(Target::InterpolatedLogits { t }, None), Mode::Gradient, Some(Element::BF16))
        };
        let (early, late) = (of(0.25), of(0.75));
        assert_eq!(early.defines, late.defines);
        assert!(
            early.defines.contains(
                "int kind_of(int term) { return term == 0 ? 0 : term == 1 ? 2 : term == 2 ? 5 : 0; }"
            )
        );
        assert!(
            early.defines.contains(
                "int stat_of(int term) { return term == 0 ? 0 : term == 1 ? 1 : term == 2 ? 1 : 0; }"
            )
        );
        // Inverse temperatures, factors of values and of gradients, parameters; then the target's numbers.
        let want = [1.0, 0.5, 0.0, 1.0, 4.0, 4.0, 0.125, 0.5, 0.5, 0.0, 0.3, 0.0, 0.25, 1.0, 0.0, 0.0, 0.0];
        assert_eq!(early.settings, want);
    }
}
