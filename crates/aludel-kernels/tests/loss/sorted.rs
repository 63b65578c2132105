//! Holds the distance of sorted probabilities to its specification, and both to torch's autograd.

use aludel_kernels::element::Element;
use aludel_kernels::loss::sorted::reference;
use aludel_kernels::loss::{
    Aligned, Column, Columns, Divergence, Head, HeadGradient, IGNORED, Known, LabelTerm, LossDevice, Mode,
    Objective, Ranked, RowLoss, SortedRows, SparseRows, Tail, Target, TeacherRows, Term, head_loss,
    likeliest,
};
use aludel_kernels::nn::Device;
use serde::Deserialize;

use crate::support::{Numbers, buffer, cpu, distance, read, stored, wide};

const TAILS: [Tail; 3] = [Tail::Bucket, Tail::Renormalize, Tail::Ignore];

fn objective(terms: &[(f32, f32)], label_weight: Option<f32>) -> Objective {
    let term = |&(weight, temperature): &(f32, f32)| Term {
        divergence: Divergence::SortedDistance,
        weight,
        temperature,
        scale_by_t2: temperature == 2.0,
    };
    let labels = label_weight.map(|weight| LabelTerm { weight });
    Objective::new(terms.iter().map(term).collect(), labels, Target::Teacher).unwrap()
}

fn known(rows: &[Vec<f32>], k: usize, tail: Tail) -> SparseRows {
    let mut sparse = SparseRows {
        known: Known::Likeliest(tail),
        columns: rows[0].len(),
        temperatures: vec![1.0, 2.0],
        starts: vec![0],
        ids: vec![],
        log_p: vec![],
        tails: vec![],
        log_sums: vec![],
        entropies: vec![],
    };
    for row in rows {
        let found = likeliest(row, k, &[1.0, 2.0]);
        sparse.ids.extend(found.ids);
        sparse.log_p.extend(found.log_p);
        sparse.tails.extend(found.tails);
        sparse.starts.push(sparse.ids.len());
    }
    sparse
}

fn logits(numbers: &mut Numbers, rows: usize, columns: usize) -> Vec<Vec<f32>> {
    (0..rows).map(|_| numbers.normals(columns, 2.5)).collect()
}

/// Values and gradient by the kernel; the labels' factor is 0.5, the terms' 0.25.
fn run(
    objective: &Objective,
    students: &[Vec<f32>],
    valid: usize,
    (partners, teacher): (&[Option<usize>], Option<Ranked<'_, aludel_kernels::nn::cpu::Buffer>>),
    labels: &[u32],
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
        mode: Mode::Gradient,
    };
    let sorted = SortedRows { partners, teacher, factor: 0.25 };
    device.sorted_rows(loss, labels, sorted, &mut student, &mut values).unwrap();
    (read(&device, &values), read(&device, &student))
}

#[test]
fn rows_are_as_specified() {
    let mut numbers = Numbers(11);
    let device = cpu(1);
    let objectives = [
        objective(&[(1.0, 1.0)], None),
        objective(&[(0.7, 2.0)], Some(0.3)),
        objective(&[(0.5, 1.0), (0.2, 2.0), (0.1, 0.5)], Some(0.1)),
    ];
    let sizes =
        [(41, 41, 41, 41), (41, 37, 80, 80), (1280, 1271, 700, 650), (600, 520, 530, 520), (1, 1, 3, 3)];
    for (student_columns, valid, teacher_columns, teacher_valid) in sizes {
        let students = logits(&mut numbers, 4, student_columns);
        let mut teachers = logits(&mut numbers, 3, teacher_columns);
        teachers[1][0] = f32::NEG_INFINITY;
        let labels = [0, valid as u32 - 1, 0, IGNORED];
        // The third row has no partner.
        let partners = [Some(2), Some(1), None, Some(0)];
        let given = buffer(&device, &teachers.concat());
        let whole: Vec<Vec<f32>> = teachers.iter().map(|row| row[..teacher_valid].to_vec()).collect();
        let rows: Vec<Vec<f64>> = whole.iter().map(|row| wide(row)).collect();
        let sparse = TAILS.map(|tail| known(&whole, 20.min(teacher_valid - 1), tail));
        let columns = Columns { stored: teacher_columns, valid: teacher_valid };
        let sources = sparse.iter().map(Ranked::Known).chain([Ranked::Logits(&given, columns)]);
        for source in sources {
            for objective in &objectives {
                // Draws and taken-out temperatures are refused elsewhere.
                let is_known = matches!(source, Ranked::Known(_));
                if is_known && objective.terms().iter().any(|term| term.temperature == 0.5) {
                    continue;
                }
                let (values, gradient) = run(objective, &students, valid, (&partners, Some(source)), &labels);
                let width = objective.terms().len() + Column::COUNT;
                for row in 0..3 {
                    let teacher = partners[row].map(|partner| match source {
                        Ranked::Logits(..) => reference::Teacher::Logits(&rows[partner]),
                        Ranked::Known(known) => reference::Teacher::Known(known.row(partner), known.columns),
                    });
                    let labels_only = Objective::new(vec![], objective.labels(), Target::Teacher).ok();
                    let student = wide(&students[row][..valid]);
                    let exact = reference::row(objective, &student, teacher, labels[row] as usize);
                    for (got, expected) in values[row * width..].iter().zip(&exact.terms) {
                        let off = (f64::from(*got) - expected).abs();
                        assert!(off <= 1e-5 * expected.abs().max(0.1), "{objective:?}: {got} {expected}");
                    }
                    let got = values[row * width + objective.terms().len()];
                    assert!(
                        (f64::from(got) - exact.cross_entropy).abs() < 1e-5 * exact.cross_entropy.max(0.1)
                    );
                    // The labels' part has the factor 0.5, the terms' 0.25.
                    let of_labels = labels_only.map_or(vec![0.0; valid], |labels_only| {
                        reference::row(&labels_only, &student, None, labels[row] as usize).gradient
                    });
                    let both = exact.gradient.iter().zip(of_labels);
                    let expected: Vec<f64> = both.map(|(all, label)| 0.25 * (all + label)).collect();
                    let got = &gradient[row * student_columns..][..student_columns];
                    let off = distance(&got[..valid], &expected);
                    assert!(off < 1e-5, "{objective:?} {valid} {teacher_valid} row {row}: {off:e}");
                    assert!(got[valid..].iter().all(|g| *g == 0.0));
                }
                assert!(gradient[3 * student_columns..].iter().all(|g| *g == 0.0), "an ignored row");
                assert!(values[3 * width..].iter().all(|value| *value == 0.0));
            }
        }
    }
}

