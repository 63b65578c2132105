//! Chooses among ways to compute the same: the fastest that agrees with the first, on a device, for a shape. Remembered for later runs.
//!
//! In: what is computed, of which shape; ways to do it, the first of which is the one that counts; how one is run, and where its results lie. Out: one of the
//! ways. They are timed by the device's own events when a shape is first met, each after its results were held against the first's; one that
//! fails, or that gives something else, is passed over. What is chosen is chosen for good: a run that finds a choice times nothing, and has the bits of
//! the run that made it. It knows nothing of what is computed.
//!
//! `ALUDEL_TUNE=0` does without choices, `ALUDEL_TUNE=all` makes them for the smallest shapes too.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::CudaError;
use super::driver::{Block, Facts, Stream};
use crate::element::Element;
use crate::gpu::KernelStore;

/// What was chosen for a shape, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// What is computed: `product`, the name of a kernel.
    pub kernel: String,
    /// Of which shape.
    pub shape: String,
    /// Whose ways they are: the library's version, or this program's.
    pub version: String,
    /// The way that is taken.
    pub choice: String,
    /// Numbers that the way is known by.
    pub words: Vec<u64>,
    /// How long it takes.
    pub seconds: f64,
    /// How long the first way takes.
    pub first_seconds: f64,
    /// How many ways were tried, the first included.
    pub tried: usize,
    /// How many of them computed something else than the first.
    pub disagreed: usize,
    /// How many of them failed.
    pub failed: usize,
}

/// What is to be computed.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) kernel: &'static str,
    pub(crate) shape: String,
    pub(crate) version: String,
}

/// One way to compute it: the numbers that it is known by, and what a reader is told of it.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) words: Vec<u64>,
    pub(crate) text: String,
}

/// An array of results.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output<'a> {
    pub(crate) block: &'a Block,
    pub(crate) element: Element,
}

/// How ways are run, on memory that nobody else looks at.
pub(crate) struct Trials<'a> {
    pub(crate) stream: &'a Stream,
    /// Puts what a way overwrites back; not timed.
    pub(crate) prepare: &'a dyn Fn() -> Result<(), CudaError>,
    pub(crate) run: &'a dyn Fn(usize) -> Result<(), CudaError>,
    pub(crate) outputs: &'a [Output<'a>],
}

/// Which shapes choices are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    Nothing,
    Large,
    Everything,
}

/// The choices of a device.
pub(crate) struct Choices {
    store: Arc<dyn KernelStore>,
    name: String,
    rule: Rule,
    made: Mutex<HashMap<String, Vec<u64>>>,
    timed: AtomicU64,
}

/// What trials have come to: the best way, times of it and of the first, and how many lost by what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outcome {
    best: usize,
    seconds: [f64; 2],
    disagreed: usize,
    failed: usize,
}

/// What is not worth the time that trials take: operations, as multiplications and additions.
const LEAST_WORK: f64 = 1e9;

/// Results differ by rounding to bf16, and by the order of sums.
const TOLERANCE: [f64; 2] = [4e-3, 1e-4];

/// Elements of an array that are compared: all of a small one, pieces all over a large one.
const PIECES: usize = 64;
const PIECE: usize = 1 << 14;

/// How often a way is timed; the best counts.
const TIMES: usize = 3;

/// The first way stays where others gain less than noise.
const GAIN: f64 = 0.98;

impl Rule {
    fn of(setting: Option<&str>) -> Self {
        match setting {
            Some("0") => Self::Nothing,
            Some("all") => Self::Everything,
            _ => Self::Large,
        }
    }

    /// Whether so many operations are worth it.
    pub(crate) fn takes(self, work: f64) -> bool {
        match self {
            Self::Nothing => false,
            Self::Large => work >= LEAST_WORK,
            Self::Everything => true,
        }
    }
}

