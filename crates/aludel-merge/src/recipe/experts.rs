//! Reads a recipe that builds a mixture of experts out of dense models, in the keys of `mergekit-moe`.
//!
//! In: YAML. Out: an [`ExpertsRecipe`], or all of its faults at once with their places. Which models fit which output, and what gates
//! are made of, is not known here.

use std::sync::Arc;

use aludel_document::{Cursor, Located, Scalar, listed, nearest, quoted, tree};

use super::float::FloatType;
use super::keys::{EXPERT, EXPERTS};
use super::read::{located, optional};
use super::reference::ModelReference;
use super::tokenizer::read_whole;
use crate::problem::{Problem, Problems};

/// A mixture of experts as its author wrote it.
#[derive(Debug, Clone)]
pub struct ExpertsRecipe {
    /// The text that was parsed, unchanged.
    pub text: Arc<str>,
    /// The model that everything but the experts comes from.
    pub base_model: Located<ModelReference>,
    /// The experts that tokens are routed to; at least [`Self::experts_per_token`].
    pub experts: Vec<Expert>,
    /// Experts that see every token.
    pub shared_experts: Vec<Expert>,
    /// What routers are made of.
    pub gate_mode: Located<GateMode>,
    /// How many experts see a token; at least 1.
    pub experts_per_token: usize,
    /// The type of the output; the base model's when absent.
    pub dtype: Option<FloatType>,
    /// The beginning of the output architecture's name; chosen by the models when absent.
    pub architecture: Option<Located<String>>,
}

/// A model whose feed-forward layers are one expert of each layer.
#[derive(Debug, Clone)]
pub struct Expert {
    /// The model.
    pub source_model: Located<ModelReference>,
    /// Text like that which the expert is for.
    pub positive_prompts: Vec<String>,
    /// Text like that which it is not for.
    pub negative_prompts: Vec<String>,
    /// The deviation of the normal noise that is added to its weights.
    pub noise_scale: Option<f64>,
    /// A factor of its last projection.
    pub residual_scale: Option<f64>,
}

/// What the rows of routers are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateMode {
    /// Hidden states of the prompts' last tokens; `hidden` and `hidden_last`.
    HiddenLast,
    /// Means of the hidden states of the prompts' tokens; `hidden_avg`.
    HiddenAverage,
    /// Sums of the embeddings of the prompts' tokens; `cheap_embed`.
    CheapEmbed,
    /// Normal random numbers; `random`.
    Random,
    /// Uniform random numbers, as linear layers begin; `uniform_random`.
    UniformRandom,
}

const GATE_MODES: [(&str, GateMode); 6] = [
    ("hidden", GateMode::HiddenLast),
    ("hidden_avg", GateMode::HiddenAverage),
    ("hidden_last", GateMode::HiddenLast),
    ("cheap_embed", GateMode::CheapEmbed),
    ("random", GateMode::Random),
    ("uniform_random", GateMode::UniformRandom),
];

impl GateMode {
    /// Whether rows are made of prompts.
    pub fn reads_prompts(self) -> bool {
        !matches!(self, Self::Random | Self::UniformRandom)
    }

    /// Whether rows are made of hidden states, so that the base model has to run.
    pub fn is_hidden(self) -> bool {
        matches!(self, Self::HiddenLast | Self::HiddenAverage)
    }

    fn read(cursor: &Cursor<'_>) -> Result<Self, Problem> {
        let names = || GATE_MODES.iter().map(|(name, _)| *name);
        let name = cursor.text("what gates are made of")?;
        GATE_MODES.iter().find(|(known, _)| *known == name).map(|&(_, mode)| mode).ok_or_else(|| {
            let problem = cursor.problem(format!("unknown gate mode {}", quoted(name)));
            match nearest(name, names()) {
                Some(meant) => problem.with_hint(format!("did you mean `{meant}`?")),
                None => problem.with_hint(format!("there are {}", listed(names()))),
            }
        })
    }
}

