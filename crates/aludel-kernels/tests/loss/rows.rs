//! Holds rows of logits to the specification: one table of divergences and targets over odd shapes, random objectives, and
//! the inputs that break softmaxes.

use aludel_kernels::element::Element;
use aludel_kernels::loss::{
    Columns, Divergence, HeadReport, IGNORED, LabelTerm, Mode, Objective, Target, Term, logits_loss,
    reference,
};
use proptest::prelude::*;

use crate::support::{
    DIVERGENCES, Numbers, TARGETS, buffer, cpu, distance, every, mixed, norm, read, stored, term, wide,
};

/// Logits and labels of some rows.
#[derive(Clone, Debug)]
struct Case {
    student: Vec<f32>,
    teacher: Vec<f32>,
    labels: Vec<u32>,
    of_student: Columns,
    of_teacher: Columns,
}

impl Case {
    /// The teacher's logits lie around the student's, shifted: a softmax does not see the shift.
    fn new(seed: u64, rows: usize, of_student: Columns, of_teacher: Columns, spread: f32, gap: f32) -> Self {
        let mut numbers = Numbers(seed);
        let student = numbers.normals(rows * of_student.stored, spread);
        let teacher = (0..rows * of_teacher.stored).map(|at| {
            let (row, column) = (at / of_teacher.stored, at % of_teacher.stored);
            let near =
                if column < of_student.stored { student[row * of_student.stored + column] } else { 0.0 };
            near + 3.0 + gap * numbers.normal()
        });
        let teacher = teacher.collect();
        let labels = (0..rows).map(|_| numbers.below(of_student.valid) as u32).collect();
        Self { student, teacher, labels, of_student, of_teacher }
    }

    fn square(seed: u64, rows: usize, columns: usize) -> Self {
        let shape = Columns { stored: columns, valid: columns };
        Self::new(seed, rows, shape, shape, 3.0, 2.0)
    }

    fn run(&self, threads: usize, objective: &Objective, factor: f64, mode: Mode) -> (HeadReport, Vec<f32>) {
        let device = cpu(threads);
        let mut student = buffer(&device, &self.student);
        let teacher = buffer(&device, &self.teacher);
        let student_rows = (self.of_student, &mut student);
        let teacher_rows = Some((self.of_teacher, &teacher));
        let report =
            logits_loss(&device, objective, student_rows, teacher_rows, &self.labels, factor, mode).unwrap();
        (report, read(&device, &student))
    }

    fn row(&self, row: usize) -> (Vec<f64>, Vec<f64>) {
        let student = &self.student[row * self.of_student.stored..][..self.of_student.valid];
        let teacher = &self.teacher[row * self.of_teacher.stored..][..self.of_teacher.valid];
        (wide(student), wide(teacher))
    }

    /// Sums of values, and the gradient with zeros in padding and ignored rows.
    fn exact(&self, objective: &Objective, factor: f64) -> (Vec<f64>, f64, Vec<f64>) {
        let (mut values, mut cross_entropy) = (vec![0.0; objective.terms().len()], 0.0);
        let mut gradient = vec![0.0; self.student.len()];
        for (at, &label) in self.labels.iter().enumerate().filter(|(_, label)| **label != IGNORED) {
            let (student, teacher) = self.row(at);
            let row = reference::row(objective, &student, &teacher, label as usize);
            values.iter_mut().zip(row.terms).for_each(|(sum, value)| *sum += value);
            cross_entropy += row.cross_entropy;
            let to = &mut gradient[at * self.of_student.stored..];
            to.iter_mut().zip(row.gradient).for_each(|(to, value)| *to = factor * value);
        }
        (values, cross_entropy, gradient)
    }

    fn check(&self, objective: &Objective, bar: f64) {
        let (values, cross_entropy, gradient) = self.exact(objective, 0.125);
        let (report, got) = self.run(1, objective, 0.125, Mode::Gradient);
        for (got, expected) in report.terms.iter().zip(values) {
            let off = (got - expected).abs();
            assert!(off <= bar * expected.abs() + 1e-12, "{objective:?} value: {got} {expected}");
        }
        let off = (report.cross_entropy - cross_entropy).abs();
        assert!(off <= bar * cross_entropy, "{objective:?} cross-entropy: {off}");
        let off = distance(&got, &gradient);
        assert!(off <= bar, "{objective:?} gradient: {off:e} of {:e}", norm(&gradient));
    }
}

