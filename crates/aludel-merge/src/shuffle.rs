//! Draws layers from several models at random and writes the recipe that stacks them.
//!
//! In: models and how often each is drawn. Out: the text of a recipe, which depends on that and the seed alone. It merges nothing, and does
//! not ask whether models fit each other: the plan of the recipe does.

use std::fmt::Write;

use aludel_hub::Hub;
use aludel_kernels::random::{StreamKey, uniform};

use crate::plan::Opened;
use crate::problem::{Problem, Problems};
use crate::recipe::FloatType;

/// What is drawn.
#[derive(Clone, Debug)]
pub struct Shuffle<'a> {
    /// The models; at least one.
    pub models: &'a [String],
    /// One for each model; the same for all where there are none.
    pub weights: &'a [f64],
    /// What chance decides.
    pub drawn: Drawn,
    /// The type that the recipe asks for.
    pub dtype: Option<FloatType>,
    /// Keys the random numbers.
    pub seed: u64,
    /// Where models are that are on a hub; headers are enough.
    pub hub: Hub,
}

/// What chance decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drawn {
    /// For every layer of the output, the model whose layer of the same number it is. A weight is how often a model is drawn, in
    /// relation to the others.
    Models,
    /// From every model, layers of any number, some perhaps more than once, in any order. A weight is how many, in relation to the layers that
    /// the model has.
    Layers,
}

/// Layers of a model, the last one excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    model: usize,
    from: usize,
    to: usize,
}

/// The recipe.
///
/// # Errors
/// Models that cannot be opened or whose layers cannot be told, and weights that do not fit them.
pub fn recipe(shuffle: &Shuffle<'_>) -> Result<String, Problems> {
    let references: Vec<&str> = shuffle.models.iter().map(String::as_str).collect();
    let opened = Opened::open(&references, &shuffle.hub)?;
    let mut problems = Problems::new();
    let layers = (0..references.len()).map(|model| {
        opened.layers(model).ok_or_else(|| {
            let message = format!("`{}` has no layers, or several stacks of them", references[model]);
            Problem::general(message).with_hint("write the recipe with `modules` and `slices` by hand")
        })
    });
    let layers: Vec<usize> = layers.filter_map(|layers| problems.take(layers)).collect();
    let weights = problems.take(weights(shuffle));
    let (Some(weights), true) = (weights, problems.is_empty()) else { return Err(problems) };
    let runs = match shuffle.drawn {
        Drawn::Models => draw_models(&layers, &weights, &references, shuffle.seed)?,
        Drawn::Layers => draw_layers(&layers, &weights, shuffle.seed)?,
    };
    Ok(text(&runs, shuffle))
}

fn weights(shuffle: &Shuffle<'_>) -> Result<Vec<f64>, Problem> {
    let models = shuffle.models.len();
    match shuffle.weights {
        [] => Ok(vec![1.0 / models as f64; models]),
        weights if weights.len() != models => {
            let message = format!("{models} models and {} weights", weights.len());
            Err(Problem::general(message)
                .with_hint("give one `--weight` for each `--model`, in the same order"))
        }
        weights if weights.iter().sum::<f64>() > 0.0 => Ok(weights.to_vec()),
        _ => Err(Problem::general("all weights are 0").with_hint("give at least one model a weight above 0")),
    }
}

/// A model for every layer; runs of the same model are one.
fn draw_models(layers: &[usize], weights: &[f64], names: &[&str], seed: u64) -> Result<Vec<Run>, Problem> {
    let count = layers[0];
    if let Some(other) = layers.iter().position(|&other| other != count) {
        let message =
            format!("`{}` has {count} layers and `{}` has {}", names[0], names[other], layers[other]);
        return Err(
            Problem::general(message).with_hint("models of different depths are shuffled with --full-random")
        );
    }
    let whole: f64 = weights.iter().sum();
    let mut random = Random::new(seed);
    let mut runs: Vec<Run> = Vec::new();
    for layer in 0..count {
        let mut left = random.next() * whole;
        let passed = |weight: &f64| {
            left -= weight;
            left < 0.0
        };
        // Rounding may leave a crumb beyond the last weight.
        let last = weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0);
        let model = weights.iter().position(passed).unwrap_or(last);
        match runs.last_mut() {
            Some(run) if run.model == model => run.to = layer + 1,
            _ => runs.push(Run { model, from: layer, to: layer + 1 }),
        }
    }
    Ok(runs)
}