impl Choices {
    pub(crate) fn new(store: Arc<dyn KernelStore>, facts: &Facts) -> Self {
        let rule = Rule::of(std::env::var("ALUDEL_TUNE").ok().as_deref());
        let name = name(facts);
        let known = read(&*store, &name);
        let made = known.into_iter().map(|choice| (choice.key(), choice.words)).collect();
        Self { store, name, rule, made: Mutex::new(made), timed: AtomicU64::new(0) }
    }

    pub(crate) const fn rule(&self) -> Rule {
        self.rule
    }

    /// How many shapes this process has timed ways for.
    pub(crate) fn timed(&self) -> u64 {
        self.timed.load(Relaxed)
    }

    /// Everything that is remembered.
    pub(crate) fn remembered(&self) -> Vec<Choice> {
        read(&*self.store, &self.name)
    }

    /// The numbers of the way that was chosen before.
    pub(crate) fn made(&self, question: &Question) -> Option<Vec<u64>> {
        self.lock().get(&question.key()).cloned()
    }

    /// The place of the way that was chosen before, or of the best by trials: the first where none can be made, or tell anything.
    pub(crate) fn choose(
        &self,
        question: &Question,
        ways: &[Way],
        trials: impl FnOnce() -> Result<Option<Outcome>, CudaError>,
    ) -> usize {
        let made = self.made(question);
        let place = |words: &[u64]| ways.iter().position(|way| way.words == words);
        if let Some(at) = made.as_deref().and_then(place) {
            return at;
        }
        let words = match trials() {
            Ok(Some(outcome)) => {
                self.timed.fetch_add(1, Relaxed);
                self.remember(question, ways, outcome)
            }
            // For as long as this process lives.
            _ => ways.first().map_or_else(Vec::new, |way| way.words.clone()),
        };
        let at = place(&words).unwrap_or(0);
        self.lock().insert(question.key(), words);
        at
    }

    /// Writes a choice down. Where another process has come to one before, it is that one's.
    fn remember(&self, question: &Question, ways: &[Way], outcome: Outcome) -> Vec<u64> {
        let mut known = self.remembered();
        let key = question.key();
        let same = |choice: &&Choice| choice.key() == key && ways.iter().any(|way| way.words == choice.words);
        if let Some(choice) = known.iter().find(same) {
            return choice.words.clone();
        }
        let way = &ways[outcome.best];
        let [seconds, first_seconds] = outcome.seconds;
        known.retain(|choice| choice.key() != key);
        known.push(Choice {
            kernel: question.kernel.to_owned(),
            shape: question.shape.clone(),
            version: question.version.clone(),
            choice: way.text.clone(),
            words: way.words.clone(),
            seconds,
            first_seconds,
            tried: ways.len(),
            disagreed: outcome.disagreed,
            failed: outcome.failed,
        });
        if let Ok(text) = serde_json::to_vec(&known) {
            self.store.save(&self.name, &text);
        }
        way.words.clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<u64>>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Choice {
    fn key(&self) -> String {
        key(&self.kernel, &self.shape, &self.version)
    }
}

impl Question {
    fn key(&self) -> String {
        key(self.kernel, &self.shape, &self.version)
    }
}

impl Trials<'_> {
    /// Runs every way: holds what it computes against the first's, then times it. None where the first's results can tell nothing.
    pub(crate) fn outcome(&self, ways: usize) -> Result<Option<Outcome>, CudaError> {
        let first = self.computed(0)?;
        let all = || first.iter().flatten();
        if !all().all(|value| value.is_finite()) || all().all(|&value| value == 0.0) {
            return Ok(None);
        }
        let first_seconds = self.timed(0)?;
        let mut outcome = Outcome { best: 0, seconds: [first_seconds; 2], disagreed: 0, failed: 0 };
        let mut least = first_seconds * GAIN;
        for way in 1..ways {
            match self.computed(way) {
                Ok(values) if agree(self.outputs, &values, &first) => match self.timed(way) {
                    Ok(seconds) if seconds < least => {
                        least = seconds;
                        (outcome.best, outcome.seconds[0]) = (way, seconds);
                    }
                    Ok(_) => {}
                    Err(_) => outcome.failed += 1,
                },
                Ok(_) => outcome.disagreed += 1,
                Err(_) => outcome.failed += 1,
            }
        }
        Ok(Some(outcome))
    }

    /// What a way gives, of all results or of samples.
    fn computed(&self, way: usize) -> Result<Vec<Vec<f32>>, CudaError> {
        self.outputs.iter().try_for_each(Output::clear)?;
        (self.prepare)()?;
        (self.run)(way)?;
        self.outputs.iter().map(|output| output.sample(self.stream)).collect()
    }

    /// Seconds by the device's clock.
    fn timed(&self, way: usize) -> Result<f64, CudaError> {
        let mut least = f64::INFINITY;
        for _ in 0..TIMES {
            (self.prepare)()?;
            let begin = self.stream.timed_mark()?;
            (self.run)(way)?;
            least = least.min(begin.seconds_until(&self.stream.timed_mark()?)?);
        }
        Ok(least)
    }
}

impl Output<'_> {
    /// Zeros it, so that what is not written is seen.
    fn clear(&self) -> Result<(), CudaError> {
        self.block.clear()
    }

