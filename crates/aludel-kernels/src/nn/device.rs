//! Declares what a decoder asks of a device: memory, and each operation forward and backward.
//!
//! Shape letters, here and in every operation: `T` rows of a step (tokens of all its documents, one after another), `D`
//! hidden width, `H` query heads, `K` key and value heads, `E` head width, `F` inner width of the feed-forward block, `V`
//! vocabulary, `I` and `O` inputs and outputs of a product, `X` experts, `N` experts chosen for a row. All arrays are dense
//! and row-major.
//!
//! An output parameter is overwritten unless its documentation says that it is added to. Gradients of parameters are
//! always added to, so that micro-batches accumulate in place. A mismatch of lengths is a bug of the caller and panics;
//! what the machine refuses is a [`DeviceError`], and an asynchronous device may report it at the next
//! [`Device::read`] or [`Device::synchronize`].

use std::ops::Range;
use std::sync::Arc;

use super::rows::runs;
use crate::element::Element;

/// Why a device did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// There is not enough memory for an allocation.
    #[error("out of memory on {device}: {bytes} bytes were asked for")]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// Size of the allocation that failed.
        bytes: u64,
    },
    /// The driver or a library failed.
    #[error("{device} failed: {detail}")]
    Failed {
        /// The device's name.
        device: String,
        /// What it said.
        detail: String,
    },
}

/// Bytes that somebody else owns, such as a window of a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// `rows` rows of `width` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// How many.
    pub rows: usize,
    /// Elements of one.
    pub width: usize,
}

/// What becomes of an output's former content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// It is overwritten; it may be anything, NaN included.
    Overwrite,
    /// The result is added to it.
    Add,
}

/// Root-mean-square normalisation: `y = x / sqrt(mean(x^2) + epsilon) * g`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Added to the mean square.
    pub epsilon: f32,
    /// `g` is `1 + weight` (Gemma) rather than `weight`.
    pub one_plus: bool,
}

/// A product `y[T, O] = scale * x[T, I] w[O, I]^T`, as a linear layer stores its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// T.
    pub rows: usize,
    /// I.
    pub inputs: usize,
    /// O.
    pub outputs: usize,
    /// Factor of the product (1 for a plain layer; `alpha / rank` folded into the second factor of a LoRA).
    pub scale: f32,
}

/// Rows of heads that are turned or normalised: `[T, heads, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// T.
    pub rows: usize,
    /// Heads in a row.
    pub heads: usize,
    /// E.
    pub width: usize,
}

/// Which way a rotation goes. Its transpose, and so its gradient, is the rotation backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the angle.
    Forward,
    /// By minus the angle.
    Backward,
}

/// Queries and the keys that they may see. The last query of a span sees its last key, the one before it all keys but the
/// last, and so on: a document of a packed step has equal ranges; a step of generation has one query and many keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Rows of `q`.
    pub queries: Range<usize>,
    /// Rows of `k` and `v`; at least as many as queries.
    pub keys: Range<usize>,
}

/// Causal attention with grouped heads: query head `h` reads key and value head `h / (H / K)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// H.
    pub heads: usize,
    /// K; divides H.
    pub key_heads: usize,
    /// E.
    pub width: usize,
    /// Factor of the scores, usually `E^-0.5`.
    pub scale: f32,
    /// A query sees only this many last keys, its own included.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)` before the softmax.
    pub soft_cap: Option<f32>,
}

/// The function applied to the gate of a gated feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)`, by the error function.
    Gelu,
    /// The tanh approximation of [`Activation::Gelu`].
    GeluTanh,
}

/// One step of AdamW (Loshchilov and Hutter 2019, algorithm 2), with the gradient scaled first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate of this step, schedule included.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay; 0 for norms and biases.
    pub weight_decay: f32,
    /// The step's number, counted from 1, for the correction of the moments' bias.
    pub step: u64,
    /// Factor of the gradient, before it is clipped.
    pub gradient_scale: f32,
}

impl Update {
    /// The same for a parameter that decays, or does not.
    pub const fn of(self, decays: bool) -> Self {
        if decays { self } else { Self { weight_decay: 0.0, ..self } }
    }
}

