//! Holds what an update of one parameter needs beside its gradient: on the device, in the host's memory, or not at all where another process does.
//!
//! In: weights, and where their state is to lie. Out: updates, and the arrays that a checkpoint holds: the same names and bytes wherever they lie.

use aludel_checkpoint::Dtype;
use aludel_kernels::element::Element;
use aludel_kernels::nn::device::{AsideMoments, AsideUpdate};
use aludel_kernels::nn::{Device, DeviceError, Master, MomentsMut, ParameterUpdate, StoredMoments, Update};

use super::{AdamW, Trained};
use crate::run::Moments as MomentType;
use crate::state::{Content, ContentMut, Item, moment_names};

/// One parameter.
pub(super) struct Slot<D: Device> {
    pub(super) len: usize,
    /// The weights are f32 and so their own master.
    pub(super) is_own_master: bool,
    /// The process that updates it; `None` where each does.
    pub(super) owner: Option<usize>,
    /// `None` where another process holds it.
    pub(super) state: Option<State<D>>,
}

/// What an update of a parameter needs beside its gradient: moments, and where the weights are not their own master, what they lack of it on the device, or
/// all of it aside.
pub(super) enum State<D: Device> {
    Here { remainders: Option<D::Remainders>, moments: Moments<D> },
    Aside { master: Option<D::Host>, moments: MomentsAside<D> },
}

pub(super) enum Moments<D: Device> {
    Whole { first: D::Buffer, second: D::Buffer },
    Eight(D::Moments),
}

/// In the host's memory.
pub(super) enum MomentsAside<D: Device> {
    Whole([D::Host; 2]),
    /// As [`StoredMoments`] has them.
    Eight([D::Host; 4]),
}

/// What is to be done for a parameter.
pub(super) enum Due<'a, D: Device> {
    Here(ParameterUpdate<'a, D>),
    Aside(AsideUpdate<'a, D>),
}

/// Elements that go between device and host at once.
const PIECE: usize = 1 << 22;

/// Types of the arrays of moments in eight bits.
const EIGHT: [Dtype; 4] = [Dtype::U8, Dtype::F32, Dtype::U8, Dtype::F32];

impl<D: Device> State<D> {
    pub(super) fn new(device: &D, settings: AdamW, weights: &D::Buffer) -> Result<Self, DeviceError> {
        if settings.is_aside
            && let Some(state) = Self::aside(device, settings.moments, weights)?
        {
            return Ok(state);
        }
        let len = device.len(weights);
        let zeros = || device.zeros(len, Element::F32);
        let moments = match settings.moments {
            MomentType::Float32 => Moments::Whole { first: zeros()?, second: zeros()? },
            MomentType::Int8 => Moments::Eight(device.moments(len)?),
        };
        let is_own_master = device.element(weights) == Element::F32;
        let remainders = (!is_own_master).then(|| device.remainders(len)).transpose()?;
        Ok(Self::Here { remainders, moments })
    }

    /// In the host's memory; `None` where that is the device's too.
    fn aside(device: &D, moments: MomentType, weights: &D::Buffer) -> Result<Option<Self>, DeviceError> {
        let len = device.len(weights);
        let floats = |count: usize| device.host(4 * count);
        let moments = match moments {
            MomentType::Float32 => {
                let (Some(first), Some(second)) = (floats(len)?, floats(len)?) else { return Ok(None) };
                MomentsAside::Whole([first, second])
            }
            MomentType::Int8 => {
                let scales = StoredMoments::scales(len);
                let arrays = (device.host(len)?, floats(scales)?, device.host(len)?, floats(scales)?);
                let (Some(first), Some(of_first), Some(second), Some(of_second)) = arrays else {
                    return Ok(None);
                };
                MomentsAside::Eight([first, of_first, second, of_second])
            }
        };
        let mut master = None;
        if device.element(weights) != Element::F32 {
            let Some(mut host) = floats(len)? else { return Ok(None) };
            let len = if device.is_blank() { 0 } else { len };
            for start in (0..len).step_by(PIECE) {
                let values = device.read(weights, start..len.min(start + PIECE))?;
                let bytes = Element::F32.encode(&values);
                device.host_bytes_mut(&mut host)?[4 * start..4 * start + bytes.len()].copy_from_slice(&bytes);
            }
            master = Some(host);
        }
        Ok(Some(Self::Aside { master, moments }))
    }

    /// What an update has to do.
    pub(super) fn due<'a>(&'a mut self, update: Update, parameter: &'a mut Trained<'_, D>) -> Due<'a, D> {
        let (gradient, decays) = (parameter.gradient, parameter.decays);
        let weights: &'a mut D::Buffer = parameter.weights;
        match self {
            Self::Here { remainders, moments } => {
                let master = match remainders {
                    Some(remainders) => Master::Split(weights, remainders),
                    None => Master::Weights(weights),
                };
                let moments = match moments {
                    Moments::Whole { first, second } => MomentsMut::Whole([first, second]),
                    Moments::Eight(moments) => MomentsMut::Eight(moments),
                };
                Due::Here(ParameterUpdate { gradient, decays, master, moments })
            }
            Self::Aside { master, moments } => {
                let moments = match moments {
                    MomentsAside::Whole(hosts) => AsideMoments::Whole(hosts.each_mut()),
                    MomentsAside::Eight(hosts) => AsideMoments::Eight(hosts.each_mut()),
                };
                let (update, master) = (update.of(decays), master.as_mut());
                Due::Aside(AsideUpdate { update, gradient, weights, master, moments })
            }
        }
    }

    /// Rounds weights from a master that lies aside.
    pub(super) fn round(&self, device: &D, weights: &mut D::Buffer) -> Result<(), DeviceError> {
        if let Self::Aside { master: Some(master), .. } = self {
            for (piece, bytes) in device.host_bytes(master)?.chunks(4 * PIECE).enumerate() {
                device.write_master(weights, None, piece * PIECE, &Element::F32.decode(bytes))?;
            }
        }
        Ok(())
    }
}