impl ExpertsRecipe {
    /// Whether a text is of this kind rather than the recipe of a merge: it has `experts` and no `merge_method`.
    pub fn is_one(text: &str) -> bool {
        let root = tree::read_all(text, "recipe", &mut Problems::new());
        let [root] = root.as_slice() else { return false };
        let root = Cursor::root(root);
        root.field("experts").is_some() && root.field("merge_method").is_none()
    }

    /// Parses a recipe.
    ///
    /// # Errors
    /// All faults found. Faults of syntax end the search: what follows them cannot be read.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        let recipe = tree::read(text, "recipe", &mut problems)
            .and_then(|root| whole(&Cursor::root(&root), text, &mut problems));
        match recipe {
            Some(recipe) if problems.is_empty() => Ok(recipe),
            _ => Err(problems.in_order_of_place()),
        }
    }

    /// The experts whose gates have rows: those that tokens are routed to, then the shared ones where theirs are gated.
    pub fn gated(&self) -> Vec<&Expert> {
        let shared = self.shared_experts.iter().filter(|_| self.gates_shared());
        self.experts.iter().chain(shared).collect()
    }

    /// Whether shared experts have gates.
    pub fn gates_shared(&self) -> bool {
        let is_prompted = |expert: &Expert| !expert.positive_prompts.is_empty();
        !self.gate_mode.value.reads_prompts() || self.shared_experts.iter().any(is_prompted)
    }

    /// The problem that all experts are one model, so that the output computes what that does until it is trained.
    pub fn all_the_same(&self) -> Option<Problem> {
        let first = &self.experts.first()?.source_model;
        let is_first = |expert: &Expert| expert.source_model.value == first.value;
        if !self.gate_mode.value.reads_prompts() || !self.experts.iter().all(is_first) {
            return None;
        }
        let message = format!(
            "all experts are `{}`: the output takes more memory and computes the same",
            first.value.text()
        );
        let hint = "give other models, or --i-understand-this-is-not-useful-without-training to train it";
        Some(Problem::at(first.place.clone(), message).with_hint(hint))
    }
}

fn whole(root: &Cursor<'_>, text: &str, problems: &mut Problems) -> Option<ExpertsRecipe> {
    if !root.node.is_mapping() {
        let hint = "a recipe for a mixture of experts has `base_model:` and `experts:`";
        problems.push(root.mismatch("a mapping").with_hint(hint));
        return None;
    }
    root.check_keys(EXPERTS, "", problems);
    let missing = |key: &str, hint: &str| root.problem(format!("`{key}` is missing")).with_hint(hint);
    let base = root.field("base_model").ok_or_else(|| {
        missing("base_model", "name the model that attention, norms and embeddings come from")
    });
    let base_model = base.and_then(|cursor| located(ModelReference::read)(&cursor));
    let base_model = problems.take(base_model);
    let listed = root.field("experts");
    let listed =
        listed.ok_or_else(|| missing("experts", "list them, as in `- source_model: path/of/the/model`"));
    let experts = problems.take(listed).and_then(|cursor| read_experts(&cursor, problems));
    let shared = root.field("shared_experts").map(|cursor| read_experts(&cursor, problems));
    let gate_mode = match root.field("gate_mode") {
        Some(cursor) => problems.take(located(GateMode::read)(&cursor)),
        None => Some(root.locate(GateMode::HiddenLast)),
    };
    let count = |cursor: &Cursor<'_>| read_whole(cursor, 1, MOST_EXPERTS, "a whole number of at least 1");
    let per_token = optional(root, "experts_per_token", problems, located(count));
    let dtype = optional(root, "dtype", problems, FloatType::read);
    let text_of = |cursor: &Cursor<'_>| cursor.text("the name of an architecture").map(str::to_owned);
    let architecture = optional(root, "architecture", problems, located(text_of));
    let recipe = ExpertsRecipe {
        text: text.into(),
        base_model: base_model?,
        experts: experts?,
        shared_experts: shared.unwrap_or(Some(Vec::new()))?,
        gate_mode: gate_mode?,
        experts_per_token: per_token.as_ref().map_or(2, |count| count.value as usize),
        dtype,
        architecture,
    };
    if recipe.experts.len() < recipe.experts_per_token {
        let (have, want) = (recipe.experts.len(), recipe.experts_per_token);
        let place = per_token.map_or_else(|| root.place(), |count| count.place);
        let message = format!("every token goes to {want} experts, and {have} is listed");
        problems.push(Problem::at(place, message).with_hint("list more, or lower `experts_per_token`"));
    }
    if recipe.gate_mode.value.reads_prompts() {
        check_prompts(&recipe, problems);
    }
    Some(recipe)
}