#[test]
fn every_divergence_and_target_meets_the_bar_at_odd_shapes() {
    for (seed, columns) in (1..).zip([1, 2, 15, 16, 17, 41, 401, 511, 513, 1271]) {
        let case = Case::square(seed, 5, columns);
        for temperature in [1.0, 2.5] {
            every(temperature).iter().for_each(|objective| case.check(objective, 1e-5));
        }
        TARGETS.iter().for_each(|&target| case.check(&mixed(target), 1e-5));
    }
}

fn objectives() -> impl Strategy<Value = Objective> {
    let terms = (0..DIVERGENCES.len(), 0.1f32..3.0, 0.5f32..4.0, any::<bool>()).prop_map(
        |(which, weight, t, square)| Term { weight, scale_by_t2: square, ..term(DIVERGENCES[which], t) },
    );
    let target = prop_oneof![
        Just(Target::Teacher),
        // Nearer to the student, what is left of the gradient is close to the rounding of f32.
        (0.1f32..=1.0).prop_map(|t| Target::InterpolatedLogits { t }),
        (0.1f32..=1.0, 0.0f32..=0.9).prop_map(|(a, difficulty)| Target::Mixture { a, difficulty }),
    ];
    let labels = prop_oneof![Just(None), (0.1f32..2.0).prop_map(|weight| Some(LabelTerm { weight }))];
    (prop::collection::vec(terms, 1..4), labels, target)
        .prop_filter_map("not of logits", |(terms, labels, target)| {
            Objective::new(terms, labels, target).ok()
        })
}

