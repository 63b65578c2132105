//! Holds the fused head to the specification in f64: products, soft cap, scale and bias included, in chunks of any size.

use aludel_kernels::element::Element;
use aludel_kernels::loss::{
    Columns, Head, HeadGradient, HeadReport, IGNORED, LabelTerm, Objective, Target, TeacherRows, each_logits,
    head_loss, reference,
};
use aludel_kernels::nn::DeviceError;

use crate::support::{DIVERGENCES, Numbers, TARGETS, buffer, cpu, distance, mixed, read, stored, term, wide};

/// A head with its hidden states.
#[derive(Clone)]
struct Side {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    hidden: Vec<f32>,
    columns: Columns,
    width: usize,
    scale: f32,
    soft_cap: Option<f32>,
}

struct Gradients {
    d_hidden: Vec<f64>,
    d_weight: Vec<f64>,
    d_bias: Vec<f64>,
}

impl Side {
    fn new(numbers: &mut Numbers, rows: usize, columns: Columns, width: usize) -> Self {
        let spread = 2.0 / (width as f32).sqrt();
        Self {
            weight: numbers.normals(columns.stored * width, spread),
            bias: None,
            hidden: numbers.normals(rows * width, 1.0),
            columns,
            width,
            scale: 1.0,
            soft_cap: None,
        }
    }

    /// The logits of a row before and after the cap, over the valid columns.
    fn logits(&self, row: usize) -> (Vec<f64>, Vec<f64>) {
        let hidden = &self.hidden[row * self.width..][..self.width];
        let dot = |weights: &[f32]| -> f64 {
            weights.iter().zip(hidden).map(|(&w, &h)| f64::from(w) * f64::from(h)).sum()
        };
        let bare: Vec<f64> = (0..self.columns.valid)
            .map(|column| {
                let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[column]));
                f64::from(self.scale) * dot(&self.weight[column * self.width..][..self.width]) + bias
            })
            .collect();
        let capped = bare.iter().map(|&z| match self.soft_cap {
            Some(cap) => f64::from(cap) * (z / f64::from(cap)).tanh(),
            None => z,
        });
        (bare.clone(), capped.collect())
    }
}

const FACTOR: f64 = 0.125;

/// What gradients are added to: small, so that they keep their digits.
const START: f32 = 1.0 / 128.0;

struct Case {
    student: Side,
    teacher: Side,
    labels: Vec<u32>,
}

impl Case {
    fn new(seed: u64, rows: usize, student: Columns, teacher: Columns) -> Self {
        let mut numbers = Numbers(seed);
        Self {
            student: Side::new(&mut numbers, rows, student, 24),
            teacher: Side::new(&mut numbers, rows, teacher, 40),
            labels: (0..rows)
                .map(|row| if row % 4 == 1 { IGNORED } else { numbers.below(student.valid) as u32 })
                .collect(),
        }
    }

    fn usual(seed: u64) -> Self {
        Self::new(seed, 13, Columns { stored: 70, valid: 64 }, Columns { stored: 66, valid: 65 })
    }

    fn exact(&self, objective: &Objective) -> (Vec<f64>, Gradients) {
        let Side { columns, width, scale, soft_cap, .. } = self.student;
        let mut values = vec![0.0; objective.terms().len()];
        let mut to = Gradients {
            d_hidden: vec![0.0; self.student.hidden.len()],
            d_weight: vec![0.0; self.student.weight.len()],
            d_bias: vec![0.0; columns.stored],
        };
        for (row, &label) in self.labels.iter().enumerate().filter(|(_, label)| **label != IGNORED) {
            let (bare, student) = self.student.logits(row);
            let (_, teacher) = self.teacher.logits(row);
            let exact = reference::row(objective, &student, &teacher, label as usize);
            values.iter_mut().zip(exact.terms).for_each(|(sum, value)| *sum += value);
            for (column, slope) in exact.gradient.into_iter().enumerate() {
                let through_cap =
                    soft_cap.map_or(1.0, |cap| 1.0 - (bare[column] / f64::from(cap)).tanh().powi(2));
                let slope = FACTOR * slope * through_cap;
                to.d_bias[column] += slope;
                for i in 0..width {
                    let (h, w) = (row * width + i, column * width + i);
                    to.d_hidden[h] += slope * f64::from(scale) * f64::from(self.student.weight[w]);
                    to.d_weight[w] += slope * f64::from(scale) * f64::from(self.student.hidden[h]);
                }
            }
        }
        (values, to)
    }

