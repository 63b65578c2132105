//! Outputs whose linear weights are FP8.

use snapbox::str;

use crate::sandbox::Sandbox;

const LINEAR: &str = "\
merge_method: linear
models:
  - {model: models/a, parameters: {weight: 0.25}}
  - {model: models/b, parameters: {weight: 0.75}}
dtype: float32
";

#[test]
fn a_merge_into_fp8_is_the_conversion_of_the_merge() {
    let sandbox = Sandbox::new(&["a", "b"]);
    sandbox.write("r.yml", LINEAR);
    sandbox.aludel(&["merge", "r.yml", "whole", "-q"]).assert().code(0);
    let merge = sandbox.aludel(&["merge", "r.yml", "out", "--output", "fp8", "-v", "--threads", "2"]);
    merge.assert().code(0).stdout_eq("").stderr_eq(str![[r#"
method   linear
model    models/a (30 tensors, 10.7 kB)
model    models/b (30 tensors, 10.7 kB)
output   51 tensors in 1 file(s), 0 side file(s)
fp8      21 weights, each with a tensor of scales
passes   1 over 9 tensors
passes   2 over 21 tensors
read     28.6 kB in all passes
write    8.8 kB
memory   [..] at the most, 2 threads, tiles of 262144 elements
merging 2 models by linear into out: 28.6 kB to read, 8.8 kB to write
merged 2 models into out (8.8 kB) in [..]
copied 1.00 bytes for each byte written

"#]]);
    sandbox.aludel(&["convert", "whole", "converted", "--dtype", "fp8", "-q"]).assert().code(0);
    let file = |folder: &str, name: &str| std::fs::read(sandbox.path(folder).join(name)).unwrap();
    for name in ["model.safetensors", "config.json"] {
        assert!(file("out", name) == file("converted", name), "{name}");
    }
}
