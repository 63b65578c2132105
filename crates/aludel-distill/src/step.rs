//! Takes optimizer steps: the student, its teacher, the objective and the optimizer together.
//!
//! In: the micro-batches of one step. Out: the student changed, and what was measured. Every term is a mean over the valid
//! tokens of the whole step, whatever micro-batches they are in: their number is known before the first is run. Data,
//! files and the length of a run are elsewhere.

use std::sync::Arc;

use aludel_kernels::element::Element;
use aludel_kernels::loss::{
    Aligned, Annealing, HeadGradient, HeadReport, LabelTerm, LossDevice, Measured, Objective, Target,
    TeacherRows, head_loss,
};
use aludel_kernels::nn::Device;
use aludel_model::evaluate::score_against;
use aludel_model::{Decoder, Gradients, Keep, Pass};

use crate::cache::{CachedRows, CachedTeacher};
use crate::data::MicroBatch;
use crate::error::Error;
use crate::group::{Buckets, Command, Group, Reduction};
use crate::hidden::HiddenTerms;
use crate::optimizer::{AdamW, Held, Optimizer, Trained};
use crate::run::{Checkpointing, Run, Weights};
use crate::schedule::LearningRate;
use crate::state::{Content, ContentMut, Item, give};

/// A training between two steps.
pub struct Trainer<D: LossDevice> {
    pub(crate) device: Arc<D>,
    pub(crate) student: Decoder<D>,
    pub(crate) teacher: Option<Decoder<D>>,
    /// In its place.
    pub(crate) cache: Option<CachedTeacher<D>>,
    /// The processes that take each step together.
    pub(crate) group: Option<Arc<Group<D>>>,
    pub(crate) objective: Objective,
    pub(crate) annealing: Option<Annealing>,
    pub(crate) hidden: HiddenTerms<D>,
    pub(crate) gradients: Gradients<D>,
    /// How gradients are added up over processes.
    pub(crate) buckets: Buckets,
    pub(crate) optimizer: Optimizer<D>,
    pub(crate) rate: LearningRate,
    pub(crate) keep: Keep,
    /// Of the whole run.
    pub(crate) steps: u64,
    /// Taken.
    pub(crate) done: u64,
}

/// Factors of a step's gradient.
#[derive(Clone, Copy)]
struct Factors {
    /// 1 / valid rows of the whole step.
    rows: f64,
    /// 1 / rows that are compared with those of a teacher that has other tokens.
    compared: f64,
}

/// What a teacher says of a micro-batch.
enum Said<'a, D: LossDevice> {
    /// Now.
    Live(&'a Decoder<D>, Pass<D>),
    /// When it was captured.
    Before(CachedRows<'a, D>),
    /// There is no teacher, or nothing to ask.
    Nothing,
}

impl<'a, D: LossDevice> Said<'a, D> {
    /// Asks a live teacher, which gives these states as well, or one that spoke before.
    fn of(
        device: &D,
        (teacher, cache): (&'a Option<Decoder<D>>, &'a Option<CachedTeacher<D>>),
        micro: &MicroBatch,
        states: &[usize],
    ) -> Result<Self, Error> {
        // A teacher with other tokens has rows of its own.
        let asked = micro.aligned.as_ref().map_or(micro, |aligned| &aligned.teacher);
        Ok(match (teacher, cache) {
            _ if asked.batch.ids.is_empty() => Self::Nothing,
            (Some(teacher), _) => Self::Live(teacher, teacher.forward(&asked.batch, Keep::Nothing, states)?),
            (None, Some(cache)) => Self::Before(cache.rows(device, asked)?),
            (None, None) => Self::Nothing,
        })
    }

    fn rows(&self) -> Option<TeacherRows<'_, D::Buffer>> {
        match self {
            Self::Live(teacher, pass) => {
                Some(TeacherRows::Hidden { head: teacher.head(), hidden: pass.hidden() })
            }
            Self::Before(rows) => Some(rows.as_rows()),
            Self::Nothing => None,
        }
    }
}

/// What one step measured.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Sums over the step's valid rows.
    pub head: HeadReport,
    /// Mean of each hidden term over the step's valid rows, weight not included.
    pub hidden: Vec<f64>,
    /// The objective: the weighted sum of all terms.
    pub loss: f64,
    /// Rows that went through the student.
    pub rows: u64,
    /// Of this step.
    pub learning_rate: f64,
    /// Of all gradients together, before clipping.
    pub gradient_norm: f64,
    /// What the divergences were taken against.
    pub target: Target,
}

