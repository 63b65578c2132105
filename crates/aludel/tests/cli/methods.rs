//! The listing of merge methods.

use snapbox::str;

use crate::sandbox::Sandbox;

#[test]
fn all_methods_are_listed() {
    Sandbox::new(&[]).aludel(&["methods"]).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
linear            weighted average of the models
slerp             spherical interpolation between the base model and one other
nuslerp           spherical interpolation by weight, of models or of task vectors
multislerp        weighted mean of directions and lengths, of models or of task vectors
karcher           mean of directions on the sphere, by iteration
geometric_median  the point nearest to all models in sum of distances
fisher            average weighted by each model's Fisher information, read from files
regmean           linear layers by least squares over each model's inputs, whose Gram matrices are read from files
task_arithmetic   base model plus weighted task vectors
ties              task vectors trimmed to their largest elements, with elected signs
dare_linear       task vectors with elements dropped at random, added
dare_ties         task vectors with elements dropped at random, with elected signs
breadcrumbs       task vectors without their largest and smallest elements, added
breadcrumbs_ties  task vectors without their largest and smallest elements, with elected signs
della_linear      task vectors with small elements dropped more often, added
della             task vectors with small elements dropped more often, with elected signs
sce               task vectors where they vary most, weighted by their squares, with elected signs
ram               mean of shared changes, unique changes whole
ramplus_tl        mean of shared changes, unique changes raised by how much a model shares
model_stock       between base and mean, by the angle between task vectors
nearswap          base model moved to another where the two are near
arcee_fusion      base model with the most important changes of another
expo              one model, extrapolated away from the base
passthrough       one model's tensors, scaled
formula           an expression of your own over the models, see docs/formula.md

"#]]);
}

#[test]
fn one_method_is_described_with_its_parameters() {
    Sandbox::new(&[]).aludel(&["methods", "ties"]).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
ties: task vectors trimmed to their largest elements, with elected signs
  merges 1 or more models and `base_model`
  weight        factor of this model's task vector (number or gradient; per model or for all)
  density       share of the task vector that is kept, 0 to 1 (number or gradient; per model or for all; default 1)
  lambda        factor of the combined task vectors (number or gradient; for the whole merge; default 1)
  normalize     divide by the sum of the weights that took part (true or false; for the whole merge; default true)
  consensus     how the sign of an element is elected (sum | count | unanimous; for the whole merge; default sum)
  rescale       scale what is kept up to what was there (true or false; for the whole merge; default false)
  rescale_mode  what rescaling restores: a norm of the task vector, or its mean (density) (l1 | l2 | linf | density; for the whole merge; default l1)
  granularity   what statistics are taken over: the tensor, each row of a matrix, each attention head (tensor | row | head; for the whole merge; default tensor)
  int8_mask     accepted for mergekit's sake; changes nothing (true or false; for the whole merge; default false)

"#]]);
}

#[test]
fn an_unknown_method_is_refused_with_the_nearest() {
    Sandbox::new(&[]).aludel(&["methods", "tiess"]).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: unknown merge method `tiess`
  hint: did you mean `ties`?
aludel: 1 problem, nothing was written

"#]]);
}

#[test]
fn methods_as_json_have_parameters_with_defaults() {
    let sandbox = Sandbox::new(&[]);
    let methods = sandbox.json(&["methods", "--json"]);
    let names: Vec<&str> =
        methods.as_array().unwrap().iter().map(|method| method["name"].as_str().unwrap()).collect();
    assert!(names.starts_with(&["linear", "slerp", "nuslerp"]), "{names:?}");
    let ties = sandbox.json(&["methods", "ties", "--json"]);
    assert_eq!(Some(&ties), methods.as_array().unwrap().iter().find(|method| method["name"] == "ties"));
    let density = ties["parameters"].as_array().unwrap().iter().find(|p| p["name"] == "density").unwrap();
    assert_eq!(
        (&density["default"], &density["level"]),
        (&serde_json::json!(1.0), &serde_json::json!("model"))
    );
}

fn document(path: &str) -> String {
    std::fs::read_to_string(format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn the_documents_list_every_method_with_its_parameters() {
    let (readme, page) = (document("README.md"), document("docs/methods.md"));
    let methods = Sandbox::new(&[]).json(&["methods", "--json"]);
    let methods = methods.as_array().unwrap();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).skip(1).collect();
    assert_eq!(rows.len(), methods.len());
    for (method, row) in methods.iter().zip(rows) {
        let parameters = |level: &str| {
            let parameters = method["parameters"].as_array().unwrap().iter();
            let of_level = parameters.filter(|p| p["level"] == level && p["name"] != "int8_mask");
            of_level.map(|p| format!("`{}`", p["name"].as_str().unwrap())).collect::<Vec<_>>().join(", ")
        };
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = format!("`{}`", method["name"].as_str().unwrap());
        assert_eq!((cells[1], cells[3], cells[4]), (&*name, &*parameters("model"), &*parameters("merge")));
        assert!(readme.contains(&name), "{name}");
    }
}
