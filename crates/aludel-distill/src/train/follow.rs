//! Carries out the part in a run of every process but the first.
//!
//! In: the same run, and a place among several processes. Out: nothing but what goes to the others: the first process writes the record, the checkpoints
//! and the output, and says what is next. Processes that follow read the models, the data and, of a run that goes on, the first process's checkpoint; all
//! see the same folders.

use std::sync::Arc;

use aludel_checkpoint::hexadecimal;
use aludel_document::Problem;
use aludel_kernels::loss::LossDevice;
use aludel_kernels::nn::Device;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Corpus, Options};
use crate::cache::CachedTeacher;
use crate::error::Error;
use crate::folder::RunFolder;
use crate::forecast::{self, Saving};
use crate::group::{Command, Group, Place};
use crate::inputs;
use crate::prepare::{Models, Tokenizers};
use crate::run::{Moments, Run};
use crate::step::Trainer;
use crate::train::session::Source;

/// Takes part in a run until the first process ends it.
///
/// # Errors
/// What loading and computing fail by; [`Error::Group`] where the first process goes.
pub fn follow<D: LossDevice>(
    device: &Arc<D>,
    run: &Run,
    place: &Place,
    options: &Options<'_>,
) -> Result<(), Error> {
    check_shares(run, place)?;
    let tokenizers = Tokenizers::of(run).map_err(Error::into_problem)?;
    let mut corpus = Corpus::open(run, &tokenizers).map_err(Error::into_problem)?;
    let cache = CachedTeacher::of_run(device, run, tokenizers.of_teacher(), corpus.fingerprint())?
        .map(|cache| cache.check_teacher(run, &options.digests, options.cancel))
        .transpose()?;
    let inputs = inputs::hash(run, &options.digests, options.cancel, &|_, _| {})?;
    let inputs = super::json(serde_json::to_value(&inputs))?;
    let group = Arc::new(Group::join(place, &digest(run, &inputs)?, device.as_ref())?);
    let told = group.share(Vec::new())?;
    let Some((last, &[savings, is_short])) = told.split_first_chunk() else {
        return Err(Error::group("the first process says something unknown"));
    };
    let last = Some(u64::from_le_bytes(*last)).filter(|&step| step > 0);
    let mut run = forecast::with(run, &forecast::of_bits(savings));
    if is_short > 0 {
        run.train.moments = Moments::Int8;
    }
    let run = &run;
    let models = Models::load(device, run)?;
    let shared = Some(Arc::clone(&group));
    let trainer = Trainer::of_group(models.student, models.teacher, run, corpus.steps(), shared)?;
    let mut trainer = trainer.with_cache(cache);
    if let Some(step) = last {
        let states = RunFolder::states_of(&run.output);
        let progress = states.read(step)?;
        states.restore(step, device.as_ref(), trainer.items_mut())?;
        trainer.resume(progress.step, progress.updates, progress.annealing)?;
        corpus.seek(&progress.data)?;
    }
    let validation = corpus.validation()?;
    loop {
        match group.hear()? {
            Command::Step => {
                trainer.step(&corpus.next_step()?, &|| false)?;
            }
            Command::Evaluate(turn) => {
                let turn =
                    usize::try_from(turn).ok().and_then(|turn| validation.chunks(place.size).nth(turn));
                let turn = turn.ok_or_else(|| Error::group("the first process has other data"))?;
                trainer.evaluate(turn)?;
            }
            Command::Save => trainer.give()?,
            Command::End => return Ok(()),
        }
    }
}

/// Waits for all processes, and tells them where the run goes on.
pub(super) fn lead<D: Device>(
    place: &Place,
    run: &Run,
    inputs: &Value,
    device: &D,
    (last, savings, is_short): (Option<u64>, &[Saving], bool),
) -> Result<Arc<Group<D>>, Error> {
    let group = Group::join(place, &digest(run, inputs)?, device)?;
    let step = last.unwrap_or(0).to_le_bytes();
    group.share([step.as_slice(), &[forecast::bits(savings), u8::from(is_short)]].concat())?;
    Ok(Arc::new(group))
}

/// Refuses more processes than a step has micro-batches.
pub(super) fn check_shares(run: &Run, place: &Place) -> Result<(), Error> {
    let count = run.train.micro_batches();
    if count >= place.size {
        return Ok(());
    }
    let message = format!(
        "a step has {count} micro-batch{}, and {} processes share them",
        if count == 1 { "" } else { "es" },
        place.size
    );
    Err(Problem::general(message)
        .with_hint("raise `batch_size`, lower `micro_batch`, or start fewer processes")
        .into())
}

/// Stands for everything that has to be the same in all processes.
fn digest(run: &Run, inputs: &Value) -> Result<String, Error> {
    let run = super::json(run.to_json())?;
    let text = serde_json::to_vec(&(run, inputs)).map_err(|error| Error::internal(error.to_string()))?;
    Ok(hexadecimal(&Sha256::digest(text)))
}
