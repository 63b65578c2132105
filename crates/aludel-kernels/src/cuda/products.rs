//! Multiplies matrices by cuBLASLt: with [`super::driver`], [`super::graph`] and [`super::collective`] the only file of this folder with `unsafe`.
//!
//! In: addresses of matrices on the device, their shapes and types. Out: products, submitted to a stream. The library is looked for
//! when it is first needed. How it multiplies matrices of a shape is asked for once; of large ones it names several ways, of which the fastest that agrees
//! with its first is taken (`choices`). Only rows by the hundred are tried so: a ragged number of them comes once. The products themselves are its own.
#![expect(unsafe_code, reason = "a library of products is a foreign library")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::hash::{Hash, Hasher};
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUstream;

use super::CudaError;
use super::choices::{Choices, Output, Question, Rule, Trials, Way};
use super::driver::{Block, Stream};
use super::operation::Operation;
use crate::element::Element;

/// Bytes that the library may use while it multiplies.
const WORKSPACE: usize = 64 << 20;

/// Ways that the library is asked for: with all of the workspace, and with none.
const ASKED: [(usize, usize); 2] = [(WORKSPACE, 8), (0, 4)];

/// Rows of products that are tried are multiples of it.
const ROWS: usize = 128;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    library: Arc<Library>,
    stream: Stream,
    choices: Arc<Choices>,
    plans: Mutex<HashMap<Shape, (Arc<Plan>, Algorithm)>>,
}

/// What all products of a stream use.
#[derive(Debug)]
struct Library {
    handle: Handle,
    workspace: Block,
}

/// One product.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    library: Arc<Library>,
    plan: Arc<Plan>,
    algorithm: Algorithm,
    alpha: f32,
    operands: Operands,
}

#[derive(Debug)]
struct Handle(sys::cublasLtHandle_t);

/// One of the library's ways to multiply.
type Algorithm = sys::cublasLtMatmulAlgo_t;

/// How the library multiplies matrices of a shape.
#[derive(Debug)]
struct Plan {
    shape: Shape,
    description: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
}

// SAFETY: the library's handle may be used by any thread ("Thread Safety" in its documentation).
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}
// SAFETY: descriptions are plain memory of the library, which a product only reads.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

impl Shape {
    /// Rows of activations, of which there is another number now and then.
    const fn rows(self) -> usize {
        if self.b_is_transposed { self.k } else { self.n }
    }

    /// Whether trials are worth it.
    fn is_tried(self, rule: Rule) -> bool {
        let is_regular = rule == Rule::Everything || self.rows().is_multiple_of(ROWS);
        is_regular && rule.takes(2.0 * self.m as f64 * self.n as f64 * self.k as f64)
    }

    fn question(self) -> Question {
        let Self { m, n, k, a_is_transposed, b_is_transposed, result, adds } = self;
        let turned = |is_turned| if is_turned { "T" } else { "N" };
        let (a, b) = (turned(a_is_transposed), turned(b_is_transposed));
        let added = if adds { ", added" } else { "" };
        // SAFETY: the library is there, as there is a handle of it, and the call takes nothing.
        let version = unsafe { sys::cublasLtGetVersion() };
        Question {
            kernel: "product",
            shape: format!("{m} x {n} x {k} {a}{b} {result:?}{added}"),
            version: format!("cuBLASLt {version}"),
        }
    }
}

