//! Holds the losses against known columns to their specification, and that to the losses against whole rows.

use aludel_kernels::element::Element;
use aludel_kernels::loss::sparse::reference as sparse_reference;
use aludel_kernels::loss::{
    Column, Columns, Divergence, Head, HeadGradient, IGNORED, Known, LabelTerm, LogitSource, LossDevice,
    Mode, Objective, RowLoss, SparseRows, Tail, Target, TeacherRows, Term, draw, head_loss, likeliest,
    reference,
};
use aludel_kernels::nn::Device;

use crate::support::{DIVERGENCES, Numbers, buffer, cpu, distance, read, term, wide};

const TAILS: [Tail; 3] = [Tail::Bucket, Tail::Renormalize, Tail::Ignore];

/// The likeliest `k` of rows of logits.
fn known(rows: &[Vec<f32>], k: usize, tail: Tail, temperatures: &[f32]) -> SparseRows {
    let mut sparse = SparseRows {
        known: Known::Likeliest(tail),
        columns: rows[0].len(),
        temperatures: temperatures.to_vec(),
        starts: vec![0],
        ids: vec![],
        log_p: vec![],
        tails: vec![],
        log_sums: vec![],
        entropies: vec![],
    };
    for row in rows {
        let found = likeliest(row, k, temperatures);
        sparse.ids.extend(found.ids);
        sparse.log_p.extend(found.log_p);
        sparse.tails.extend(found.tails);
        sparse.log_sums.push(found.log_sum);
        sparse.starts.push(sparse.ids.len());
    }
    sparse
}

fn logits(numbers: &mut Numbers, rows: usize, columns: usize) -> Vec<Vec<f32>> {
    (0..rows).map(|_| numbers.normals(columns, 2.5)).collect()
}

/// Values and gradient of every row by the kernel.
fn run(
    objective: &Objective,
    students: &[Vec<f32>],
    valid: usize,
    teacher: &SparseRows,
    labels: &[u32],
    mode: Mode,
) -> (Vec<f32>, Vec<f32>) {
    let device = cpu(2);
    let stored = students[0].len();
    let mut student = buffer(&device, &students.concat());
    let columns = objective.terms().len() + Column::COUNT;
    let mut values = device.zeros(students.len() * columns, Element::F32).unwrap();
    let loss = RowLoss {
        objective,
        rows: students.len(),
        student: Columns { stored, valid },
        teacher: None,
        soft_cap: None,
        factor: 0.5,
        mode,
    };
    let rows: Vec<usize> = (0..students.len()).collect();
    device.sparse_rows(loss, labels, (teacher, &rows), &mut student, &mut values).unwrap();
    (read(&device, &values), read(&device, &student))
}

fn objectives() -> Vec<Objective> {
    let one =
        |divergence, temperature| Objective::new(vec![term(divergence, temperature)], None, Target::Teacher);
    let mut all: Vec<Objective> =
        DIVERGENCES.iter().flat_map(|&d| [one(d, 1.0).unwrap(), one(d, 2.0).unwrap()]).collect();
    let terms = vec![
        Term { weight: 0.5, ..term(Divergence::ForwardKl, 2.0) },
        Term { weight: 0.3, scale_by_t2: false, ..term(Divergence::ReverseKl, 1.0) },
        Term { weight: 0.2, ..term(Divergence::JensenShannon { beta: 0.5 }, 2.0) },
    ];
    all.push(Objective::new(terms, Some(LabelTerm { weight: 0.25 }), Target::Teacher).unwrap());
    all.push(Objective::new(vec![], Some(LabelTerm { weight: 1.0 }), Target::Teacher).unwrap());
    all
}

#[test]
fn every_divergence_and_tail_is_as_specified() {
    let mut numbers = Numbers(3);
    for (student_columns, valid, teacher_columns) in [(41, 41, 41), (1280, 1271, 1250), (600, 520, 530)] {
        let (students, teachers) =
            (logits(&mut numbers, 4, student_columns), logits(&mut numbers, 4, teacher_columns));
        // A label among the known columns, one that is not, one past the teacher's columns, one ignored.
        let first = likeliest(&teachers[0], 1, &[]).ids[0].min(valid as u32 - 1);
        let labels = [first, 7, valid as u32 - 1, IGNORED];
        for tail in TAILS {
            let teacher = known(&teachers, 20, tail, &[1.0, 2.0]);
            for objective in objectives() {
                let (values, gradient) = run(&objective, &students, valid, &teacher, &labels, Mode::Gradient);
                let columns = objective.terms().len() + Column::COUNT;
                for row in 0..3 {
                    let student = wide(&students[row][..valid]);
                    let exact = sparse_reference::row(
                        &objective,
                        &student,
                        teacher.columns,
                        teacher.row(row),
                        labels[row] as usize,
                    );
                    for (got, expected) in values[row * columns..].iter().zip(&exact.terms) {
                        let off = (f64::from(*got) - expected).abs();
                        assert!(
                            off <= 1e-5 * expected.abs().max(0.1),
                            "{objective:?} {tail:?}: {got} {expected}"
                        );
                    }
                    let got = &gradient[row * student_columns..][..student_columns];
                    let expected: Vec<f64> = exact.gradient.iter().map(|g| 0.5 * g).collect();
                    let off = distance(&got[..valid], &expected);
                    assert!(off < 1e-5, "{objective:?} {tail:?} row {row}: {off:e}");
                    assert!(got[valid..].iter().all(|g| *g == 0.0));
                }
                assert!(gradient[3 * student_columns..].iter().all(|g| *g == 0.0), "an ignored row");
            }
        }
    }
}