impl<D: LossDevice> Trainer<D> {
    /// A training of `steps` steps that has not begun, by one process.
    ///
    /// # Errors
    /// [`Error::Objective`], [`Error::Layers`]; what the device reports.
    ///
    /// # Panics
    /// Where the objective needs a teacher and there is none: a parsed run never does.
    pub fn new(
        student: Decoder<D>,
        teacher: Option<Decoder<D>>,
        run: &Run,
        steps: u64,
    ) -> Result<Self, Error> {
        Self::of_group(student, teacher, run, steps, None)
    }

    /// As [`Trainer::new`], with processes that each take a share of every step.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    ///
    /// # Panics
    /// As [`Trainer::new`].
    pub fn of_group(
        student: Decoder<D>,
        teacher: Option<Decoder<D>>,
        run: &Run,
        steps: u64,
        group: Option<Arc<Group<D>>>,
    ) -> Result<Self, Error> {
        let held = Held::of(&run.train, group.as_deref());
        Self::build(student, teacher, run, steps, group, held)
    }

    /// As [`Trainer::of_group`], with the state of these parameters.
    pub(crate) fn build(
        student: Decoder<D>,
        teacher: Option<Decoder<D>>,
        run: &Run,
        steps: u64,
        group: Option<Arc<Group<D>>>,
        held: Held,
    ) -> Result<Self, Error> {
        let is_taught = teacher.is_some() || run.cache.is_some();
        assert!(is_taught || !run.objective.needs_teacher(), "an objective without its teacher");
        let device = Arc::clone(student.device());
        let annealing = run.taid.as_ref().map(|taid| taid.annealing());
        let hidden = match &teacher {
            Some(teacher) => {
                let (student, teacher) = (student.config(), teacher.config());
                HiddenTerms::new(device.as_ref(), &run.objective, student, teacher, run.train.seed)?
            }
            None => HiddenTerms::none(),
        };
        let weights = student.parameters().trainable().map(|parameter| &parameter.buffer);
        let weights = weights.chain(hidden.weights());
        let optimizer = Optimizer::new(device.as_ref(), AdamW::of(&run.train), weights, held)?;
        let stages = student.stages();
        let parameters = student.parameters().iter().zip(stages).enumerate();
        let trained = parameters.filter(|(_, (parameter, _))| parameter.trainable);
        let buckets = Buckets::new(
            trained.map(|(position, (parameter, stage))| (position, stage, parameter.elements())),
        );
        Ok(Self {
            buckets,
            objective: objective(run, annealing)?,
            annealing,
            hidden,
            gradients: student.gradients_of(match run.train.gradients {
                Weights::Float32 => Element::F32,
                Weights::Bfloat16 => device.activation(),
            })?,
            optimizer,
            rate: LearningRate::new(&run.train, steps),
            keep: keep(run.train.checkpointing),
            steps,
            done: 0,
            device,
            student,
            teacher,
            cache: None,
            group,
        })
    }

    /// With a teacher that spoke before in the place of a live one.
    pub fn with_cache(self, cache: Option<CachedTeacher<D>>) -> Self {
        Self { cache, ..self }
    }

    /// How many processes take each step together.
    pub fn processes(&self) -> usize {
        self.group.as_ref().map_or(1, |group| group.size())
    }

    /// Tells the other processes, where there are any, what is next.
    pub(crate) fn tell(&self, command: Command) -> Result<(), Error> {
        self.group.as_ref().map_or(Ok(()), |group| group.tell(command))
    }

    /// The processes that have to give what they hold before this one can save everything.
    pub(crate) fn holders(&self) -> Option<&Group<D>> {
        self.group.as_deref().filter(|_| self.optimizer.is_shared())
    }

    /// Gives the first process what it lacks of a checkpoint.
    pub(crate) fn give(&self) -> Result<(), Error> {
        match self.holders() {
            Some(group) => {
                give(group, self.device.as_ref(), &self.optimizer.items(&self.names(), self.weights()))
            }
            None => Ok(()),
        }
    }

    /// Steps taken.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// The student.
    pub fn student(&self) -> &Decoder<D> {
        &self.student
    }

