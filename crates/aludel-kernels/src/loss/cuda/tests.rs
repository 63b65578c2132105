//! Holds what is decided on the host, and the kernels of rows, run on the CPU, to the CPU's own code.

use super::*;
use crate::loss::{Column, Columns, Divergence, IGNORED, LabelTerm, Mode, Objective, Target, Term};
use crate::nn::Device;
use crate::nn::cpu::testing::{cpu, floats, read, values};
use crate::nn::cuda::on_cpu::{self, Given, distance, rounded};

#[test]
fn rows_are_shared_by_as_few_blocks_as_hold_them() {
    let blocks = |columns, models| Sharing::of(columns, models).blocks;
    assert_eq!([blocks(1000, 2), blocks(16_384, 2), blocks(49_152, 2), blocks(128_256, 2)], [1, 1, 4, 8]);
    assert_eq!(Sharing::of(128_256, 1), Sharing { blocks: 4, pieces: 8, shared: 64 << 10 });
    assert_eq!(Sharing::of(262_144, 2), NOT_SHARED);
}

const LABELS: [u32; 3] = [1, IGNORED, 8900];

/// Values of the rows, and their gradient where it is asked for, by the CPU's code; `None` by the kernel where it cannot be run.
type Outcome = (Vec<f32>, Vec<f32>);

fn by_cpu(loss: RowLoss<'_>, student: &[f32], teacher: Option<&[f32]>) -> Outcome {
    let cpu = cpu(1);
    let (mut logits, teacher) = (floats(&cpu, student), teacher.map(|teacher| floats(&cpu, teacher)));
    let columns = loss.objective.terms().len() + Column::COUNT;
    let mut values = cpu.zeros(loss.rows * columns, Element::F32).unwrap();
    let labels = cpu.indices(&LABELS).unwrap();
    cpu.loss_rows(loss, &labels, &mut logits, teacher.as_ref(), &mut values);
    (read(&cpu, &values), read(&cpu, &logits))
}

fn by_kernel(
    loss: RowLoss<'_>,
    sharing: Sharing,
    student: &[f32],
    teacher: Option<&[f32]>,
) -> Option<Outcome> {
    let element = teacher.map(|_| Element::BF16);
    let printed = Printed::of_rows(&loss, element, true, sharing);
    let common = loss.teacher.map_or(loss.student.valid, |shape| shape.valid.min(loss.student.valid));
    let columns = loss.objective.terms().len() + Column::COUNT;
    let mut arguments = [
        Given::floats(&printed.settings),
        Given::numbers(&LABELS),
        Given::halves(student),
        Given::Long(loss.student.stored as i64),
        Given::Int(loss.student.valid as i32),
        teacher.map_or(Given::none(), Given::halves),
        Given::Long(loss.teacher.map_or(0, |shape| shape.stored as i64)),
        Given::Int(common as i32),
        // Whatever is not written shows.
        Given::floats(&vec![f32::NAN; loss.rows * columns]),
    ];
    let text = Text { name: "", defines: &printed.defines, parts: ROWS };
    let grid = Grid { shared: sharing.shared as u32, ..of_rows(loss.rows * sharing.blocks) };
    let done = on_cpu::run(&text, "loss_rows", grid, sharing.blocks, &mut arguments);
    done.then(|| (arguments[8].to_floats(), arguments[2].to_halves()))
}

/// Several pieces of eight columns for a thread, the last in part; the student has columns that the teacher has not, and both have padding.
const STUDENT: Columns = Columns { stored: 9000, valid: 8990 };
const TEACHER: Columns = Columns { stored: 8960, valid: 8950 };

fn compare(name: &str, objective: &Objective, mode: Mode, sharing: Sharing) {
    let rows = LABELS.len();
    let is_taught = objective.needs_teacher();
    let logits = |len: usize, seed: u64| {
        let wide: Vec<f32> = values(len, seed).iter().map(|value| 4.0 * value).collect();
        rounded(&wide)
    };
    let (student, teacher) = (logits(rows * STUDENT.stored, 1), logits(rows * TEACHER.stored, 2));
    let teacher = is_taught.then_some(&teacher[..]);
    let loss = RowLoss {
        objective,
        rows,
        student: STUDENT,
        teacher: is_taught.then_some(TEACHER),
        soft_cap: Some(20.0),
        factor: 0.5,
        mode,
    };
    let Some((values, gradient)) = by_kernel(loss, sharing, &student, teacher) else { return };
    let (want, want_gradient) = by_cpu(loss, &student, teacher);
    let (of_values, of_gradient) = (distance(&values, &want), distance(&gradient, &want_gradient));
    assert!(of_values < 1e-4, "{name}, {sharing:?}: values {values:?} are not {want:?}");
    assert!(of_gradient < 4e-3, "{name}, {sharing:?}: the gradient is {of_gradient:.1e} away");
}

/// All ways to share a row: not at all, and by blocks that hold it.
fn sharings(models: usize) -> [Sharing; 4] {
    let held = |blocks: usize| {
        let pieces = TEACHER.valid.max(STUDENT.valid).div_ceil(8 * THREADS * blocks);
        Sharing { blocks, pieces, shared: pieces * models * THREADS * 16 }
    };
    [NOT_SHARED, held(1), held(2), held(8)]
}

fn term(divergence: Divergence, temperature: f32) -> Term {
    Term { divergence, weight: 0.7, temperature, scale_by_t2: true }
}

#[test]
fn rows_come_out_as_the_cpus_however_they_are_shared() {
    let objective = Objective::new(
        vec![term(Divergence::JensenShannon { beta: 0.3 }, 1.0), term(Divergence::ForwardKl, 2.0)],
        Some(LabelTerm { weight: 0.3 }),
        Target::InterpolatedLogits { t: 0.4 },
    )
    .unwrap();
    for sharing in sharings(2) {
        compare("two terms and labels", &objective, Mode::Gradient, sharing);
    }
    compare("two terms and labels", &objective, Mode::Values, sharings(2)[2]);
}

#[test]
fn labels_alone_come_out_as_the_cpus() {
    let objective = Objective::new(vec![], Some(LabelTerm { weight: 1.0 }), Target::Teacher).unwrap();
    for sharing in [sharings(1)[0], sharings(1)[2]] {
        compare("labels", &objective, Mode::Gradient, sharing);
    }
}

#[test]
fn every_divergence_comes_out_as_the_cpus() {
    let target = Target::Mixture { a: 0.7, difficulty: 0.5 };
    let divergences = [
        (Divergence::ReverseKl, Target::Teacher),
        (Divergence::SkewedForwardKl { lambda: 0.1 }, target),
        (Divergence::SkewedReverseKl { lambda: 0.1 }, Target::Teacher),
        (Divergence::TotalVariation, target),
        (Divergence::LogitsMse, Target::Teacher),
        (Divergence::SoftCrossEntropy, Target::Teacher),
    ];
    for (divergence, target) in divergences {
        let objective = Objective::new(vec![term(divergence, 1.5)], None, target).unwrap();
        compare(&format!("{divergence:?}"), &objective, Mode::Gradient, sharings(2)[3]);
    }
}
