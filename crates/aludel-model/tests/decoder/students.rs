//! Checks models that are made rather than loaded: cut out of a teacher, or fresh.

use std::path::Path;

use aludel_checkpoint::Config;
use aludel_kernels::element::Element;
use aludel_kernels::nn::{Cpu, Device};
use aludel_model::{Cut, Decoder, Error, Keep, LayerChoice, ModelConfig, Use, WeightType};

use crate::support::{batch, cases, copy_of, cpu, folder, step};

fn teacher(case: &str) -> Decoder<Cpu> {
    Decoder::open(&copy_of(case).0, cpu(1), Use::Frozen).unwrap()
}

fn cut(case: &str, cut: &Cut) -> Result<Decoder<Cpu>, Error> {
    Decoder::from_teacher(&teacher(case), cut, WeightType::Float32)
}

fn values(decoder: &Decoder<Cpu>, name: &str) -> Vec<f32> {
    let parameter = decoder.parameters().named(name).unwrap_or_else(|| panic!("no {name}"));
    decoder.device().read(&parameter.buffer, 0..parameter.elements()).unwrap()
}

#[test]
fn a_student_of_all_layers_is_the_teacher() {
    for case in cases() {
        let student = cut(&case, &Cut::default()).unwrap();
        let [student, teacher] =
            [&student, &teacher(&case)].map(|model| step(model, &batch(), Keep::Everything));
        assert!(student.logits == teacher.logits, "{case}");
        assert!(!student.gradients.is_empty() && teacher.gradients.is_empty());
    }
}

#[test]
fn layers_go_with_what_their_places_meant() {
    for (case, choice, from) in [
        ("llama", LayerChoice::Every(2), vec![0]),
        ("smollm3", LayerChoice::Listed(vec![1, 2]), vec![1, 2]),
        ("gemma3", LayerChoice::Listed(vec![1, 0]), vec![1, 0]),
        ("gemma2", LayerChoice::Listed(vec![1]), vec![1]),
        ("qwen2", LayerChoice::Listed(vec![1, 1, 0]), vec![1, 1, 0]),
        ("qwen3_moe", LayerChoice::Listed(vec![1, 0]), vec![1, 0]),
    ] {
        let student = cut(case, &Cut { layers: choice, ..Cut::default() }).unwrap();
        let teacher = teacher(case);
        assert_eq!(student.config().layers.len(), from.len());
        for (layer, &from) in from.iter().enumerate() {
            assert_eq!(student.config().layers[layer], teacher.config().layers[from], "{case}");
            let name = |layer: usize| format!("model.layers.{layer}.self_attn.k_proj.weight");
            assert_eq!(values(&student, &name(layer)), values(&teacher, &name(from)));
        }
        // What is saved is read back as the same model.
        let target = tempfile::tempdir().unwrap();
        student.save(target.path(), false, Element::F32).unwrap();
        let again = Decoder::open(target.path(), cpu(1), Use::Trainable(WeightType::Float32)).unwrap();
        assert!(
            step(&again, &batch(), Keep::Everything) == step(&student, &batch(), Keep::Everything),
            "{case}"
        );
    }
}

/// Sets runs of rows or columns of a matrix to zero, which makes them the least important ones.
fn silence(decoder: &mut Decoder<Cpu>, name: &str, wanted: impl Fn(usize, usize) -> bool) {
    let device = decoder.device().clone();
    let parameter =
        decoder.parameters_mut().trainable_mut().find(|parameter| parameter.name == name).unwrap();
    let columns = parameter.shape[1];
    let mut values = device.read(&parameter.buffer, 0..parameter.elements()).unwrap();
    for (index, value) in values.iter_mut().enumerate() {
        if wanted(index / columns, index % columns) {
            *value = 0.0;
        }
    }
    device.write(&mut parameter.buffer, 0, &values).unwrap();
}