    /// Updates of the student: steps but for those without a valid token.
    pub fn updates(&self) -> u64 {
        self.optimizer.steps()
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, to be held beside the training.
    pub fn shared_device(&self) -> Arc<D> {
        Arc::clone(&self.device)
    }

    /// Whether there is a teacher.
    pub fn has_teacher(&self) -> bool {
        self.teacher.is_some() || self.cache.is_some()
    }

    /// Whether there is a teacher whose tokens are the student's, so that first choices and whole distributions can be compared.
    pub fn has_shared_tokens(&self) -> bool {
        self.has_teacher() && !self.objective.is_sorted()
    }

    /// The target's schedule, as it stands.
    pub fn annealing(&self) -> Option<Annealing> {
        self.annealing
    }

    /// Takes the next step. A step without a valid token changes nothing but the count of steps. `cancelled` is asked before
    /// each micro-batch; once it says so, the step is given up: the student is as it was, and the answer is `None`. Processes of a group all give
    /// the whole step; they finish what they have begun together.
    ///
    /// # Errors
    /// [`Error::Diverged`] when the gradient is not finite: the student is then as it was before the step.
    /// [`Error::Model`] and [`Error::Device`].
    pub fn step(
        &mut self,
        micro_batches: &[MicroBatch],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<StepReport>, Error> {
        let valid: u64 = micro_batches.iter().map(|micro| micro.targets() as u64).sum();
        let learning_rate = self.rate.after(self.done);
        self.gradients.clear(&self.device);
        self.hidden.clear_gradients(&self.device);
        let mut report = StepReport {
            head: HeadReport::default(),
            hidden: vec![0.0; self.hidden.len()],
            loss: 0.0,
            rows: micro_batches.iter().map(|micro| micro.batch.rows() as u64).sum(),
            learning_rate,
            gradient_norm: 0.0,
            target: self.objective.target(),
        };
        let compared: u64 = micro_batches.iter().map(|micro| micro.compared() as u64).sum();
        let factors = Factors { rows: 1.0 / valid as f64, compared: 1.0 / compared.max(1) as f64 };
        let group = self.group.clone();
        let learned = micro_batches.iter().filter(|micro| micro.targets() > 0).enumerate();
        let own = learned.filter(|(place, _)| is_own(group.as_deref(), *place)).map(|(_, micro)| micro);
        let mut own = own.peekable();
        let (mut reduction, mut measured) = (None, Vec::new());
        while let Some(micro) = own.next() {
            if group.is_none() && cancelled() {
                return Ok(None);
            }
            if let Some(group) = group.as_ref().filter(|_| own.peek().is_none()) {
                reduction = Some(Reduction::begin(group, &self.device, &self.buckets)?);
            }
            measured.push(self.accumulate(micro, factors, &mut report, reduction.as_mut())?);
        }
        if valid > 0 {
            if let Some(group) = &group {
                self.unite(group, reduction)?;
            }
            self.update(&mut report)?;
            // Only now, so that the device has had all of the step to do when the host first waits for it.
            for measured in measured {
                report.head.add(&measured.report(&self.device)?);
            }
            if let Some(group) = &group {
                report.head = united(group, &report.head, self.objective.terms().len())?;
                group.sum(&mut report.hidden)?;
            }
            self.follow(&mut report)?;
        }
        self.done += 1;
        Ok(Some(report))
    }

    /// Adds up the gradients that the processes of a group have made of their micro-batches.
    fn unite(&mut self, group: &Arc<Group<D>>, begun: Option<Reduction<D>>) -> Result<(), Error> {
        // Who had no micro-batch has not begun.
        let reduction = match begun {
            Some(reduction) => reduction,
            None => Reduction::begin(group, &self.device, &self.buckets)?,
        };
        reduction.finish(&mut self.gradients)?;
        group.sum_buffers(self.device.as_ref(), self.hidden.gradients_mut())
    }

    /// Adds the gradient of one micro-batch; of the last one, also those of the other processes.
    fn accumulate(
        &mut self,
        micro: &MicroBatch,
        factors: Factors,
        report: &mut StepReport,
        mut reduction: Option<&mut Reduction<D>>,
    ) -> Result<Measured<D>, Error> {
        let micro = &micro.padded(&|rows| self.device.regular_rows(rows));
        let MicroBatch { batch, labels, .. } = micro;
        let states = self.hidden.teacher_states();
        let said = Said::of(self.device.as_ref(), (&self.teacher, &self.cache), micro, &states)?;
        let pass = self.student.forward(batch, self.keep, &self.hidden.student_states())?;
        let width = self.student.config().hidden;
        let mut d_hidden = self.device.zeros(batch.rows() * width, self.device.activation())?;
        let rows = said.rows();
        let rows = aligned(rows.as_ref(), micro, factors.compared).or(rows.as_ref().copied());
        let gradient = HeadGradient {
            d_hidden: &mut d_hidden,
            d_weight: self.student.head_gradient(&mut self.gradients),
            d_bias: None,
        };
        let head = self.student.head();
        let student = (&head, pass.hidden());
        let (device, objective) = (self.device.as_ref(), &self.objective);
        let measured = head_loss(
            device,
            objective,
            student,
            rows.as_ref(),
            labels,
            factors.rows,
            Some(gradient),
            device.logit_memory(),
        )?;
        let d_states = match &said {
            Said::Live(_, taught) if micro.aligned.is_none() => {
                self.hidden.gradients(device, (&pass, taught), micro, factors.rows, &mut report.hidden)?
            }
            _ => Vec::new(),
        };
        drop(said);
        let mut passed = |stage, gradients: &mut Gradients<D>| {
            if let Some(reduction) = &mut reduction {
                reduction.passed(stage, gradients);
            }
        };
        let gradients = &mut self.gradients;
        self.student.backward_in_stages(pass, &d_hidden, &d_states, gradients, &mut passed)?;
        Ok(measured)
    }

    /// Changes the student by what has been accumulated, unless the gradient is not finite.
    fn update(&mut self, report: &mut StepReport) -> Result<(), Error> {
        let parameters = self.student.parameters_mut().trainable_mut();
        let mut trained: Vec<Trained<'_, D>> = parameters
            .zip(self.gradients.iter())
            .map(|(parameter, gradient)| {
                let decays = parameter.decays();
                Trained { weights: &mut parameter.buffer, gradient, decays }
            })
            .collect();
        trained.extend(self.hidden.trained());
        report.gradient_norm =
            self.optimizer.step(&self.device, report.learning_rate, trained, self.group.as_deref())?;
        Ok(())
    }

    /// What follows from what was measured: the loss, and the next target.
    fn follow(&mut self, report: &mut StepReport) -> Result<(), Error> {
        report.loss = report.head.mean(&self.objective) + self.hidden.value(&report.hidden);
        if !report.gradient_norm.is_finite() {
            return Err(Error::Diverged { step: self.done + 1, loss: report.loss });
        }
        if let Some(annealing) = &mut self.annealing {
            annealing.update(report.head.distilled(&self.objective), self.done + 1, self.steps);
            self.objective =
                self.objective.clone().with_target(annealing.target(self.done + 1, self.steps))?;
        }
        Ok(())
    }

    /// Scores held-out documents; nothing is changed. The divergences are taken against the teacher itself, wherever an
    /// annealed target may be, so that evaluations at different steps can be compared; hidden states are not.
    ///
    /// # Errors
    /// [`Error::Model`], [`Error::Device`].
    pub fn evaluate<'m>(
        &self,
        micro_batches: impl IntoIterator<Item = &'m MicroBatch>,
    ) -> Result<(HeadReport, Objective), Error> {
        let objective = self.objective.clone().with_target(Target::Teacher)?;
        let mut sum = HeadReport::default();
        let group = self.group.as_deref();
        for (_, micro) in micro_batches.into_iter().enumerate().filter(|(place, _)| is_own(group, *place)) {
            let MicroBatch { batch, labels, .. } = micro;
            let said = Said::of(self.device.as_ref(), (&self.teacher, &self.cache), micro, &[])?;
            let rows = said.rows();
            let rows = aligned(rows.as_ref(), micro, 1.0).or(rows.as_ref().copied());
            sum.add(&score_against(&self.student, rows.as_ref(), &objective, batch, labels)?);
        }
        if let Some(group) = group {
            sum = united(group, &sum, objective.terms().len())?;
        }
        Ok((sum, objective))
    }

    /// Names of everything that is trained, in the optimizer's order.
    fn names(&self) -> Vec<String> {
        let of_student = self.student.parameters().trainable().map(|parameter| parameter.name.clone());
        of_student.chain(self.hidden.names()).collect()
    }

    /// Everything that is trained, in the optimizer's order.
    fn weights(&self) -> impl Iterator<Item = &D::Buffer> {
        let of_student = self.student.parameters().trainable().map(|parameter| &parameter.buffer);
        of_student.chain(self.hidden.weights())
    }

    /// Every array of the training, in order to be saved.
    pub fn items(&self) -> Vec<Item<Content<'_, D>>> {
        let names = self.names();
        let mut items = self.optimizer.items(&names, self.weights());
        for (buffer, name) in
            self.weights().zip(&names).filter(|(buffer, _)| is_own_master::<D>(&self.device, buffer))
        {
            items.push(Item { name: format!("weights/{name}"), content: Content::Buffer(buffer, None) });
        }
        items
    }

