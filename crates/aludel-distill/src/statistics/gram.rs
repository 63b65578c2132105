//! Collects Gram matrices: the mean of `x x^T` over what goes into a linear layer, for all of its inputs alike.
//!
//! Of an expert of a mixture the mean is over all tokens, those that it is not chosen for counting as zeros: so what an expert
//! is rarely asked for weighs little. Sums are f32.

use std::ops::Range;

use aludel_kernels::loss::LossDevice;
use aludel_model::{Batch, Decoder, Site};

use super::Data;
use super::share::{Unit, tensor};
use super::write::Output;
use crate::error::Error;

/// A unit for each input.
pub(super) fn units<D: LossDevice>(model: &Decoder<D>) -> Vec<Unit> {
    let unit = |site: Site| {
        let Site { tensors, width } = site;
        let tensors = tensors.into_iter().map(|name| tensor(name, vec![width, width])).collect();
        Unit { tensors, bytes: (width * width * size_of::<f32>()) as u64 }
    };
    model.sites().into_iter().map(unit).collect()
}

/// Collects those of some sites, with short pieces side by side, and writes them.
pub(super) fn collect<D: LossDevice>(
    model: &Decoder<D>,
    sites: Range<usize>,
    window: usize,
    data: Data<'_>,
    output: &mut Output,
) -> Result<(), Error> {
    let mut grams = model.grams(sites.clone())?;
    let (mut waiting, mut rows, mut done): (Vec<Vec<u32>>, usize, u64) = (Vec::new(), 0, 0);
    let mut flush = |waiting: &mut Vec<Vec<u32>>| -> Result<(), Error> {
        let batch = Batch::pack(waiting.iter().map(Vec::as_slice));
        waiting.clear();
        if batch.rows() > 0 {
            model.add_grams(&batch, &mut grams)?;
            done += batch.rows() as u64;
            (data.on_tokens)(done);
        }
        Ok(())
    };
    data.pieces.each(Some(data.tokens), data.settings.cancel, |piece| {
        if rows + piece.ids.len() > window {
            flush(&mut waiting)?;
            rows = 0;
        }
        rows += piece.ids.len();
        waiting.push(piece.ids);
        Ok(())
    })?;
    flush(&mut waiting)?;
    let all = model.sites();
    for site in sites {
        let (Some(sum), Site { tensors, width }) = (grams.of(site), &all[site]) else { continue };
        let device = model.device();
        output.write(
            tensors,
            |elements| {
                let mut values = device.read(sum, elements)?;
                values.iter_mut().for_each(|value| *value = (f64::from(*value) / data.tokens as f64) as f32);
                Ok(values)
            },
            width * width,
        )?;
    }
    Ok(())
}