fn read_experts(cursor: &Cursor<'_>, problems: &mut Problems) -> Option<Vec<Expert>> {
    let items = problems.take(cursor.items())?;
    let experts: Vec<Option<Expert>> = items.iter().map(|item| read_expert(item, problems)).collect();
    experts.into_iter().collect()
}

fn read_expert(cursor: &Cursor<'_>, problems: &mut Problems) -> Option<Expert> {
    let hint = "write it as `- source_model: path/of/the/model`";
    if !cursor.node.is_mapping() {
        problems.push(cursor.mismatch("a mapping with `source_model`").with_hint(hint));
        return None;
    }
    cursor.check_keys(EXPERT, "", problems);
    let model = cursor.field("source_model");
    let model = model.ok_or_else(|| cursor.problem("`source_model` is missing").with_hint(hint));
    let model = model.and_then(|cursor| located(ModelReference::read)(&cursor));
    let source_model = problems.take(model);
    let positive_prompts = optional(cursor, "positive_prompts", problems, read_prompts);
    let negative_prompts = optional(cursor, "negative_prompts", problems, read_prompts);
    let noise_scale = optional(cursor, "noise_scale", problems, read_number);
    let residual_scale = optional(cursor, "residual_scale", problems, read_number);
    Some(Expert {
        source_model: source_model?,
        positive_prompts: positive_prompts.unwrap_or_default(),
        negative_prompts: negative_prompts.unwrap_or_default(),
        noise_scale,
        residual_scale,
    })
}

fn read_prompts(cursor: &Cursor<'_>) -> Result<Vec<String>, Problem> {
    let hint = "write a list, with a `-` before each prompt";
    let items = cursor.items().map_err(|problem| problem.with_hint(hint))?;
    items.iter().map(|item| Ok(item.text("a prompt")?.to_owned())).collect()
}

fn read_number(cursor: &Cursor<'_>) -> Result<f64, Problem> {
    match cursor.scalar()? {
        Scalar::Number(number) => Ok(number),
        _ => Err(cursor.mismatch("a number")),
    }
}

/// Gates that are made of prompts need some, and not the same for all.
fn check_prompts(recipe: &ExpertsRecipe, problems: &mut Problems) {
    let lacks = |expert: &&Expert| expert.positive_prompts.is_empty();
    let lacking: Vec<&Expert> = recipe.experts.iter().filter(lacks).collect();
    for expert in &lacking {
        let message = "this expert has no `positive_prompts`, which its gate is made of";
        let hint = "add text like that which it is for, or choose `gate_mode: random`";
        problems.push(Problem::at(expert.source_model.place.clone(), message).with_hint(hint));
    }
    for expert in recipe.shared_experts.iter().filter(lacks).filter(|_| recipe.gates_shared()) {
        let message = "this shared expert has no `positive_prompts`, and another one has";
        let hint = "give prompts to all shared experts or to none";
        problems.push(Problem::at(expert.source_model.place.clone(), message).with_hint(hint));
    }
    let prompts = |expert: &Expert| (expert.positive_prompts.clone(), expert.negative_prompts.clone());
    if let [first, others @ ..] = recipe.experts.as_slice()
        && lacking.is_empty()
        && !others.is_empty()
        && others.iter().all(|other| prompts(other) == prompts(first))
    {
        let message = "all experts have the same prompts, so that their gates are the same";
        let hint = "give each expert text like that which is to go to it";
        problems.push(Problem::at(first.source_model.place.clone(), message).with_hint(hint));
    }
}