#[test]
fn what_adds_nothing_is_cut_and_nothing_is_lost() {
    // Four heads of four elements, two for each key head; the width is 20.
    for (case, heads, silent) in
        [("llama", 2, &[0, 1][..]), ("olmo2", 2, &[2, 3]), ("llama-biases", 2, &[2, 3]), ("phi3", 2, &[])]
    {
        let width = if case == "phi3" { 8 } else { 4 };
        let purpose = Use::Trainable(WeightType::Float32);
        let mut teacher = Decoder::open(&copy_of(case).0, cpu(1), purpose).unwrap();
        for layer in 0..2 {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            silence(&mut teacher, &name("self_attn.o_proj"), |_, column| silent.contains(&(column / width)));
            silence(&mut teacher, &name("mlp.down_proj"), |_, column| column % 5 == 3);
        }
        // Norms over whole rows see the heads that go, so there only what is left of the matrices can be compared.
        let cut = Cut { heads: Some(heads), feed_forward: Some(16), ..Cut::default() };
        let student = Decoder::from_teacher(&teacher, &cut, WeightType::Float32).unwrap();
        let up = values(&teacher, "model.layers.1.mlp.up_proj.weight");
        let kept: Vec<f32> = up
            .chunks(16)
            .enumerate()
            .filter(|(unit, _)| unit % 5 != 3)
            .flat_map(|(_, row)| row)
            .copied()
            .collect();
        assert_eq!(values(&student, "model.layers.1.mlp.up_proj.weight"), kept, "{case}");
        let queries = values(&teacher, "model.layers.0.self_attn.q_proj.weight");
        let kept: Vec<f32> = queries
            .chunks(16 * width)
            .enumerate()
            .filter(|(head, _)| !silent.contains(head))
            .flat_map(|(_, rows)| rows)
            .copied()
            .collect();
        assert_eq!(values(&student, "model.layers.0.self_attn.q_proj.weight"), kept, "{case}");
        if case != "olmo2" {
            let [student, teacher] =
                [&student, &teacher].map(|model| step(model, &batch(), Keep::Everything));
            crate::support::differ(&student.logits, &teacher.logits, 1e-5)
                .unwrap_or_else(|e| panic!("{case}: {e}"));
        }
        let target = tempfile::tempdir().unwrap();
        student.save(target.path(), false, Element::F32).unwrap();
        let again = Decoder::open(target.path(), cpu(1), Use::Frozen).unwrap();
        assert_eq!(
            step(&again, &batch(), Keep::Everything).logits,
            step(&student, &batch(), Keep::Everything).logits
        );
    }
}

#[test]
fn heads_within_groups_stay_with_their_group() {
    // Eight heads on two key heads: two are one of each group, since a group has four.
    let text = std::fs::read_to_string(folder().join("llama/config.json")).unwrap();
    let text = text.replace("\"num_attention_heads\": 4", "\"num_attention_heads\": 8");
    let json = Config::parse(&text, Path::new("config.json")).unwrap();
    let mut teacher = Decoder::fresh(json, cpu(1), WeightType::Float32, 3).unwrap();
    let silent = [1, 2, 3, 4, 6, 7];
    for layer in 0..2 {
        let name = format!("model.layers.{layer}.self_attn.o_proj.weight");
        silence(&mut teacher, &name, |_, column| silent.contains(&(column / 4)));
    }
    let cut = Cut { heads: Some(2), ..Cut::default() };
    let student = Decoder::from_teacher(&teacher, &cut, WeightType::Float32).unwrap();
    let attention = &student.config().layers[0].attention;
    assert_eq!((attention.heads, attention.key_heads, attention.width), (2, 2, 4));
    let [student, teacher] = [&student, &teacher].map(|model| step(model, &batch(), Keep::Everything));
    crate::support::differ(&student.logits, &teacher.logits, 1e-5).unwrap();
}

#[test]
fn cuts_that_are_not_possible_are_refused() {
    let message = |case: &str, wrong: Cut| cut(case, &wrong).map(|_| ()).unwrap_err().to_string();
    let listed = |layers: &[usize]| Cut { layers: LayerChoice::Listed(layers.to_vec()), ..Cut::default() };
    assert_eq!(message("llama", listed(&[])), "no layer was asked for");
    assert_eq!(
        message("llama", listed(&[2, 0, 5])),
        "\n  - layer 2 was asked for of 2\n  - layer 5 was asked for of 2"
    );
    assert_eq!(
        message("llama", Cut { heads: Some(3), ..Cut::default() }),
        "3 of 4 heads cannot be kept; 2, 4 can"
    );
    assert_eq!(
        message("phi3", Cut { heads: Some(1), ..Cut::default() }),
        "heads are not cut where longrope has factors for each head's elements"
    );
    let width = |width| Cut { feed_forward: Some(width), ..Cut::default() };
    assert_eq!(message("llama", width(21)), "21 of 20 feed-forward units cannot be kept");
    assert_eq!(message("mixtral", width(4)), "experts are not cut; leave their width as it is");
}

#[test]
fn a_fresh_model_depends_on_its_seed_alone() {
    for case in cases() {
        let json = Config::read(&folder().join(&case).join("config.json")).unwrap();
        let config = ModelConfig::parse(&json).unwrap();
        let fresh =
            |seed, threads| Decoder::fresh(json.clone(), cpu(threads), WeightType::Float32, seed).unwrap();
        let (one, same, other) = (fresh(1, 1), fresh(1, 2), fresh(2, 1));
        let name = "model.embed_tokens.weight";
        assert_eq!(values(&one, name), values(&same, name));
        assert_ne!(values(&one, name), values(&other, name));
        let deviation =
            (values(&one, name).iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 768.0).sqrt();
        assert!((deviation / 0.02 - 1.0).abs() < 0.15, "{case}: {deviation}");
        assert_eq!(one.config(), &config);
        // Nearly uniform: log(48) and a little.
        let loss = step(&one, &batch(), Keep::Everything).loss;
        assert!((loss - 48f64.ln()).abs() < 0.2, "{case}: {loss}");
    }
}