    fn sample(&self, stream: &Stream) -> Result<Vec<f32>, CudaError> {
        let size = self.element.size();
        let len = self.block.bytes() / size;
        let pieces = pieces(len);
        let mut values = Vec::new();
        for piece in pieces {
            let mut bytes = vec![0; piece.len() * size];
            stream.take(self.block, piece.start * size, &mut bytes)?;
            values.extend(self.element.decode(&bytes));
        }
        Ok(values)
    }
}

/// All of a small array; pieces from the first element to the last of a large one, equally far apart.
fn pieces(len: usize) -> Vec<std::ops::Range<usize>> {
    if len <= PIECES * PIECE {
        return (0..len).step_by(PIECE).map(|start| start..len.min(start + PIECE)).collect();
    }
    let start = |at: usize| (len - PIECE) / (PIECES - 1) * at;
    let last = len - PIECE..len;
    (0..PIECES - 1).map(|at| start(at)..start(at) + PIECE).chain([last]).collect()
}

fn agree(outputs: &[Output<'_>], got: &[Vec<f32>], want: &[Vec<f32>]) -> bool {
    outputs.iter().zip(got.iter().zip(want)).all(|(output, (got, want))| {
        let [halves, floats] = TOLERANCE;
        distance(got, want) <= if output.element == Element::F32 { floats } else { halves }
    })
}

/// `|got - want| / |want|`; the norm of the difference where `want` is zero.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let pairs = got.iter().zip(want);
    let apart = norm(&mut pairs.map(|(&got, &want)| f64::from(got) - f64::from(want)));
    let size = norm(&mut want.iter().map(|&want| f64::from(want)));
    if size == 0.0 { apart } else { apart / size }
}

/// Whose ways this crate's own kernels are.
pub(crate) fn own_version() -> String {
    format!("aludel {}", env!("CARGO_PKG_VERSION"))
}

/// What is remembered for models on such a device.
pub(super) fn of_models(store: &dyn KernelStore, facts: &Facts) -> Vec<Choice> {
    read(store, &name(facts))
}