/// Through the head, in chunks: a live teacher, its logits and what is known of them give one result, and rows without a partner learn
/// from their labels alone.
#[test]
fn the_head_compares_aligned_rows() {
    let mut numbers = Numbers(23);
    let device = cpu(2);
    let (rows, columns, width) = (11, 64, 24);
    let (teacher_rows, teacher_columns, teacher_width) = (9, 90, 16);
    let labels: Vec<u32> = (0..rows).map(|row| if row % 4 == 1 { IGNORED } else { row as u32 }).collect();
    let partners: Vec<Option<usize>> =
        (0..rows).map(|row| (row % 3 != 2).then_some((row * 5) % teacher_rows)).collect();
    let objective = objective(&[(1.0, 1.0)], Some(0.5));
    let weight = buffer(&device, &numbers.normals(columns * width, 0.5));
    let hidden = buffer(&device, &numbers.normals(rows * width, 1.0));
    let head = Head {
        weight: &weight,
        bias: None,
        vocabulary: columns,
        valid: columns - 3,
        width,
        scale: 1.0,
        soft_cap: Some(7.0),
    };
    let teacher_weight = buffer(&device, &numbers.normals(teacher_columns * teacher_width, 0.5));
    let teacher_values = numbers.normals(teacher_rows * teacher_width, 1.0);
    let teacher_hidden = buffer(&device, &teacher_values);
    let teacher_head = Head {
        weight: &teacher_weight,
        vocabulary: teacher_columns,
        valid: teacher_columns,
        width: teacher_width,
        soft_cap: None,
        ..head
    };
    let made: Vec<Vec<f32>> = teacher_values
        .chunks(teacher_width)
        .map(|row| {
            let weights = read(&device, &teacher_weight);
            weights.chunks(teacher_width).map(|w| w.iter().zip(row).map(|(w, h)| w * h).sum()).collect()
        })
        .collect();
    let given = stored(&device, &made.concat(), Element::F32);
    let all_columns = Columns { stored: teacher_columns, valid: teacher_columns };
    let sparse = known(&made, teacher_columns, Tail::Bucket);
    let sources = [
        TeacherRows::Hidden { head: teacher_head, hidden: &teacher_hidden },
        TeacherRows::Logits { logits: &given, columns: all_columns },
        TeacherRows::Sparse(&sparse),
    ];
    let outcome = |teacher: Option<&TeacherRows<'_, _>>, partners: &[Option<usize>], memory| {
        let mut d_hidden = buffer(&device, &vec![f32::NAN; rows * width]);
        let mut d_weight = buffer(&device, &vec![0.0; columns * width]);
        let gradient = HeadGradient { d_hidden: &mut d_hidden, d_weight: Some(&mut d_weight), d_bias: None };
        let aligned = TeacherRows::Aligned(Aligned { teacher, partners, factor: 0.25 });
        let report = head_loss(
            &device,
            &objective,
            (&head, &hidden),
            Some(&aligned),
            &labels,
            0.125,
            Some(gradient),
            memory,
        );
        (report.unwrap().report(&device).unwrap(), read(&device, &d_hidden), read(&device, &d_weight))
    };
    let expected = outcome(Some(&sources[0]), &partners, 1 << 20);
    let compared = (0..rows).filter(|&row| labels[row] != IGNORED && partners[row].is_some()).count() as u64;
    assert_eq!((expected.0.rows, expected.0.compared), (8, compared));
    assert!(expected.0.terms[0] > 0.1 && expected.0.agreement == 0);
    let mean = expected.0.terms[0] / compared as f64 + 0.5 * expected.0.cross_entropy / 8.0;
    assert!((expected.0.mean(&objective) - mean).abs() < 1e-12);
    for source in &sources {
        for memory in [1 << 20, 3 * 4 * columns] {
            let got = outcome(Some(source), &partners, memory);
            assert_eq!((got.0.rows, got.0.compared), (expected.0.rows, expected.0.compared));
            assert!((got.0.terms[0] / expected.0.terms[0] - 1.0).abs() < 1e-5);
            assert!(distance(&got.1, &wide(&expected.1)) < 1e-5);
            assert!(distance(&got.2, &wide(&expected.2)) < 1e-5);
        }
    }
    // Without any partner it is cross-entropy alone.
    let none = outcome(None, &vec![None; rows], 1 << 20);
    assert_eq!((none.0.compared, none.0.terms[0]), (0, 0.0));
    let labels_alone = Objective::new(vec![], Some(LabelTerm { weight: 0.5 }), Target::Teacher).unwrap();
    let mut d_hidden = buffer(&device, &vec![0.0; rows * width]);
    let gradient = HeadGradient { d_hidden: &mut d_hidden, d_weight: None, d_bias: None };
    head_loss(&device, &labels_alone, (&head, &hidden), None, &labels, 0.125, Some(gradient), 1 << 20)
        .unwrap();
    assert!(distance(&none.1, &wide(&read(&device, &d_hidden))) < 1e-6);
}

