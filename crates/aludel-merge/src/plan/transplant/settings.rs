//! Says what is asked of a transplant, and writes it down as the output keeps it.

use std::fmt::Write;

use aludel_kernels::pursuit::{Metric, Weighting};

use super::super::vocabulary::TableKind;

/// A model that gets the tokenizer of another.
#[derive(Clone, Copy, Debug)]
pub struct Transplant<'a> {
    /// The model, as a recipe may name it.
    pub model: &'a str,
    /// The model whose tokenizer it gets.
    pub donor: &'a str,
    /// How rows of tokens come about that the model does not know.
    pub approximation: Approximation,
    /// For which tables a token may have the row of its longest beginning.
    pub prefix_match: Likeness,
    /// For which tables a byte and the character of it may be the same.
    pub byte_match: Likeness,
    /// The deviation of noise that is added to rows of unknown tokens; 0 for none.
    pub noise: f64,
    /// What they are multiplied by after that; 1 for nothing.
    pub scale: f64,
}

/// How rows of tokens come about that a model does not know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Approximation {
    /// As a combination of up to `k` tokens that both know, by orthogonal matching pursuit in the donor's table.
    Matching {
        /// How many.
        k: usize,
    },
    /// As a combination of the `k` tokens that both know and that are nearest in the donor's table.
    Nearest {
        /// How many.
        k: usize,
        /// What is near.
        metric: Metric,
        /// How they are weighed.
        weighting: Weighting,
    },
    /// Of the rows of the pieces that the model's tokenizer cuts the token's text into.
    Pieces(PieceWeights),
    /// The mean of all rows.
    Mean,
    /// Zeros.
    Zero,
    /// Normal random numbers of deviation 1.
    Normal,
}

/// How the rows of a token's pieces become its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceWeights {
    /// Their mean.
    Mean,
    /// Their sum.
    Sum,
    /// Their mean, weighed 1, 2, 3 and so on: the last piece most in embeddings, the first in heads.
    Weighted,
    /// The last piece's in embeddings, the first one's in heads.
    FirstLast,
}

/// For which tables something holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// For none.
    No,
    /// For embeddings.
    Embeddings,
    /// For heads.
    Heads,
    /// For both.
    Both,
}

impl Likeness {
    pub(super) const fn holds(self, kind: TableKind) -> bool {
        match self {
            Self::No => false,
            Self::Both => true,
            Self::Embeddings => matches!(kind, TableKind::Embedding),
            Self::Heads => matches!(kind, TableKind::Head | TableKind::Bias),
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Embeddings => "embed",
            Self::Heads => "lm_head",
            Self::Both => "yes",
        }
    }
}

impl Transplant<'_> {
    /// What is asked for, in the words of the command line.
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "# aludel tokensurgeon\nmodel: {}\ndonor: {}\napproximation_method: ",
            string(self.model),
            string(self.donor)
        );
        text.push_str(&match self.approximation {
            Approximation::Matching { k } => format!("omp\nk: {k}\n"),
            Approximation::Nearest { k, metric, weighting } => {
                let weighting = match weighting {
                    Weighting::DistanceProportional => "distance_proportional",
                    Weighting::Barycentric => "barycentric",
                    Weighting::LeastSquares => "least_squares",
                };
                let cosine = metric == Metric::Cosine;
                format!(
                    "common_interpolation\nk: {k}\ncosine_similarity: {cosine}\nweight_scheme: {weighting}\n"
                )
            }
            Approximation::Pieces(weights) => {
                let method = match weights {
                    PieceWeights::Mean => "mean",
                    PieceWeights::Sum => "sum",
                    PieceWeights::Weighted => "weighted_mean",
                    PieceWeights::FirstLast => "first_last",
                };
                format!("subword\nsubword_method: {method}\n")
            }
            Approximation::Mean => "mean\n".to_owned(),
            Approximation::Zero => "zero\n".to_owned(),
            Approximation::Normal => "randn\n".to_owned(),
        });
        for (key, likeness) in [("prefix_match", self.prefix_match), ("byte_match", self.byte_match)] {
            let _ = writeln!(text, "{key}: \"{}\"", likeness.text());
        }
        let _ = writeln!(text, "new_vocab_noise: {}\nnew_vocab_scale: {}", self.noise, self.scale);
        text
    }
}

/// A JSON string, which is a YAML string, whatever is in it.
fn string(text: &str) -> serde_json::Value {
    text.into()
}
