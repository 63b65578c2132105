//! Trains with several processes, each with a device of its own: their gradients are added up, and all take the same step.
//!
//! In: what the launcher says in the environment ([`Place`]). Out: a [`Group`], which shares micro-batches out and adds up what was made of them. All
//! processes read the same data and hold the same weights and moments; a step's micro-batches go round the processes. So a step is that of one process
//! but for the order of its sums, and a checkpoint, which the first process writes, goes on with any number of them.
//!
//! Numbers and commands go over TCP, to and from the first process. Gradients go from device to device where devices can
//! ([`Device::meeting`]), and over TCP elsewhere, which is for few processes on one machine.

mod place;
mod reduce;
mod share;
mod wire;

pub use place::Place;
pub(crate) use reduce::{Buckets, Reduction};
pub(crate) use share::{fullest, owners};

use std::sync::{Mutex, PoisonError};

use aludel_kernels::element::Element;
use aludel_kernels::nn::Device;

use crate::error::Error;
use wire::Links;

/// The processes of a training, seen from one of them.
pub struct Group<D: Device> {
    place: Place,
    links: Mutex<Links>,
    /// `None` where buffers go over TCP.
    devices: Option<D::Collective>,
}

/// What all processes do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Take the next step.
    Step,
    /// Score the held-out micro-batches of this turn, one for each process.
    Evaluate(u64),
    /// Give the first process what it lacks of a checkpoint.
    Save,
    /// End.
    End,
}

impl Command {
    fn to_bytes(self) -> Vec<u8> {
        let (kind, turn) = match self {
            Self::Step => (0, 0),
            Self::Evaluate(turn) => (1, turn),
            Self::End => (2, 0u64),
            Self::Save => (3, 0),
        };
        [&[kind], turn.to_le_bytes().as_slice()].concat()
    }

    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, turn) = bytes.split_first()?;
        let turn = u64::from_le_bytes(turn.try_into().ok()?);
        match kind {
            0 => Some(Self::Step),
            1 => Some(Self::Evaluate(turn)),
            2 => Some(Self::End),
            3 => Some(Self::Save),
            _ => None,
        }
    }
}

impl<D: Device> Group<D> {
    /// Waits for all processes. `run` stands for everything that has to be the same in each of them.
    ///
    /// # Errors
    /// [`Error::Group`] where a process does not come, or is of another run; what the device says.
    pub fn join(place: &Place, run: &str, device: &D) -> Result<Self, Error> {
        let mut links = Links::open(place, run)?;
        let meeting = if place.rank == 0 { device.meeting()?.unwrap_or_default() } else { Vec::new() };
        let meeting = links.broadcast(meeting)?;
        let devices = match meeting.as_slice() {
            [] => None,
            meeting => Some(device.meet(meeting, place.rank, place.size)?),
        };
        Ok(Self { place: place.clone(), links: Mutex::new(links), devices })
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.place.size
    }

    /// Which of them this is.
    pub(crate) fn rank(&self) -> usize {
        self.place.rank
    }

    /// Whether this process is the first, which writes and decides.
    pub fn is_first(&self) -> bool {
        self.place.rank == 0
    }

    /// Whether a piece of work, by its number, is this process's.
    pub(crate) fn takes(&self, number: usize) -> bool {
        number % self.place.size == self.place.rank
    }

    /// Tells the others what is next; of the first process.
    pub(crate) fn tell(&self, command: Command) -> Result<(), Error> {
        self.links().broadcast(command.to_bytes()).map(|_| ())
    }

    /// Hears what is next; of the others.
    pub(crate) fn hear(&self) -> Result<Command, Error> {
        let heard = self.links().broadcast(Vec::new())?;
        Command::of_bytes(&heard).ok_or_else(|| Error::group("the first process says something unknown"))
    }

    /// The first process's bytes, in all of them.
    pub(crate) fn share(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.links().broadcast(bytes)
    }

