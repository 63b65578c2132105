//! Checks adapters: what they add, their gradients, and what is written of them.

use aludel_checkpoint::{Checkpoint, OutputFolder};
use aludel_kernels::element::Element;
use aludel_kernels::nn::{Cpu, Device};
use aludel_model::{AdapterSpec, Decoder, Error, Keep, Use};

use crate::support::{Tensors, batch, copy_of, cpu, differ, step};

fn spec(targets: &[&str]) -> AdapterSpec {
    let targets = targets.iter().map(|&target| target.to_owned()).collect();
    AdapterSpec { rank: 3, alpha: 5.0, rank_stabilised: false, targets, seed: 1 }
}

/// A model with adapters whose B is no longer zero.
fn adapted(case: &str, spec: &AdapterSpec) -> Decoder<Cpu> {
    let mut decoder = Decoder::open(&copy_of(case).0, cpu(1), Use::Frozen).unwrap();
    decoder.add_adapters(spec).unwrap();
    let device = decoder.device().clone();
    for parameter in decoder.parameters_mut().trainable_mut().filter(|p| p.name.contains("lora_B")) {
        let values: Vec<f32> =
            (0..parameter.elements()).map(|i| ((i * 37 + 11) % 23) as f32 / 46.0 - 0.25).collect();
        device.write(&mut parameter.buffer, 0, &values).unwrap();
    }
    decoder
}

#[test]
fn a_fresh_adapter_changes_nothing_and_freezes_the_rest() {
    let plain = Decoder::open(&copy_of("qwen2").0, cpu(1), Use::Frozen).unwrap();
    let mut decoder = Decoder::open(&copy_of("qwen2").0, cpu(1), Use::Frozen).unwrap();
    decoder.add_adapters(&spec(&["all-linear"])).unwrap();
    assert_eq!(
        step(&decoder, &batch(), Keep::Blocks).logits,
        step(&plain, &batch(), Keep::Everything).logits
    );
    assert!(decoder.parameters().trainable().all(|parameter| parameter.name.contains("lora_")));
    // A and B for seven matrices of two layers.
    assert_eq!(decoder.parameters().trainable().count(), 28);
    let a = decoder.parameters().named("model.layers.1.mlp.down_proj.lora_A.weight").unwrap();
    assert_eq!(a.shape, [3, 20]);
    let values = decoder.device().read(&a.buffer, 0..60).unwrap();
    let bound = 1.0 / 20f32.sqrt();
    assert!(values.iter().all(|v| v.abs() <= bound) && values.iter().any(|v| v.abs() > 0.8 * bound));
}

#[test]
fn gradients_of_adapters_are_slopes() {
    for (case, spec) in [
        ("granite", AdapterSpec { rank_stabilised: true, ..spec(&["q_proj", "o_proj", "down_proj"]) }),
        ("phi3", spec(&["all-linear"])),
    ] {
        let mut decoder = adapted(case, &spec);
        let gradients = step(&decoder, &batch(), Keep::Everything).gradients;
        assert!(gradients.iter().all(|(name, _)| name.contains("lora_")));
        let device = decoder.device().clone();
        for (place, (name, gradient)) in gradients.iter().enumerate() {
            let element = (place * 5) % gradient.len();
            let mut loss_at = |difference: f32| {
                let buffer = &mut decoder.parameters_mut().trainable_mut().nth(place).unwrap().buffer;
                let value = device.read(buffer, element..element + 1).unwrap()[0];
                device.write(buffer, element, &[value + difference]).unwrap();
                let loss = step(&decoder, &batch(), Keep::Everything).loss;
                let buffer = &mut decoder.parameters_mut().trainable_mut().nth(place).unwrap().buffer;
                device.write(buffer, element, &[value]).unwrap();
                loss
            };
            let slope = (loss_at(0.01) - loss_at(-0.01)) / 0.02;
            let got = f64::from(gradient[element]);
            assert!((slope - got).abs() < 1e-3 * got.abs().max(0.1), "{case} {name}: {got}, not {slope}");
        }
    }
}

