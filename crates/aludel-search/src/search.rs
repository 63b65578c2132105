//! Asks for candidates, has them scored, and tells the strategy, until the evaluations are used up or nothing changes any more.
//!
//! In: a template, a record, a function that scores. Out: the best candidate. Candidates depend on the seed and on the scores before them alone: a
//! search that goes on asks for those on record again and takes their scores from there. Numbers are searched in shares of their
//! range; beyond a bound the way goes back.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use cmaes::{CMAESOptions, DVector};

use crate::log::{Evaluation, Log, LogError};
use crate::template::Template;

/// How it is searched.
pub struct Settings<'a> {
    /// Candidates to score at the most, the recipe as it is among them.
    pub evaluations: usize,
    /// Candidates of a generation; 4 and thrice the logarithm of the number of variables where it is not given.
    pub population: Option<usize>,
    /// How far the first candidates lie from the recipe's own numbers, in shares of the ranges.
    pub step: f64,
    /// Which random numbers.
    pub seed: u64,
    /// Set from outside to stop.
    pub cancel: &'a AtomicBool,
    /// Told of every candidate that was scored.
    pub on_evaluation: &'a dyn Fn(&[Evaluation]),
}

/// What a search has found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The best candidate; the recipe as it is where none was better.
    pub best: Evaluation,
    /// The recipe as it is.
    pub given: Evaluation,
    /// How many were scored.
    pub evaluations: usize,
    /// Why it ended.
    pub end: End,
}

/// Why a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The evaluations were used up.
    UsedUp,
    /// Candidates or scores hardly differed any more.
    Settled,
}

/// Why a search failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SearchError<E> {
    /// A candidate could not be scored.
    #[error("{0}")]
    Score(E),
    /// The record.
    #[error(transparent)]
    Log(#[from] LogError),
    /// It was asked to stop; the record has what was done.
    #[error("interrupted")]
    Interrupted,
    /// The recipe as it is has no finite score, so nothing can be better.
    #[error("the recipe as it is has no finite score")]
    NotFinite,
}

/// Candidates differ by less than this share of the range when a search ends.
const SETTLED: f64 = 1e-4;

/// Scores of a generation differ by less when a search ends.
const SETTLED_SCORE: f64 = 1e-7;

/// Searches.
///
/// # Errors
/// [`SearchError`].
pub fn search<E>(
    template: &Template,
    log: &mut Log,
    settings: &Settings<'_>,
    score: impl FnMut(&str) -> Result<f64, E>,
) -> Result<Found, SearchError<E>> {
    let mut scorer = Scorer { template, log, settings, score, done: 0, failure: None };
    scorer.evaluate(&template.given().iter().map(f64::to_string).collect::<Vec<_>>());
    let variables = template.variables();
    let start: Vec<f64> = variables.iter().zip(template.given()).map(|(v, &given)| v.share(given)).collect();
    let least = 4 + (3.0 * (variables.len() as f64).ln()).floor() as usize;
    let population = settings.population.unwrap_or(least).max(2);
    let scorer = RefCell::new(scorer);
    let options = CMAESOptions::new(start, settings.step)
        .population_size(population)
        .seed(settings.seed)
        .tol_x(SETTLED)
        .tol_fun(SETTLED_SCORE);
    let objective = |shares: &DVector<f64>| scorer.borrow_mut().candidate(shares.as_slice());
    let mut end = End::UsedUp;
    // The number of dimensions and the population are at least 1 and 2, and the step is positive: nothing is refused.
    if let Ok(mut strategy) = options.build(objective) {
        while scorer.borrow().failure.is_none() && scorer.borrow().done + population <= settings.evaluations {
            if strategy.next().is_some() {
                end = End::Settled;
                break;
            }
        }
    }
    let scorer = scorer.into_inner();
    if let Some(failure) = scorer.failure {
        return Err(failure);
    }
    let evaluations = &scorer.log.evaluations()[..scorer.done];
    let given = evaluations[0].clone();
    if given.score.is_none() {
        return Err(SearchError::NotFinite);
    }
    let best = best(evaluations).unwrap_or(&given).clone();
    Ok(Found { best, given, evaluations: scorer.done, end })
}

/// The first of those with the least score.
pub fn best(evaluations: &[Evaluation]) -> Option<&Evaluation> {
    let scored = evaluations.iter().filter_map(|evaluation| Some((evaluation, evaluation.score?)));
    scored.reduce(|best, next| if next.1 < best.1 { next } else { best }).map(|(evaluation, _)| evaluation)
}

struct Scorer<'a, E, F> {
    template: &'a Template,
    log: &'a mut Log,
    settings: &'a Settings<'a>,
    score: F,
    /// Evaluations of this search, those on record among them.
    done: usize,
    failure: Option<SearchError<E>>,
}