    /// Every number becomes its sum over all processes, in the order of the processes.
    pub(crate) fn sum(&self, numbers: &mut [f64]) -> Result<(), Error> {
        self.links().sum(numbers)
    }

    /// Every element of these buffers, which are f32 and as many and as long in every process, becomes its sum over all processes: the same
    /// bits in each. [`Group::sum`] goes before, so that all are known to be there.
    pub(crate) fn sum_buffers<'a>(
        &self,
        device: &D,
        buffers: impl Iterator<Item = &'a mut D::Buffer>,
    ) -> Result<(), Error>
    where
        D::Buffer: 'a,
    {
        if self.devices.is_some() {
            self.begin_sums(device, buffers)?;
            return self.await_sums(device);
        }
        let mut links = self.links();
        for buffer in buffers {
            let len = device.len(buffer);
            debug_assert_eq!(device.element(buffer), Element::F32, "gradients are f32");
            for at in (0..len).step_by(PIECE) {
                let mut values = device.read(buffer, at..len.min(at + PIECE))?;
                links.sum(&mut values)?;
                device.write(buffer, at, &values)?;
            }
        }
        Ok(())
    }

    /// As [`Group::sum_buffers`] of devices that reach each other, until [`Group::await_sums`].
    fn begin_sums<'a>(
        &self,
        device: &D,
        buffers: impl Iterator<Item = &'a mut D::Buffer>,
    ) -> Result<(), Error>
    where
        D::Buffer: 'a,
    {
        let mut buffers: Vec<&mut D::Buffer> = buffers.collect();
        match &self.devices {
            Some(devices) => Ok(device.sum_over(devices, &mut buffers)?),
            None => Err(Error::internal("sums of devices that do not reach each other")),
        }
    }

    fn await_sums(&self, device: &D) -> Result<(), Error> {
        self.devices.as_ref().map_or(Ok(()), |devices| Ok(device.await_sums(devices)?))
    }

    /// Every buffer becomes that of its owner, which is the number of a process: the same bits in each. [`Group::sum`] goes before, as above.
    pub(crate) fn spread_buffers(
        &self,
        device: &D,
        mut buffers: Vec<(usize, &mut D::Buffer)>,
    ) -> Result<(), Error> {
        if let Some(devices) = &self.devices {
            return Ok(device.spread_over(devices, &mut buffers)?);
        }
        let (mut links, own) = (self.links(), self.place.rank);
        for (owner, buffer) in buffers {
            let (len, element) = (device.len(buffer), device.element(buffer));
            for at in (0..len).step_by(PIECE) {
                let range = at..len.min(at + PIECE);
                let count = range.len();
                let bytes =
                    if owner == own { element.encode(&device.read(buffer, range)?) } else { Vec::new() };
                let bytes = links.spread(own, owner, bytes)?;
                if bytes.len() != count * element.size() {
                    return Err(Error::group(format!("process {owner} has other weights")));
                }
                if owner != own {
                    device.write(buffer, at, &element.decode(&bytes))?;
                }
            }
        }
        Ok(())
    }

    /// Sends bytes to the first process, in frames of [`FRAME`]; of the others.
    pub(crate) fn give(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut links = self.links();
        bytes.chunks(FRAME).try_for_each(|frame| links.give(frame))
    }

    /// So many bytes that a process has sent by [`Group::give`], frame by frame; of the first.
    pub(crate) fn take(
        &self,
        owner: usize,
        len: usize,
        mut put: impl FnMut(usize, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for at in (0..len).step_by(FRAME) {
            let bytes = self.links().take(owner)?;
            if bytes.len() != FRAME.min(len - at) {
                return Err(Error::group(format!("process {owner} has another share of the optimizer")));
            }
            put(at, &bytes)?;
        }
        Ok(())
    }

    fn links(&self) -> std::sync::MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Elements that go over TCP at once.
const PIECE: usize = 1 << 20;

/// Bytes of a share of a checkpoint that go over TCP at once.
const FRAME: usize = 4 << 20;
