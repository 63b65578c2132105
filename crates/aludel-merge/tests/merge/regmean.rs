//! Holds `regmean` to what it is defined by: what equal and unrelated inputs lead to, that nothing fits better, and what no
//! fit exists for.

use std::path::Path;

use crate::made::{elements, noise, write};
use aludel_checkpoint::Dtype;
use aludel_merge::execute::{ExecuteOptions, execute};
use aludel_merge::plan::{Plan, PlanOptions};
use aludel_merge::recipe::Recipe;
use serde_json::json;

/// Outputs and inputs: tiles that are not filled, and more rows than a panel has.
const SHAPE: [usize; 2] = [150, 70];

/// `x x^T` of so many vectors, and something on the diagonal.
fn gram(side: usize, vectors: usize, ridge: f64, seed: u64) -> Vec<f32> {
    let x: Vec<f64> = noise(side * vectors, seed).iter().map(|&x| f64::from(x)).collect();
    let element =
        |i: usize, j: usize| -> f64 { (0..vectors).map(|v| x[v * side + i] * x[v * side + j]).sum() };
    let place = |place: usize| (place / side, place % side);
    (0..side * side)
        .map(place)
        .map(|(i, j)| (element(i, j) + if i == j { ridge } else { 0.0 }) as f32)
        .collect()
}

/// A layer and its Gram matrix.
type Layer = (Vec<f32>, Vec<f32>);

/// What comes of layers by these parameters of the merge, or why nothing does.
fn merged(
    layers: &[Layer],
    shape: [usize; 2],
    parameters: &str,
    options: &PlanOptions,
) -> Result<Vec<f32>, String> {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe =
        format!("merge_method: regmean\ndtype: float32\nparameters: {{{parameters}}}\nmodels:\n");
    for (number, (layer, gram)) in layers.iter().enumerate() {
        let path = |kind: &str| folder.path().join(format!("{kind}-{number}"));
        let side = shape[1];
        write(&path("model"), &json!({}), &[("w", Dtype::F32, &shape, layer.clone())]);
        write(&path("gram"), &json!({}), &[("w", Dtype::F32, &[side, side], gram.clone())]);
        let (model, gram) = (path("model"), path("gram"));
        recipe +=
            &format!("- {{model: '{}', parameters: {{gram: '{}'}}}}\n", model.display(), gram.display());
    }
    let plan = Plan::new(&Recipe::parse(&recipe).map_err(|problems| problems.to_string())?, options);
    let target = folder.path().join("out");
    run(&plan.map_err(|problems| problems.to_string())?, &target)?;
    Ok(elements(&target).remove(0).1)
}

fn run(plan: &Plan, target: &Path) -> Result<(), String> {
    let options = ExecuteOptions { sync: false, ..ExecuteOptions::default() };
    execute(plan, target, &options).map(|_| ()).map_err(|error| error.to_string())
}

fn layers(count: u64, vectors: usize) -> Vec<Layer> {
    let [outputs, inputs] = SHAPE;
    (0..count).map(|i| (noise(outputs * inputs, i), gram(inputs, vectors, 0.0, 100 + i))).collect()
}

#[test]
fn equal_layers_stay_what_they_are() {
    let mut layers = layers(3, 90);
    for i in 1..3 {
        layers[i].0 = layers[0].0.clone();
    }
    assert_eq!(merged(&layers, SHAPE, "", &PlanOptions::default()).unwrap(), layers[0].0);
}

#[test]
fn inputs_of_one_kind_lead_to_the_average() {
    let mut layers = layers(2, 0);
    let unit = |i: usize| f32::from(u8::from(i.is_multiple_of(SHAPE[1] + 1)));
    for layer in &mut layers {
        layer.1 = (0..SHAPE[1] * SHAPE[1]).map(unit).collect();
    }
    let average: Vec<f32> = layers[0]
        .0
        .iter()
        .zip(&layers[1].0)
        .map(|(a, b)| ((f64::from(*a) + f64::from(*b)) / 2.0) as f32)
        .collect();
    let close = |got: &[f32]| got.iter().zip(&average).all(|(got, x)| (got - x).abs() < 1e-7);
    assert!(close(&merged(&layers, SHAPE, "", &PlanOptions::default()).unwrap()));
    // So do inputs that no model has ever had, and a diagonal alone.
    let none = [(layers[0].0.clone(), vec![0.0; 4900]), (layers[1].0.clone(), vec![0.0; 4900])];
    assert!(close(&merged(&none, SHAPE, "", &PlanOptions::default()).unwrap()));
    let own = gram(SHAPE[1], 90, 0.0, 7);
    let same = [(layers[0].0.clone(), own.clone()), (layers[1].0.clone(), own)];
    assert!(close(&merged(&same, SHAPE, "alpha: 0", &PlanOptions::default()).unwrap()));
}

