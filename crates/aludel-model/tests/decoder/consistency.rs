//! Holds the decoder against itself: packed or apart, kept or computed anew, with one thread or four, at once or token by
//! token, now or after saving.

use std::collections::BTreeMap;

use aludel_checkpoint::{Checkpoint, TensorEntry};
use aludel_kernels::element::Element;
use aludel_kernels::nn::Device;
use aludel_model::{Batch, Decoder, Error, Keep, Use, WeightType};

use crate::support::{DOCUMENTS, batch, cases, copy_of, cpu, differ, logits, step, trained};

/// Matrix products may take another path for another number of rows, so sums may differ in their last bits.
const ROUNDING: f64 = 2e-5;

#[test]
fn a_packed_step_is_its_documents_one_by_one() {
    for case in cases() {
        let decoder = trained(&case, 1);
        let packed = step(&decoder, &batch(), Keep::Everything);
        let vocabulary = decoder.config().vocabulary;
        let mut row = 0;
        let mut sums: Vec<Vec<f64>> =
            packed.gradients.iter().map(|(_, values)| vec![0.0; values.len()]).collect();
        let targets = |document: &[u32]| document.len() as f64 - 1.0;
        let all: f64 = DOCUMENTS.iter().map(|document| targets(document)).sum();
        for document in DOCUMENTS {
            let alone = step(&decoder, &Batch::pack([document]), Keep::Everything);
            let rows = row * vocabulary..(row + document.len()) * vocabulary;
            differ(&packed.logits[rows], &alone.logits, ROUNDING).unwrap_or_else(|e| panic!("{case}: {e}"));
            row += document.len();
            for (sum, (_, values)) in sums.iter_mut().zip(&alone.gradients) {
                let share = targets(document) / all;
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += share * f64::from(*value));
            }
        }
        for ((name, packed), sum) in packed.gradients.iter().zip(&sums) {
            let sum: Vec<f32> = sum.iter().map(|&value| value as f32).collect();
            differ(packed, &sum, 1e-4).unwrap_or_else(|e| panic!("{case}: {name}: {e}"));
        }
    }
}

#[test]
fn what_is_computed_anew_is_the_same_to_the_bit() {
    for case in cases() {
        let decoder = trained(&case, 2);
        let kept = step(&decoder, &batch(), Keep::Everything);
        for keep in [Keep::Blocks, Keep::Every(2), Keep::Every(5), Keep::Every(0)] {
            assert!(step(&decoder, &batch(), keep) == kept, "{case}: {keep:?}");
        }
    }
}

#[test]
fn threads_change_no_bit() {
    // Long enough that work is shared out.
    let long: Vec<u32> = (0..600).map(|i| (i * 31 + i / 7) % 48).collect();
    let batch = Batch::pack([&long[..370], &long[370..], DOCUMENTS[0]]);
    for case in ["llama-biases", "gemma2", "mixtral"] {
        let one = step(&trained(case, 1), &batch, Keep::Everything);
        assert!(one.loss.is_finite());
        assert!(step(&trained(case, 4), &batch, Keep::Blocks) == one, "{case}");
    }
}

#[test]
fn tokens_one_by_one_are_the_document_at_once() {
    for case in cases() {
        let decoder = trained(&case, 1);
        let vocabulary = decoder.config().vocabulary;
        // Past the length that it was made for, an embedding that depends on the length turns rows that are in the cache
        // already differently.
        let limit = if case == "llama-dynamic" || case == "phi3" { 8 } else { usize::MAX };
        for document in DOCUMENTS.map(|document| &document[..document.len().min(limit)]) {
            let whole = decoder.forward(&Batch::pack([document]), Keep::Nothing, &[]).unwrap();
            let whole = logits(&decoder, whole.hidden());
            let mut cache = decoder.cache(document.len()).unwrap();
            let mut rows = Vec::new();
            for ids in [&document[..3], &document[3..4], &document[4..]] {
                rows.extend(logits(&decoder, decoder.extend(&mut cache, ids).unwrap().hidden()));
            }
            assert_eq!((cache.len(), rows.len()), (document.len(), document.len() * vocabulary));
            differ(&rows, &whole, ROUNDING).unwrap_or_else(|e| panic!("{case}: {e}"));
            // Going back and on again is the same.
            cache.truncate(3);
            let again = logits(&decoder, decoder.extend(&mut cache, &document[3..]).unwrap().hidden());
            differ(&again, &whole[3 * vocabulary..], ROUNDING).unwrap_or_else(|e| panic!("{case}: {e}"));
        }
    }
}

