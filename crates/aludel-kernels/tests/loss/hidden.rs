//! Holds losses between hidden states to their formulas in f64, and their gradients to differences of those.

use std::ops::Range;

use aludel_kernels::element::Element;
use aludel_kernels::loss::{HiddenGradient, HiddenLoss, HiddenStates, IGNORED, hidden_loss};

use crate::support::{Numbers, buffer, cpu, distance, read, stored, wide};

struct Case {
    student: Vec<f32>,
    teacher: Vec<f32>,
    projection: Option<Vec<f32>>,
    widths: (usize, usize),
    labels: Vec<u32>,
    documents: Vec<Range<usize>>,
}

const FACTOR: f64 = 0.25;

impl Case {
    fn new(seed: u64, widths: (usize, usize), with_projection: bool) -> Self {
        let mut numbers = Numbers(seed);
        let labels = vec![0, 1, IGNORED, 3, 4, IGNORED, 6];
        Self {
            student: numbers.normals(labels.len() * widths.0, 1.0),
            teacher: numbers.normals(labels.len() * widths.1, 1.5),
            projection: with_projection.then(|| numbers.normals(widths.0 * widths.1, 0.4)),
            widths,
            documents: vec![0..4, 4..4, 4..7],
            labels,
        }
    }

    fn run(&self, loss: HiddenLoss, threads: usize, element: Element) -> (f64, Vec<f32>, Vec<f32>) {
        let device = cpu(threads);
        let student = buffer(&device, &self.student);
        let teacher = stored(&device, &self.teacher, element);
        let projection = self.projection.as_ref().map(|weight| buffer(&device, weight));
        let states = HiddenStates {
            student: &student,
            student_width: self.widths.0,
            teacher: &teacher,
            teacher_width: self.widths.1,
            projection: projection.as_ref(),
        };
        // Gradients are added to what is there.
        let mut d_student = buffer(&device, &vec![1.0; self.student.len()]);
        let weights = self.projection.as_ref().map_or(0, Vec::len);
        let mut d_projection = buffer(&device, &vec![2.0; weights]);
        let gradient = HiddenGradient {
            d_student: &mut d_student,
            d_projection: (weights > 0).then_some(&mut d_projection),
        };
        let (labels, documents) = (&self.labels, &self.documents);
        let value = hidden_loss(&device, loss, states, labels, documents, FACTOR, Some(gradient)).unwrap();
        let alone = hidden_loss(&device, loss, states, labels, documents, FACTOR, None).unwrap();
        assert_eq!(value, alone);
        let less = |buffer, start: f32| read(&device, buffer).iter().map(|x| x - start).collect();
        (value, less(&d_student, 1.0), less(&d_projection, 2.0))
    }

    /// The value in f64, from student and projection in f64.
    fn exact(&self, loss: HiddenLoss, student: &[f64], projection: &[f64]) -> f64 {
        let (of_student, of_teacher) = self.widths;
        let teacher = wide(&self.teacher);
        let valid = |rows: Range<usize>| rows.filter(|&row| self.labels[row] != IGNORED);
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        if loss == HiddenLoss::AttentionTransfer {
            let unit = |x: &[f64], width: usize, rows: &Range<usize>| -> Vec<f64> {
                let map = valid(rows.clone()).map(|row| {
                    let row = &x[row * width..(row + 1) * width];
                    dot(row, row)
                });
                let map: Vec<f64> = map.collect();
                let norm = dot(&map, &map).sqrt();
                map.into_iter().map(|a| a / norm).collect()
            };
            let of_document = |rows: &Range<usize>| {
                let (s, t) = (unit(student, of_student, rows), unit(&teacher, of_teacher, rows));
                s.len() as f64 * s.iter().zip(t).map(|(s, t)| (s - t).powi(2)).sum::<f64>()
            };
            return self.documents.iter().map(of_document).sum();
        }
        let of_row = |row: usize| {
            let student = &student[row * of_student..(row + 1) * of_student];
            let projected: Vec<f64> = if projection.is_empty() {
                student.to_vec()
            } else {
                projection.chunks(of_student).map(|weights| dot(weights, student)).collect()
            };
            let teacher = &teacher[row * of_teacher..(row + 1) * of_teacher];
            match loss {
                HiddenLoss::MeanSquare => {
                    projected.iter().zip(teacher).map(|(s, t)| (s - t).powi(2)).sum::<f64>()
                        / of_teacher as f64
                }
                _ => {
                    1.0 - dot(&projected, teacher)
                        / (dot(&projected, &projected) * dot(teacher, teacher)).sqrt()
                }
            }
        };
        valid(0..self.labels.len()).map(of_row).sum()
    }