    /// Every array of the training, in order to be restored; [`Trainer::resume`] follows.
    pub fn items_mut(&mut self) -> Vec<Item<ContentMut<'_, D>>> {
        let names = self.names();
        let weights = self.student.parameters_mut().trainable_mut().map(|parameter| &mut parameter.buffer);
        self.optimizer.items_mut(&names, weights.chain(self.hidden.weights_mut()))
    }

    /// Takes up the training after `done` steps, of which `updates` changed the student; its arrays have been restored.
    pub fn resume(&mut self, done: u64, updates: u64, annealing: Option<Annealing>) -> Result<(), Error> {
        self.done = done;
        self.annealing = annealing;
        let target = annealing.map_or(Target::Teacher, |annealing| annealing.target(done, self.steps));
        self.objective = self.objective.clone().with_target(target)?;
        let weights = self.student.parameters_mut().trainable_mut().map(|parameter| &mut parameter.buffer);
        Ok(self.optimizer.resume(&self.device, updates, weights.chain(self.hidden.weights_mut()))?)
    }
}

/// Whether a process alone, or the one of a group that it is its turn of, computes a micro-batch.
fn is_own<D: LossDevice>(group: Option<&Group<D>>, place: usize) -> bool {
    group.is_none_or(|group| group.takes(place))
}

