//! Computes what the two halves of a layer have in common: norms before and after, and the addition to the hidden states.
//!
//! `h' = h + r * after(inner(before(h)))`, where either norm may be missing. What goes into `inner` is computed anew in the
//! backward pass rather than kept: a norm costs little beside the products that follow it.

use std::sync::Arc;

use aludel_kernels::nn::{Accumulate, Device, DeviceError, Rows};

use super::Decoder;
use super::linear::Into;
use crate::names::NormPlaces;
use crate::parameters::Gradients;
use crate::pool::Held;

/// What a norm made, and its roots.
pub(super) struct Normalised<D: Device> {
    pub(super) x: Held<D>,
    pub(super) rstd: Held<D>,
}

/// Hidden states after one half, and what its backward pass needs.
type Left<D> = (Arc<Held<D>>, Option<AfterTrace<D>>);

/// What the backward pass needs of a norm after the inner part: its input and its roots.
pub(super) struct AfterTrace<D: Device> {
    x: Held<D>,
    rstd: Held<D>,
}

impl<D: Device> Decoder<D> {
    /// What goes into the inner part, normalised, with the norm's roots; `None` where it is the hidden states themselves.
    pub(super) fn enter(
        &self,
        norms: NormPlaces,
        rows: usize,
        h: &Held<D>,
    ) -> Result<Option<Normalised<D>>, DeviceError> {
        let Some(weight) = norms.before else { return Ok(None) };
        let mut x = self.pool.take(rows * self.config.hidden)?;
        let mut rstd = self.pool.take_f32(rows)?;
        self.normalise(weight, self.hidden_rows(rows), h, &mut x, &mut rstd);
        Ok(Some(Normalised { x, rstd }))
    }

    /// `h'` from `h` and the inner part, which is told where to put its result.
    pub(super) fn leave(
        &self,
        norms: NormPlaces,
        rows: usize,
        h: &Held<D>,
        inner: impl FnOnce(&mut D::Buffer, Into<'_, D::Buffer>) -> Result<(), DeviceError>,
    ) -> Result<Left<D>, DeviceError> {
        let scale = self.config.residual_scale;
        let len = rows * self.config.hidden;
        let mut sum = self.pool.take(len)?;
        let Some(weight) = norms.after else {
            inner(&mut sum, Into { scale, base: Some(h) })?;
            return Ok((Arc::new(sum), None));
        };
        self.device.copy(h, &mut sum);
        let mut x = self.pool.take(len)?;
        inner(&mut x, Into::OVERWRITE)?;
        let mut y = self.pool.take(len)?;
        let mut rstd = self.pool.take_f32(rows)?;
        self.normalise(weight, self.hidden_rows(rows), &x, &mut y, &mut rstd);
        self.device.add(&y, scale, &mut sum);
        Ok((Arc::new(sum), Some(AfterTrace { x, rstd })))
    }

    /// Turns the gradient of `h'` in `dh` into that of `h`. `inner` receives what went into the inner part, the gradient of
    /// its result, the factor that was applied to that result, and where to put the gradient of what went in.
    #[expect(clippy::too_many_arguments, reason = "what the gradient depends on")]
    pub(super) fn half_backward(
        &self,
        norms: NormPlaces,
        rows: usize,
        h: &Held<D>,
        after: Option<AfterTrace<D>>,
        dh: &mut Held<D>,
        gradients: &mut Gradients<D>,
        inner: impl FnOnce(
            &D::Buffer,
            &D::Buffer,
            f32,
            &mut D::Buffer,
            &mut Gradients<D>,
        ) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let scale = self.config.residual_scale;
        let (len, shape) = (rows * self.config.hidden, self.hidden_rows(rows));
        let entered = self.enter(norms, rows, h)?;
        let x = entered.as_ref().map_or(h, |entered| &entered.x);
        let mut dx = self.pool.take(len)?;
        match norms.after.zip(after) {
            Some((weight, AfterTrace { x: result, rstd })) => {
                let mut dy = self.pool.take(len)?;
                self.put(dh, &mut dy, Into { scale, ..Into::OVERWRITE });
                let mut d_result = self.pool.take(len)?;
                let over = Accumulate::Overwrite;
                self.normalise_backward(weight, shape, &result, &rstd, &dy, &mut d_result, over, gradients);
                drop((result, rstd, dy));
                inner(x, &d_result, 1.0, &mut dx, gradients)?;
            }
            None => inner(x, dh, scale, &mut dx, gradients)?,
        }
        match norms.before.zip(entered.as_ref().map(|entered| &entered.rstd)) {
            Some((weight, rstd)) => {
                self.normalise_backward(weight, shape, h, rstd, &dx, dh, Accumulate::Add, gradients);
            }
            None => self.device.add(&dx, 1.0, dh),
        }
        Ok(())
    }

    pub(super) fn hidden_rows(&self, rows: usize) -> Rows {
        Rows { rows, width: self.config.hidden }
    }

    pub(super) fn normalise(
        &self,
        weight: usize,
        shape: Rows,
        x: &D::Buffer,
        y: &mut D::Buffer,
        rstd: &mut D::Buffer,
    ) {
        self.device.rms_norm(self.config.norm, shape, x, self.parameters.buffer(weight), y, rstd);
    }

    #[expect(clippy::too_many_arguments, reason = "what the gradient depends on")]
    pub(super) fn normalise_backward(
        &self,
        weight: usize,
        shape: Rows,
        x: &D::Buffer,
        rstd: &D::Buffer,
        dy: &D::Buffer,
        dx: &mut D::Buffer,
        into: Accumulate,
        gradients: &mut Gradients<D>,
    ) {
        let w = self.parameters.buffer(weight);
        self.device.rms_norm_backward(
            self.config.norm,
            shape,
            x,
            w,
            rstd,
            dy,
            dx,
            into,
            gradients.of(weight),
        );
    }
}
