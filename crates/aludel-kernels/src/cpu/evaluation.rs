//! Advances a formula's evaluation from wave to wave.
//!
//! In: a [`Job`]. Out: waves, one after another; [`Evaluation::advance`] is called when all units of a wave have run.
//! A pass of the schedule is a wave that samples (where thresholds are sought), waves that reduce (more than one only
//! where a threshold needs a closer look) and one that locates ties; the last pass is one wave that writes, or none where
//! the formula measures.

use std::sync::Arc;

use super::block::Geometry;
use super::compiled::Compiled;
use super::dispatch::{Level, level};
use super::program::Program;
use super::rank::{Bracket, Cut, Outcome, Ranking};
use super::sample::judge_sample;
use super::values::{Statistic, Values};
use super::wave::{Parts, Wave, WaveKind};
use crate::element::Encoding;
use crate::formula::{Formula, NodeId, Op};
use crate::random::StreamKey;

/// What is to be computed.
#[derive(Clone, Debug)]
pub struct Job {
    /// The formula.
    pub formula: Arc<Compiled>,
    /// The shape of all its tensors.
    pub geometry: Geometry,
    /// The key of each random stream.
    pub streams: Vec<StreamKey>,
    /// How the output is stored.
    pub output: Encoding,
    /// Elements per unit of work, a multiple of [`CHUNK`](super::CHUNK).
    pub tile: u64,
    /// Whether NaN and infinities in the inputs are computed with rather than refused.
    pub allow_non_finite: bool,
    /// Vector instructions to use at most.
    pub level: Level,
    /// What reductions of the formula have come to over these tensors before; they are not computed again.
    pub known: Vec<(NodeId, Statistic)>,
}

impl Job {
    /// A job with the machine's own vector instructions.
    pub fn new(formula: Arc<Compiled>, geometry: Geometry, output: impl Into<Encoding>, tile: u64) -> Self {
        let output = output.into();
        let (streams, known) = (Vec::new(), Vec::new());
        Self { formula, geometry, streams, output, tile, allow_non_finite: false, level: level(), known }
    }
}

/// A formula being evaluated over one set of tensors.
#[derive(Debug)]
pub struct Evaluation {
    job: Job,
    values: Values,
    pass: usize,
    /// Selections of this pass that await their cut.
    sought: Vec<Sought>,
    sweeps: usize,
    /// Inputs of which no sweep has seen all elements.
    unchecked: Vec<u16>,
}

#[derive(Clone, Copy, Debug)]
struct Sought {
    node: NodeId,
    count: u64,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Bracketed(Bracket),
    Located { threshold: u32, chunk: u64, tie: u64 },
}

impl Evaluation {
    /// Prepares the evaluation and its first wave.
    pub fn start(job: Job) -> (Self, Arc<Wave>) {
        let mut values = Values::new(job.formula.formula(), job.geometry);
        job.known.iter().for_each(|(node, statistic)| values.take(*node, statistic.clone()));
        let unchecked = if job.allow_non_finite {
            Vec::new()
        } else {
            (0..job.formula.formula().inputs() as u16).collect()
        };
        let mut evaluation = Self { job, values, pass: 0, sought: Vec::new(), sweeps: 0, unchecked };
        let wave = evaluation.begin_pass();
        (evaluation, Arc::new(wave))
    }

    /// Takes in a wave all of whose units have run. The next wave, or `None` when the output is written or all is measured.
    pub fn advance(&mut self, done: &Wave) -> Option<Arc<Wave>> {
        let next = match done.kind() {
            WaveKind::Write => return self.finish(),
            WaveKind::Sample => self.after_sample(done),
            WaveKind::Reduce => self.after_reduction(done),
            WaveKind::Locate => self.after_location(done),
        };
        if self.formula().measures() && self.is_last_pass() {
            return None;
        }
        Some(Arc::new(next))
    }

    /// How many times all elements have been swept over so far.
    pub const fn sweeps(&self) -> usize {
        self.sweeps
    }

