//! Computes the attention half of a layer, forward and backward.
//!
//! Kept for the backward pass: queries, keys and values as they went into attention (before their norm, where they have
//! one, since its gradient needs them so), the result, and a log-sum-exp for each row and head.

use aludel_kernels::nn::{Accumulate, Attention, Device, DeviceError, Direction, Heads, Rows, Span};

use super::cache::LayerCache;
use super::half::Normalised;
use super::linear::Into;
use super::rotary::Rotation;
use super::{Decoder, Step};
use crate::config::{AttentionConfig, QueryKeyNorm};
use crate::names::{LayerPlaces, Linear};
use crate::parameters::Gradients;
use crate::pool::Held;

/// What the backward pass needs.
pub(super) struct AttentionTrace<D: Device> {
    q: Held<D>,
    k: Held<D>,
    v: Held<D>,
    y: Held<D>,
    lse: Held<D>,
}

impl<D: Device> AttentionTrace<D> {
    /// What goes into the product with the output matrix.
    pub(super) fn result(&self) -> &D::Buffer {
        &self.y
    }
}

/// Queries, or keys, of a layer.
struct Side<'a> {
    linear: &'a Linear,
    norm: Option<usize>,
    heads: usize,
}

impl<D: Device> Decoder<D> {
    /// Attention of the rows of a step to one another, or to those in a cache and one another. The result is left in the
    /// trace; see [`Decoder::attention_output`].
    pub(super) fn attention(
        &self,
        layer: usize,
        step: &Step<D>,
        x: &D::Buffer,
        cache: Option<&mut LayerCache<D>>,
    ) -> Result<AttentionTrace<D>, DeviceError> {
        let config = &self.config.layers[layer].attention;
        let places = &self.places.layers[layer];
        let [query, key] = sides(places, config);
        let q = self.product(query.linear, step.rows, x)?;
        let k = self.product(key.linear, step.rows, x)?;
        let v = self.product(&places.value, step.rows, x)?;
        let rotation = config.rope.map(|rope| &step.rotations[rope]);
        let (q, turned_q) = self.ready(&query, config, rotation, step.rows, q)?;
        let (k, turned_k) = self.ready(&key, config, rotation, step.rows, k)?;
        let mut y = self.pool.take(step.rows * config.query_width())?;
        let mut lse = self.pool.take_f32(step.rows * config.heads)?;
        let ready_q = turned_q.as_deref().unwrap_or(&q);
        let ready_k = turned_k.as_deref().unwrap_or(&k);
        match cache {
            None => self.attend(config, &step.spans, [ready_q, ready_k, &v], &mut y, &mut lse),
            Some(cache) => {
                let shape = Rows { rows: step.rows, width: config.key_width() };
                let at = step.spans.first().map_or(0, |span| span.keys.end - step.rows);
                self.device.copy_rows(ready_k, 0, &mut cache.keys, at, shape);
                self.device.copy_rows(&v, 0, &mut cache.values, at, shape);
                self.attend(config, &step.spans, [ready_q, &cache.keys, &cache.values], &mut y, &mut lse);
            }
        }
        Ok(AttentionTrace { q, k, v, y, lse })
    }

    /// The product with the output matrix.
    pub(super) fn attention_output(
        &self,
        layer: usize,
        rows: usize,
        trace: &AttentionTrace<D>,
        out: &mut D::Buffer,
        into: Into<'_, D::Buffer>,
    ) -> Result<(), DeviceError> {
        self.linear(&self.places.layers[layer].output, rows, &trace.y, out, into)
    }

    /// Gradient of both: `dx` is overwritten from `d_out`, the gradient of the scaled output.
    #[expect(clippy::too_many_arguments, reason = "what the gradient depends on")]
    pub(super) fn attention_backward(
        &self,
        layer: usize,
        step: &Step<D>,
        x: &D::Buffer,
        trace: AttentionTrace<D>,
        d_out: &D::Buffer,
        scale: f32,
        dx: &mut D::Buffer,
        gradients: &mut Gradients<D>,
    ) -> Result<(), DeviceError> {
        let config = &self.config.layers[layer].attention;
        let places = &self.places.layers[layer];
        let rows = step.rows;
        let AttentionTrace { q, k, v, y, lse } = trace;
        let mut dy = self.pool.take(rows * config.query_width())?;
        let over = Accumulate::Overwrite;
        self.linear_backward(&places.output, rows, &y, d_out, scale, &mut dy, over, gradients)?;
        let [query, key] = sides(places, config);
        let rotation = config.rope.map(|rope| &step.rotations[rope]);
        let (turned_q, root_q) = apart(self.normalised(&query, config, rotation, rows, &q)?);
        let (turned_k, root_k) = apart(self.normalised(&key, config, rotation, rows, &k)?);
        let mut dq = self.pool.take(rows * config.query_width())?;
        let mut dk = self.pool.take(rows * config.key_width())?;
        let mut dv = self.pool.take(rows * config.key_width())?;
        self.device.attention_backward(
            kernel(config),
            &step.spans,
            turned_q.as_deref().unwrap_or(&q),
            turned_k.as_deref().unwrap_or(&k),
            &v,
            &y,
            &lse,
            &dy,
            &mut dq,
            &mut dk,
            &mut dv,
        );
        drop((y, lse, dy, v, turned_q, turned_k));
        for (side, raw, root, d) in [(&query, q, root_q, &mut dq), (&key, k, root_k, &mut dk)] {
            self.unready(side, config, rotation, rows, raw, root, d, gradients)?;
        }
        self.linear_backward(query.linear, rows, x, &dq, 1.0, dx, over, gradients)?;
        self.linear_backward(key.linear, rows, x, &dk, 1.0, dx, Accumulate::Add, gradients)?;
        self.linear_backward(&places.value, rows, x, &dv, 1.0, dx, Accumulate::Add, gradients)
    }