impl<E, F: FnMut(&str) -> Result<f64, E>> Scorer<'_, E, F> {
    /// The score of a candidate, as the strategy is told it.
    fn candidate(&mut self, shares: &[f64]) -> f64 {
        let values = self.template.variables().iter().zip(shares);
        let values: Vec<String> = values.map(|(v, &share)| v.at(reflected(share)).to_string()).collect();
        self.evaluate(&values)
    }

    fn evaluate(&mut self, values: &[String]) -> f64 {
        if self.failure.is_some() {
            return WORST; // Nobody heeds it any more.
        }
        match self.try_evaluate(values) {
            Ok(score) => score.unwrap_or(WORST),
            Err(failure) => {
                self.failure = Some(failure);
                WORST
            }
        }
    }

    fn try_evaluate(&mut self, values: &[String]) -> Result<Option<f64>, SearchError<E>> {
        self.done += 1;
        if let Some(known) = self.log.evaluations().get(self.done - 1) {
            return if known.values == values {
                Ok(known.score)
            } else {
                Err(self.log.other(self.done).into())
            };
        }
        if self.settings.cancel.load(Relaxed) {
            return Err(SearchError::Interrupted);
        }
        let begin = Instant::now();
        let earlier = self.log.evaluations().iter().find(|known| known.values == values);
        let score = match earlier {
            Some(earlier) => earlier.score,
            None => {
                // They were just printed.
                let numbers: Vec<f64> = values.iter().filter_map(|value| value.parse().ok()).collect();
                let score = (self.score)(&self.template.with(&numbers)).map_err(SearchError::Score)?;
                Evaluation::settled(score)
            }
        };
        let seconds = (begin.elapsed().as_secs_f64() * 1e6).round() / 1e6;
        self.log.add(Evaluation { evaluation: self.done, values: values.to_vec(), score, seconds })?;
        (self.settings.on_evaluation)(self.log.evaluations());
        Ok(score)
    }
}

/// What the strategy is told of a candidate without a finite score.
const WORST: f64 = 1e30;

/// Into 0 to 1, back from the bounds.
fn reflected(share: f64) -> f64 {
    let way = share.rem_euclid(2.0);
    if way > 1.0 { 2.0 - way } else { way }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use serde_json::json;

    use super::*;

    const RECIPE: &str =
        "models:\n- {model: a, parameters: {weight: 0.9, density: 0.5}}\nparameters: {lambda: 1.0}\n";

    fn template() -> Template {
        let variables = ["models[0].parameters.weight=0..1", "models[0].parameters.density=0..1"];
        let varied = variables.iter().map(|text| text.parse().unwrap());
        Template::new(RECIPE, varied.chain(["parameters.lambda=0.5..2".parse().unwrap()]).collect()).unwrap()
    }

    /// Its least value is at 0.3, 0.75 and 0.5, the last of which is a bound.
    fn bowl(text: &str) -> f64 {
        let numbers: Vec<f64> =
            text.split([':', ',', '}']).filter_map(|part| part.trim().parse().ok()).collect();
        let [weight, density, lambda] = numbers[..] else { panic!("{text}") };
        2.0 + (weight - 0.3f64).powi(2)
            + 4.0 * (density - 0.75f64 + 0.2 * (weight - 0.3)).powi(2)
            + lambda * 0.1
    }

    fn run(
        log: &mut Log,
        evaluations: usize,
        kill_after: Option<usize>,
    ) -> Result<Found, SearchError<&'static str>> {
        let mut count = 0;
        static NEVER: AtomicBool = AtomicBool::new(false);
        let settings = Settings {
            evaluations,
            population: None,
            step: 0.3,
            seed: 7,
            cancel: &NEVER,
            on_evaluation: &|_| {},
        };
        search(&template(), log, &settings, |text| {
            count += 1;
            if kill_after.is_some_and(|most| count > most) { Err("killed") } else { Ok(bowl(text)) }
        })
    }

    #[test]
    fn a_known_optimum_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(&folder.path().join("log"), &json!({})).unwrap();
        let found = run(&mut log, 400, None).unwrap();
        let values: Vec<f64> = found.best.values.iter().map(|value| value.parse().unwrap()).collect();
        for (value, expected) in values.iter().zip([0.3, 0.75, 0.5]) {
            assert!((value - expected).abs() < 2e-3, "{found:?}");
        }
        assert!((found.given.score.unwrap() - bowl(RECIPE)).abs() < 1e-9);
    }

    #[test]
    fn a_search_that_was_killed_goes_on_to_the_same_result() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str| folder.path().join(name);
        let found = run(&mut Log::create(&of("whole"), &json!({})).unwrap(), 60, None).unwrap();
        let mut log = Log::create(&of("killed"), &json!({})).unwrap();
        for _ in 0..6 {
            assert!(matches!(run(&mut log, 60, Some(9)), Err(SearchError::Score("killed"))));
            log = Log::resume(&of("killed"), &json!({})).unwrap();
        }
        assert_eq!(log.evaluations().len(), 54);
        let again = run(&mut log, 60, None).unwrap();
        assert_eq!((&again.best.values, again.best.score), (&found.best.values, found.best.score));
        assert_eq!((again.evaluations, again.end), (found.evaluations, found.end));
        // With more evaluations it goes on from there.
        assert!(run(&mut log, 120, None).unwrap().evaluations > again.evaluations);
    }

    #[test]
    fn candidates_without_a_finite_score_are_worse_than_others() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(&folder.path().join("log"), &json!({})).unwrap();
        static NEVER: AtomicBool = AtomicBool::new(false);
        let settings = Settings {
            evaluations: 40,
            population: None,
            step: 0.3,
            seed: 1,
            cancel: &NEVER,
            on_evaluation: &|_| {},
        };
        let score = |text: &str| Ok::<_, Infallible>(if bowl(text) < 2.4 { f64::NAN } else { bowl(text) });
        let found = search(&template(), &mut log, &settings, score).unwrap();
        assert!(found.best.score.unwrap() >= 2.4 && log.evaluations().iter().any(|e| e.score.is_none()));
        let mut log = Log::create(&folder.path().join("other"), &json!({})).unwrap();
        let error = search(&template(), &mut log, &settings, |_| Ok::<_, Infallible>(f64::NAN));
        assert!(matches!(error, Err(SearchError::NotFinite)));
    }

    #[test]
    fn the_way_goes_back_from_the_bounds() {
        let shares = [-0.25, 0.0, 0.5, 1.0, 1.25, 2.5, -1.75].map(reflected);
        assert_eq!(shares, [0.25, 0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
    }
}
