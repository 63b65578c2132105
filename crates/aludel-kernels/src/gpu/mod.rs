//! Executes formulas on GPUs: whole batches of tensors in a device's memory, bit for bit as the CPU does.
//!
//! In: [`Tensor`]s, and the bytes of their inputs. Out: the bytes of their outputs, and for each tensor whether it is done or left to the
//! CPU. What does not depend on whose device it is stands here: a pass of the schedule is printed (`emit`) in a [`Dialect`], a formula has a
//! text for each of its kernels (`texts`), which are compiled once (`prepared`), and run over all tensors of a batch at once (`batch`, `layout`).
//! A [`Backend`] owns memory, compiles and starts kernels: [`crate::cuda`] for NVIDIA's devices, [`crate::wgpu`] for any.
//!
//! Values per tensor are computed on the host by the code that the CPU's executor uses. Where bits could differ from the CPU's, the
//! CPU computes the tensor. Files, threads and batches of a model are the caller's.

mod backend;
mod batch;
mod dialect;
mod emit;
mod layout;
mod prepared;
mod reference;
mod store;
mod texts;

pub use backend::{Backend, Selections, Sizes, Sought};
pub use batch::{Batch, Statistics, Tensor, Verdict};
pub use dialect::{Arithmetic, Bound, Dialect, Kind, Literal, Printed, Source};
pub(crate) use emit::type_name;
pub use emit::{Emitted, Reduced, obstacle};
pub use prepared::{Compiled, Preparations, Prepared, Selecting};
pub(crate) use reference::on_the_cpu;
pub(crate) use store::name_of;
pub use store::{KernelStore, NoStore};
pub use texts::Text;
#[cfg(test)]
pub(crate) use texts::texts;
pub(crate) use texts::words_of;

/// How work is shared out among threads in a backend's dialect.
pub type ShapesOf<B> = <<B as Backend>::Dialect as Dialect>::Shapes;