    fn run(
        &self,
        objective: &Objective,
        memory: usize,
        element: Element,
        threads: usize,
    ) -> (HeadReport, [Vec<f32>; 3]) {
        let device = cpu(threads);
        let side = |side: &Side| {
            (
                stored(&device, &side.weight, element),
                side.bias.as_ref().map(|bias| buffer(&device, bias)),
                buffer(&device, &side.hidden),
            )
        };
        let (student, teacher) = (side(&self.student), side(&self.teacher));
        fn head<'a, B>(side: &Side, parts: &'a (B, Option<B>, B)) -> Head<'a, B> {
            Head {
                weight: &parts.0,
                bias: parts.1.as_ref(),
                vocabulary: side.columns.stored,
                valid: side.columns.valid,
                width: side.width,
                scale: side.scale,
                soft_cap: side.soft_cap,
            }
        }
        let student_head = head(&self.student, &student);
        let teacher_rows = TeacherRows::Hidden { head: head(&self.teacher, &teacher), hidden: &teacher.2 };
        let mut d_hidden = buffer(&device, &vec![f32::NAN; self.student.hidden.len()]);
        let mut d_weight = buffer(&device, &vec![START; self.student.weight.len()]);
        let mut d_bias = buffer(&device, &vec![START; self.student.columns.stored]);
        let gradient = HeadGradient {
            d_hidden: &mut d_hidden,
            d_weight: Some(&mut d_weight),
            d_bias: self.student.bias.is_some().then_some(&mut d_bias),
        };
        let rows = (&student_head, &student.2);
        let report = head_loss(
            &device,
            objective,
            rows,
            Some(&teacher_rows),
            &self.labels,
            FACTOR,
            Some(gradient),
            memory,
        )
        .unwrap()
        .report(&device)
        .unwrap();
        let less = |buffer| read(&device, buffer).iter().map(|x| x - START).collect();
        (report, [read(&device, &d_hidden), less(&d_weight), less(&d_bias)])
    }

    fn check(&self, objective: &Objective, memory: usize) {
        let (values, exact) = self.exact(objective);
        let (report, [d_hidden, d_weight, d_bias]) = self.run(objective, memory, Element::F32, 1);
        for (got, expected) in report.terms.iter().zip(values) {
            assert!((got - expected).abs() <= 1e-5 * expected, "{objective:?}: {got} {expected}");
        }
        let bias = self.student.bias.as_ref().map(|_| (&d_bias, &exact.d_bias));
        let pairs = [Some((&d_hidden, &exact.d_hidden)), Some((&d_weight, &exact.d_weight)), bias];
        for (got, expected) in pairs.into_iter().flatten() {
            let off = distance(got, expected);
            assert!(off < 1e-5, "{objective:?}: {off:e}");
        }
    }
}

#[test]
fn every_divergence_goes_through_the_head() {
    let case = Case::usual(1);
    for divergence in DIVERGENCES {
        let objective = Objective::new(vec![term(divergence, 2.0)], None, Target::Teacher).unwrap();
        case.check(&objective, 1 << 20);
    }
    TARGETS.iter().for_each(|&target| case.check(&mixed(target), 1 << 20));
}

#[test]
fn chunks_of_any_size_give_the_same() {
    let case = Case::usual(2);
    let objective = mixed(Target::Teacher);
    let (whole, [d_hidden, ..]) = case.run(&objective, 1 << 30, Element::F32, 1);
    for memory in [0, 1500, 3000, 5000] {
        case.check(&objective, memory);
        let (report, [again, ..]) = case.run(&objective, memory, Element::F32, 3);
        // Products of one row may be summed in another order than those of many.
        let off = distance(&again, &wide(&d_hidden));
        assert!(off < 1e-6, "{off:e}");
        assert!((report.value(&objective) / whole.value(&objective) - 1.0).abs() < 1e-6);
        assert_eq!(
            (report.rows, report.correct, report.agreement),
            (whole.rows, whole.correct, whole.agreement)
        );
    }
}

#[test]
fn threads_change_no_bit() {
    let case = Case::new(3, 40, Columns { stored: 700, valid: 699 }, Columns { stored: 720, valid: 710 });
    let objective = mixed(Target::Mixture { a: 0.8, difficulty: 0.3 });
    assert_eq!(case.run(&objective, 60_000, Element::F32, 1), case.run(&objective, 60_000, Element::F32, 4));
}

