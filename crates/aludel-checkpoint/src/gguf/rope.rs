//! Rebuilds `rope_scaling` of config.json from a GGUF file's metadata and its small factor tensors.
//!
//! In: the header and the rotary dimensions. Out: the JSON object, or nothing when the embedding is not scaled. Llama 3's
//! parameters are not in the metadata, only the factors computed from them: they are inferred and recomputed, and a file
//! whose factors do not come out the same is refused.

use serde_json::{Map, Value, json};

use super::header::{Header, TensorInfo};
use super::metadata::shortest;
use super::weights::WeightReader;
use crate::error::Error;

/// What the scaling depends on besides the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rotary {
    pub(super) theta: f64,
    /// Dimensions of a head that are rotated.
    pub(super) dimensions: u64,
}

/// The value of `rope_scaling`.
///
/// Errors: [`Error::Unsupported`] for a kind of scaling that is not known here and for Llama 3 factors of unknown origin;
/// [`Error::Damaged`]; [`Error::Io`].
pub(super) fn scaling(header: &Header, architecture: &str, rotary: Rotary) -> Result<Option<Value>, Error> {
    if let Some(tensor) = header.tensor("rope_freqs.weight") {
        let factors = factors(header, tensor, rotary)?;
        return llama3(header, &factors, rotary).map(Some);
    }
    if let (Some(long), Some(short)) =
        (header.tensor("rope_factors_long.weight"), header.tensor("rope_factors_short.weight"))
    {
        return long_rope(header, long, short, rotary).map(Some);
    }
    match header.metadata.text(&format!("{architecture}.rope.scaling.type"))? {
        None | Some("none") => Ok(None),
        Some("linear") => linear(header, architecture).map(Some),
        Some("yarn") => yarn(header, architecture).map(Some),
        Some(other) => {
            let detail = format!(
                "its rotary embedding is scaled by {other:?}; linear, yarn, longrope and llama3 are known"
            );
            Err(Error::unsupported(header.path(), detail))
        }
    }
}

fn linear(header: &Header, architecture: &str) -> Result<Value, Error> {
    let factor = required_number(header, &format!("{architecture}.rope.scaling.factor"))?;
    Ok(json!({ "rope_type": "linear", "type": "linear", "factor": factor }))
}

fn yarn(header: &Header, architecture: &str) -> Result<Value, Error> {
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    let mut object = Map::new();
    object.insert("rope_type".into(), "yarn".into());
    object.insert("type".into(), "yarn".into());
    object.insert("factor".into(), required_number(header, &key("factor"))?.into());
    if let Some(length) = header.metadata.count(&key("original_context_length"))? {
        object.insert("original_max_position_embeddings".into(), length.into());
    }
    for (gguf, name) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
        if let Some(value) = header.metadata.number(&key(gguf))? {
            object.insert(name.into(), value.into());
        }
    }
    Ok(object.into())
}

/// The factor on attention is left out: transformers derives it from the two context lengths, as the converter did.
fn long_rope(header: &Header, long: &TensorInfo, short: &TensorInfo, rotary: Rotary) -> Result<Value, Error> {
    let listed = |tensor| -> Result<Vec<Value>, Error> {
        Ok(factors(header, tensor, rotary)?.into_iter().filter_map(shortest).map(Value::from).collect())
    };
    let mut object = Map::new();
    object.insert("rope_type".into(), "longrope".into());
    object.insert("type".into(), "longrope".into());
    object.insert("long_factor".into(), listed(long)?.into());
    object.insert("short_factor".into(), listed(short)?.into());
    Ok(object.into())
}

/// The values of a factor tensor: one for every pair of rotated dimensions.
fn factors(header: &Header, tensor: &TensorInfo, rotary: Rotary) -> Result<Vec<f32>, Error> {
    let damaged =
        |detail: String| Err(Error::damaged(header.path(), format!("tensor {:?}: {detail}", tensor.name)));
    if tensor.elements() != rotary.dimensions / 2 {
        return damaged(format!(
            "{} factors for {} rotated dimensions",
            tensor.elements(),
            rotary.dimensions
        ));
    }
    let values = WeightReader::open(header.path())?.values(tensor)?;
    match values.iter().find(|value| !(value.is_finite() && **value > 0.0)) {
        Some(value) => damaged(format!("its factor {value} is not positive")),
        None => Ok(values),
    }
}

/// Finds the parameters that give these factors.
fn llama3(header: &Header, factors: &[f32], rotary: Rotary) -> Result<Value, Error> {
    let largest = factors.iter().copied().fold(1.0f32, f32::max);
    let factor = shortest(largest).unwrap_or(1.0);
    let guess = Llama3 { factor, low: 1.0, high: 4.0, original: 8192.0 };
    let agrees = |(pair, factor): (usize, &f32)| {
        let expected = guess.factor_of(pair, rotary);
        (f64::from(*factor) - expected).abs() <= FACTOR_TOLERANCE * expected
    };
    if !factors.iter().enumerate().all(agrees) {
        let detail = "its rope_freqs.weight is not what Llama 3's rotary scaling gives for any factor with low_freq_factor 1, \
             high_freq_factor 4 and 8192 original positions, so config.json cannot be rebuilt";
        return Err(Error::unsupported(header.path(), detail));
    }
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }))
}

/// Llama 3's scaling: long wavelengths are divided by `factor`, short ones are left alone, those between are blended.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    original: f64,
}

impl Llama3 {
    fn factor_of(&self, pair: usize, rotary: Rotary) -> f64 {
        let exponent = 2.0 * pair as f64 / rotary.dimensions as f64;
        let wavelength = std::f64::consts::TAU * rotary.theta.powf(exponent);
        let turns = self.original / wavelength;
        if turns > self.high {
            1.0
        } else if turns < self.low {
            self.factor
        } else {
            let blend = (turns - self.low) / (self.high - self.low);
            1.0 / ((1.0 - blend) / self.factor + blend)
        }
    }
}

fn required_number(header: &Header, key: &str) -> Result<f64, Error> {
    header
        .metadata
        .number(key)?
        .ok_or_else(|| Error::damaged(header.path(), format!("metadata key {key:?} is missing")))
}

/// The factors were computed in f32.
const FACTOR_TOLERANCE: f64 = 1e-4;