impl<D: Device> Slot<D> {
    /// Masters and moments, in order to be saved.
    pub(super) fn items<'a>(
        &'a self,
        moments: MomentType,
        weights: &'a D::Buffer,
        name: &str,
    ) -> Vec<Item<Content<'a, D>>> {
        let mut items = Vec::new();
        let mut put = |part: &str, content| items.push(Item { name: format!("{part}/{name}"), content });
        match &self.state {
            Some(State::Here { remainders, moments }) => {
                if remainders.is_some() {
                    put("master", Content::Buffer(weights, remainders.as_ref()));
                }
                match moments {
                    Moments::Whole { first, second } => {
                        put("first", Content::Buffer(first, None));
                        put("second", Content::Buffer(second, None));
                    }
                    Moments::Eight(moments) => put("moments", Content::Moments(moments, self.len)),
                }
            }
            Some(State::Aside { master, moments }) => {
                master.iter().for_each(|master| put("master", Content::Host(master, Dtype::F32)));
                match moments {
                    MomentsAside::Whole([first, second]) => {
                        put("first", Content::Host(first, Dtype::F32));
                        put("second", Content::Host(second, Dtype::F32));
                    }
                    MomentsAside::Eight(hosts) => {
                        let names = moment_names(&format!("moments/{name}"));
                        for ((name, host), dtype) in names.into_iter().zip(hosts).zip(EIGHT) {
                            items.push(Item { name, content: Content::Host(host, dtype) });
                        }
                    }
                }
            }
            None => {
                let owner = self.owner.unwrap_or_default();
                let elsewhere = |is_eight| Content::Elsewhere { owner, len: self.len, is_eight };
                if !self.is_own_master {
                    put("master", elsewhere(false));
                }
                match moments {
                    MomentType::Float32 => {
                        put("first", elsewhere(false));
                        put("second", elsewhere(false));
                    }
                    MomentType::Int8 => put("moments", elsewhere(true)),
                }
            }
        }
        items
    }

    /// The same in order to be restored, with weights that are their own master, or whose master is elsewhere.
    pub(super) fn items_mut<'a>(
        &'a mut self,
        moments: MomentType,
        weights: &'a mut D::Buffer,
        name: &str,
    ) -> Vec<Item<ContentMut<'a, D>>> {
        let mut items = Vec::new();
        let mut put = |part: &str, content| items.push(Item { name: format!("{part}/{name}"), content });
        let weights = if self.is_own_master {
            put("weights", ContentMut::Buffer(weights));
            None
        } else {
            Some(weights)
        };
        match &mut self.state {
            Some(State::Here { remainders, moments }) => {
                if let Some(weights) = weights {
                    put("master", ContentMut::Master(weights, remainders.as_mut()));
                }
                match moments {
                    Moments::Whole { first, second } => {
                        put("first", ContentMut::Buffer(first));
                        put("second", ContentMut::Buffer(second));
                    }
                    Moments::Eight(moments) => put("moments", ContentMut::Moments(moments, self.len)),
                }
            }
            Some(State::Aside { master, moments }) => {
                master.iter_mut().for_each(|master| put("master", ContentMut::Host(master, Dtype::F32)));
                match moments {
                    MomentsAside::Whole([first, second]) => {
                        put("first", ContentMut::Host(first, Dtype::F32));
                        put("second", ContentMut::Host(second, Dtype::F32));
                    }
                    MomentsAside::Eight(hosts) => {
                        let names = moment_names(&format!("moments/{name}"));
                        for ((name, host), dtype) in names.into_iter().zip(hosts).zip(EIGHT) {
                            items.push(Item { name, content: ContentMut::Host(host, dtype) });
                        }
                    }
                }
            }
            None => {
                if let Some(weights) = weights {
                    put("master", ContentMut::Master(weights, None));
                }
                match moments {
                    MomentType::Float32 => {
                        put("first", ContentMut::Skipped(self.len));
                        put("second", ContentMut::Skipped(self.len));
                    }
                    MomentType::Int8 => put("moments", ContentMut::SkippedMoments(self.len)),
                }
            }
        }
        items
    }
}