/// Layers of all models in any order.
fn draw_layers(layers: &[usize], weights: &[f64], seed: u64) -> Result<Vec<Run>, Problem> {
    let mut random = Random::new(seed);
    let mut runs = Vec::new();
    for (model, (&layers, weight)) in layers.iter().zip(weights).enumerate() {
        let count = layers as f64 * weight;
        if count > MOST_LAYERS {
            let message = format!("a weight of {weight} draws {count:.0} layers");
            return Err(Problem::general(message).with_hint("a weight of 1 draws as many as the model has"));
        }
        for _ in 0..count as usize {
            let from = random.below(layers);
            runs.push(Run { model, from, to: from + 1 });
        }
    }
    // Fisher and Yates: each order is as likely as any other.
    for end in (1..runs.len()).rev() {
        runs.swap(end, random.below(end + 1));
    }
    if runs.is_empty() {
        let problem = Problem::general("the weights draw no layer from any model");
        return Err(problem.with_hint("a weight of 1 draws as many layers as the model has"));
    }
    Ok(runs)
}

fn text(runs: &[Run], shuffle: &Shuffle<'_>) -> String {
    let mut text = String::from("merge_method: passthrough\n");
    if let Some(dtype) = shuffle.dtype {
        let _ = writeln!(text, "dtype: {}", dtype.torch_name());
    }
    text.push_str("slices:\n");
    for &Run { model, from, to } in runs {
        // A JSON string is a YAML string, whatever is in it.
        let name = serde_json::Value::from(shuffle.models[model].as_str());
        let _ = writeln!(text, "  - sources:\n      - model: {name}\n        layer_range: [{from}, {to}]");
    }
    text
}

/// Random numbers one after another.
struct Random {
    key: StreamKey,
    next: u64,
}

impl Random {
    const fn new(seed: u64) -> Self {
        Self { key: StreamKey(seed), next: 0 }
    }

    /// In `[0, 1)`.
    fn next(&mut self) -> f64 {
        let number = uniform(self.key, self.next);
        self.next += 1;
        f64::from(number)
    }

    /// A number below `count`, which is at least 1.
    fn below(&mut self, count: usize) -> usize {
        ((self.next() * count as f64) as usize).min(count - 1)
    }
}

/// More than any model has; what a slip of the key asks for is refused.
const MOST_LAYERS: f64 = 100_000.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn shuffle<'a>(models: &'a [String], dtype: Option<FloatType>) -> Shuffle<'a> {
        Shuffle { models, weights: &[], drawn: Drawn::Models, dtype, seed: 0, hub: Hub::none() }
    }

    #[test]
    fn every_place_is_taken_once_and_neighbours_of_one_model_are_one_run() {
        for seed in 0..20 {
            let runs = draw_models(&[24, 24, 24], &[0.5, 0.0, 0.5], &["a", "b", "c"], seed).unwrap();
            let layers: Vec<usize> = runs.iter().flat_map(|run| run.from..run.to).collect();
            assert_eq!(layers, (0..24).collect::<Vec<_>>());
            assert!(runs.windows(2).all(|pair| pair[0].model != pair[1].model));
            assert!(runs.iter().all(|run| run.model != 1));
        }
        let runs = |seed| draw_models(&[24, 24], &[1.0, 1.0], &["a", "b"], seed).unwrap();
        assert_eq!(runs(3), runs(3));
        assert_ne!(runs(3), runs(4));
    }

    #[test]
    fn a_weight_is_how_often_a_model_is_drawn() {
        let count = |seed| {
            let runs = draw_models(&[100, 100], &[3.0, 1.0], &["a", "b"], seed).unwrap();
            runs.iter().filter(|run| run.model == 0).map(|run| run.to - run.from).sum::<usize>()
        };
        let mean = (0..50).map(count).sum::<usize>() as f64 / 50.0;
        assert!((mean - 75.0).abs() < 2.0, "{mean}");
    }

    #[test]
    fn layers_come_from_the_whole_of_their_model() {
        let runs = draw_layers(&[10, 20], &[0.5, 1.0], 7).unwrap();
        let of = |model: usize| runs.iter().filter(move |run| run.model == model);
        assert_eq!((of(0).count(), of(1).count()), (5, 20));
        assert!(of(1).any(|run| run.from >= 10) && of(0).all(|run| run.from < 10));
        assert!(draw_layers(&[10], &[0.05], 0).is_err());
        assert!(draw_layers(&[10], &[1e9], 0).is_err());
    }

    #[test]
    fn models_of_other_depths_are_refused_where_places_are_shared() {
        assert!(draw_models(&[4, 6], &[1.0, 1.0], &["a", "b"], 0).is_err());
    }

    #[test]
    fn a_recipe_is_text_that_is_read_again_whatever_the_models_are_called() {
        let models = ["a: \"b\" #".to_owned()];
        let text = text(&[Run { model: 0, from: 1, to: 3 }], &shuffle(&models, Some(FloatType::F16)));
        let recipe = crate::recipe::Recipe::parse(&text).unwrap();
        let source = &recipe.parts[0].slices[0].sources[0];
        assert_eq!(source.reference.value.text(), models[0]);
        assert_eq!(source.layers.as_ref().unwrap().value, 1..3);
    }
}