fn read(store: &dyn KernelStore, name: &str) -> Vec<Choice> {
    let bytes = store.load(name);
    bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn name(facts: &Facts) -> String {
    facts.file_of("tuned-models")
}

fn key(kernel: &str, shape: &str, version: &str) -> String {
    format!("{kernel}\n{shape}\n{version}")
}

impl std::fmt::Debug for Choices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Choices").field("name", &self.name).field("rule", &self.rule).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::NoStore;

    #[derive(Default)]
    struct Remembers(Mutex<HashMap<String, Vec<u8>>>);

    impl KernelStore for Remembers {
        fn load(&self, name: &str) -> Option<Vec<u8>> {
            self.0.lock().unwrap().get(name).cloned()
        }

        fn save(&self, name: &str, bytes: &[u8]) {
            self.0.lock().unwrap().insert(name.to_owned(), bytes.to_vec());
        }
    }

    fn facts() -> Facts {
        Facts { name: "A GPU".into(), architecture: "sm_90".into(), memory: 0, multiprocessors: 0 }
    }

    fn question(shape: &str) -> Question {
        Question { kernel: "product", shape: shape.to_owned(), version: "1".to_owned() }
    }

    fn ways() -> [Way; 3] {
        [7, 8, 9].map(|word| Way { words: vec![word], text: format!("way {word}") })
    }

    fn refused() -> CudaError {
        CudaError::OutOfMemory { bytes: 1 }
    }

    #[test]
    fn a_choice_is_taken_up_by_the_next_process() {
        let store = Arc::new(Remembers::default());
        let first = Choices::new(store.clone(), &facts());
        let outcome = Outcome { best: 2, seconds: [1.0, 2.0], disagreed: 1, failed: 0 };
        assert_eq!(first.remember(&question("a"), &ways(), outcome), [9]);
        let next = Choices::new(store.clone(), &facts());
        assert_eq!(next.choose(&question("a"), &ways(), || panic!("nothing is tried again")), 2);
        assert_eq!(next.timed(), 0);
        let listed = of_models(&*store, &facts());
        assert_eq!((&*listed[0].choice, listed[0].first_seconds, listed[0].disagreed), ("way 9", 2.0, 1));
        // Whoever comes to another choice in the meantime takes the one that is written down.
        let late = Outcome { best: 1, ..outcome };
        assert_eq!(first.remember(&question("a"), &ways(), late), [9]);
    }

    #[test]
    fn a_choice_that_is_none_of_the_ways_is_made_anew() {
        let store = Arc::new(Remembers::default());
        let choices = Choices::new(store.clone(), &facts());
        let outcome = Outcome { best: 2, seconds: [1.0, 2.0], disagreed: 0, failed: 0 };
        choices.remember(&question("a"), &ways(), outcome);
        let others = &ways()[..2];
        let mut is_tried = false;
        let at = Choices::new(store.clone(), &facts()).choose(&question("a"), others, || {
            is_tried = true;
            Err(refused())
        });
        assert_eq!((at, is_tried), (0, true));
        assert_eq!(choices.remember(&question("a"), others, Outcome { best: 1, ..outcome }), [8]);
        assert_eq!(of_models(&*store, &facts()).len(), 1);
        store.save(&name(&facts()), b"{");
        assert_eq!(of_models(&*store, &facts()), []);
    }

    #[test]
    fn what_cannot_be_tried_is_the_first_way_and_is_not_remembered() {
        let choices = Choices::new(Arc::new(NoStore), &facts());
        assert_eq!(choices.choose(&question("a"), &ways(), || Err(refused())), 0);
        assert_eq!(choices.choose(&question("a"), &ways(), || panic!("once is enough")), 0);
        assert_eq!((choices.timed(), choices.remembered()), (0, vec![]));
    }

    #[test]
    fn pieces_are_all_over_an_array() {
        assert_eq!(pieces(PIECE + 3), [0..PIECE, PIECE..PIECE + 3]);
        let pieces = pieces(PIECES * PIECE + 1);
        assert_eq!((pieces.len(), pieces[0].start), (PIECES, 0));
        assert_eq!(pieces[PIECES - 1].end, PIECES * PIECE + 1);
    }

    #[test]
    fn no_number_agrees_with_nothing() {
        assert!(distance(&[1.0, 2.0], &[1.0, 2.0]) <= 0.0);
        assert!((distance(&[1.0, 3.0], &[0.0, 2.0]) - 0.5f64.sqrt()).abs() < 1e-9);
        assert!(distance(&[f32::NAN], &[1.0]).is_nan());
        assert_eq!(
            [None, Some("0"), Some("all")].map(Rule::of),
            [Rule::Large, Rule::Nothing, Rule::Everything]
        );
        assert!(Rule::Large.takes(1e9) && !Rule::Large.takes(1e8) && Rule::Everything.takes(0.0));
    }
}
