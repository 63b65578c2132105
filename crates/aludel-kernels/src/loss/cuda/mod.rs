//! Computes the losses on a CUDA device: a block of threads to a row of logits.
//!
//! In and out: as [`LossDevice`] says, on buffers in the device's memory. The kernel of an objective is printed for its kinds of terms and
//! the number of its temperatures; numbers are told it, so that an annealed target compiles nothing anew. A row is read two or three times, as on
//! the CPU, of which most is found in the device's cache.
//!
//! Teachers of which some columns are known, and sorted distances, go over the host.

use std::fmt::Write;

use super::device::{LossDevice, Mode, RowDistance, RowLoss};
use super::objective::{Divergence, Target};
use crate::cuda::driver::{Argument, Grid};
use crate::element::Element;
use crate::nn::Rows;
use crate::nn::cuda::{Buffer, Cuda, Indices, Text, code};

/// 2048 rows of both models' logits at a vocabulary of 128 k: enough for products at their full rate.
const LOGIT_MEMORY: usize = 1100 << 20;

const ROWS: &str = include_str!("rows.cu");

const fn text() -> Text<'static> {
    Text { name: "loss", defines: "", parts: &[include_str!("kernels.cu")] }
}

impl LossDevice for Cuda {
    fn logit_memory(&self) -> usize {
        LOGIT_MEMORY
    }

    fn soft_cap(&self, cap: f32, logits: &mut Buffer) {
        let arguments = [logits.halves(), Argument::Float(cap), Argument::Long(logits.len() as i64)];
        self.each(text(), "soft_cap", logits.len(), &arguments);
    }

    fn loss_rows(
        &self,
        loss: RowLoss<'_>,
        labels: &Indices,
        student: &mut Buffer,
        teacher: Option<&Buffer>,
        values: &mut Buffer,
    ) {
        let (stored, valid) = (loss.student.stored, loss.student.valid);
        loss.check(labels.len(), student.len(), values.len(), teacher.map(Buffer::len));
        let teacher = loss.teacher.zip(teacher);
        let is_aligned = [stored, teacher.map_or(0, |(shape, _)| shape.stored)]
            .iter()
            .all(|stored| stored.is_multiple_of(8));
        let printed = Printed::new(&loss, teacher.map(|(_, logits)| logits.element()), is_aligned);
        let Some(settings) = self.sent(bytemuck::cast_slice(&printed.settings)) else { return };
        let common = teacher.map_or(valid, |(shape, _)| shape.valid.min(valid));
        let arguments = [
            Argument::Address(settings.address()),
            labels.argument(),
            student.halves(),
            Argument::Long(stored as i64),
            Argument::Int(valid as i32),
            teacher.map_or(Argument::Address(0), |(_, logits)| logits.argument()),
            Argument::Long(teacher.map_or(0, |(shape, _)| shape.stored as i64)),
            Argument::Int(common as i32),
            values.floats(),
        ];
        let name = format!("loss_rows {}", printed.defines);
        let text = Text { name: &name, defines: &printed.defines, parts: &[ROWS] };
        let grid = Grid { blocks: [loss.rows as u32, 1, 1], threads: 512, shared: 0 };
        self.run(text, "loss_rows", grid, &arguments);
    }

    fn distance_rows(
        &self,
        distance: RowDistance,
        shape: Rows,
        factor: f64,
        labels: &Indices,
        target: &Buffer,
        x: &mut Buffer,
        values: &mut Buffer,
    ) {
        let Rows { rows, width } = shape;
        assert_eq!((x.len(), target.len()), (rows * width, rows * width), "rows to compare");
        assert_eq!((values.len(), labels.len()), (rows, rows), "values and labels of the rows");
        let arguments = [
            Argument::Int(i32::from(distance == RowDistance::Cosine)),
            Argument::Float(factor as f32),
            labels.argument(),
            target.argument(),
            target.type_argument(),
            x.halves(),
            Argument::Long(width as i64),
            values.floats(),
        ];
        self.each_row(text(), "distance_rows", rows, &arguments);
    }

