//! Multiplies matrices by cuBLASLt: with [`super::driver`] and [`super::collective`] the only file of this folder with `unsafe`.
//!
//! In: addresses of matrices on the device, their shapes and types. Out: products, submitted to a stream. The library is looked for
//! when it is first needed. What it makes of a shape is asked for once and remembered; the products themselves are its own.
#![expect(unsafe_code, reason = "a library of products is a foreign library")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::{result, sys};

use super::CudaError;
use super::driver::{Block, Stream};
use crate::element::Element;

/// Bytes that the library may use while it multiplies.
const WORKSPACE: usize = 64 << 20;

/// Shapes that are remembered at once.
const PLANS: usize = 1024;

/// `c[n, m] = alpha * b a (+ addend)`, all rows one after another: `a` is `[k, m]`, or `[m, k]` where it is transposed, and `b` is `[n, k]`, or `[k, n]`
/// where it is transposed. `a` and `b` are bf16, sums f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) a_is_transposed: bool,
    pub(crate) b_is_transposed: bool,
    /// The type of `c`.
    pub(crate) result: Element,
    /// Whether something is added.
    pub(crate) adds: bool,
}

/// Addresses of the matrices of a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands {
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) c: u64,
    /// What is added to, where something is: `c` itself, or another matrix like it.
    pub(crate) addend: u64,
}

/// The library, on one stream.
#[derive(Debug)]
pub(crate) struct Products {
    handle: Handle,
    stream: Stream,
    workspace: Block,
    plans: Mutex<HashMap<Shape, Plan>>,
}

#[derive(Debug)]
struct Handle(sys::cublasLtHandle_t);

/// How the library multiplies matrices of a shape.
#[derive(Debug)]
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: the library's handle may be used by any thread ("Thread Safety" in its documentation).
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}
// SAFETY: descriptions are plain memory of the library, read by it alone, and used under the lock of `Products`.
unsafe impl Send for Plan {}

impl Products {
    pub(crate) fn new(stream: &Stream) -> Result<Self, CudaError> {
        // SAFETY: loads the library by its name, and calls nothing in it.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoProducts);
        }
        stream.bind()?;
        let handle = Handle(result::create_handle().map_err(failed("begin"))?);
        Ok(Self {
            handle,
            workspace: stream.block(WORKSPACE)?,
            stream: stream.clone(),
            plans: Mutex::default(),
        })
    }

    /// Submits a product.
    ///
    /// The caller has held the lengths of the matrices against the shape.
    pub(crate) fn multiply(&self, shape: Shape, alpha: f32, operands: Operands) -> Result<(), CudaError> {
        if shape.m == 0 || shape.n == 0 {
            return Ok(());
        }
        self.stream.bind()?;
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if !plans.contains_key(&shape) {
            if plans.len() >= PLANS {
                plans.clear();
            }
            let plan = self.plan(shape)?;
            plans.insert(shape, plan);
        }
        let Some(plan) = plans.get(&shape) else { return Ok(()) };
        let beta = if shape.adds { 1.0f32 } else { 0.0 };
        // SAFETY: the plan was made by the library for this shape and lives as long as `self`; the matrices have the lengths that the
        // shape says, and lie in blocks that are given back in the stream's order, as does the workspace.
        unsafe {
            result::matmul(
                self.handle.0,
                plan.description,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                operands.a as *const c_void,
                plan.a,
                operands.b as *const c_void,
                plan.b,
                operands.addend as *const c_void,
                plan.c,
                operands.c as *mut c_void,
                plan.c,
                &raw const plan.algorithm,
                self.workspace.address() as *mut c_void,
                self.workspace.bytes(),
                self.stream.raw().cast(),
            )
        }
        .map_err(failed("multiply"))
    }

    /// Asks the library how it multiplies matrices of a shape.
    fn plan(&self, shape: Shape) -> Result<Plan, CudaError> {
        let Shape { m, n, k, a_is_transposed, b_is_transposed, result: element, .. } = shape;
        let (half, float) = (sys::cudaDataType::CUDA_R_16BF, sys::cudaDataType::CUDA_R_32F);
        // To the library matrices lie column after column: each of ours is its own transpose.
        let layout = |element, is_transposed: bool, rows: usize, columns: usize| {
            let (rows, columns) = if is_transposed { (columns, rows) } else { (rows, columns) };
            result::create_matrix_layout(element, rows as u64, columns as u64, rows as i64)
        };
        let describe = failed("describe a product");
        let description = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, float)
            .map_err(&describe)?;
        let a = layout(half, a_is_transposed, m, k).map_err(&describe)?;
        let b = layout(half, b_is_transposed, k, n).map_err(&describe)?;
        let element = if element == Element::F32 { float } else { half };
        let c = layout(element, false, m, n).map_err(&describe)?;
        let preference = result::create_matmul_pref().map_err(&describe)?;
        let transposed = |is_transposed| i32::from(is_transposed);
        let attributes = [
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, transposed(a_is_transposed)),
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, transposed(b_is_transposed)),
        ];
        let bytes = WORKSPACE;
        let limit = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: everything was made above; the values are of the attributes' types and are copied.
        let found = unsafe {
            for (attribute, value) in attributes {
                let value: *const i32 = &raw const value;
                result::set_matmul_desc_attribute(description, attribute, value.cast(), size_of::<i32>())
                    .map_err(&describe)?;
            }
            result::set_matmul_pref_attribute(
                preference,
                limit,
                (&raw const bytes).cast(),
                size_of::<usize>(),
            )
            .map_err(&describe)?;
            let found = result::get_matmul_algo_heuristic(self.handle.0, description, a, b, c, c, preference);
            let _ = result::destroy_matmul_pref(preference);
            found
        };
        let algorithm = found.map_err(failed("find a way to multiply"))?.algo;
        Ok(Plan { description, a, b, c, algorithm })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `Products::new`, and destroyed once.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: all were made by `Products::plan`, and are destroyed once.
        unsafe {
            let _ = result::destroy_matmul_desc(self.description);
            for layout in [self.a, self.b, self.c] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

fn failed(doing: &'static str) -> impl Fn(result::CublasError) -> CudaError {
    move |error| CudaError::Product { doing, message: error.to_string() }
}