#[test]
fn a_cache_takes_what_it_has_room_for() {
    let decoder = trained("llama", 1);
    let mut cache = decoder.cache(4).unwrap();
    assert!(cache.is_empty());
    decoder.extend(&mut cache, &[1, 2, 3]).unwrap();
    let refused = |result: Result<_, Error>| matches!(result.map(|_| ()), Err(Error::Batch { .. }));
    assert!(refused(decoder.extend(&mut cache, &[1, 2])));
    assert!(refused(decoder.extend(&mut cache, &[])));
    assert!(refused(decoder.extend(&mut cache, &[48])));
    assert_eq!(cache.len(), 3);
    assert!(decoder.extend(&mut cache, &[0]).is_ok());
}

#[test]
fn a_saved_model_is_the_model() {
    for case in cases() {
        let decoder = trained(&case, 1);
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("saved");
        decoder.save(&target, false, Element::F32).unwrap();
        let purpose = Use::Trainable(WeightType::Float32);
        let again = Decoder::open(&target, cpu(1), purpose).unwrap();
        assert_eq!(again.config(), decoder.config());
        assert!(
            step(&again, &batch(), Keep::Everything) == step(&decoder, &batch(), Keep::Everything),
            "{case}"
        );
        // Names and shapes are those that transformers wrote, so it misses nothing and expects nothing else.
        let (original, _guard) = copy_of(&case);
        let tensors = |path: &std::path::Path| {
            let checkpoint = Checkpoint::open(path).unwrap();
            let of = |(name, entry): (&String, &TensorEntry)| (name.clone(), entry.shape.clone());
            checkpoint.tensors().iter().map(of).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(tensors(&target), tensors(&original), "{case}");
        let read = |path: &std::path::Path| std::fs::read_to_string(path.join("config.json")).unwrap();
        let json = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
        assert_eq!(json(read(&target)), json(read(&original)), "{case}");
    }
}

#[test]
fn weights_in_sixteen_bits_are_saved_as_they_are() {
    let decoder = trained("phi3", 1);
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    decoder.save(&first, false, Element::BF16).unwrap();
    for purpose in [Use::Frozen, Use::Trainable(WeightType::BFloat16)] {
        let narrow = Decoder::open(&first, cpu(1), purpose).unwrap();
        assert_eq!(narrow.parameters().trainable().count() > 0, purpose != Use::Frozen);
        narrow.save(&second, true, Element::BF16).unwrap();
        for name in ["model.safetensors", "config.json"] {
            let bytes = |folder: &std::path::Path| std::fs::read(folder.join(name)).unwrap();
            assert!(bytes(&first) == bytes(&second), "{name}");
        }
    }
    assert!(std::fs::read_to_string(first.join("config.json")).unwrap().contains("\"dtype\": \"bfloat16\""));
}

#[test]
fn states_and_their_gradients_go_out_and_in() {
    let decoder = trained("smollm3", 1);
    let device = &**decoder.device();
    let rows = batch().rows();
    let len = rows * decoder.config().hidden;
    // The loss is the sum over states of their products with fixed numbers; nothing of the last norm.
    let weight = |state: usize, index: usize| ((state * 7 + index * 3) % 11) as f32 / 11.0 - 0.4;
    let states = [0, 2, 3];
    let loss = |decoder: &Decoder<_>| {
        let pass = decoder.forward(&batch(), Keep::Nothing, &states).unwrap();
        assert!(pass.state(1).is_none());
        let of_state = |&state: &usize| {
            let values = device.read(pass.state(state).unwrap(), 0..len).unwrap();
            values.iter().enumerate().map(|(i, v)| f64::from(*v) * f64::from(weight(state, i))).sum::<f64>()
        };
        states.iter().map(of_state).sum::<f64>()
    };
    for keep in [Keep::Everything, Keep::Every(2)] {
        let mut gradients = decoder.gradients().unwrap();
        let pass = decoder.forward(&batch(), keep, &states).unwrap();
        let zeros = device.zeros(len, Element::F32).unwrap();
        let d_states: Vec<_> = states
            .iter()
            .map(|&state| {
                let mut d = device.zeros(len, Element::F32).unwrap();
                let values: Vec<f32> = (0..len).map(|index| weight(state, index)).collect();
                device.write(&mut d, 0, &values).unwrap();
                (state, d)
            })
            .collect();
        decoder.backward(pass, &zeros, &d_states, &mut gradients).unwrap();
        let mut checked = trained("smollm3", 1);
        for (place, name) in
            ["model.embed_tokens", "model.layers.1.mlp.up_proj", "model.layers.2.self_attn.k_proj"].map(
                |name| {
                    let name = format!("{name}.weight");
                    (decoder.parameters().iter().position(|parameter| parameter.name == name).unwrap(), name)
                },
            )
        {
            let gradient = gradients.iter().nth(place).unwrap();
            for element in [17, 18, 60] {
                let slope = slope(&mut checked, place, element, &loss);
                let got = f64::from(device.read(gradient, element..element + 1).unwrap()[0]);
                assert!(
                    (slope - got).abs() < 2e-3 * got.abs().max(1.0),
                    "{name} {element}: {got} not {slope}"
                );
            }
        }
    }
}

/// The loss's slope along one element of a parameter, by central differences.
fn slope(
    decoder: &mut Decoder<aludel_kernels::nn::Cpu>,
    parameter: usize,
    element: usize,
    loss: &dyn Fn(&Decoder<aludel_kernels::nn::Cpu>) -> f64,
) -> f64 {
    let device = decoder.device().clone();
    let mut at = |value: Option<f32>, difference: f32| {
        let buffer = &mut decoder.parameters_mut().trainable_mut().nth(parameter).unwrap().buffer;
        let value = value.unwrap_or_else(|| device.read(buffer, element..element + 1).unwrap()[0]);
        device.write(buffer, element, &[value + difference]).unwrap();
        (loss(decoder), value)
    };
    let step = 1.0 / 256.0;
    let (_, value) = at(None, 0.0);
    let slope = (at(Some(value), step).0 - at(Some(value), -step).0) / (2.0 * f64::from(step));
    at(Some(value), 0.0);
    slope
}

#[test]
fn steps_that_a_model_cannot_take_are_refused() {
    let decoder = trained("llama", 1);
    let refused = |result: Result<_, Error>| matches!(result.map(|_| ()), Err(Error::Batch { .. }));
    assert!(refused(decoder.forward(&Batch::default(), Keep::Nothing, &[])));
    assert!(refused(decoder.forward(&Batch::pack([&[48][..]]), Keep::Nothing, &[])));
    assert!(refused(decoder.forward(&batch(), Keep::Nothing, &[3])));
    let pass = decoder.forward(&batch(), Keep::Nothing, &[]).unwrap();
    let d = decoder.device().zeros(batch().rows() * 16, Element::F32).unwrap();
    let mut gradients = decoder.gradients().unwrap();
    assert!(matches!(decoder.backward(pass, &d, &[], &mut gradients), Err(Error::Batch { .. })));
}