/// What a device may not compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// [`Device::route`] and all that follows from it.
    Experts,
    /// [`Device::attention`] where E is no multiple of 8.
    HeadsOfOddWidth,
}

/// How rows choose experts: softmax over the logits of all experts, then the `N` largest probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// T.
    pub rows: usize,
    /// X.
    pub experts: usize,
    /// N; at most X.
    pub chosen: usize,
    /// The chosen probabilities are divided by their sum (Mixtral always; Qwen3-MoE by `norm_topk_prob`).
    pub renormalise: bool,
}

/// Moments in eight bits ([`Device::moments`]) on the host, for a checkpoint: the same bytes restore the same state.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredMoments {
    /// One code for each element of the first moment.
    pub first: Vec<u8>,
    /// One scale for each block of the first moment.
    pub first_scales: Vec<f32>,
    /// One code for each element of the second moment.
    pub second: Vec<u8>,
    /// One scale for each block of the second moment.
    pub second_scales: Vec<f32>,
}

impl StoredMoments {
    /// The number of scales that each moment of so many elements has.
    pub fn scales(len: usize) -> usize {
        len.div_ceil(super::adamw::blockwise::BLOCK)
    }
}

/// The weights of one layer: bytes of each array, little-endian, and the type of its elements.
pub type LayerWeights = Vec<(SharedBytes, Element)>;

/// A norm of gradients that is known, and what clips them.
#[derive(Clone, Copy, Debug)]
pub struct KnownNorm {
    /// Before clipping.
    pub norm: f64,
    /// `min(1, limit / (norm + 1e-6))`, as torch has it; not a number where the norm is not finite.
    pub scale: f32,
}

impl KnownNorm {
    /// Of gradients with this norm.
    pub fn new(norm: f64, limit: Option<f64>) -> Self {
        let scale = limit.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0));
        Self { norm, scale: if norm.is_finite() { scale as f32 } else { f32::NAN } }
    }
}

/// A parameter to be updated, with its state on the device.
pub struct ParameterUpdate<'a, D: Device + ?Sized> {
    /// f32, of the same length.
    pub gradient: &'a D::Buffer,
    /// Whether the update's decay is meant for it.
    pub decays: bool,
    /// What is updated.
    pub master: Master<'a, D>,
    /// Its moments.
    pub moments: MomentsMut<'a, D>,
}

/// Where the f32 values of a parameter are.
pub enum Master<'a, D: Device + ?Sized> {
    /// In weights of f32.
    Weights(&'a mut D::Buffer),
    /// In weights of bf16 and what they lack of f32.
    Split(&'a mut D::Buffer, &'a mut D::Remainders),
}

