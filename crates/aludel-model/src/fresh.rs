//! Makes a model of fresh weights from a config.
//!
//! In: a `config.json` and a seed. Out: a [`Decoder`] whose matrices are normal with deviation `initializer_range`, whose
//! norms multiply by one and whose biases are zero, as transformers initialises them. The numbers depend on the seed, the
//! parameter's name and the element's position only: not on the device, not on threads.

use std::path::Path;
use std::sync::Arc;

use aludel_checkpoint::{Config, find_side_files};
use aludel_kernels::nn::{Device, DeviceError};
use aludel_kernels::normal::fill_normal;
use rayon::prelude::*;

use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::error::Error;
use crate::load::{WeightType, check_device};
use crate::names::{Inventory, Named};
use crate::parameters::Parameter;
use crate::random::stream;
use crate::source::Source;

impl<D: Device> Decoder<D> {
    /// A model of fresh weights, to be trained.
    ///
    /// Errors: [`Error::Config`]; what the device says.
    pub fn fresh(json: Config, device: Arc<D>, weights: WeightType, seed: u64) -> Result<Self, Error> {
        let config = ModelConfig::parse(&json)?;
        check_device(&*device, &config)?;
        let inventory = Inventory::new(&config);
        let parameter = |named: &Named| {
            let mut buffer = device.zeros(named.shape.iter().product(), weights.element())?;
            fill(&*device, &config, named, seed, &mut buffer)?;
            let (name, shape) = (named.name.clone(), named.shape.clone());
            Ok(Parameter { name, shape, buffer, trainable: true })
        };
        let parameters = inventory.parameters.iter().map(parameter).collect::<Result<_, DeviceError>>()?;
        let source = Source { config: json, folder: None, side_files: Vec::new() };
        Ok(Self::assemble(device, config, inventory, parameters, source))
    }

    /// Lets the tokenizer and the other side files of a folder go along when this model is saved. It need not hold weights.
    ///
    /// # Errors
    /// [`Error::Checkpoint`]: the folder cannot be read.
    pub fn take_side_files_of(&mut self, folder: &Path) -> Result<(), Error> {
        let side_files = find_side_files(folder)?;
        let source = self.source_mut();
        source.folder = Some(folder.to_path_buf());
        source.side_files = side_files;
        Ok(())
    }
}

fn fill<D: Device>(
    device: &D,
    config: &ModelConfig,
    named: &Named,
    seed: u64,
    buffer: &mut D::Buffer,
) -> Result<(), DeviceError> {
    if device.is_blank() {
        return Ok(());
    }
    if named.shape.len() == 1 {
        let is_bias = named.name.ends_with(".bias");
        device.fill(buffer, if is_bias || config.norm.one_plus { 0.0 } else { 1.0 });
        return Ok(());
    }
    let key = stream(seed, &named.name);
    let len = device.len(buffer);
    let mut values = vec![0.0; PIECE.min(len)];
    for start in (0..len).step_by(PIECE) {
        let piece = PIECE.min(len - start);
        let values = &mut values[..piece];
        values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
            fill_normal(key, (start + chunk * CHUNK) as u64, config.initializer_range, values);
        });
        device.write(buffer, start, values)?;
    }
    Ok(())
}

/// Elements that are on the host at a time.
const PIECE: usize = 1 << 20;
/// Elements that a thread draws at a time; a multiple of four.
const CHUNK: usize = 1 << 14;