    /// The figures of a formula that measures, once all is measured; none of one that writes.
    pub fn figures(&self) -> Vec<f64> {
        if !self.formula().measures() {
            return Vec::new();
        }
        let figures = self.formula().outcome().nodes().iter();
        figures.filter_map(|&node| self.values.wide(node).first().copied()).collect()
    }

    /// What every reduction has come to, once the evaluation is over.
    pub fn statistics(&self) -> Vec<(NodeId, Statistic)> {
        let reductions = self.job.formula.schedule.passes.iter().flat_map(|pass| &pass.reductions);
        reductions.filter_map(|&node| Some((node, self.values.statistic(node)?))).collect()
    }

    fn formula(&self) -> &Formula {
        self.job.formula.formula()
    }

    fn finish(&mut self) -> Option<Arc<Wave>> {
        self.sweeps += 1;
        None
    }

    fn begin_pass(&mut self) -> Wave {
        let elements = self.job.geometry.elements;
        let mut sampled = Vec::new();
        for &node in &self.job.formula.schedule.passes[self.pass].reductions {
            let Some(count) = self.count(node).filter(|_| !self.values.is_known(node)) else { continue };
            let is_magnitude = matches!(self.formula().op(node), Op::Kth(..));
            match Cut::trivial(count, elements) {
                // The least magnitude is not known without a look; anything keeps all.
                Some(_) if is_magnitude && count == elements && count > 0 => sampled.push(node),
                Some(_) if is_magnitude => {
                    self.values.reduced(node, vec![if count == 0 { f64::INFINITY } else { 0.0 }]);
                }
                Some(cut) => self.values.selected(node, cut),
                None => sampled.push(node),
            }
        }
        if sampled.is_empty() {
            return self.sweep();
        }
        self.wave(WaveKind::Sample, self.job.formula.reducing(&sampled), Vec::new(), Vec::new())
    }

    /// The sweep of this pass: everything not known yet, or the output.
    fn sweep(&mut self) -> Wave {
        if self.is_last_pass() && !self.formula().measures() {
            return self.wave(WaveKind::Write, self.job.formula.writing(), Vec::new(), Vec::new());
        }
        let reductions = &self.job.formula.schedule.passes[self.pass].reductions;
        let is_sum = |node: &NodeId| !self.formula().op(*node).is_selection() && !self.values.is_known(*node);
        let mut nodes: Vec<NodeId> = reductions.iter().copied().filter(is_sum).collect();
        nodes.extend(self.sought.iter().map(|sought| sought.node));
        if nodes.is_empty() && !self.is_last_pass() {
            return self.end_pass();
        }
        self.reduce(&nodes)
    }

    fn reduce(&mut self, nodes: &[NodeId]) -> Wave {
        let chunks = self.job.geometry.chunks();
        let ranking = |sought: &Sought| match sought.state {
            State::Bracketed(bracket) => Some(Ranking::new(sought.count, bracket, chunks)),
            State::Located { .. } => None,
        };
        let rankings = self.sought.iter().filter_map(ranking).collect();
        self.wave(WaveKind::Reduce, self.job.formula.reducing(nodes), rankings, Vec::new())
    }

    fn after_sample(&mut self, done: &Wave) -> Wave {
        let elements = self.job.geometry.elements;
        for (&node, sample) in done.program.ranks.iter().zip(done.magnitudes().iter_mut()) {
            let Some(count) = self.count(node) else { continue };
            match judge_sample(sample, count, elements) {
                Ok(cut) => self.found(node, cut),
                Err(bracket) => self.sought.push(Sought { node, count, state: State::Bracketed(bracket) }),
            }
        }
        self.sweep()
    }

