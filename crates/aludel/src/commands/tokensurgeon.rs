//! `aludel tokensurgeon`: gives a model the tokenizer of another.

use std::cell::OnceCell;
use std::path::Path;

use aludel_document::{Problem, Problems};
use aludel_hub::Hub;
use aludel_kernels::pursuit::{Metric, Weighting};
use aludel_merge::plan::{Approximation, Likeness, PieceWeights, Plan, PlanOptions, Transplant};
use aludel_model::Tokenizer;

use crate::args::{Approximations, SubwordMethod, Tables, TokensurgeonArguments, WeightScheme};
use crate::failure::Refusal;
use crate::hub;
use crate::printer::Printer;
use crate::settings::plan_options;

use super::merge;

/// Plans, with the model's own tokenizer where tokens are cut into pieces, and carries the plan out.
pub(super) fn run(arguments: &TokensurgeonArguments, printer: &Printer) -> anyhow::Result<()> {
    arguments.mergekit.heed(printer)?;
    if arguments.magikarp {
        let problem = Problem::general("--magikarp: tokens that are hardly trained are not looked for")
            .with_hint("leave it out: all tokens that both models know may be taken");
        return Err(refused(problem.into()).into());
    }
    let options = PlanOptions {
        hub: hub::open(printer),
        ..plan_options(
            &arguments.planning,
            arguments.seed.seed,
            Some(&arguments.output),
            arguments.writing.folder.force,
        )
    };
    let cutter = Cutter { model: &arguments.model, hub: &options.hub, tokenizer: OnceCell::new() };
    let plan =
        Plan::of_transplant(&transplant(arguments), &|text| cutter.cut(text), &options).map_err(refused)?;
    merge::carry_out(&plan, &arguments.output, &arguments.writing, printer)
}

fn transplant(arguments: &TokensurgeonArguments) -> Transplant<'_> {
    let k = arguments.k.get();
    let approximation = match arguments.approximation_method {
        Approximations::Omp => Approximation::Matching { k },
        Approximations::CommonInterpolation => Approximation::Nearest {
            k,
            metric: if arguments.cosine_similarity { Metric::Cosine } else { Metric::Euclidean },
            weighting: match arguments.weight_scheme {
                WeightScheme::DistanceProportional => Weighting::DistanceProportional,
                WeightScheme::Barycentric => Weighting::Barycentric,
                WeightScheme::LeastSquares => Weighting::LeastSquares,
            },
        },
        Approximations::Subword => Approximation::Pieces(match arguments.subword_method {
            SubwordMethod::Mean => PieceWeights::Mean,
            SubwordMethod::Sum => PieceWeights::Sum,
            SubwordMethod::WeightedMean => PieceWeights::Weighted,
            SubwordMethod::FirstLast => PieceWeights::FirstLast,
        }),
        Approximations::Mean => Approximation::Mean,
        Approximations::Zero => Approximation::Zero,
        Approximations::Randn => Approximation::Normal,
    };
    Transplant {
        model: &arguments.model,
        donor: &arguments.donor,
        approximation,
        prefix_match: likeness(arguments.prefix_match),
        byte_match: likeness(arguments.byte_match),
        noise: arguments.new_vocab_noise,
        scale: arguments.new_vocab_scale,
    }
}

const fn likeness(tables: Tables) -> Likeness {
    match tables {
        Tables::No => Likeness::No,
        Tables::Embed => Likeness::Embeddings,
        Tables::LmHead => Likeness::Heads,
        Tables::Yes => Likeness::Both,
    }
}

/// Cuts text as the model does; its tokenizer is opened by the first text.
struct Cutter<'a> {
    model: &'a str,
    hub: &'a Hub,
    tokenizer: OnceCell<Result<Tokenizer, String>>,
}

impl Cutter<'_> {
    fn cut(&self, text: &str) -> Result<Vec<u32>, String> {
        let tokenizer = self.tokenizer.get_or_init(|| self.open().map_err(|error| error.to_string()));
        let tokenizer = tokenizer.as_ref().map_err(Clone::clone)?;
        tokenizer.encode_plain(text).map(|tokens| tokens.ids).map_err(|error| error.to_string())
    }

    /// An adapter has no tokenizer of its own.
    fn open(&self) -> anyhow::Result<Tokenizer> {
        let carrier = self.model.split('+').next().unwrap_or_default();
        Ok(Tokenizer::open(&hub::locate(self.hub, Path::new(carrier))?)?)
    }
}

fn refused(problems: Problems) -> Refusal {
    Refusal { recipe: None, problems }
}