/// Far more than any model has.
const MOST_EXPERTS: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "base_model: a\nexperts:\n- {source_model: a, positive_prompts: [code]}\n- {source_model: b, positive_prompts: [prose], negative_prompts: ['1 + 1'], noise_scale: 0.1, residual_scale: 0.5}\n";

    fn faults(text: &str) -> Vec<String> {
        ExpertsRecipe::parse(text).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn keys_are_those_of_mergekit_moe_with_its_defaults() {
        let recipe = ExpertsRecipe::parse(TWO).unwrap();
        assert_eq!(recipe.gate_mode.value, GateMode::HiddenLast);
        assert_eq!((recipe.experts_per_token, recipe.dtype), (2, None));
        let expert = &recipe.experts[1];
        assert_eq!(expert.source_model.value.text(), "b");
        assert_eq!((&expert.positive_prompts[0][..], &expert.negative_prompts[0][..]), ("prose", "1 + 1"));
        assert_eq!((expert.noise_scale, expert.residual_scale), (Some(0.1), Some(0.5)));
        for (name, mode) in GATE_MODES {
            let recipe = ExpertsRecipe::parse(&format!("{TWO}gate_mode: {name}\n")).unwrap();
            assert_eq!(recipe.gate_mode.value, mode);
        }
        assert!(ExpertsRecipe::is_one(TWO));
        assert!(!ExpertsRecipe::is_one("merge_method: linear\nmodels: [{model: a}]\n"));
    }

    #[test]
    fn shared_experts_are_gated_by_prompts_or_chance() {
        let with = |shared: &str, mode: &str| {
            ExpertsRecipe::parse(&format!("{TWO}shared_experts: [{shared}]\ngate_mode: {mode}\n")).unwrap()
        };
        assert_eq!(with("{source_model: a}", "cheap_embed").gated().len(), 2);
        assert_eq!(with("{source_model: a, positive_prompts: [x]}", "cheap_embed").gated().len(), 3);
        assert_eq!(with("{source_model: a}", "random").gated().len(), 3);
    }

    #[test]
    fn what_cannot_work_is_refused_in_its_place() {
        let one = "base_model: a\nexperts: [{source_model: a, positive_prompts: [x]}]\n";
        for (text, problem) in [
            ("experts: []\n", "1:1: `base_model` is missing"),
            (one, "1:1: every token goes to 2 experts, and 1 is listed"),
            (
                "base_model: a\nexperts: [{source_model: a}, {source_model: b}]\n",
                "2:26 experts[0].source_model: this expert has no `positive_prompts`",
            ),
            (
                "base_model: a\nexperts: [{source_model: a, positive_prompts: [x]}, {source_model: b, positive_prompts: [x]}]\n",
                "2:26 experts[0].source_model: all experts have the same prompts",
            ),
            (&format!("{TWO}gate_mode: hiden\n"), "5:12 gate_mode: unknown gate mode `hiden` (did you mean"),
            (&format!("{TWO}gates: x\n"), "5:1 gates: unknown key `gates`"),
            (&format!("{TWO}experts_per_token: 0\n"), "5:20 experts_per_token: expected a whole number"),
            (
                "base_model: a\nexperts: [{source_model: a, positive_prompts: x}]\n",
                "1:1: every token goes to 2 experts",
            ),
        ] {
            let faults = faults(text);
            assert!(faults.iter().any(|fault| fault.starts_with(problem)), "{text}: {faults:?}");
        }
    }

    #[test]
    fn one_model_for_all_experts_has_to_be_meant() {
        let same = TWO.replace("source_model: b", "source_model: a");
        assert!(ExpertsRecipe::parse(&same).unwrap().all_the_same().is_some());
        assert!(ExpertsRecipe::parse(TWO).unwrap().all_the_same().is_none());
        let random = ExpertsRecipe::parse(&format!("{same}gate_mode: random\n")).unwrap();
        assert!(random.all_the_same().is_none(), "gates that are trained later");
    }
}