#[test]
fn soft_cap_scale_and_bias_have_their_gradients() {
    let mut case = Case::usual(4);
    let mut numbers = Numbers(40);
    for (scale, soft_cap, with_bias) in
        [(0.125, None, false), (1.0, Some(3.0), false), (0.5, Some(2.0), true)]
    {
        for side in [&mut case.student, &mut case.teacher] {
            side.scale = scale;
            side.soft_cap = soft_cap;
            side.bias = with_bias.then(|| numbers.normals(side.columns.stored, 1.0));
        }
        TARGETS.iter().for_each(|&target| case.check(&mixed(target), 2000));
    }
}

#[test]
fn weights_in_bf16_stay_within_two_percent() {
    let case = Case::usual(5);
    // Without the total variation, whose gradient jumps where P and Q cross.
    let terms = mixed(Target::Teacher).terms()[..3].to_vec();
    let objective = Objective::new(terms, Some(LabelTerm { weight: 0.25 }), Target::Teacher).unwrap();
    let (values, exact) = case.exact(&objective);
    let (report, [d_hidden, d_weight, _]) = case.run(&objective, 1 << 20, Element::BF16, 1);
    for (got, expected) in report.terms.iter().zip(values) {
        assert!((got / expected - 1.0).abs() < 2e-2);
    }
    let off = (distance(&d_hidden, &exact.d_hidden), distance(&d_weight, &exact.d_weight));
    assert!(off.0 < 2e-2 && off.1 < 2e-2, "{off:?}");
}

#[test]
fn a_step_without_a_valid_row_leaves_zeros() {
    let mut case = Case::usual(6);
    case.labels.fill(IGNORED);
    let objective = mixed(Target::Teacher);
    let (report, gradients) = case.run(&objective, 1 << 20, Element::F32, 1);
    assert_eq!((report.rows, report.value(&objective)), (0, 0.0));
    assert!(gradients.iter().flatten().all(|g| *g == 0.0));
}

#[test]
fn a_frozen_head_still_passes_the_gradient_on() {
    let case = Case::usual(9);
    let objective = mixed(Target::Teacher);
    let (_, [expected, ..]) = case.run(&objective, 1 << 20, Element::F32, 1);
    let device = cpu(1);
    let (weight, hidden) = (buffer(&device, &case.student.weight), buffer(&device, &case.student.hidden));
    let logits: Vec<f32> = (0..13).flat_map(|row| case.teacher.logits(row).1).map(|z| z as f32).collect();
    let logits = buffer(&device, &logits);
    let columns = Columns { stored: 65, valid: 65 };
    let teacher = TeacherRows::Logits { logits: &logits, columns };
    let head = Head {
        weight: &weight,
        bias: None,
        vocabulary: 70,
        valid: 64,
        width: 24,
        scale: 1.0,
        soft_cap: None,
    };
    let mut d_hidden = buffer(&device, &vec![0.0; case.student.hidden.len()]);
    let gradient = HeadGradient { d_hidden: &mut d_hidden, d_weight: None, d_bias: None };
    let rows = (&head, &hidden);
    head_loss(&device, &objective, rows, Some(&teacher), &case.labels, FACTOR, Some(gradient), 1 << 20)
        .unwrap();
    assert!(distance(&read(&device, &d_hidden), &wide(&expected)) < 1e-6);
}

/// The finite differences go through the public function, in f32: a step that its rounding allows.
#[test]
fn differences_of_the_value_are_the_gradient() {
    let case = Case::new(7, 3, Columns { stored: 12, valid: 11 }, Columns { stored: 11, valid: 11 });
    for divergence in DIVERGENCES {
        let labels = Some(LabelTerm { weight: 0.5 });
        let objective = Objective::new(vec![term(divergence, 1.5)], labels, Target::Teacher).unwrap();
        let (_, [d_hidden, d_weight, _]) = case.run(&objective, 1 << 20, Element::F32, 1);
        let value = |change: &dyn Fn(&mut Side)| {
            let mut moved = Case {
                student: case.student.clone(),
                teacher: case.teacher.clone(),
                labels: case.labels.clone(),
            };
            change(&mut moved.student);
            moved.run(&objective, 1 << 20, Element::F32, 1).0.value(&objective)
        };
        let step = 1.0f32 / 128.0;
        for at in [0, 23, 30, 60] {
            let hidden = value(&|s| s.hidden[at] += step) - value(&|s| s.hidden[at] -= step);
            let weight = value(&|s| s.weight[at] += step) - value(&|s| s.weight[at] -= step);
            for (numeric, got) in [(hidden, d_hidden[at]), (weight, d_weight[at])] {
                let off = (FACTOR * numeric / (2.0 * f64::from(step)) - f64::from(got)).abs();
                assert!(off < 2e-4, "{divergence:?} {at}: {off:e} {got}");
            }
        }
    }
}