#[test]
fn a_saved_model_has_its_adapters_merged() {
    for (case, targets) in [("phi3", &["all-linear"][..]), ("qwen3", &["v_proj", "layers.1.mlp.up_proj"])] {
        let decoder = adapted(case, &spec(targets));
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("merged");
        decoder.save(&target, false, Element::F32).unwrap();
        let merged = Decoder::open(&target, cpu(1), Use::Frozen).unwrap();
        let [apart, merged] = [&decoder, &merged].map(|model| step(model, &batch(), Keep::Everything).logits);
        differ(&merged, &apart, 1e-5).unwrap_or_else(|e| panic!("{case}: {e}"));
        let plain = Decoder::open(&copy_of(case).0, cpu(1), Use::Frozen).unwrap();
        assert!(differ(&step(&plain, &batch(), Keep::Everything).logits, &apart, 1e-2).is_err());
    }
}

#[test]
fn an_adapter_is_written_as_peft_names_it() {
    let decoder = adapted("phi3", &spec(&["qkv_proj", "o_proj"]));
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("adapter");
    let folder = OutputFolder::create(&target, false).unwrap();
    decoder.write_adapters(&folder, "models/base").unwrap();
    folder.finish().unwrap();
    let file = target.join("adapter_model.safetensors");
    let checkpoint = Checkpoint::open(&file).unwrap();
    let shape = |name: &str| {
        let name = format!("base_model.model.model.layers.0.self_attn.{name}.weight");
        checkpoint.tensor(&name).unwrap_or_else(|| panic!("no {name}")).shape.clone()
    };
    // Query, key and value share A; their B are rows of one, 16 and twice 8.
    assert_eq!([shape("qkv_proj.lora_A"), shape("qkv_proj.lora_B")], [[3, 16], [32, 3]]);
    assert_eq!([shape("o_proj.lora_A"), shape("o_proj.lora_B")], [[3, 16], [16, 3]]);
    assert_eq!(checkpoint.tensors().len(), 8);
    let joined =
        Tensors::open(&file).values("base_model.model.model.layers.1.self_attn.qkv_proj.lora_B.weight");
    let key = decoder.parameters().named("model.layers.1.self_attn.k_proj.lora_B.weight").unwrap();
    assert_eq!(joined[16 * 3..24 * 3], decoder.device().read(&key.buffer, 0..24).unwrap());
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(target.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["r"], 3);
    assert_eq!(config["lora_alpha"], 5.0);
    assert_eq!(config["target_modules"], serde_json::json!(["qkv_proj", "o_proj"]));
    assert_eq!(config["base_model_name_or_path"], "models/base");
}

#[test]
fn adapters_that_do_not_fit_are_refused_with_all_reasons() {
    let mut decoder = Decoder::open(&copy_of("mixtral").0, cpu(1), Use::Frozen).unwrap();
    let wrong = AdapterSpec { rank: 17, alpha: f64::NAN, ..spec(&["q_proj", "up_proj", "proj"]) };
    let Err(Error::Change(problems)) = decoder.add_adapters(&wrong) else { panic!("accepted") };
    assert_eq!(
        problems.lines(),
        [
            "a rank of 17 does not suit matrices of at most 16",
            "alpha is NaN, which is no number above 0",
            "no layer is named \"up_proj\"; there are q_proj, k_proj, v_proj, o_proj",
            "no layer is named \"proj\"; there are q_proj, k_proj, v_proj, o_proj",
        ]
    );
    assert!(
        decoder
            .write_adapters(&OutputFolder::create(&copy_of("llama").0.join("x"), false).unwrap(), "b")
            .is_err()
    );
    decoder.add_adapters(&spec(&["q_proj"])).unwrap();
    assert!(decoder.add_adapters(&spec(&["q_proj"])).is_err());
}