#[test]
fn gradients_of_the_specification_are_those_of_its_values() {
    let mut numbers = Numbers(8);
    let (student, teachers) = (wide(&numbers.normals(9, 1.5)), logits(&mut numbers, 1, 8));
    for tail in TAILS {
        let teacher = known(&teachers, 3, tail, &[1.0, 2.0]);
        for objective in objectives() {
            let exact = |student: &[f64]| sparse_reference::row(&objective, student, 8, teacher.row(0), 8);
            let value = |student: &[f64]| {
                let row = exact(student);
                let terms = objective
                    .terms()
                    .iter()
                    .zip(&row.terms)
                    .map(|(term, value)| f64::from(term.weight) * value);
                terms.sum::<f64>()
                    + objective.labels().map_or(0.0, |labels| f64::from(labels.weight) * row.cross_entropy)
            };
            let gradient = exact(&student).gradient;
            for column in 0..9 {
                let at = |step: f64| {
                    let mut moved = student.clone();
                    moved[column] += step;
                    value(&moved)
                };
                let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!((numeric - gradient[column]).abs() < 1e-7, "{objective:?} {tail:?} {column}");
            }
        }
    }
}

#[test]
fn all_columns_known_is_the_loss_against_whole_rows() {
    let mut numbers = Numbers(5);
    let (students, teachers) = (logits(&mut numbers, 2, 60), logits(&mut numbers, 2, 60));
    for tail in TAILS {
        let teacher = known(&teachers, 60, tail, &[1.0, 2.0]);
        for objective in objectives() {
            let (values, gradient) = run(&objective, &students, 60, &teacher, &[3, 59], Mode::Gradient);
            let (with_all, _) = run(&objective, &students, 60, &teacher, &[3, 59], Mode::Values);
            let columns = objective.terms().len() + Column::COUNT;
            for row in 0..2 {
                let label = [3, 59][row];
                let exact = reference::row(&objective, &wide(&students[row]), &wide(&teachers[row]), label);
                for (got, expected) in values[row * columns..].iter().zip(&exact.terms) {
                    assert!(
                        (f64::from(*got) - expected).abs() < 1e-5 * expected.abs().max(0.1),
                        "{objective:?} {tail:?}"
                    );
                }
                let expected: Vec<f64> = exact.gradient.iter().map(|g| 0.5 * g).collect();
                assert!(distance(&gradient[row * 60..][..60], &expected) < 2e-5, "{objective:?} {tail:?}");
                let kl =
                    Objective::new(vec![term(Divergence::ForwardKl, 1.0)], None, Target::Teacher).unwrap();
                let kl = reference::row(&kl, &wide(&students[row]), &wide(&teachers[row]), label).terms[0];
                let got = with_all[row * columns + objective.terms().len() + Column::ForwardKl as usize];
                assert!((f64::from(got) - kl).abs() < 1e-5 * kl);
            }
        }
    }
}

/// The mean of the gradient over many sets of draws against the gradient from the whole distribution.
#[test]
fn draws_are_unbiased() {
    let mut numbers = Numbers(13);
    let (students, teachers) = (logits(&mut numbers, 1, 50), logits(&mut numbers, 1, 50));
    let objective = Objective::new(
        vec![term(Divergence::ForwardKl, 2.0)],
        Some(LabelTerm { weight: 0.1 }),
        Target::Teacher,
    )
    .unwrap();
    let exact = reference::row(&objective, &wide(&students[0]), &wide(&teachers[0]), 4);
    let (mut mean, mut value, times) = (vec![0.0f64; 50], 0.0, 10_000);
    for time in 0..times {
        let drawn = draw(&teachers[0], 2.0, 12, 1, [0, 0, time]);
        let teacher = SparseRows {
            known: Known::Drawn,
            columns: 50,
            temperatures: vec![2.0],
            starts: vec![0, drawn.ids.len()],
            log_p: drawn.counts.iter().map(|&count| (count as f32 / 12.0).ln()).collect(),
            ids: drawn.ids,
            tails: vec![],
            log_sums: vec![],
            entropies: vec![drawn.entropy],
        };
        let (values, gradient) = run(&objective, &students, 50, &teacher, &[4], Mode::Gradient);
        value += f64::from(values[0]) / f64::from(times);
        mean.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += 2.0 * f64::from(g) / f64::from(times));
    }
    let mean: Vec<f32> = mean.into_iter().map(|x| x as f32).collect();
    let off = distance(&mean, &exact.gradient);
    assert!(off < 0.01, "{off}");
    assert!((value - exact.terms[0]).abs() < 0.01 * exact.terms[0], "{value} {}", exact.terms[0]);
}

