//! Names what was measured, for the record.

use aludel_kernels::loss::{HeadReport, Objective, Target};
use indexmap::IndexMap;

use crate::run::{self, Loss};
use crate::step::StepReport;

/// Names of the terms of an objective, as in a run; those that come again have a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TermNames {
    /// In the order of the kernels' objective.
    divergences: Vec<String>,
    hidden: Vec<String>,
    has_labels: bool,
}

impl TermNames {
    pub(super) fn of(objective: &run::Objective) -> Self {
        let mut seen: IndexMap<&'static str, usize> = IndexMap::new();
        let mut numbered = |term: &run::ObjectiveTerm| {
            let name = name(&term.loss);
            let count = seen.entry(name).or_default();
            *count += 1;
            if *count == 1 { name.to_owned() } else { format!("{name}_{count}") }
        };
        Self {
            divergences: objective
                .terms
                .iter()
                .filter(|term| term.divergence().is_some())
                .map(&mut numbered)
                .collect(),
            hidden: objective.hidden().map(&mut numbered).collect(),
            has_labels: objective.labels().is_some(),
        }
    }

    fn count(&self) -> usize {
        self.divergences.len() + self.hidden.len() + usize::from(self.has_labels)
    }

    /// What a step measured, beside a teacher with the same tokens also how often both agree. Terms have values of their own where there are several.
    pub(super) fn of_step(&self, report: &StepReport, has_shared_tokens: bool) -> IndexMap<String, f64> {
        let valid = report.head.rows as f64;
        let mut values = IndexMap::from([("loss".to_owned(), report.loss)]);
        if self.count() > 1 {
            values.extend(self.divergences.iter().cloned().zip(report.head.means()));
            values.extend(self.hidden.iter().cloned().zip(report.hidden.iter().copied()));
        }
        values.insert("cross_entropy".into(), report.head.cross_entropy / valid);
        values.insert("accuracy".into(), report.head.correct as f64 / valid);
        if has_shared_tokens {
            values.insert("top1".into(), report.head.agreement as f64 / valid);
        }
        match report.target {
            Target::Teacher => {}
            Target::InterpolatedLogits { t } => {
                values.insert("taid_t".into(), f64::from(t));
            }
            Target::Mixture { a, .. } => {
                values.insert("taid_a".into(), f64::from(a));
            }
        }
        values.insert("learning_rate".into(), report.learning_rate);
        values.insert("gradient_norm".into(), report.gradient_norm);
        values
    }

    /// What an evaluation measured.
    pub(super) fn of_evaluation(
        &self,
        report: &HeadReport,
        objective: &Objective,
        has_shared_tokens: bool,
    ) -> IndexMap<String, f64> {
        let valid = report.rows as f64;
        let mut values = IndexMap::from([("loss".to_owned(), report.mean(objective))]);
        if self.count() > 1 {
            values.extend(self.divergences.iter().cloned().zip(report.means()));
        }
        let cross_entropy = report.cross_entropy / valid;
        values.insert("cross_entropy".into(), cross_entropy);
        values.insert("perplexity".into(), cross_entropy.exp());
        values.insert("accuracy".into(), report.correct as f64 / valid);
        if has_shared_tokens {
            values.insert("kl".into(), report.forward_kl / valid);
            values.insert("kl_reverse".into(), report.reverse_kl / valid);
            values.insert("top1".into(), report.agreement as f64 / valid);
        }
        values
    }
}

/// As a run spells it.
const fn name(loss: &Loss) -> &'static str {
    match loss {
        Loss::ForwardKl(_) => "forward_kl",
        Loss::ReverseKl(_) => "reverse_kl",
        Loss::Jsd { .. } => "jsd",
        Loss::SkewedForwardKl { .. } => "skewed_forward_kl",
        Loss::SkewedReverseKl { .. } => "skewed_reverse_kl",
        Loss::TotalVariation(_) => "total_variation",
        Loss::SoftCrossEntropy(_) => "soft_cross_entropy",
        Loss::LogitsMse(_) => "logits_mse",
        Loss::Uld(_) => "uld",
        Loss::CrossEntropy => "cross_entropy",
        Loss::HiddenMse { .. } => "hidden_mse",
        Loss::HiddenCosine { .. } => "hidden_cosine",
        Loss::AttentionTransfer { .. } => "attention_transfer",
    }
}
