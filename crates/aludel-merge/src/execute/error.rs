//! Names every way in which carrying out a plan fails.

use std::path::PathBuf;

use crate::problem::Problems;

/// A failure of a merge; the message names what is at fault and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The recipe, the models' headers or what the merge needs do not fit together.
    #[error(transparent)]
    Problems(#[from] Problems),
    /// An input has a NaN or an infinity.
    #[error(
        "tensor `{tensor}` of `{model}` has {value} at flat index {index}: \
         repair the model, or pass --allow-nan to compute with it"
    )]
    NonFinite {
        /// The tensor's name in that model.
        tensor: String,
        /// The model.
        model: String,
        /// The flat index of the element.
        index: u64,
        /// Its value.
        value: f32,
    },
    /// A tensor cannot be made of what it is to be made of.
    #[error("tensor `{tensor}` {reason}")]
    NotMade {
        /// The tensor's name.
        tensor: String,
        /// Why, and the remedy.
        reason: String,
    },
    /// Experts have no order.
    #[error("the experts of `{experts}` of `{model}` {reason}")]
    NotAligned {
        /// What the names of their layer's tensors begin with.
        experts: String,
        /// Whose experts they are.
        model: String,
        /// Why, and the remedy.
        reason: String,
    },
    /// Statistics of another model.
    #[error(
        "`{statistics}` was collected from other weights than those of `{model}`: collect it anew with `aludel statistics {model}`"
    )]
    OtherModel {
        /// The statistics.
        statistics: String,
        /// The model that they were to be of.
        model: String,
    },
    /// A tensor that can only be copied differs between models.
    #[error("tensor `{tensor}` is not of a floating-point type, and `{first}` and `{second}` differ in it")]
    Disagree {
        /// The tensor's name.
        tensor: String,
        /// A model.
        first: String,
        /// Another model.
        second: String,
    },
    /// A tensor has no singular values.
    #[error("the singular values of `{tensor}` could not be found: {detail}; leave it out")]
    NotFactored {
        /// The tensor's name.
        tensor: String,
        /// Why.
        detail: String,
    },
    /// The processor could not be used as it was asked for.
    #[error(transparent)]
    Device(#[from] aludel_kernels::nn::DeviceError),
    /// A CUDA device failed.
    #[error("{source}; `--device cpu` does without it")]
    Cuda {
        /// What it says.
        #[from]
        source: aludel_kernels::cuda::CudaError,
    },
    /// A GPU failed.
    #[error("{source}; `--device cpu` does without it")]
    Wgpu {
        /// What it says.
        #[from]
        source: aludel_kernels::wgpu::WgpuError,
    },
    /// A checkpoint could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] aludel_checkpoint::Error),
    /// A delta could not be read or written.
    #[error(transparent)]
    Delta(#[from] aludel_delta::Error),
    /// The run was stopped from outside.
    #[error("interrupted; nothing was written")]
    Interrupted,
    /// The run ended before its end, and what it has done is kept.
    #[error("{cause}; what was done is kept in {}: `--resume` goes on with it", kept.display())]
    Unfinished {
        /// Why it ended.
        cause: Box<MergeError>,
        /// Where everything is that it had done; the next run on the target either goes on with it or removes it.
        kept: PathBuf,
    },
}

impl MergeError {
    /// Whether the same run may get farther another time.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Interrupted
                | Self::Checkpoint(aludel_checkpoint::Error::Io { .. })
                | Self::Delta(aludel_delta::Error::Io { .. })
        )
    }
}