#[test]
fn what_is_not_a_number_shows() {
    let device = cpu(1);
    let mut students = vec![vec![0.5, 1.0, -1.0, 0.0]; 2];
    students[0][2] = f32::NAN;
    let given = buffer(&device, &[0.1, 0.2, 0.3, 0.4]);
    let source = Ranked::Logits(&given, Columns { stored: 4, valid: 4 });
    let objective = objective(&[(1.0, 1.0)], None);
    let (values, gradient) = run(&objective, &students, 4, (&[Some(0), Some(0)], Some(source)), &[0, 0]);
    assert!(values[0].is_nan() && values[1 + Column::COUNT].is_finite(), "{values:?}");
    assert!(gradient[..4].iter().all(|g| g.is_nan()) && gradient[4..].iter().all(|g| g.is_finite()));
}

#[derive(Deserialize)]
struct Record {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    student: Vec<f32>,
    teacher: Vec<f32>,
    temperature: f32,
    label: usize,
    label_weight: f32,
    value: f64,
    gradient: Vec<f64>,
}

#[test]
fn values_and_gradients_are_torchs() {
    let record: Record =
        serde_json::from_str(include_str!("../../../../tests/golden/loss/sorted.json")).unwrap();
    assert_eq!(record.cases.len(), 6);
    let device = cpu(1);
    for case in record.cases {
        let term = Term {
            divergence: Divergence::SortedDistance,
            weight: 2.0,
            temperature: case.temperature,
            scale_by_t2: false,
        };
        // Of the kernel, terms have the factor 0.25 and labels 0.5.
        let labels = Some(LabelTerm { weight: case.label_weight });
        let objective = Objective::new(vec![term], labels, Target::Teacher).unwrap();
        let exact = reference::row(
            &objective,
            &wide(&case.student),
            Some(reference::Teacher::Logits(&wide(&case.teacher))),
            case.label,
        );
        assert!((exact.terms[0] / case.value - 1.0).abs() < 1e-12, "{} {}", exact.terms[0], case.value);
        for (got, expected) in exact.gradient.iter().zip(&case.gradient) {
            // Recorded with nine digits.
            assert!((got - expected).abs() < 1e-8 * expected.abs().max(1e-3), "{got} {expected}");
        }
        let halved = objective_with_labels(term, case.label_weight / 2.0);
        let given = buffer(&device, &case.teacher);
        let columns = Columns { stored: case.teacher.len(), valid: case.teacher.len() };
        let (values, gradient) = run(
            &halved,
            std::slice::from_ref(&case.student),
            case.student.len(),
            (&[Some(0)], Some(Ranked::Logits(&given, columns))),
            &[case.label as u32],
        );
        assert!((f64::from(values[0]) / case.value - 1.0).abs() < 2e-6);
        let expected: Vec<f64> = case.gradient.iter().map(|g| 0.25 * g).collect();
        assert!(distance(&gradient, &expected) < 2e-6);
    }
}

fn objective_with_labels(term: Term, weight: f32) -> Objective {
    Objective::new(vec![term], Some(LabelTerm { weight }), Target::Teacher).unwrap()
}