fn cases() -> impl Strategy<Value = Case> {
    let columns =
        || (1usize..700, 0usize..40).prop_map(|(valid, padding)| Columns { stored: valid + padding, valid });
    (any::<u64>(), 1usize..6, columns(), columns(), 0.5f32..4.0, 0.05f32..4.0, any::<u8>()).prop_map(
        |(seed, rows, of_student, of_teacher, spread, gap, ignored)| {
            let mut case = Case::new(seed, rows, of_student, of_teacher, spread, gap);
            for (row, label) in case.labels.iter_mut().enumerate() {
                if ignored >> row & 1 == 1 {
                    *label = IGNORED;
                }
            }
            case
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_objectives_meet_the_bar(objective in objectives(), case in cases()) {
        case.check(&objective, 1e-5);
    }
}

#[test]
fn the_gradient_is_that_of_the_value() {
    let case = Case::square(7, 1, 9);
    for temperature in [1.0, 2.0] {
        for objective in every(temperature) {
            let (_, gradient) = case.run(1, &objective, 1.0, Mode::Gradient);
            // The target is detached: only plain teachers stay as they are when the student moves.
            if objective.target() != Target::Teacher {
                continue;
            }
            for (column, slope) in gradient.iter().enumerate() {
                let step = 1.0 / 64.0;
                let at = |step: f32| {
                    let mut moved = case.clone();
                    moved.student[column] += step;
                    moved.run(1, &objective, 1.0, Mode::Values).0.terms[0]
                };
                // Fourth order: the step is large, so that f32 shows.
                let (near, far) = (at(step) - at(-step), at(2.0 * step) - at(-2.0 * step));
                let numeric = (8.0 * near - far) / (12.0 * f64::from(step));
                assert!(
                    (numeric - f64::from(*slope)).abs() < 2e-4,
                    "{objective:?} {column}: {numeric} {slope}"
                );
            }
        }
    }
}

#[test]
fn padding_is_never_looked_at() {
    let tight = Case::square(3, 4, 37);
    let wide_columns = Columns { stored: 48, valid: 37 };
    let pad = |logits: &[f32], fill: f32| -> Vec<f32> {
        logits.chunks(37).flat_map(|row| row.iter().copied().chain([fill; 11])).collect()
    };
    for fill in [f32::NAN, f32::INFINITY, 1e30, 0.0] {
        let padded = Case {
            student: pad(&tight.student, fill),
            teacher: pad(&tight.teacher, fill),
            of_student: wide_columns,
            of_teacher: wide_columns,
            ..tight.clone()
        };
        for target in TARGETS {
            let (report, gradient) = tight.run(1, &mixed(target), 1.0, Mode::Gradient);
            let (report_padded, gradient_padded) = padded.run(1, &mixed(target), 1.0, Mode::Gradient);
            assert_eq!(report, report_padded);
            assert_eq!(pad(&gradient, 0.0), gradient_padded);
        }
    }
}

#[test]
fn columns_that_one_model_lacks_are_left_out_of_divergences() {
    let columns = |stored, valid| Columns { stored, valid };
    for (student, teacher) in [(columns(600, 590), columns(530, 520)), (columns(530, 520), columns(600, 590))]
    {
        let case = Case::new(11, 3, student, teacher, 2.0, 1.0);
        TARGETS.iter().for_each(|&target| case.check(&mixed(target), 1e-5));
        let (report, gradient) = case.run(1, &every(1.0)[0], 1.0, Mode::Gradient);
        assert_eq!(report.rows, 3);
        let rest = gradient.chunks(student.stored).flat_map(|row| &row[520..]);
        assert!(rest.clone().count() > 0 && rest.into_iter().all(|&g| g == 0.0));
    }
}

#[test]
fn ignored_rows_contribute_nothing_whatever_is_in_them() {
    let mut case = Case::square(5, 4, 30);
    let (whole, gradient) = case.run(1, &mixed(Target::Teacher), 1.0, Mode::Gradient);
    case.labels[1] = IGNORED;
    case.student[30..60].fill(f32::NAN);
    case.teacher[30..60].fill(f32::INFINITY);
    let (part, masked) = case.run(1, &mixed(Target::Teacher), 1.0, Mode::Gradient);
    assert_eq!((whole.rows, part.rows), (4, 3));
    assert_eq!(masked[..30], gradient[..30]);
    assert_eq!(masked[30..60], [0.0; 30]);
    assert_eq!(masked[60..], gradient[60..]);

    case.labels.fill(IGNORED);
    let (none, zeros) = case.run(1, &mixed(Target::Teacher), f64::INFINITY, Mode::Gradient);
    assert_eq!((none.rows, none.value(&mixed(Target::Teacher))), (0, 0.0));
    assert!(zeros.iter().all(|g| *g == 0.0));
    let (none, _) = case.run(1, &mixed(Target::Teacher), f64::INFINITY, Mode::Values);
    assert_eq!((none.terms, none.cross_entropy, none.forward_kl), (vec![0.0; 4], 0.0, 0.0));
}

#[test]
fn columns_that_the_teacher_rules_out_have_no_probability() {
    let mut case = Case::square(13, 3, 45);
    for (row, column) in [(0, 0), (0, 7), (1, 44), (2, 20)] {
        case.teacher[row * 45 + column] = f32::NEG_INFINITY;
    }
    for temperature in [1.0, 2.5] {
        every(temperature).iter().for_each(|objective| case.check(objective, 1e-5));
    }
    // Both models rule it out.
    case.student[7] = f32::NEG_INFINITY;
    case.labels[0] = 1;
    for objective in every(1.5) {
        let (report, gradient) = case.run(1, &objective, 1.0, Mode::Gradient);
        assert!(report.terms[0].is_finite() && gradient.iter().all(|g| g.is_finite()), "{objective:?}");
        assert_eq!(gradient[7], 0.0);
    }
}

#[test]
fn a_student_that_rules_out_what_the_teacher_wants_is_infinitely_far() {
    let mut case = Case::square(13, 2, 45);
    case.student[7] = f32::NEG_INFINITY;
    case.labels[0] = 1;
    let objective = &every(1.0)[0];
    let (report, gradient) = case.run(1, objective, 1.0, Mode::Gradient);
    assert_eq!(report.terms, [f64::INFINITY]);
    assert!(gradient.iter().all(|g| g.is_finite()));
}

#[test]
fn extreme_logits_stay_finite_and_right() {
    let mut numbers = Numbers(17);
    for spread in [1e3, 1e4] {
        let mut case = Case::square(1, 4, 50);
        case.student = numbers.normals(200, spread);
        case.teacher = numbers.normals(200, spread);
        // One row in which the two agree on a certain column, one in which ties make it even.
        case.student[3] = 1e4;
        case.teacher[3] = 1e4;
        case.student[50..100].fill(-1e4);
        case.teacher[50..100].fill(1e4);
        for temperature in [0.5, 1.0, 2.0] {
            for objective in every(temperature).into_iter().chain(TARGETS.map(mixed)) {
                let (values, cross_entropy, expected) = case.exact(&objective, 1.0);
                let (report, got) = case.run(1, &objective, 1.0, Mode::Gradient);
                // Interpolated logits are rounded, and at 1e4 the next number is 1e-3 away.
                let is_rounded = matches!(objective.target(), Target::InterpolatedLogits { .. });
                let floor = if is_rounded { 1e-3 } else { 1e-5 };
                assert!((report.cross_entropy / cross_entropy - 1.0).abs() < 1e-6);
                for (got, expected) in report.terms.iter().zip(values) {
                    assert!(
                        (got - expected).abs() <= 1e-5 * expected.abs() + floor,
                        "{objective:?}: {got} {expected}"
                    );
                }
                for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
                    let off = (f64::from(*got) - expected).abs();
                    assert!(off <= 1e-5 * expected.abs() + floor, "{objective:?} {at}: {got} {expected}");
                }
            }
        }
    }
}

#[test]
fn a_vocabulary_of_one_leaves_nothing_to_learn() {
    let case = Case::square(2, 3, 1);
    for objective in every(1.0).iter().filter(|objective| objective.terms()[0] != term(DIVERGENCES[13], 1.0))
    {
        let (report, gradient) = case.run(1, objective, 1.0, Mode::Gradient);
        assert!(report.terms[0].abs() < 1e-6, "{objective:?}: {:?}", report.terms);
        assert_eq!((gradient, report.correct, report.agreement), (vec![0.0; 3], 3, 3));
    }
}

#[test]
fn numbers_that_are_not_show_in_their_row_alone() {
    for (at, bad) in [(5, f32::NAN), (5, f32::INFINITY), (31, f32::NAN)] {
        let mut case = Case::square(19, 3, 33);
        let (_, sound) = case.run(1, &mixed(Target::Teacher), 1.0, Mode::Gradient);
        case.student[33 + at] = bad;
        let (report, gradient) = case.run(1, &mixed(Target::Teacher), 1.0, Mode::Gradient);
        assert!(report.value(&mixed(Target::Teacher)).is_nan());
        assert!(gradient[33..66].iter().all(|g| g.is_nan()));
        assert_eq!((&gradient[..33], &gradient[66..]), (&sound[..33], &sound[66..]));
        let mut case = Case::square(19, 3, 33);
        case.teacher[33 + at] = bad;
        let (report, _) = case.run(1, &mixed(Target::Teacher), 1.0, Mode::Gradient);
        assert!(report.value(&mixed(Target::Teacher)).is_nan());
    }
    let mut case = Case::square(19, 1, 33);
    case.teacher.fill(f32::NEG_INFINITY);
    let (report, _) = case.run(1, &mixed(Target::Teacher), 1.0, Mode::Gradient);
    assert!(report.terms[0].is_nan(), "a teacher without a choice has no distribution");
}

#[test]
fn any_number_of_threads_and_any_cut_of_rows_give_the_same_bits() {
    let case = Case::square(23, 24, 1271);
    let objective = mixed(Target::InterpolatedLogits { t: 0.4 });
    let (report, gradient) = case.run(1, &objective, 1.0, Mode::Gradient);
    for threads in [2, 5] {
        assert_eq!(case.run(threads, &objective, 1.0, Mode::Gradient), (report.clone(), gradient.clone()));
    }
    for row in [0, 11, 23] {
        let only = |x: &[f32]| x[row * 1271..(row + 1) * 1271].to_vec();
        let one = Case {
            student: only(&case.student),
            teacher: only(&case.teacher),
            labels: vec![case.labels[row]],
            ..case
        };
        assert_eq!(one.run(1, &objective, 1.0, Mode::Gradient).1, only(&gradient));
    }
}

#[test]
fn values_alone_are_the_same_and_records_are_true() {
    let case =
        Case::new(29, 40, Columns { stored: 70, valid: 64 }, Columns { stored: 66, valid: 60 }, 1.0, 0.3);
    for target in TARGETS {
        let objective = mixed(target);
        let (with, _) = case.run(1, &objective, 1.0, Mode::Gradient);
        let (report, logits) = case.run(1, &objective, 1.0, Mode::Values);
        assert_eq!(logits, case.student, "the student's logits stay");
        assert_eq!((report.cross_entropy, report.correct), (with.cross_entropy, with.correct));
        for (a, b) in report.terms.iter().zip(&with.terms) {
            assert!((a - b).abs() <= 1e-6 * b);
        }
        let (mut forward, mut reverse, mut agreement, mut correct) = (0.0, 0.0, 0, 0);
        for (row, &label) in case.labels.iter().enumerate() {
            let (student, teacher) = case.row(row);
            let log_q = reference::log_softmax(&student[..60], 1.0);
            let log_p = reference::log_softmax(&teacher, 1.0);
            forward += log_p.iter().zip(&log_q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            reverse += log_p.iter().zip(&log_q).map(|(p, q)| q.exp() * (q - p)).sum::<f64>();
            let first = |x: &[f64]| (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b])).unwrap();
            agreement += u64::from(first(&student[..60]) == first(&teacher));
            correct += u64::from(first(&student) == label as usize);
        }
        assert_eq!((report.rows, report.agreement, report.correct), (40, agreement, correct));
        assert!(agreement > 0 && agreement < 40);
        assert!((report.forward_kl / forward - 1.0).abs() < 1e-5, "{} {forward}", report.forward_kl);
        assert!((report.reverse_kl / reverse - 1.0).abs() < 1e-5, "{} {reverse}", report.reverse_kl);
    }
}