impl Products {
    pub(crate) fn new(stream: &Stream, choices: Arc<Choices>) -> Result<Self, CudaError> {
        // SAFETY: loads the library by its name, and calls nothing in it.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoProducts);
        }
        stream.bind()?;
        let handle = Handle(result::create_handle().map_err(failed("begin"))?);
        // A graph in the stream's queue has the library, which must not have the queue.
        let library = Arc::new(Library { handle, workspace: stream.unqueued().block(WORKSPACE)? });
        Ok(Self { library, stream: stream.clone(), choices, plans: Mutex::default() })
    }

    /// Submits a product.
    ///
    /// The caller has held the lengths of the matrices against the shape.
    pub(crate) fn multiply(&self, shape: Shape, alpha: f32, operands: Operands) -> Result<(), CudaError> {
        if shape.m == 0 || shape.n == 0 {
            return Ok(());
        }
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let (plan, algorithm) = match plans.get(&shape) {
            Some((plan, algorithm)) => (Arc::clone(plan), *algorithm),
            None => {
                if plans.len() >= PLANS {
                    plans.clear();
                }
                let plan = Arc::new(Plan::of(shape)?);
                let algorithm = self.algorithm(&plan, alpha, operands)?;
                plans.insert(shape, (Arc::clone(&plan), algorithm));
                (plan, algorithm)
            }
        };
        self.submit(&plan, algorithm, alpha, operands)
    }

    fn submit(
        &self,
        plan: &Arc<Plan>,
        algorithm: Algorithm,
        alpha: f32,
        operands: Operands,
    ) -> Result<(), CudaError> {
        let (library, plan) = (Arc::clone(&self.library), Arc::clone(plan));
        self.stream.push(Operation::Product(Product { library, plan, algorithm, alpha, operands }))
    }

    /// The library's first way for a small shape; for others the one that was chosen before, or is the fastest for these operands.
    fn algorithm(&self, plan: &Arc<Plan>, alpha: f32, operands: Operands) -> Result<Algorithm, CudaError> {
        let shape = plan.shape;
        let first = || {
            let found = self.asked(plan, (WORKSPACE, 1))?;
            found.first().map(|(algorithm, _)| *algorithm).ok_or_else(none)
        };
        if !shape.is_tried(self.choices.rule()) {
            return first();
        }
        let question = shape.question();
        let made = self.choices.made(&question).and_then(|words| words.try_into().ok());
        if let Some(algorithm) = made.map(|data| Algorithm { data }).filter(|made| self.takes(plan, made)) {
            return Ok(algorithm);
        }
        let mut found: Vec<(Algorithm, usize)> = Vec::new();
        for asked in ASKED {
            // Where nothing does without a workspace, there is the first.
            for one in self.asked(plan, asked).unwrap_or_default() {
                if !found.iter().any(|(known, _)| *known == one.0) {
                    found.push(one);
                }
            }
        }
        let way = |(at, (algorithm, workspace)): (usize, &(Algorithm, usize))| Way {
            words: algorithm.data.to_vec(),
            text: format!("algorithm {at} of {}, {workspace} bytes of workspace", found.len()),
        };
        let ways: Vec<Way> = found.iter().enumerate().map(way).collect();
        let at = self.choices.choose(&question, &ways, || {
            // The product itself may be what is added to: trials write elsewhere.
            let scratch = self.stream.spare_block(shape.m * shape.n * shape.result.size())?;
            let operands = Operands { c: scratch.address(), ..operands };
            let run = |way: usize| self.submit(plan, found[way].0, alpha, operands);
            let outputs = &[Output { block: &scratch, element: shape.result }];
            Trials { stream: &self.stream, prepare: &|| Ok(()), run: &run, outputs }.outcome(found.len())
        });
        found.get(at).map_or_else(first, |(algorithm, _)| Ok(*algorithm))
    }

    /// Whether the library still multiplies so, with the workspace that there is.
    fn takes(&self, plan: &Plan, algorithm: &Algorithm) -> bool {
        let Plan { description, a, b, c, .. } = *plan;
        let mut found = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        // SAFETY: the plan's parts were made by the library, which reads the algorithm, whatever it holds, and writes the result.
        unsafe {
            let checked = sys::cublasLtMatmulAlgoCheck(
                self.library.handle.0,
                description,
                a,
                b,
                c,
                c,
                &raw const *algorithm,
                found.as_mut_ptr(),
            );
            checked.result().is_ok() && found.assume_init().workspaceSize <= WORKSPACE
        }
    }

    /// Asks the library for ways to multiply, the likeliest first, with the workspace that each needs.
    fn asked(
        &self,
        plan: &Plan,
        (workspace, count): (usize, usize),
    ) -> Result<Vec<(Algorithm, usize)>, CudaError> {
        let Plan { description, a, b, c, .. } = *plan;
        let describe = failed("describe a product");
        let limit = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let preference = result::create_matmul_pref().map_err(&describe)?;
        let mut found = vec![MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed(); count];
        let mut answered = 0;
        // SAFETY: the preference was made above, its value is of the attribute's type and is copied; the plan's parts were made by the library,
        // which writes at most `count` results and says how many: these are read, and the others are zeros.
        unsafe {
            let value: *const usize = &raw const workspace;
            let limited =
                result::set_matmul_pref_attribute(preference, limit, value.cast(), size_of::<usize>());
            let asked = limited.and_then(|()| {
                sys::cublasLtMatmulAlgoGetHeuristic(
                    self.library.handle.0,
                    description,
                    a,
                    b,
                    c,
                    c,
                    preference,
                    count as i32,
                    found.as_mut_ptr().cast(),
                    &raw mut answered,
                )
                .result()
            });
            let _ = result::destroy_matmul_pref(preference);
            asked.map_err(failed("find a way to multiply"))?;
            let answers = found.into_iter().take(usize::try_from(answered).unwrap_or(0));
            let answers = answers.map(|answer| answer.assume_init());
            let usable = answers
                .filter(|answer| answer.state.result().is_ok() && answer.workspaceSize <= WORKSPACE)
                .map(|answer| (answer.algo, answer.workspaceSize));
            Ok(usable.collect())
        }
    }
}

