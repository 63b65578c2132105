//! Finds the order in which the experts of one model are nearest to those of another.
//!
//! In: where the experts of a layer are in both, with what moves with them: rows of the router, biases. Out: the order that
//! minimises the squared distance of all of it, `sum |a_e - b_p(e)|^2`, which is the one that maximises the inner product, as
//! squares stay the same in any order. Source: Ainsworth, Hayase and Srinivasa, "Git Re-Basin" (2022), section 3.2, with experts in the
//! place of neurons: to put them in another order changes nothing that a model computes, so they can be aligned exactly and
//! without data.
//!
//! Elements are read once, a strip of all experts at a time; products and sums are in f64 in an order of their own, whoever
//! computes them. The order is found when it is first asked for and then kept; a run that is stopped keeps none.

use std::sync::{Mutex, OnceLock, PoisonError};

use aludel_kernels::cpu::{BLOCK, Panel, TILE, Tile};
use serde::{Deserialize, Serialize};

use super::assignment::assign;
use super::{Passed, Readable, Weights};

/// Where a part of each expert of a layer is, such as its `down_proj`, its row of the router or its bias.
#[derive(Clone, Debug)]
pub(crate) enum Experts {
    /// Each in a tensor of its own.
    Apart(Vec<Readable>),
    /// All in one tensor, one after another.
    Together(Readable),
}

impl Experts {
    pub(crate) fn tensors(&self) -> &[Readable] {
        match self {
            Self::Apart(tensors) => tensors,
            Self::Together(tensor) => std::slice::from_ref(tensor),
        }
    }

    /// The tensor of an expert, and where in it the expert begins.
    pub(super) fn place(&self, expert: usize, length: u64) -> (&Readable, u64) {
        match self {
            Self::Apart(tensors) => (&tensors[expert], 0),
            Self::Together(tensor) => (tensor, expert as u64 * length),
        }
    }
}

/// A part of each expert, in both models.
#[derive(Debug)]
pub(crate) struct Moving {
    pub reference: Experts,
    pub model: Experts,
    /// Elements of the part of one expert.
    pub length: u64,
}

/// Experts of a layer that are put in the order of those of another model.
#[derive(Debug)]
pub(crate) struct Alignment {
    /// What the names of the output's tensors begin with.
    pub experts: String,
    /// Whose experts are put in order.
    pub model: String,
    /// In whose order.
    pub reference: String,
    /// How many there are, at most [`MOST_EXPERTS`](super::MOST_EXPERTS).
    pub count: usize,
    /// Groups of experts of which routers choose some first; 1 where they do not.
    pub groups: usize,
    pub moving: Vec<Moving>,
    /// Bytes of all that is read for it.
    pub bytes: u64,
    pub order: Order,
}

/// An order, once it is known.
#[derive(Debug, Default)]
pub(crate) struct Order {
    known: OnceLock<Result<Aligned, String>>,
    /// Held by the thread that seeks it.
    turn: Mutex<()>,
}

impl Order {
    /// The order, where it is known.
    pub(super) fn known(&self) -> Option<&Aligned> {
        self.known.get()?.as_ref().ok()
    }
}

/// The order of the experts of a layer of a model, and how much it has brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Aligned {
    /// The layer: what the names of the output's tensors begin with.
    pub experts: String,
    /// Whose experts were put in order.
    pub model: String,
    /// In whose order.
    pub reference: String,
    /// For each place the expert that has taken it.
    pub order: Vec<usize>,
    /// The cosine of all that moves, of the one model and the other, as the experts are stored.
    pub cosine_as_stored: f64,
    /// The same in the order found.
    pub cosine: f64,
}

impl Aligned {
    /// Experts that are elsewhere than where they are stored.
    pub fn moved(&self) -> usize {
        self.order.iter().enumerate().filter(|(place, expert)| place != *expert).count()
    }
}

impl Alignment {
    /// Bytes that it keeps in memory while the order is sought.
    pub(crate) fn resident(&self) -> u64 {
        let width = self.width();
        let common = self.count * self.count * (size_of::<f64>() + size_of::<i64>());
        // Strips of all experts of a part are read side by side.
        let of_part = |moving: &Moving| -> u64 {
            let both = [&moving.reference, &moving.model].into_iter().flat_map(Experts::tensors);
            both.map(Readable::resident).sum()
        };
        let made = self.moving.iter().map(of_part).max().unwrap_or(0);
        common as u64 + Panel::bytes(self.count, self.count) + 2 * Panel::bytes(self.count, width) + made
    }

    /// The order; found by the thread that comes first.
    ///
    /// # Errors
    /// Why there is none, for people: the end of "tensor `...`".
    pub(crate) fn order(&self, weights: &Weights<'_>) -> Result<&Aligned, String> {
        let Order { known, turn } = &self.order;
        let _turn = known.get().is_none().then(|| turn.lock().unwrap_or_else(PoisonError::into_inner));
        let found = match known.get() {
            Some(found) => found,
            None => {
                let common = self.common(weights).ok_or("have no order: the run was stopped")?;
                known.get_or_init(|| self.found(common))
            }
        };
        found.as_ref().map_err(Clone::clone)
    }

    /// What the experts have in common; `None` where the run was stopped.
    fn common(&self, weights: &Weights<'_>) -> Option<Common> {
        let mut common = Common::new(self.count, self.width());
        self.moving.iter().all(|moving| common.add(weights, moving)).then_some(common)
    }