#[derive(Debug)]
struct Table(Vec<Vec<f32>>);

impl LogitSource for Table {
    fn row(&self, row: usize, to: &mut [f32]) {
        to.copy_from_slice(&self.0[row]);
    }
}

/// Through the head, in chunks: known columns and stored logits beside logits that are there, and a soft cap.
#[test]
fn the_head_takes_known_columns_and_stored_logits() {
    let mut numbers = Numbers(21);
    let (rows, columns, width) = (11, 64, 24);
    let teachers = logits(&mut numbers, rows, columns);
    let labels: Vec<u32> = (0..rows).map(|row| if row % 4 == 1 { IGNORED } else { row as u32 }).collect();
    let objective = Objective::new(
        vec![term(Divergence::ForwardKl, 1.0)],
        Some(LabelTerm { weight: 0.5 }),
        Target::Teacher,
    )
    .unwrap();
    let device = cpu(2);
    let weight = buffer(&device, &numbers.normals(columns * width, 0.5));
    let hidden = buffer(&device, &numbers.normals(rows * width, 1.0));
    for soft_cap in [None, Some(5.0)] {
        let head = Head {
            weight: &weight,
            bias: None,
            vocabulary: columns,
            valid: columns,
            width,
            scale: 1.0,
            soft_cap,
        };
        let sparse = known(&teachers, columns, Tail::Bucket, &[1.0]);
        let given = buffer(&device, &teachers.concat());
        let table = Table(teachers.clone());
        let whole = Columns { stored: columns, valid: columns };
        let sources = [
            TeacherRows::Logits { logits: &given, columns: whole },
            TeacherRows::Sparse(&sparse),
            TeacherRows::Stored { source: &table, columns },
        ];
        let outcome = |teacher: &TeacherRows<'_, _>, memory| {
            let mut d_hidden = buffer(&device, &vec![f32::NAN; rows * width]);
            let mut d_weight = buffer(&device, &vec![0.0; columns * width]);
            let gradient =
                HeadGradient { d_hidden: &mut d_hidden, d_weight: Some(&mut d_weight), d_bias: None };
            let report = head_loss(
                &device,
                &objective,
                (&head, &hidden),
                Some(teacher),
                &labels,
                0.125,
                Some(gradient),
                memory,
            );
            (report.unwrap().report(&device).unwrap(), read(&device, &d_hidden), read(&device, &d_weight))
        };
        let expected = outcome(&sources[0], 1 << 20);
        for source in &sources[1..] {
            for memory in [1 << 20, 3 * 4 * columns] {
                let got = outcome(source, memory);
                assert_eq!(
                    (got.0.rows, got.0.agreement, got.0.correct),
                    (expected.0.rows, expected.0.agreement, expected.0.correct)
                );
                assert!((got.0.terms[0] - expected.0.terms[0]).abs() < 1e-4 * expected.0.terms[0]);
                assert!(
                    distance(&got.1, &wide(&expected.1)) < 2e-5
                        && distance(&got.2, &wide(&expected.2)) < 2e-5
                );
            }
        }
    }
}

#[test]
fn rows_that_cannot_serve_an_objective_say_why() {
    let rows = known(&[vec![0.0, 1.0, 2.0]], 2, Tail::Bucket, &[1.0]);
    let of = |divergence, temperature| {
        Objective::new(vec![term(divergence, temperature)], None, Target::Teacher).unwrap()
    };
    assert_eq!(rows.misfit(&of(Divergence::ReverseKl, 1.0)), None);
    assert!(rows.misfit(&of(Divergence::ReverseKl, 2.0)).unwrap().contains("temperature 2"));
    let drawn = SparseRows { known: Known::Drawn, ..rows.clone() };
    assert!(drawn.misfit(&of(Divergence::ReverseKl, 1.0)).unwrap().contains("unbiased"));
    let bare = SparseRows { log_sums: vec![], ..rows.clone() };
    assert!(bare.misfit(&of(Divergence::LogitsMse, 1.0)).unwrap().contains("logits"));
    let moving = of(Divergence::ForwardKl, 1.0).with_target(Target::InterpolatedLogits { t: 0.5 }).unwrap();
    assert!(rows.misfit(&moving).unwrap().contains("every column"));
}