    fn check(&self, loss: HiddenLoss) {
        let (value, d_student, d_projection) = self.run(loss, 1, Element::F32);
        let (student, projection) =
            (wide(&self.student), self.projection.as_deref().map(wide).unwrap_or_default());
        let exact = self.exact(loss, &student, &projection);
        assert!((value / exact - 1.0).abs() < 1e-5, "{loss:?}: {value} {exact}");
        let slopes = |at: &[f64], f: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
            let moved = |place: usize, step: f64| {
                let mut moved = at.to_vec();
                moved[place] += step;
                f(&moved)
            };
            (0..at.len()).map(|i| FACTOR * (moved(i, 1e-5) - moved(i, -1e-5)) / 2e-5).collect()
        };
        let expected = slopes(&student, &|student| self.exact(loss, student, &projection));
        let off = distance(&d_student, &expected);
        assert!(off < 1e-5, "{loss:?}: {off:e}");
        if loss != HiddenLoss::AttentionTransfer && !projection.is_empty() {
            let expected = slopes(&projection, &|projection| self.exact(loss, &student, projection));
            let off = distance(&d_projection, &expected);
            assert!(off < 1e-5, "{loss:?} projection: {off:e}");
        }
    }
}

const EVERY: [HiddenLoss; 3] = [HiddenLoss::MeanSquare, HiddenLoss::Cosine, HiddenLoss::AttentionTransfer];

#[test]
fn equal_widths_need_no_projection() {
    for (seed, width) in (1..).zip([1, 5, 16, 41]) {
        let case = Case::new(seed, (width, width), false);
        case.check(HiddenLoss::MeanSquare);
        case.check(HiddenLoss::AttentionTransfer);
        if width > 1 {
            case.check(HiddenLoss::Cosine);
        }
    }
}

#[test]
fn a_projection_is_learned_with_the_student() {
    for (seed, widths) in (1..).zip([(3, 7), (41, 16), (8, 8)]) {
        let case = Case::new(seed, widths, true);
        EVERY.iter().for_each(|&loss| case.check(loss));
    }
}

#[test]
fn attention_transfer_needs_no_equal_widths() {
    Case::new(9, (6, 19), false).check(HiddenLoss::AttentionTransfer);
}

#[test]
fn ignored_rows_and_the_number_of_threads_change_nothing() {
    let mut case = Case::new(5, (12, 12), false);
    for loss in EVERY {
        let (value, gradient, _) = case.run(loss, 1, Element::F32);
        let ignored = |row: usize| row * 12..(row + 1) * 12;
        assert_eq!(gradient[ignored(2)], [0.0; 12]);
        case.student[ignored(2)].fill(f32::NAN);
        case.teacher[ignored(5)].fill(f32::INFINITY);
        let (again, same, _) = case.run(loss, 3, Element::F32);
        assert_eq!(value, again);
        assert_eq!(gradient[ignored(3)], same[ignored(3)]);
        case = Case::new(5, (12, 12), false);
    }
}

#[test]
fn a_step_without_a_valid_row_has_no_loss() {
    let mut case = Case::new(5, (4, 6), true);
    case.labels.fill(IGNORED);
    for loss in EVERY {
        let (value, d_student, d_projection) = case.run(loss, 1, Element::F32);
        assert_eq!(value, 0.0);
        assert!(d_student.iter().chain(&d_projection).all(|g| *g == 0.0));
    }
}

#[test]
fn a_row_of_zeros_has_no_direction() {
    let mut case = Case::new(5, (4, 4), false);
    case.student[..4].fill(0.0);
    let (value, gradient, _) = case.run(HiddenLoss::Cosine, 1, Element::F32);
    assert!(value.is_finite());
    assert_eq!(gradient[..4], [0.0; 4]);
}

#[test]
fn a_teacher_in_bf16_is_read_as_it_is() {
    let mut case = Case::new(6, (20, 20), false);
    for loss in EVERY {
        let (rounded, gradient, _) = case.run(loss, 1, Element::BF16);
        case.teacher = Element::BF16.decode(&Element::BF16.encode(&case.teacher));
        let (value, same, _) = case.run(loss, 1, Element::F32);
        assert_eq!((rounded, gradient), (value, same));
    }
}