/// The sum of what all processes of a group have measured, of an objective with so many terms.
fn united<D: LossDevice>(group: &Group<D>, own: &HeadReport, terms: usize) -> Result<HeadReport, Error> {
    // Who had no micro-batch has no terms either.
    let mut own = own.clone();
    own.terms.resize(terms, 0.0);
    let mut sums = own.sums();
    group.sum(&mut sums)?;
    HeadReport::of_sums(&sums).ok_or_else(|| Error::internal("sums of a report are missing"))
}

/// The part of a run's objective that is about distributions. One of hidden states alone has labels of no weight in
/// their place, so that there is something to report.
pub(crate) fn objective(run: &Run, annealing: Option<Annealing>) -> Result<Objective, Error> {
    let divergences = run.objective.divergences();
    let labels = run.objective.labels();
    let labels = if divergences.is_empty() { labels.or(Some(LabelTerm { weight: 0.0 })) } else { labels };
    let target = annealing.map_or(Target::Teacher, |annealing| annealing.target(0, 1));
    Ok(Objective::new(divergences, labels, target)?)
}

fn keep(checkpointing: Checkpointing) -> Keep {
    match checkpointing {
        Checkpointing::None => Keep::Everything,
        Checkpointing::Block => Keep::Blocks,
        Checkpointing::Every(blocks) => Keep::Every(usize::try_from(blocks).unwrap_or(usize::MAX)),
    }
}

/// Whether weights are stored in the type of masters.
fn is_own_master<D: Device>(device: &D, buffer: &D::Buffer) -> bool {
    device.element(buffer) == aludel_kernels::element::Element::F32
}

/// The teacher's rows beside the student's, where it has other tokens.
fn aligned<'a, B>(
    teacher: Option<&'a TeacherRows<'a, B>>,
    micro: &'a MicroBatch,
    factor: f64,
) -> Option<TeacherRows<'a, B>> {
    let partners = &micro.aligned.as_ref()?.partners;
    Some(TeacherRows::Aligned(Aligned { teacher, partners, factor }))
}
