//! Interpolates two models along the great circle between their directions.
//!
//! With both tensors flattened, `u = v / |v|` (where `|v| > 1e-8`), `c = <u0, u1>` and `theta = acos c`:
//! `sin((1-t) theta) / sin(theta) v0 + sin(t theta) / sin(theta) v1`, on the tensors as they are. Nearly parallel
//! directions (`|c| > 0.9995`) are interpolated linearly. Source: Shoemake, "Animating rotation with quaternion curves"
//! (1985), applied to whole tensors as mergekit does, or to each row or head of them (`granularity`). The angle is computed in f64, where mergekit uses f32.

use aludel_kernels::formula::{Expr, Graph};

use super::granularity::GRANULARITY;
use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::{Kind, Level, ParameterSpec};

const SMALLEST_NORM: f64 = 1e-8;
const NEARLY_PARALLEL: f64 = 0.9995;

/// `slerp`.
pub(super) struct Slerp;

impl Method for Slerp {
    fn name(&self) -> &'static str {
        "slerp"
    }

    fn summary(&self) -> &'static str {
        "spherical interpolation between the base model and one other"
    }

    fn base(&self) -> Base {
        Base::First
    }

    fn members(&self) -> (usize, usize) {
        (2, 2)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[
                ParameterSpec {
                    name: "t",
                    level: Level::Global,
                    kind: Kind::Number,
                    default: None,
                    summary: "0 gives the base model, 1 the other",
                },
                GRANULARITY,
            ]
        }
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let t = tensor.number("t")?;
        let axis = tensor.groups()?.axis;
        let (v0, v1) = (graph.input(tensor.members[0].input), graph.input(tensor.members[1].input));
        let length = |v: Expr<'g>| {
            let norm = v.norm(axis);
            graph.constant(SMALLEST_NORM).less(norm).select(norm, 1.0)
        };
        let cosine = v0.dot(v1, axis) / (length(v0) * length(v1));
        let is_parallel = graph.constant(NEARLY_PARALLEL).less(cosine.abs());
        let theta = cosine.acos();
        let share = |part: f64| is_parallel.select(part, (theta * part).sin() / theta.sin());
        Ok(v0 * share(1.0 - t) + v1 * share(t))
    }
}