    fn after_reduction(&mut self, done: &Wave) -> Wave {
        self.sweeps += 1;
        self.take_sums(done);
        for (&node, ranking) in done.program.ranks.iter().zip(&done.rankings) {
            let outcome = ranking.outcome();
            let Some(at) = self.sought.iter().position(|sought| sought.node == node) else { continue };
            match outcome {
                Outcome::Known(cut) => {
                    self.found(node, cut);
                    self.sought.remove(at);
                }
                Outcome::Locate { threshold, .. } if matches!(self.formula().op(node), Op::Kth(..)) => {
                    self.found(node, Cut { threshold, last: None });
                    self.sought.remove(at);
                }
                Outcome::Closer(bracket) => self.sought[at].state = State::Bracketed(bracket),
                Outcome::Locate { threshold, chunk, tie } => {
                    self.sought[at].state = State::Located { threshold, chunk, tie };
                }
            }
        }
        let is_open = |sought: &&Sought| matches!(sought.state, State::Bracketed(_));
        let open: Vec<NodeId> = self.sought.iter().filter(is_open).map(|sought| sought.node).collect();
        match (open.is_empty(), self.sought.is_empty()) {
            (false, _) => self.reduce(&open),
            (true, false) => self.locate(),
            (true, true) => self.end_pass(),
        }
    }

    /// How many magnitudes a selection keeps.
    fn count(&self, node: NodeId) -> Option<u64> {
        match self.formula().op(node) {
            Op::Top(_, count) | Op::Kth(_, count) => {
                self.values.wide(count).first().map(|&count| count as u64)
            }
            _ => None,
        }
    }

    fn found(&mut self, node: NodeId, cut: Cut) {
        match self.formula().op(node) {
            Op::Kth(..) => self.values.reduced(node, vec![f64::from(f32::from_bits(cut.threshold))]),
            _ => self.values.selected(node, cut),
        }
    }

    fn take_sums(&mut self, done: &Wave) {
        let mut sums = done.joined();
        for (&(node, _), values) in done.program.reductions.iter().zip(sums.take()) {
            self.values.reduced(node, values);
        }
        for (&node, cuts) in done.program.row_tops.iter().zip(done.row_cuts_found()) {
            self.values.selected_by_row(node, cuts);
        }
    }

    fn locate(&mut self) -> Wave {
        let nodes: Vec<NodeId> = self.sought.iter().map(|sought| sought.node).collect();
        let chunk = |sought: &Sought| match sought.state {
            State::Located { chunk, .. } => chunk,
            State::Bracketed(_) => 0,
        };
        let located = self.sought.iter().map(chunk).collect();
        self.wave(WaveKind::Locate, self.job.formula.reducing(&nodes), Vec::new(), located)
    }

    fn after_location(&mut self, done: &Wave) -> Wave {
        for (sought, magnitudes) in self.sought.drain(..).zip(done.magnitudes().iter()) {
            let State::Located { threshold, chunk, tie } = sought.state else { continue };
            let ties = (0u64..).zip(magnitudes).filter(|&(_, &m)| m == threshold);
            let last = ties.take(tie as usize).last().map(|(i, _)| chunk * super::CHUNK + i);
            self.values.selected(sought.node, Cut { threshold, last });
        }
        self.end_pass()
    }

    fn end_pass(&mut self) -> Wave {
        self.values.settle(self.job.formula.formula(), self.job.geometry);
        // Nothing follows the last pass: a formula that measures is done there.
        self.pass = (self.pass + 1).min(self.job.formula.schedule.passes.len() - 1);
        self.begin_pass()
    }

    fn is_last_pass(&self) -> bool {
        self.pass + 1 == self.job.formula.schedule.passes.len()
    }

    fn wave(
        &mut self,
        kind: WaveKind,
        program: Arc<Program>,
        rankings: Vec<Ranking>,
        located: Vec<u64>,
    ) -> Wave {
        let checked = match kind {
            WaveKind::Reduce | WaveKind::Write => {
                self.unchecked.extract_if(.., |input| program.inputs.contains(input)).collect()
            }
            WaveKind::Sample | WaveKind::Locate => Vec::new(),
        };
        Wave::new(Parts {
            kind,
            compiled: &self.job.formula,
            program,
            values: &self.values,
            geometry: self.job.geometry,
            tile: self.job.tile,
            level: self.job.level,
            output: self.job.output,
            streams: &self.job.streams,
            checked,
            rankings,
            located,
        })
    }
}