    fn product(&self, linear: &Linear, rows: usize, x: &D::Buffer) -> Result<Held<D>, DeviceError> {
        let mut y = self.pool.take(rows * linear.outputs)?;
        self.linear(linear, rows, x, &mut y, Into::OVERWRITE)?;
        Ok(y)
    }

    fn attend(
        &self,
        config: &AttentionConfig,
        spans: &[Span],
        [q, k, v]: [&D::Buffer; 3],
        y: &mut D::Buffer,
        lse: &mut D::Buffer,
    ) {
        self.device.attention(kernel(config), spans, q, k, v, y, lse);
    }

    /// What goes into attention: turned in place, or, where there is a norm, normalised and turned apart from what is kept.
    fn ready(
        &self,
        side: &Side<'_>,
        config: &AttentionConfig,
        rotation: Option<&Rotation<D>>,
        rows: usize,
        mut raw: Held<D>,
    ) -> Result<(Held<D>, Option<Held<D>>), DeviceError> {
        if side.norm.is_some() {
            let turned = self.normalised(side, config, rotation, rows, &raw)?.map(|normalised| normalised.x);
            return Ok((raw, turned));
        }
        self.turn(side, config, rotation, Direction::Forward, rows, &mut raw);
        Ok((raw, None))
    }

    /// Normalised and turned, with the norm's roots; `None` where there is no norm and `raw` is turned already.
    fn normalised(
        &self,
        side: &Side<'_>,
        config: &AttentionConfig,
        rotation: Option<&Rotation<D>>,
        rows: usize,
        raw: &Held<D>,
    ) -> Result<Option<Normalised<D>>, DeviceError> {
        let Some(weight) = side.norm else { return Ok(None) };
        let shape = norm_rows(side, config, rows);
        let mut turned = self.pool.take(shape.rows * shape.width)?;
        let mut rstd = self.pool.take_f32(shape.rows)?;
        self.normalise(weight, shape, raw, &mut turned, &mut rstd);
        self.turn(side, config, rotation, Direction::Forward, rows, &mut turned);
        Ok(Some(Normalised { x: turned, rstd }))
    }

    /// Turns the gradient of what went into attention into that of the product, in `d`.
    #[expect(clippy::too_many_arguments, reason = "what the gradient depends on")]
    fn unready(
        &self,
        side: &Side<'_>,
        config: &AttentionConfig,
        rotation: Option<&Rotation<D>>,
        rows: usize,
        raw: Held<D>,
        root: Option<Held<D>>,
        d: &mut Held<D>,
        gradients: &mut Gradients<D>,
    ) -> Result<(), DeviceError> {
        self.turn(side, config, rotation, Direction::Backward, rows, d);
        if let (Some(weight), Some(root)) = (side.norm, root) {
            let shape = norm_rows(side, config, rows);
            let mut dx = self.pool.take(shape.rows * shape.width)?;
            let over = Accumulate::Overwrite;
            self.normalise_backward(weight, shape, &raw, &root, d, &mut dx, over, gradients);
            *d = dx;
        }
        Ok(())
    }

    fn turn(
        &self,
        side: &Side<'_>,
        config: &AttentionConfig,
        rotation: Option<&Rotation<D>>,
        direction: Direction,
        rows: usize,
        x: &mut D::Buffer,
    ) {
        if let Some(rotation) = rotation {
            let shape = Heads { rows, heads: side.heads, width: config.width };
            rotation.turn(&self.device, direction, shape, x);
        }
    }
}

fn sides<'a>(places: &'a LayerPlaces, config: &AttentionConfig) -> [Side<'a>; 2] {
    [
        Side { linear: &places.query, norm: places.query_norm, heads: config.heads },
        Side { linear: &places.key, norm: places.key_norm, heads: config.key_heads },
    ]
}

fn apart<D: Device>(normalised: Option<Normalised<D>>) -> (Option<Held<D>>, Option<Held<D>>) {
    normalised.map(|Normalised { x, rstd }| (x, rstd)).unzip()
}

/// The rows that a norm of queries or keys sees.
fn norm_rows(side: &Side<'_>, config: &AttentionConfig, rows: usize) -> Rows {
    match config.query_key_norm {
        QueryKeyNorm::Row => Rows { rows, width: side.heads * config.width },
        _ => Rows { rows: rows * side.heads, width: config.width },
    }
}

fn kernel(config: &AttentionConfig) -> Attention {
    Attention {
        heads: config.heads,
        key_heads: config.key_heads,
        width: config.width,
        scale: config.scale,
        window: config.window,
        soft_cap: config.soft_cap,
    }
}
