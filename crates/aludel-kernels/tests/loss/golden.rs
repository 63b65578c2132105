//! Holds values and gradients to what torch's autograd gives in f64 for the published formulas.

use aludel_kernels::element::Element;
use aludel_kernels::loss::{
    Columns, Divergence, IGNORED, LabelTerm, Mode, Objective, Target, Term, logits_loss, reference,
};
use serde::Deserialize;

use crate::support::{buffer, cpu, distance, read, stored, wide};

#[derive(Deserialize)]
struct Record {
    student: Vec<f32>,
    teacher: Vec<f32>,
    labels: Vec<i64>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    student_valid: usize,
    teacher_valid: usize,
    terms: Vec<CaseTerm>,
    target: Vec<serde_json::Value>,
    label_weight: Option<f32>,
    values: Vec<f64>,
    cross_entropy: f64,
    gradient: Vec<f64>,
}

#[derive(Deserialize)]
struct CaseTerm {
    divergence: String,
    parameter: Option<f32>,
    weight: f32,
    temperature: f32,
    scale_by_t2: bool,
}

const STUDENT: usize = 24;
const TEACHER: usize = 23;

fn record() -> Record {
    serde_json::from_str(include_str!("../../../../tests/golden/loss/objectives.json")).unwrap()
}

impl Case {
    fn objective(&self) -> Objective {
        let terms = self.terms.iter().map(|term| Term {
            divergence: match (term.divergence.as_str(), term.parameter) {
                ("forward_kl", None) => Divergence::ForwardKl,
                ("reverse_kl", None) => Divergence::ReverseKl,
                ("jensen_shannon", Some(beta)) => Divergence::JensenShannon { beta },
                ("skewed_forward_kl", Some(lambda)) => Divergence::SkewedForwardKl { lambda },
                ("skewed_reverse_kl", Some(lambda)) => Divergence::SkewedReverseKl { lambda },
                ("total_variation", None) => Divergence::TotalVariation,
                ("soft_cross_entropy", None) => Divergence::SoftCrossEntropy,
                ("logits_mse", None) => Divergence::LogitsMse,
                other => panic!("{other:?}"),
            },
            weight: term.weight,
            temperature: term.temperature,
            scale_by_t2: term.scale_by_t2,
        });
        let number = |place: usize| self.target[place].as_f64().unwrap() as f32;
        let target = match self.target[0].as_str().unwrap() {
            "teacher" => Target::Teacher,
            "interpolated" => Target::InterpolatedLogits { t: number(1) },
            "mixture" => Target::Mixture { a: number(1), difficulty: number(2) },
            other => panic!("{other}"),
        };
        let labels = self.label_weight.map(|weight| LabelTerm { weight });
        Objective::new(terms.collect(), labels, target).unwrap()
    }
}

#[test]
fn the_kernels_agree_with_torch() {
    let record = record();
    assert_eq!(record.cases.len(), 29);
    let device = cpu(1);
    let labels: Vec<u32> = record.labels.iter().map(|&l| u32::try_from(l).unwrap_or(IGNORED)).collect();
    for case in &record.cases {
        let objective = case.objective();
        // All inputs are exact in f32; the teacher's in f16 as well.
        for element in [Element::F32, Element::F16] {
            let mut student = buffer(&device, &record.student);
            let teacher = stored(&device, &record.teacher, element);
            let report = logits_loss(
                &device,
                &objective,
                (Columns { stored: STUDENT, valid: case.student_valid }, &mut student),
                Some((Columns { stored: TEACHER, valid: case.teacher_valid }, &teacher)),
                &labels,
                1.0,
                Mode::Gradient,
            )
            .unwrap();
            assert_eq!(report.rows, 4);
            let name = format!("{objective:?}");
            assert!((report.cross_entropy / case.cross_entropy - 1.0).abs() < 1e-6, "{name}");
            for (got, expected) in report.terms.iter().zip(&case.values) {
                assert!((got / expected - 1.0).abs() < 2e-6, "{name}: {got} {expected}");
            }
            let off = distance(&read(&device, &student), &case.gradient);
            assert!(off < 2e-6, "{name}: {off:e}");
        }
    }
}

#[test]
fn the_specification_agrees_with_torch() {
    let record = record();
    for case in &record.cases {
        let objective = case.objective();
        let mut values = vec![0.0; case.values.len()];
        for (at, &label) in record.labels.iter().enumerate() {
            let Ok(label) = usize::try_from(label) else { continue };
            let student = wide(&record.student[at * STUDENT..][..case.student_valid]);
            let teacher = wide(&record.teacher[at * TEACHER..][..case.teacher_valid]);
            let row = reference::row(&objective, &student, &teacher, label);
            for (sum, value) in values.iter_mut().zip(row.terms) {
                *sum += value;
            }
            for (got, expected) in row.gradient.iter().zip(&case.gradient[at * STUDENT..]) {
                // Recorded with nine digits.
                assert!(
                    (got - expected).abs() < 1e-8 * expected.abs().max(1e-3),
                    "{objective:?}: {got} {expected}"
                );
            }
        }
        for (got, expected) in values.iter().zip(&case.values) {
            assert!((got / expected - 1.0).abs() < 1e-12, "{objective:?}: {got} {expected}");
        }
    }
}