/// The objective is a square, so the fit is least where its slope is nothing: `sum (W - W_i) G_i`.
#[test]
fn nothing_fits_better() {
    let layers = layers(3, 90);
    let [outputs, side] = SHAPE;
    let fit = merged(&layers, SHAPE, "alpha: 1, ridge: 0", &PlanOptions::default()).unwrap();
    let slope = |at: &dyn Fn(usize) -> f32, row: usize, column: usize| -> f64 {
        let term = |(layer, gram): &Layer, k: usize| {
            let apart = f64::from(at(row * side + k)) - f64::from(layer[row * side + k]);
            apart * f64::from(gram[k * side + column])
        };
        layers.iter().map(|layer| (0..side).map(|k| term(layer, k)).sum::<f64>()).sum()
    };
    for (row, column) in [(0, 0), (1, 69), (63, 64), (64, 63), (outputs - 1, 3), (100, 68)] {
        let slope_there = slope(&|i| fit[i], row, column);
        let elsewhere = slope(&|i| layers[0].0[i], row, column);
        assert!(slope_there.abs() < 1e-5, "{slope_there} at {row}, {column}");
        assert!(elsewhere.abs() > 1e-3, "the test would see it: {elsewhere}");
    }
}

#[test]
fn threads_and_tiles_change_no_bit() {
    // More than two of the smallest tiles.
    let shape = [2000, 70];
    let layer = |i: u64| (noise(shape[0] * shape[1], i), gram(shape[1], 90, 0.0, i + 10));
    let layers = [layer(1), layer(2)];
    let with = |threads: usize, tile: u64| {
        let options = PlanOptions { threads, tile: Some(tile), ..PlanOptions::default() };
        merged(&layers, shape, "", &options).unwrap()
    };
    let one = with(1, 1 << 16);
    assert_eq!(with(3, 1 << 16), one);
    assert_eq!(with(2, 1 << 18), one);
}

#[test]
fn what_no_fit_exists_for_is_told() {
    let refused = |layers: &[Layer], parameters: &str| {
        merged(layers, SHAPE, parameters, &PlanOptions::default()).unwrap_err()
    };
    // Fewer vectors than inputs: some directions are not determined.
    let thin = layers(2, 20);
    let said = refused(&thin, "alpha: 1, ridge: 0");
    assert!(
        said.starts_with(
            "tensor `w` cannot be fitted: the Gram matrices together are not positive definite at input 4"
        ),
        "{said}"
    );
    assert!(said.ends_with("choose a smaller `alpha` than 1, or a larger `ridge` than 0e0"), "{said}");
    assert!(merged(&thin, SHAPE, "alpha: 1, ridge: 1e-4", &PlanOptions::default()).is_ok());
    assert!(merged(&thin, SHAPE, "ridge: 0", &PlanOptions::default()).is_ok());
    let with = |place: usize, value: f32| {
        let mut layers = layers(2, 90);
        layers[1].1[place] = value;
        refused(&layers, "")
    };
    for (said, expected) in [
        (with(71, f32::NAN), "is no Gram matrix, it has NaN on its diagonal, at input 1: collect it anew"),
        (with(142, -1.0), "is no Gram matrix, it has -1 on its diagonal, at input 2"),
        (with(5 * 70 + 3, 900.0), "it has 900 for inputs 5 and 3, whose squares do not allow it"),
        (with(5 * 70 + 3, f32::INFINITY), "it has inf for inputs 5 and 3"),
        (with(60 * 70 + 69, 4.0), "it has another row than column for input 69"),
    ] {
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn what_it_takes_is_planned() {
    let (shape, side) = ([8, 2000], 2000);
    let identity: Vec<f32> = (0..side * side).map(|i| f32::from(u8::from(i % (side + 1) == 0))).collect();
    let layers = [(noise(8 * side, 1), identity.clone()), (noise(8 * side, 2), identity)];
    let tight = PlanOptions { memory: 16 << 20, threads: 1, ..PlanOptions::default() };
    let said = merged(&layers, shape, "", &tight).unwrap_err();
    assert!(said.contains("MiB of memory, and may take 16 MiB"), "{said}");
    assert!(merged(&layers, shape, "", &PlanOptions { memory: 256 << 20, ..tight }).is_ok());
}