#[test]
fn a_first_choice_is_the_first_of_equals() {
    let columns = Columns { stored: 1100, valid: 1100 };
    let mut student = vec![0.0; 1100];
    (student[600], student[1050]) = (2.0, 2.0);
    let case = Case {
        student: student.clone(),
        teacher: student,
        labels: vec![600],
        of_student: columns,
        of_teacher: columns,
    };
    let (report, _) = case.run(1, &every(1.0)[0], 1.0, Mode::Values);
    assert_eq!((report.correct, report.agreement), (1, 1));
}

#[test]
fn labels_alone_need_no_teacher() {
    let case = Case::square(31, 6, 100);
    let objective = Objective::new(vec![], Some(LabelTerm { weight: 0.5 }), Target::Teacher).unwrap();
    let (_, cross_entropy, expected) = case.exact(&objective, 1.0);
    let device = cpu(1);
    let mut student = buffer(&device, &case.student);
    let report = logits_loss(
        &device,
        &objective,
        (case.of_student, &mut student),
        None,
        &case.labels,
        1.0,
        Mode::Gradient,
    )
    .unwrap();
    assert!((report.value(&objective) / (0.5 * cross_entropy) - 1.0).abs() < 1e-6);
    assert!(distance(&read(&device, &student), &expected) < 1e-6);
    assert_eq!(report.agreement, 0);
}