#[test]
fn an_evaluation_reports_values_and_records() {
    let case = Case::usual(8);
    let device = cpu(1);
    let parts = |side: &Side| (buffer(&device, &side.weight), buffer(&device, &side.hidden));
    let ((weight, hidden), (teacher_weight, teacher_hidden)) = (parts(&case.student), parts(&case.teacher));
    let head = Head {
        weight: &weight,
        bias: None,
        vocabulary: 70,
        valid: 64,
        width: 24,
        scale: 1.0,
        soft_cap: None,
    };
    let teacher_head = Head { weight: &teacher_weight, vocabulary: 66, valid: 65, width: 40, ..head };
    let live = TeacherRows::Hidden { head: teacher_head, hidden: &teacher_hidden };
    let logits: Vec<f32> = (0..13)
        .flat_map(|row| case.teacher.logits(row).1.into_iter().map(|z| z as f32).chain([f32::NAN]))
        .collect();
    let logits = buffer(&device, &logits);
    let dense = TeacherRows::Logits { logits: &logits, columns: Columns { stored: 66, valid: 65 } };
    let objective = mixed(Target::Teacher);
    let run = |teacher: Option<&TeacherRows<'_, _>>, objective: &Objective| {
        let measured =
            head_loss(&device, objective, (&head, &hidden), teacher, &case.labels, 1.0, None, 3000);
        measured.unwrap().report(&device).unwrap()
    };
    let (live, dense) = (run(Some(&live), &objective), run(Some(&dense), &objective));
    let (values, _) = case.exact(&objective);
    assert!((live.terms[0] / values[0] - 1.0).abs() < 1e-5);
    assert!((live.value(&objective) / dense.value(&objective) - 1.0).abs() < 1e-5);
    assert!((live.forward_kl / dense.forward_kl - 1.0).abs() < 1e-5 && live.forward_kl > 1.0);
    assert!((live.reverse_kl / dense.reverse_kl - 1.0).abs() < 1e-5);
    assert_eq!((live.rows, live.correct, live.agreement), (dense.rows, dense.correct, dense.agreement));

    let labels = Objective::new(vec![], Some(LabelTerm { weight: 1.0 }), Target::Teacher).unwrap();
    let alone = run(None, &labels);
    // Chunks are larger without a teacher.
    assert!((alone.cross_entropy / live.cross_entropy - 1.0).abs() < 1e-6);
    assert_eq!((alone.terms.len(), alone.forward_kl, alone.agreement), (0, 0.0, 0));
}

/// Rows come in their order, whatever chunks they are computed in; buffers of one chunk are used again for the next.
#[test]
fn logits_of_some_rows_are_exact_in_chunks_of_any_size() {
    let case = Case::usual(7);
    let side = Side { soft_cap: Some(4.0), scale: 0.5, ..case.student };
    let device = cpu(2);
    let (weight, hidden) = (buffer(&device, &side.weight), buffer(&device, &side.hidden));
    let head = Head {
        weight: &weight,
        bias: None,
        vocabulary: side.columns.stored,
        valid: side.columns.valid,
        width: side.width,
        scale: side.scale,
        soft_cap: side.soft_cap,
    };
    let rows = [0, 1, 2, 4, 5, 7, 8, 9, 10, 12];
    let of_row = 4 * (side.columns.stored + 2 * side.width);
    // One row, three (and one that is left), and all at once.
    for (in_chunk, chunks) in [(1, 10), (3, 4), (10, 1)] {
        let mut taken = Vec::new();
        let take = |made: Vec<(usize, Vec<f32>)>| {
            taken.push(made);
            Ok::<(), DeviceError>(())
        };
        let f = |at: usize, logits: &[f32]| (at, logits.to_vec());
        each_logits(&device, (&head, &hidden), &rows, in_chunk * of_row, f, take).unwrap();
        assert_eq!(taken.len(), chunks);
        let taken: Vec<_> = taken.into_iter().flatten().collect();
        assert_eq!(taken.len(), rows.len());
        for (place, (at, logits)) in taken.into_iter().enumerate() {
            let (_, exact) = side.logits(rows[place]);
            assert!(at == place && logits.len() == exact.len());
            assert!(logits.iter().zip(exact).all(|(x, y)| (f64::from(*x) - y).abs() < 1e-5));
        }
    }
}
