//! Adds gradients up over all processes while a backward pass still makes others.
//!
//! In: gradients that nothing is added to any more, stage by stage ([`Decoder::stages`](aludel_model::Decoder::stages)). Out: their sums, in the order of
//! buckets that is the same in every process. Between devices sums go on beside what is computed; over TCP a thread sees to them. Sums are those of
//! [`Group::sum_buffers`], bucket by bucket.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use aludel_kernels::nn::Device;
use aludel_model::Gradients;

use super::Group;
use crate::error::Error;

/// Elements that a bucket has at least, but for the last one: 25 MB.
const BUCKET: usize = 25_000_000 / size_of::<f32>();

/// Gradients by the position of their parameter.
type Bucket<D> = Vec<(usize, <D as Device>::Buffer)>;

/// What is added up together, in which order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Buckets(Vec<(usize, Vec<usize>)>);

/// Sums of one step that are under way.
pub(crate) struct Reduction<D: Device> {
    group: Arc<Group<D>>,
    device: Arc<D>,
    buckets: std::vec::IntoIter<(usize, Vec<usize>)>,
    /// Buckets that devices are adding up.
    submitted: Vec<Bucket<D>>,
    /// The thread that adds up over TCP.
    worker: Option<Worker<D>>,
    failure: Option<Error>,
}

/// What was added up, and how it ended.
type Ended<D> = (Vec<Bucket<D>>, Result<(), Error>);

struct Worker<D: Device> {
    to: Sender<Bucket<D>>,
    thread: JoinHandle<Ended<D>>,
}

impl Buckets {
    /// Of trained parameters: their position, the stage in which their gradient is final, and their length.
    pub(crate) fn new(trained: impl IntoIterator<Item = (usize, usize, usize)>) -> Self {
        let mut trained: Vec<(usize, usize, usize)> = trained.into_iter().collect();
        trained.sort_by_key(|&(position, stage, _)| (stage, position));
        let mut buckets: Vec<(usize, Vec<usize>)> = Vec::new();
        let mut room = 0;
        for (position, stage, len) in trained {
            match buckets.last_mut() {
                Some((last, positions)) if room > 0 => {
                    *last = stage;
                    positions.push(position);
                }
                _ => {
                    buckets.push((stage, vec![position]));
                    room = BUCKET;
                }
            }
            room = room.saturating_sub(len);
        }
        Self(buckets)
    }
}

impl<D: Device> Reduction<D> {
    /// Begins; all processes do so in the same step.
    pub(crate) fn begin(group: &Arc<Group<D>>, device: &Arc<D>, buckets: &Buckets) -> Result<Self, Error> {
        if group.devices.is_some() {
            // All are known to be there before a device waits for another.
            group.sum(&mut [0.0])?;
        }
        let worker = group.devices.is_none().then(|| Worker::new(Arc::clone(group), Arc::clone(device)));
        Ok(Self {
            group: Arc::clone(group),
            device: Arc::clone(device),
            buckets: buckets.0.clone().into_iter(),
            submitted: Vec::new(),
            worker,
            failure: None,
        })
    }

    /// Takes the gradients that are final after this stage, and adds them up. A failure is told at the end.
    pub(crate) fn passed(&mut self, stage: usize, gradients: &mut Gradients<D>) {
        while let Some((_, positions)) =
            self.buckets.as_slice().first().filter(|(last, _)| *last <= stage && self.failure.is_none())
        {
            let taken = positions.iter().filter_map(|&position| Some((position, gradients.take(position)?)));
            let bucket: Bucket<D> = taken.collect();
            self.buckets.next();
            self.submit(bucket);
        }
    }

    fn submit(&mut self, mut bucket: Bucket<D>) {
        match &self.worker {
            Some(worker) => {
                // A thread that has ended gives its reason at the end.
                let _ = worker.to.send(bucket);
            }
            None => {
                let buffers = bucket.iter_mut().map(|(_, buffer)| buffer);
                if let Err(error) = self.group.begin_sums(&self.device, buffers) {
                    self.failure.get_or_insert(error);
                }
                self.submitted.push(bucket);
            }
        }
    }

    /// Adds up the rest, and gives all gradients back.
    pub(crate) fn finish(mut self, gradients: &mut Gradients<D>) -> Result<(), Error> {
        self.passed(usize::MAX, gradients);
        if let Some(Worker { to, thread }) = self.worker.take() {
            drop(to);
            let (buckets, result) =
                thread.join().map_err(|_| Error::internal("the thread that adds gradients up has failed"))?;
            self.submitted = buckets;
            result?;
        } else {
            self.group.await_sums(&self.device)?;
        }
        for (position, buffer) in self.submitted.into_iter().flatten() {
            gradients.put(position, buffer);
        }
        self.failure.map_or(Ok(()), Err)
    }
}

impl<D: Device> Worker<D> {
    fn new(group: Arc<Group<D>>, device: Arc<D>) -> Self {
        let (to, from) = channel::<Bucket<D>>();
        let thread = std::thread::spawn(move || {
            let mut done = Vec::new();
            for mut bucket in from {
                let buffers = bucket.iter_mut().map(|(_, buffer)| buffer);
                if let Err(error) = group.sum_buffers(&device, buffers) {
                    return (done, Err(error));
                }
                done.push(bucket);
            }
            (done, Ok(()))
        });
        Self { to, thread }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_filled_in_the_order_in_which_gradients_become_final() {
        let small = BUCKET / 2;
        let trained = [(0, 3, small), (1, 2, small), (2, 2, small), (3, 1, BUCKET), (4, 1, 7), (5, 0, 1)];
        assert_eq!(Buckets::new(trained), Buckets(vec![(1, vec![5, 3]), (2, vec![4, 1, 2]), (3, vec![0])]));
        assert_eq!(Buckets::new([]), Buckets(Vec::new()));
    }
}