/// Rounding the logits is all that bf16 costs: the arithmetic behind it meets the bar of f32.
#[test]
fn logits_rounded_to_bf16_stay_within_two_percent() {
    let shape = Columns { stored: 401, valid: 401 };
    let mut case = Case::new(37, 8, shape, shape, 1.5, 1.5);
    case.teacher.iter_mut().for_each(|z| *z -= 3.0);
    let round = |x: &[f32]| Element::BF16.decode(&Element::BF16.encode(x));
    let rounded = Case { student: round(&case.student), teacher: round(&case.teacher), ..case.clone() };
    let device = cpu(1);
    for objective in every(1.0).into_iter().chain(TARGETS.map(mixed)) {
        let mut student = buffer(&device, &rounded.student);
        let teacher = stored(&device, &case.teacher, Element::BF16);
        let rows = (case.of_student, &mut student);
        let teacher = Some((case.of_teacher, &teacher));
        let report =
            logits_loss(&device, &objective, rows, teacher, &case.labels, 1.0, Mode::Gradient).unwrap();
        for (case, bar) in [(&case, 2e-2), (&rounded, 1e-5)] {
            let (values, _, expected) = case.exact(&objective, 1.0);
            for (got, expected) in report.terms.iter().zip(values) {
                assert!(
                    (got - expected).abs() <= bar * expected.abs() + 1e-12,
                    "{objective:?}: {got} {expected}"
                );
            }
            // The gradient of the total variation jumps where P and Q cross, and rounding moves columns across.
            let jumps = objective.terms().iter().any(|term| term.divergence == Divergence::TotalVariation);
            let bar = if jumps && bar > 1e-3 { 5e-2 } else { bar };
            let off = distance(&read(&device, &student), &expected);
            assert!(off < bar, "{objective:?}: {off}");
        }
    }
}