    fn found(&self, common: Common) -> Result<Aligned, String> {
        let Common { mut products, squares, .. } = common;
        let mut table = Vec::with_capacity(self.count * self.count);
        for place in 0..self.count {
            table.extend((0..self.count).map(|expert| *products.at(place, expert)));
        }
        if let Some(at) = table.iter().position(|value| !value.is_finite()) {
            return Err(format!(
                "cannot be put in the order of the experts of `{}`: expert {} there or expert {} of `{}` has a NaN or an \
                 infinity: repair the model, or merge without `align_experts`",
                self.reference,
                at / self.count,
                at % self.count,
                self.model
            ));
        }
        let order = assign(&table, self.count, self.groups);
        let norm = squares.iter().product::<f64>().sqrt();
        let cosine = |of: &dyn Fn(usize) -> usize| {
            let product: f64 = (0..self.count).map(|place| table[place * self.count + of(place)]).sum();
            if norm > 0.0 { product / norm } else { 0.0 }
        };
        Ok(Aligned {
            experts: self.experts.clone(),
            model: self.model.clone(),
            reference: self.reference.clone(),
            cosine_as_stored: cosine(&|place| place),
            cosine: cosine(&|place| order[place]),
            order,
        })
    }

    /// Columns of a strip: whole tiles, and fewer of them the more experts there are.
    fn width(&self) -> usize {
        (STRIP / self.count.max(1) / TILE * TILE).clamp(TILE, BLOCK)
    }
}

/// Elements of a strip of all experts.
const STRIP: usize = 1 << 17;

/// Elements of each expert that are asked for before they are read.
const AHEAD: u64 = 1 << 18;

/// What the experts of two models have in common.
struct Common {
    count: usize,
    width: usize,
    strips: [Panel; 2],
    /// The inner product of each expert of the reference with each of the model.
    products: Panel,
    /// The square of the norm of all that was read, of the reference and of the model.
    squares: [f64; 2],
    tile: Box<Tile>,
}

impl Common {
    fn new(count: usize, width: usize) -> Self {
        let strip = || Panel::zeros(count, width);
        Self {
            count,
            width,
            strips: [strip(), strip()],
            products: Panel::zeros(count, count),
            squares: [0.0; 2],
            tile: Box::new([0.0; TILE * TILE]),
        }
    }

    /// Whether the run was not stopped before all was added.
    fn add(&mut self, weights: &Weights<'_>, moving: &Moving) -> bool {
        for start in (0..moving.length).step_by(self.width) {
            if weights.is_stopped() {
                return false;
            }
            let columns = (moving.length - start).min(self.width as u64) as usize;
            self.read(weights, moving, start, columns);
            self.multiply(columns);
        }
        true
    }

    /// Reads a strip of both models, filled up to whole tiles with zeros.
    fn read(&mut self, weights: &Weights<'_>, moving: &Moving, start: u64, columns: usize) {
        let mut values = [0.0; BLOCK];
        let values = &mut values[..columns];
        let is_end = start + columns as u64 == moving.length;
        for (side, experts) in [&moving.reference, &moving.model].into_iter().enumerate() {
            let strip = &mut self.strips[side];
            for expert in 0..self.count {
                let (tensor, first) = experts.place(expert, moving.length);
                let at = first + start;
                if start % AHEAD < self.width as u64 {
                    tensor.prefetch(weights, at..first + (start + AHEAD).min(moving.length));
                }
                tensor.copy(weights, at, values);
                if tensor.made.is_some() {
                    tensor.release(weights, &Passed { elements: at..at + columns as u64, is_end });
                }
                let mut square = 0.0;
                for (column, &value) in values.iter().enumerate() {
                    let value = f64::from(value);
                    square += value * value;
                    *strip.at(expert, column) = value;
                }
                for column in columns..columns.next_multiple_of(TILE) {
                    *strip.at(expert, column) = 0.0;
                }
                self.squares[side] += square;
            }
        }
    }

    fn multiply(&mut self, columns: usize) {
        let [reference, model] = &mut self.strips;
        for first in (0..self.count).step_by(TILE) {
            let experts = TILE.min(self.count - first);
            for inner in 0..columns.div_ceil(TILE) {
                // The experts of the model lie in columns.
                self.tile.fill(0.0);
                for expert in 0..experts {
                    for column in 0..TILE {
                        self.tile[column * TILE + expert] = *model.at(first + expert, inner * TILE + column);
                    }
                }
                self.products.add_product(first / TILE, reference, inner, &self.tile);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::AtomicBool;

    use aludel_checkpoint::WeightMap;

    use crate::derive::Weights;
    use crate::plan::{Plan, PlanOptions, alignments};
    use crate::recipe::Recipe;

    #[test]
    fn a_run_that_is_stopped_keeps_no_order() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/alignment/models");
        let model = |name: &str| format!("{{model: '{}'}}", models.join(name).display());
        let recipe = format!(
            "merge_method: linear\nalign_experts: true\nmodels: [{}, {}]\nparameters: {{weight: 0.5}}\n",
            model("mixtral-a"),
            model("mixtral-b")
        );
        let plan = Plan::new(&Recipe::parse(&recipe).unwrap(), &PlanOptions::default()).unwrap();
        let maps: Vec<_> =
            plan.sources.iter().map(|source| WeightMap::open(&source.checkpoint).unwrap()).collect();
        let weights = Weights::new(&plan.sources, &maps);
        let alignment = alignments(&plan.steps)[0];
        let stop = AtomicBool::new(true);
        assert!(alignment.order(&weights.until(&stop)).is_err());
        assert!(alignment.order.known().is_none());
        let found = alignment.order(&weights).unwrap();
        assert_eq!(alignment.order(&weights.until(&stop)), Ok(found), "what is known is known");
    }
}