/// Both moments of a parameter.
pub enum MomentsMut<'a, D: Device + ?Sized> {
    /// First and second, f32.
    Whole([&'a mut D::Buffer; 2]),
    /// In eight bits (block-wise, after Dettmers et al. 2022).
    Eight(&'a mut D::Moments),
}

/// Elements of a parameter that [`Device::adamw_aside`] has on the device at once, a multiple of those that share a scale; two such pieces are there.
pub const PIECE_ASIDE: usize = 8 << 20;

/// A parameter whose state lies in the host's memory ([`Device::host`]).
pub struct AsideUpdate<'a, D: Device + ?Sized> {
    /// What is done.
    pub update: Update,
    /// f32, on the device.
    pub gradient: &'a D::Buffer,
    /// On the device.
    pub weights: &'a mut D::Buffer,
    /// f32; `None` where the weights are f32 and their own master.
    pub master: Option<&'a mut D::Host>,
    /// Of the same kind for all that are updated together.
    pub moments: AsideMoments<'a, D>,
}

/// Moments in the host's memory.
pub enum AsideMoments<'a, D: Device + ?Sized> {
    /// First and second, f32.
    Whole([&'a mut D::Host; 2]),
    /// The arrays of [`StoredMoments`].
    Eight([&'a mut D::Host; 4]),
}

impl<D: Device + ?Sized> AsideMoments<'_, D> {
    pub(super) fn hosts(&self) -> Vec<&D::Host> {
        match self {
            Self::Whole(hosts) => hosts.iter().map(|host| &**host).collect(),
            Self::Eight(hosts) => hosts.iter().map(|host| &**host).collect(),
        }
    }

    pub(super) fn hosts_mut(&mut self) -> Vec<&mut D::Host> {
        match self {
            Self::Whole(hosts) => hosts.iter_mut().map(|host| &mut **host).collect(),
            Self::Eight(hosts) => hosts.iter_mut().map(|host| &mut **host).collect(),
        }
    }
}

/// Bytes from which on a buffer gives its memory back while nobody needs it, where that is at hand for others: asking for some takes microseconds, as long
/// as computing what is smaller.
pub const LARGE_BUFFER: usize = 4 << 20;

/// A place that holds buffers and computes on them.
pub trait Device: Send + Sync + 'static {
    /// A dense array of elements of one type on the device.
    type Buffer: Send + Sync;
    /// Small unsigned numbers on the device: token ids, positions, labels, row numbers.
    type Indices: Send + Sync;
    /// The experts that rows chose, and the rows in the order of the experts: `T * N` slots, those of expert 0 first, and
    /// by row within an expert.
    type Assignment: Send + Sync;
    /// Both moments of AdamW in eight bits an element, with one scale for each block of elements.
    type Moments: Send + Sync;
    /// What weights in bf16 lack of the f32 that an optimizer changes.
    type Remainders: Send + Sync;
    /// The norm of gradients, where an update finds it.
    type GradientNorm: Send + Sync;
    /// Values on their way to the host.
    type Reading: Send + Sync;
    /// How devices of several processes reach each other.
    type Collective: Send + Sync;
    /// Bytes of the host's memory that the device copies from and to.
    type Host: Send + Sync;
    /// Layers of a model whose weights lie in the host's memory.
    type Layers: Send + Sync;

    /// The device's name for messages.
    fn name(&self) -> String;

    /// The type of activations and of gradients of activations here: f32 on the CPU, bf16 on a GPU. Gradients of
    /// parameters, masters and moments are f32 everywhere.
    fn activation(&self) -> Element;

    /// Bytes of the device's own memory that nobody has; `None` where its memory is the host's.
    fn free_memory(&self) -> Option<u64> {
        None
    }

    /// Bytes of the device's own memory that buffers have had at most, at once; `None` where its memory is the host's.
    fn peak_memory(&self) -> Option<u64> {
        None
    }

    /// Operations that are refused here: whoever needs one asks before it loads anything.
    fn missing(&self) -> &'static [Missing] {
        &[]
    }

    /// Whether nothing is computed here, and values need not be made.
    fn is_blank(&self) -> bool {
        false
    }

    /// A name for the meeting of devices of several processes, made by one of them; `None` where they cannot reach each other.
    fn meeting(&self) -> Result<Option<Vec<u8>>, DeviceError> {
        Ok(None)
    }

    /// Meets the devices of `size` processes, of which this is number `rank`, by the name that one of them has made.
    fn meet(&self, meeting: &[u8], rank: usize, size: usize) -> Result<Self::Collective, DeviceError>;

    /// Every element of these f32 buffers becomes its sum over all that have met, who give as many of the same lengths in the same order: the same
    /// bits in each. It goes on beside what is submitted next, which leaves the buffers alone until [`Device::await_sums`].
    fn sum_over(
        &self,
        collective: &Self::Collective,
        buffers: &mut [&mut Self::Buffer],
    ) -> Result<(), DeviceError>;

    /// What is submitted from now on sees the sums.
    fn await_sums(&self, collective: &Self::Collective) -> Result<(), DeviceError>;

    /// Bytes of the host's memory, zero; `None` where the device's memory is the host's.
    fn host(&self, bytes: usize) -> Result<Option<Self::Host>, DeviceError> {
        let _ = bytes;
        Ok(None)
    }

    /// The bytes, after everything that was asked before.
    fn host_bytes<'a>(&self, host: &'a Self::Host) -> Result<&'a [u8], DeviceError>;

    /// The bytes to be written, after everything that was asked before.
    fn host_bytes_mut<'a>(&self, host: &'a mut Self::Host) -> Result<&'a mut [u8], DeviceError>;

    /// As [`Device::adamw`] of all these, to the bit, with state that lies in the host's memory.
    fn adamw_aside(&self, updates: &mut [AsideUpdate<'_, Self>]) -> Result<(), DeviceError> {
        let _ = updates;
        Err(DeviceError::Failed { device: self.name(), detail: "its memory is the host's".to_owned() })
    }

    /// Keeps the weights of layers, of which there is at least one, in the host's memory; `None` where the device's memory is the host's. The buffers are
    /// for reading, those of one layer at a time: after [`Device::bring`].
    #[expect(clippy::type_complexity, reason = "buffers of each layer, beside what brings them")]
    fn layers(
        &self,
        layers: &[LayerWeights],
    ) -> Result<Option<(Self::Layers, Vec<Vec<Self::Buffer>>)>, DeviceError> {
        let _ = layers;
        Ok(None)
    }

    /// From now on, the buffers of this layer hold its weights, and those of no layer but this one.
    fn bring(&self, layers: &Self::Layers, layer: usize);

    /// Every buffer becomes that of its owner, a number of those that have met, who give as many of the same lengths and types in the same order.
    fn spread_over(
        &self,
        collective: &Self::Collective,
        buffers: &mut [(usize, &mut Self::Buffer)],
    ) -> Result<(), DeviceError>;

    /// Begins to read all of a buffer, as it is now.
    fn begin_reading(&self, buffer: Self::Buffer) -> Result<Self::Reading, DeviceError>;

    /// What was begun to be read; what was asked for later is not waited for.
    fn finish_reading(&self, reading: Self::Reading) -> Result<Vec<f32>, DeviceError>;

    /// `len` zeros.
    fn zeros(&self, len: usize, element: Element) -> Result<Self::Buffer, DeviceError>;

    /// A buffer of unspecified content, for who overwrites all of it.
    fn room(&self, len: usize, element: Element) -> Result<Self::Buffer, DeviceError> {
        self.zeros(len, element)
    }

    /// Whether memory that a buffer gives back is at hand for buffers of any length. One of [`LARGE_BUFFER`] that [`Device::fill`] makes zero has none then
    /// until something else is written to it.
    fn shares_memory(&self) -> bool {
        false
    }

    /// Stored elements, little-endian. The CPU uses them where they lie, without a copy, when they are aligned.
    fn import(&self, bytes: SharedBytes, element: Element) -> Result<Self::Buffer, DeviceError>;

    /// A copy of these numbers.
    fn indices(&self, values: &[u32]) -> Result<Self::Indices, DeviceError>;

    /// The number of elements.
    fn len(&self, buffer: &Self::Buffer) -> usize;

    /// The type of its elements.
    fn element(&self, buffer: &Self::Buffer) -> Element;

    /// Copies elements to the host as f32, after everything that was asked before.
    fn read(&self, buffer: &Self::Buffer, range: Range<usize>) -> Result<Vec<f32>, DeviceError>;

    /// Copies elements from the host, rounded to the buffer's type, from position `at` on. The buffer must be writable:
    /// not an imported one.
    fn write(&self, buffer: &mut Self::Buffer, at: usize, values: &[f32]) -> Result<(), DeviceError>;

    /// Waits until everything that was asked for is done.
    fn synchronize(&self) -> Result<(), DeviceError>;

    /// `to[..] = from[..]`, converting the element type.
    fn copy(&self, from: &Self::Buffer, to: &mut Self::Buffer);

    /// Copies `rows` rows of `width` elements, from row `from_row` of `from` to row `to_row` of `to`.
    fn copy_rows(
        &self,
        from: &Self::Buffer,
        from_row: usize,
        to: &mut Self::Buffer,
        to_row: usize,
        shape: Rows,
    );

    /// `to[i, :] = from[rows[i], :]`, rows of `width` elements, converting the element type.
    fn gather_rows(&self, from: &Self::Buffer, rows: &[usize], width: usize, to: &mut Self::Buffer) {
        for (at, run) in runs(rows) {
            self.copy_rows(from, run.start, to, at, Rows { rows: run.len(), width });
        }
    }

    /// `to[rows[i], :] = from[i, :]`, rows of `width` elements; no row twice.
    fn scatter_rows(&self, from: &Self::Buffer, rows: &[usize], width: usize, to: &mut Self::Buffer) {
        for (at, run) in runs(rows) {
            self.copy_rows(from, at, to, run.start, Rows { rows: run.len(), width });
        }
    }

    /// As many rows as a batch of so many is filled up to, so that shapes come again: products and launches of a shape are prepared once. At most a
    /// sixteenth more, but up to eight.
    fn regular_rows(&self, rows: usize) -> usize {
        rows
    }

    /// Sets all elements to `value`.
    fn fill(&self, buffer: &mut Self::Buffer, value: f32);

    /// `y += scale * x`.
    fn add(&self, x: &Self::Buffer, scale: f32, y: &mut Self::Buffer);

    /// `y *= scale`.
    fn scale(&self, y: &mut Self::Buffer, scale: f32);

    /// `y[t, :] = scale * table[ids[t], :]`; `table` is `[V, D]`, every id is below V.
    fn embed(
        &self,
        ids: &Self::Indices,
        table: &Self::Buffer,
        width: usize,
        scale: f32,
        y: &mut Self::Buffer,
    );

    /// `d_table[ids[t], :] += scale * dy[t, :]`, in the order of `t` for each row.
    fn embed_backward(
        &self,
        ids: &Self::Indices,
        dy: &Self::Buffer,
        width: usize,
        scale: f32,
        d_table: &mut Self::Buffer,
    );

    /// Normalises rows (see [`Norm`]); keeps `1 / sqrt(mean(x^2) + epsilon)` of each row in `rstd` (f32, one a row).
    /// The same `weight` (`[width]`) serves all rows, so heads are normalised as `T * heads` rows of `E`.
    fn rms_norm(
        &self,
        norm: Norm,
        shape: Rows,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        y: &mut Self::Buffer,
        rstd: &mut Self::Buffer,
    );

    /// Gradient of [`Device::rms_norm`]. `dx` as `into` says; `d_weight` (f32) is added to, where it is wanted.
    #[expect(clippy::too_many_arguments, reason = "what the gradient depends on")]
    fn rms_norm_backward(
        &self,
        norm: Norm,
        shape: Rows,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        rstd: &Self::Buffer,
        dy: &Self::Buffer,
        dx: &mut Self::Buffer,
        into: Accumulate,
        d_weight: Option<&mut Self::Buffer>,
    );

    /// `y = scale * x w^T (+ bias)`, or added to `y`. `bias` is `[O]`.
    fn linear(
        &self,
        product: Product,
        x: &Self::Buffer,
        w: &Self::Buffer,
        bias: Option<&Self::Buffer>,
        y: &mut Self::Buffer,
        into: Accumulate,
    );

    /// `y = base + scale * x w^T (+ bias)`.
    fn linear_onto(
        &self,
        product: Product,
        x: &Self::Buffer,
        w: &Self::Buffer,
        bias: Option<&Self::Buffer>,
        base: &Self::Buffer,
        y: &mut Self::Buffer,
    ) {
        self.copy(base, y);
        self.linear(product, x, w, bias, y, Accumulate::Add);
    }

    /// `dx = scale * dy w`, or added to `dx`.
    fn linear_backward_input(
        &self,
        product: Product,
        dy: &Self::Buffer,
        w: &Self::Buffer,
        dx: &mut Self::Buffer,
        into: Accumulate,
    );

    /// `dw += scale * dy^T x` and `d_bias += sum over rows of dy`; both f32.
    fn linear_backward_weight(
        &self,
        product: Product,
        dy: &Self::Buffer,
        x: &Self::Buffer,
        dw: &mut Self::Buffer,
        d_bias: Option<&mut Self::Buffer>,
    );

    /// Rotary position embedding in place, in the layout of Hugging Face checkpoints: element `i` of a head is turned
    /// with element `i + R / 2`, for `i < R / 2`; elements from `R` on stay. `cos` and `sin` are `[positions, R / 2]`
    /// (f32), and row `t` uses their row `positions[t]`.
    #[expect(clippy::too_many_arguments, reason = "the tables are two buffers")]
    fn rotate(
        &self,
        direction: Direction,
        shape: Heads,
        rotated: usize,
        cos: &Self::Buffer,
        sin: &Self::Buffer,
        positions: &Self::Indices,
        x: &mut Self::Buffer,
    );

    /// Attention over spans (see [`Attention`], [`Span`]): `q` is `[T, H, E]`, `k` and `v` are `[keys, K, E]`, `y` is
    /// `[T, H, E]`. `lse` (f32, `[T, H]`) receives the log-sum-exp of each row of scores. Softmax is streamed: nothing of
    /// size queries times keys is kept. Spans cover every query once.
    #[expect(clippy::too_many_arguments, reason = "what attention depends on")]
    fn attention(
        &self,
        attention: Attention,
        spans: &[Span],
        q: &Self::Buffer,
        k: &Self::Buffer,
        v: &Self::Buffer,
        y: &mut Self::Buffer,
        lse: &mut Self::Buffer,
    );

    /// Gradient of [`Device::attention`], from its inputs, its output and its log-sum-exps. Overwrites `dq`, `dk`, `dv`.
    #[expect(clippy::too_many_arguments, reason = "what the gradient depends on")]
    fn attention_backward(
        &self,
        attention: Attention,
        spans: &[Span],
        q: &Self::Buffer,
        k: &Self::Buffer,
        v: &Self::Buffer,
        y: &Self::Buffer,
        lse: &Self::Buffer,
        dy: &Self::Buffer,
        dq: &mut Self::Buffer,
        dk: &mut Self::Buffer,
        dv: &mut Self::Buffer,
    );

    /// `y = f(gate) * up`, element by element.
    fn gated(&self, activation: Activation, gate: &Self::Buffer, up: &Self::Buffer, y: &mut Self::Buffer);

    /// Gradient of [`Device::gated`], in place: `gate` becomes `d_gate` and `up` becomes `d_up`. `dy` becomes what `y` was, which the weights
    /// behind it need again.
    fn gated_backward(
        &self,
        activation: Activation,
        dy: &mut Self::Buffer,
        gate: &mut Self::Buffer,
        up: &mut Self::Buffer,
    );

    /// The norm of f32 gradients together, in f64, in an order that does not depend on the number of threads, and what clips them to a limit. Nobody waits
    /// for it.
    fn gradient_norm(
        &self,
        gradients: &[&Self::Buffer],
        limit: Option<f64>,
    ) -> Result<Self::GradientNorm, DeviceError>;

    /// The norm, once it is there; what was asked for later is not waited for.
    fn read_norm(&self, norm: &Self::GradientNorm) -> Result<f64, DeviceError>;

    /// One pass of AdamW over all these parameters, whose moments are of one kind. With a norm gradients are clipped as it says, and nothing is changed
    /// where it is not finite.
    fn adamw(
        &self,
        update: Update,
        norm: Option<&Self::GradientNorm>,
        parameters: &mut [ParameterUpdate<'_, Self>],
    );

    /// What `len` weights in bf16 lack of f32 while they are all that there is: nothing.
    fn remainders(&self, len: usize) -> Result<Self::Remainders, DeviceError>;

    /// The f32 values that weights in bf16 and their remainders are together.
    fn read_master(
        &self,
        weights: &Self::Buffer,
        remainders: &Self::Remainders,
        range: Range<usize>,
    ) -> Result<Vec<f32>, DeviceError>;

    /// Splits values, which begin at a position: weights in bf16 become them rounded to nearest, ties away from zero, and remainders, where they are
    /// here, what is lacking.
    fn write_master(
        &self,
        weights: &mut Self::Buffer,
        remainders: Option<&mut Self::Remainders>,
        at: usize,
        values: &[f32],
    ) -> Result<(), DeviceError>;

    /// `len` elements of both moments in eight bits, zero.
    fn moments(&self, len: usize) -> Result<Self::Moments, DeviceError>;

    /// Copies moments to the host.
    fn read_moments(&self, moments: &Self::Moments) -> Result<StoredMoments, DeviceError>;

    /// Restores moments; `None` where the lengths are not those of `len` elements.
    fn restore_moments(
        &self,
        len: usize,
        stored: &StoredMoments,
    ) -> Result<Option<Self::Moments>, DeviceError>;

    /// Chooses experts from `logits` (`[T, X]`): `weights` (f32, `[T, N]`) receives the weight of each choice. Equal
    /// probabilities are taken in the order of the experts.
    fn route(
        &self,
        routing: Routing,
        logits: &Self::Buffer,
        weights: &mut Self::Buffer,
    ) -> Result<Self::Assignment, DeviceError>;

    /// Gradient of [`Device::route`]: overwrites `d_logits` (`[T, X]`) from `d_weights` (f32, `[T, N]`). The choice itself
    /// has no gradient.
    fn route_backward(
        &self,
        routing: Routing,
        assignment: &Self::Assignment,
        logits: &Self::Buffer,
        d_weights: &Self::Buffer,
        d_logits: &mut Self::Buffer,
    );

    /// `y[slot, :] = x[row of the slot, :]`: rows in the order of the experts; `x` is `[T, width]`, `y` is `[T * N, width]`.
    fn gather_experts(
        &self,
        assignment: &Self::Assignment,
        width: usize,
        x: &Self::Buffer,
        y: &mut Self::Buffer,
    );

    /// Gradient of [`Device::gather_experts`]: each row's sum over its slots, in the order of the row's choices.
    fn gather_experts_backward(
        &self,
        assignment: &Self::Assignment,
        width: usize,
        dy: &Self::Buffer,
        dx: &mut Self::Buffer,
        into: Accumulate,
    );

    /// As [`Device::linear`] without bias over the `T * N` slots (`product.rows`), each with the weight of its expert:
    /// one grouped product. `w` has X buffers of `[O, I]`.
    fn grouped_linear(
        &self,
        assignment: &Self::Assignment,
        product: Product,
        x: &Self::Buffer,
        w: &[&Self::Buffer],
        y: &mut Self::Buffer,
        into: Accumulate,
    );

    /// As [`Device::linear_backward_input`] over slots.
    fn grouped_linear_backward_input(
        &self,
        assignment: &Self::Assignment,
        product: Product,
        dy: &Self::Buffer,
        w: &[&Self::Buffer],
        dx: &mut Self::Buffer,
        into: Accumulate,
    );

    /// As [`Device::linear_backward_weight`] over slots: `dw` has X buffers (f32). That of an expert without a row stays.
    fn grouped_linear_backward_weight(
        &self,
        assignment: &Self::Assignment,
        product: Product,
        dy: &Self::Buffer,
        x: &Self::Buffer,
        dw: &mut [&mut Self::Buffer],
    );

    /// `y[t, :] = sum over n of weights[t, n] * x[slot of (t, n), :]`, or added to `y`; in the order of `n`.
    fn combine_experts(
        &self,
        assignment: &Self::Assignment,
        width: usize,
        x: &Self::Buffer,
        weights: &Self::Buffer,
        y: &mut Self::Buffer,
        into: Accumulate,
    );

    /// Gradient of [`Device::combine_experts`]: overwrites `dx` (`[T * N, width]`) and `d_weights` (f32, `[T, N]`).
    #[expect(clippy::too_many_arguments, reason = "what the gradient depends on")]
    fn combine_experts_backward(
        &self,
        assignment: &Self::Assignment,
        width: usize,
        x: &Self::Buffer,
        weights: &Self::Buffer,
        dy: &Self::Buffer,
        dx: &mut Self::Buffer,
        d_weights: &mut Self::Buffer,
    );
}