    fn row_energies(&self, shape: Rows, x: &Buffer, sums: &mut Buffer) {
        let Rows { rows, width } = shape;
        assert_eq!((x.len(), sums.len()), (rows * width, rows), "rows and their energies");
        let arguments = [x.argument(), x.type_argument(), Argument::Long(width as i64), sums.floats()];
        self.each_row(crate::nn::elementwise::cuda::text(), "row_energies", rows, &arguments);
    }

    fn add_rows(&self, shape: Rows, factors: &Buffer, x: &Buffer, y: &mut Buffer) {
        let Rows { rows, width } = shape;
        assert_eq!((x.len(), y.len(), factors.len()), (rows * width, rows * width, rows), "rows to add");
        let numbers = [Argument::Long(rows as i64), Argument::Long(width as i64)];
        let arguments = [factors.floats(), x.halves(), y.halves(), numbers[0], numbers[1]];
        self.each(crate::nn::elementwise::cuda::text(), "add_rows", rows * width, &arguments);
    }
}

/// What an objective is to the kernel: what is printed before its text, and the numbers that it is told.
#[derive(Debug, PartialEq)]
struct Printed {
    defines: String,
    settings: Vec<f32>,
}

impl Printed {
    fn new(loss: &RowLoss<'_>, teacher: Option<Element>, is_aligned: bool) -> Self {
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
        let (target, t, a, difficulty) = match objective.target() {
            Target::Teacher => (0, 1.0, 1.0, 0.0),
            Target::InterpolatedLogits { t } => (1, t, 1.0, 0.0),
            Target::Mixture { a, difficulty } => (2, 1.0, a, difficulty),
        };
        let labels = objective.labels().map_or(0.0, |labels| (f64::from(labels.weight) * loss.factor) as f32);
        settings.extend([t, a, difficulty, labels, loss.soft_cap.unwrap_or(0.0)]);
        let numbers = [
            ("TERMS", kinds.len()),
            ("STATS", temperatures.len()),
            ("MOST", most),
            ("TARGET", target),
            ("GRADIENT", usize::from(loss.mode == Mode::Gradient)),
            ("LABELS", usize::from(objective.labels().is_some())),
            ("TEACHER", usize::from(teacher.is_some())),
            ("TEACHER_TYPE", code(teacher.unwrap_or(Element::BF16)) as usize),
            ("ALIGNED", usize::from(is_aligned)),
        ];
        let mut defines = String::new();
        for (name, number) in numbers {
            let _ = writeln!(defines, "#define {name} {number}");
        }
        defines += &chosen("kind_of", &kinds);
        defines += &chosen("stat_of", &places);
        Self { defines, settings }
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
    use super::*;
    use crate::loss::{Columns, LabelTerm, Objective, Term};

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

    fn printed(objective: &Objective, mode: Mode, teacher: Option<Element>) -> Printed {
        let columns = Columns { stored: 96, valid: 90 };
        let loss = RowLoss {
            objective,
            rows: 3,
            student: columns,
            teacher: teacher.map(|_| columns),
            soft_cap: None,
            factor: 0.25,
            mode,
        };
        Printed::new(&loss, teacher, true)
    }

    #[test]
    fn kernels_compile_for_every_target() {
        text().assert_compiles();
        let mixture = Target::Mixture { a: 0.5, difficulty: 0.1 };
        for target in [Target::Teacher, Target::InterpolatedLogits { t: 0.5 }, mixture] {
            for mode in [Mode::Gradient, Mode::Values] {
                let objective = objective(target, Some(LabelTerm { weight: 1.0 }));
                let printed = printed(&objective, mode, Some(Element::F32));
                Text { name: "", defines: &printed.defines, parts: &[ROWS] }.assert_compiles();
            }
        }
        let labels = Objective::new(vec![], Some(LabelTerm { weight: 1.0 }), Target::Teacher).unwrap();
        let printed = printed(&labels, Mode::Gradient, None);
        Text { name: "", defines: &printed.defines, parts: &[ROWS] }.assert_compiles();
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