impl Product {
    /// Submits it to the stream that the workspace is of.
    pub(super) fn submit(&self, stream: CUstream) -> Result<(), CudaError> {
        let Self { library, plan, algorithm, alpha, operands } = self;
        let beta = if plan.shape.adds { 1.0f32 } else { 0.0 };
        // SAFETY: the plan was made for this shape, and the library has named the algorithm for it or has taken it back; the matrices have the
        // lengths that the shape says, and lie in blocks that are given back in the stream's order, as does the workspace.
        unsafe {
            result::matmul(
                library.handle.0,
                plan.description,
                (&raw const *alpha).cast(),
                (&raw const beta).cast(),
                operands.a as *const c_void,
                plan.a,
                operands.b as *const c_void,
                plan.b,
                operands.addend as *const c_void,
                plan.c,
                operands.c as *mut c_void,
                plan.c,
                &raw const *algorithm,
                library.workspace.address() as *mut c_void,
                library.workspace.bytes(),
                stream.cast(),
            )
        }
        .map_err(failed("multiply"))
    }

    fn parts(&self) -> (*const Plan, [u64; 8], u32, Operands) {
        (Arc::as_ptr(&self.plan), self.algorithm.data, self.alpha.to_bits(), self.operands)
    }
}

impl PartialEq for Product {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Hash for Product {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl Plan {
    /// Describes matrices of a shape to the library.
    fn of(shape: Shape) -> Result<Self, CudaError> {
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
        let transposed = |is_transposed| i32::from(is_transposed);
        let attributes = [
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, transposed(a_is_transposed)),
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, transposed(b_is_transposed)),
        ];
        for (attribute, value) in attributes {
            let value: *const i32 = &raw const value;
            // SAFETY: the description was made above; the value is of the attribute's type and is copied.
            unsafe {
                result::set_matmul_desc_attribute(description, attribute, value.cast(), size_of::<i32>())
            }
            .map_err(&describe)?;
        }
        Ok(Self { shape, description, a, b, c })
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
        // SAFETY: all were made by `Plan::of`, and are destroyed once.
        unsafe {
            let _ = result::destroy_matmul_desc(self.description);
            for layout in [self.a, self.b, self.c] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

fn none() -> CudaError {
    CudaError::Product { doing: "find a way to multiply", message: "it names none".to_owned() }
}

fn failed(doing: &'static str) -> impl Fn(result::CublasError) -> CudaError {
    move |error| CudaError::Product { doing, message: error.to_string() }
}
