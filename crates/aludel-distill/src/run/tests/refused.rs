//! Runs that are refused: every word of the message, at its place.

use crate::run::Run;

fn problems(text: &str) -> String {
    Run::parse(text).unwrap_err().to_string()
}

/// The problems of lines that follow a run that is fine.
fn after(lines: &str) -> String {
    problems(&format!(
        "teacher: t\nstudent: s\noutput: o\ndata: {train}\n{lines}",
        train = "{train: a.jsonl}"
    ))
}

#[test]
fn what_is_missing_is_named() {
    for (text, expected) in [
        ("", "1:1: the run is empty"),
        (
            "a",
            "1:1: expected a mapping, found `a` (a run has `student:`, `data:` and `output:`, and a `teacher:` to distil from)",
        ),
        (
            "[a]",
            "1:1: expected a mapping, found a list (a run has `student:`, `data:` and `output:`, and a `teacher:` to distil from)",
        ),
        (
            "{}",
            "1:1: `student` is missing (name its folder, or make one with `student: {from_teacher: {every: 2}}`)\n1:1: `output` is missing (name the folder to write, as in `output: out/`)\n1:1: `data` is missing (say what to train on, as in `data: {train: [data.jsonl]}`)",
        ),
        (
            "student: s",
            "1:1: `output` is missing (name the folder to write, as in `output: out/`)\n1:1: `data` is missing (say what to train on, as in `data: {train: [data.jsonl]}`)",
        ),
        (
            "student: {}\noutput: o\ndata: {}\n",
            "1:10 student: the student has no source (give `from_teacher:` or `config:`)\n3:7 data: `train` is missing (list the files to train on, as in `train: [data.jsonl]`)",
        ),
        (
            "data: {train: []}\nstudent: {from_teacher: {}}\noutput: o\n",
            "1:15 data.train: the list is empty (name at least one file)\n2:25 student.from_teacher: the run has no teacher to take layers from (add `teacher:`)",
        ),
    ] {
        assert_eq!(problems(text), expected, "{text}");
    }
}

#[test]
fn settings_of_the_training_are_checked() {
    for (text, expected) in [
        (
            "sed: 1",
            "5:1 sed: unknown key `sed` (settings stand under `data:`, `objective:` or `train:`; known here: `teacher`, `student`, `data`, `objective`, `taid`, `train`, `output`)",
        ),
        (
            "sequence_length: 3",
            "5:1 sequence_length: unknown key `sequence_length` (settings stand under `data:`, `objective:` or `train:`; known here: `teacher`, `student`, `data`, `objective`, `taid`, `train`, `output`)",
        ),
        (
            "train: {steps: 1, epochs: 1}",
            "5:27 train.epochs: `steps` and `epochs` exclude each other (keep one of them)",
        ),
        (
            "train: {learning_rat: 1}",
            "5:9 train.learning_rat: unknown key `learning_rat` (did you mean `learning_rate`?)",
        ),
        ("train: {learning_rate: 0}", "5:24 train.learning_rate: expected a number above 0, found `0`"),
        ("train: {learning_rate: .inf}", "5:24 train.learning_rate: `.inf` is not a finite number"),
        (
            "train: {learning_rate: 1e300}",
            "5:24 train.learning_rate: `1e300` is more than a 32-bit number holds",
        ),
        ("train: {learning_rate: fast}", "5:24 train.learning_rate: expected a number above 0, found `fast`"),
        ("train: {learning_rate: [1]}", "5:24 train.learning_rate: expected a number above 0, found a list"),
        (
            "train: {minimum_learning_rate: 1}",
            "5:32 train.minimum_learning_rate: the learning rate would end at 1, above 0.0001 (make it at most `learning_rate`)",
        ),
        ("train: {steps: 0}", "5:16 train.steps: expected a whole number of at least 1, found `0`"),
        ("train: {steps: 1.5}", "5:16 train.steps: expected a whole number of at least 1, found `1.5`"),
        ("train: {steps: -1}", "5:16 train.steps: expected a whole number of at least 1, found `-1`"),
        ("train: {steps: 1e18}", "5:16 train.steps: expected a whole number of at least 1, found `1e18`"),
        (
            "train: {batch_size: 8, micro_batch: 3}",
            "5:37 train.micro_batch: a step of 8 sequences is no whole number of micro-batches of 3 (make `batch_size` a multiple of `micro_batch`)",
        ),
        (
            "train: {batch_size: 1e9}",
            "5:21 train.batch_size: 1000000000 sequences are more than 1048576 (a step holds a few to a few hundred)",
        ),
        (
            "train: {schedule: cosin}",
            "5:19 train.schedule: expected one of `cosine`, `linear`, `constant`, found `cosin` (did you mean `cosine`?)",
        ),
        (
            "train: {schedule: wild}",
            "5:19 train.schedule: expected one of `cosine`, `linear`, `constant`, found `wild`",
        ),
        (
            "train: {warmup: 100%}",
            "5:17 train.warmup: expected a share of all steps below 1, or a number of steps, found `100%` (as in `warmup: 0.03`, `warmup: 3%` or `warmup: 100`)",
        ),
        (
            "train: {warmup: 1.5}",
            "5:17 train.warmup: expected a share of all steps below 1, or a number of steps, found `1.5` (as in `warmup: 0.03`, `warmup: 3%` or `warmup: 100`)",
        ),
        (
            "train: {warmup: -1}",
            "5:17 train.warmup: expected a share of all steps below 1, or a number of steps, found `-1` (as in `warmup: 0.03`, `warmup: 3%` or `warmup: 100`)",
        ),
        (
            "train: {warmup: x}",
            "5:17 train.warmup: expected a share of all steps below 1, or a number of steps, found `x` (as in `warmup: 0.03`, `warmup: 3%` or `warmup: 100`)",
        ),
        (
            "train: {steps: 5, warmup: 6}",
            "5:27 train.warmup: the warm-up takes 6 steps, and the run has 5 (shorten the warm-up or give a share, as in `warmup: 3%`)",
        ),
        (
            "train: {betas: 0.9}",
            "5:16 train.betas: expected a list, found `0.9` (as in `betas: [0.9, 0.999]`)",
        ),
        (
            "train: {betas: [0.9]}",
            "5:16 train.betas: expected two numbers, found 1 (as in `betas: [0.9, 0.999]`)",
        ),
        (
            "train: {betas: [0.9, 1]}",
            "5:22 train.betas[1]: expected a number of at least 0 and below 1, found `1`",
        ),
        ("train: {clip: -1}", "5:15 train.clip: expected a number above 0, or `none`, found `-1`"),
        (
            "train: {weights: float16}",
            "5:18 train.weights: expected one of `float32`, `bfloat16`, `f32`, `bf16`, found `float16` (did you mean `bfloat16`?)",
        ),
        (
            "train: {zero: 3}",
            "5:15 train.zero: stage 3 of ZeRO would share out more than AdamW's state and masters (write `zero: 1`, which shares those out, or `zero: 0`)",
        ),
        (
            "train: {offload: [optimizer, student]}",
            "5:30 train.offload[1]: expected one of `optimizer`, `teacher`, found `student`",
        ),
        (
            "train: {moments: int4}",
            "5:18 train.moments: expected one of `float32`, `int8`, `f32`, found `int4` (did you mean `int8`?)",
        ),
        (
            "train: {checkpointing: every}",
            "5:24 train.checkpointing: expected `none`, `block` or `every-` and a number of blocks, found `every` (as in `checkpointing: every-4`)",
        ),
        (
            "train: {checkpointing: every-0}",
            "5:24 train.checkpointing: expected `none`, `block` or `every-` and a number of blocks, found `every-0` (as in `checkpointing: every-4`)",
        ),
        (
            "train: {lora: 16}",
            "5:15 train.lora: expected a mapping, found `16` (its keys are `rank`, `alpha`, `targets`)",
        ),
        (
            "train: {lora: {rank: 0}}",
            "5:22 train.lora.rank: expected a whole number of at least 1, found `0`",
        ),
        (
            "train: {lora: {targets: []}}",
            "5:25 train.lora.targets: the list is empty (name at least one layer, or write `all-linear`)",
        ),
        (
            "train: {lora: {rank: 1e6}}",
            "5:22 train.lora.rank: a rank of 1000000 is more than 65536 (ranks are usually 4 to 256)",
        ),
        (
            "train: {early_stopping: {patience: 3}}",
            "5:25 train.early_stopping: the run has no validation data to judge by (add `validation:` under `data:`, as in `validation: 0.01`)\n5:25 train.early_stopping: the student is evaluated at the end only (add `evaluate_every:`, as in `evaluate_every: 100`)",
        ),
        (
            "train: {early_stopping: {}}",
            "5:25 train.early_stopping: `patience` is missing (give the evaluations to wait, as in `{patience: 3}`)\n5:25 train.early_stopping: the run has no validation data to judge by (add `validation:` under `data:`, as in `validation: 0.01`)\n5:25 train.early_stopping: the student is evaluated at the end only (add `evaluate_every:`, as in `evaluate_every: 100`)",
        ),
        (
            "train: {evaluate_every: 5}",
            "5:25 train.evaluate_every: the run has no validation data to evaluate on (add `validation:` under `data:`, as in `validation: 0.01`)",
        ),
        ("train: {keep: 0}", "5:15 train.keep: expected a whole number of at least 1, found `0`"),
        ("train: {seed: -1}", "5:15 train.seed: expected a whole number of at least 0, found `-1`"),
    ] {
        assert_eq!(after(text), expected, "{text}");
    }
}

#[test]
fn objectives_are_checked() {
    for (text, expected) in [
        (
            "objective: []",
            "5:12 objective: the list is empty (give at least one term, or leave `objective` out)",
        ),
        ("objective: forward", "5:12 objective: `forward` is no loss (did you mean `forward_kl`?)"),
        (
            "objective: magic",
            "5:12 objective: `magic` is no loss (losses are `forward_kl`, `reverse_kl`, `jsd`, `skewed_forward_kl`, `skewed_reverse_kl`, `total_variation`, `soft_cross_entropy`, `logits_mse`, `uld`, `cross_entropy`, `hidden_mse`, `hidden_cosine`, `attention_transfer`)",
        ),
        (
            "objective: {weight: 1}",
            "5:12 objective: `loss` is missing (it is one of `forward_kl`, `reverse_kl`, `jsd`, `skewed_forward_kl`, `skewed_reverse_kl`, `total_variation`, `soft_cross_entropy`, `logits_mse`, `uld`, `cross_entropy`, `hidden_mse`, `hidden_cosine`, `attention_transfer`)",
        ),
        ("objective: {loss: jsd, beta: 2}", "5:30 objective.beta: expected a number from 0 to 1, found `2`"),
        (
            "objective: {loss: jsd, lambda: 0.1}",
            "5:32 objective.lambda: `jsd` takes no `lambda` (it takes `temperature`, `scale_by_t2`, `beta`, beside `weight`)",
        ),
        (
            "objective: {loss: cross_entropy, temperature: 2}",
            "5:47 objective.temperature: `cross_entropy` takes no `temperature` (remove it)",
        ),
        (
            "objective: {loss: hidden_mse, layers: {a: 0}}",
            "5:40 objective.layers.a: `a` is no layer of the student (write layers as numbers from 0, as in `{0: 0, 5: 11}`)",
        ),
        (
            "objective: {loss: hidden_mse, layers: {}}",
            "5:39 objective.layers: no layers are compared (write `every`, `last` or pairs)",
        ),
        (
            "objective: {loss: hidden_mse, layers: {0: 1, 00: 2}}",
            "5:39 objective.layers: layer 0 of the student is given twice",
        ),
        (
            "objective: {loss: hidden_mse, layers: {0: x}}",
            "5:43 objective.layers.0: expected a whole number of at least 0, found `x`",
        ),
        (
            "objective: {loss: hidden_mse, layers: first}",
            "5:39 objective.layers: expected one of `every`, `last`, found `first` (or pairs of a student's and a teacher's layer, as in `{0: 0, 5: 11}`)",
        ),
        (
            "objective: {loss: forward_kl, temperature: 0}",
            "5:44 objective.temperature: expected a temperature from 0.01 to 1000, found `0`",
        ),
        (
            "objective: {loss: forward_kl, weight: -1}",
            "5:39 objective.weight: expected a number of at least 0, found `-1`",
        ),
        (
            "objective: {loss: forward_kl, weight: 0}",
            "5:12 objective: every weight is 0 (nothing would be learned: raise one of them)",
        ),
        (
            "objective: {loss: forward_kl, wieght: 1}",
            "5:31 objective.wieght: unknown key `wieght` (did you mean `weight`?)",
        ),
        (
            "objective: {loss: forward_kl, scale_by_t2: 2}",
            "5:44 objective.scale_by_t2: expected `true` or `false`, found `2`",
        ),
        ("taid: linear", "5:7 taid: expected one of `published`, `mixture`, found `linear`"),
        (
            "taid: {t_start: 0.9, t_end: 0.5}",
            "5:29 taid.t_end: t ends at 0.5 and begins at 0.9, but it only grows (make `t_end` at least `t_start`)",
        ),
        (
            "taid: {variant: mixture, t_start: 0.1}",
            "5:26 taid.t_start: unknown key `t_start` (did you mean `start`?)",
        ),
        (
            "taid: published\nobjective: cross_entropy",
            "5:7 taid: no term of the objective compares distributions (add a divergence such as `forward_kl` to `objective`, or remove `taid`)",
        ),
        (
            "taid: mixture\nobjective: logits_mse",
            "5:7 taid: a mixture of probabilities has no logits for `logits_mse` to compare (use `variant: published`, or another loss than `logits_mse`)",
        ),
        ("taid: {beta: 1}", "5:14 taid.beta: expected a number of at least 0 and below 1, found `1`"),
    ] {
        assert_eq!(after(text), expected, "{text}");
    }
}

#[test]
fn students_are_checked() {
    for (text, expected) in [
        (
            "teacher: t\nstudent: {from_teacher: {every: 0}}",
            "4:33 student.from_teacher.every: expected a whole number of at least 1, found `0`",
        ),
        (
            "teacher: t\nstudent: {from_teacher: {layers: [0, 0]}}",
            "4:38 student.from_teacher.layers[1]: layer 0 comes after layer 0 (list layers in ascending order, each once)",
        ),
        (
            "teacher: t\nstudent: {from_teacher: {layers: [2, 1], every: 2}}",
            "4:38 student.from_teacher.layers[1]: layer 1 comes after layer 2 (list layers in ascending order, each once)\n4:49 student.from_teacher.every: `layers` and `every` exclude each other (keep one of them)",
        ),
        (
            "teacher: t\nstudent: {from_teacher: {layers: []}}",
            "4:34 student.from_teacher.layers: the list is empty (keep at least one layer)",
        ),
        (
            "teacher: t\nstudent: {from_teacher: {layers: 3}}",
            "4:34 student.from_teacher.layers: expected a list, found `3` (as in `layers: [0, 2, 4]`)",
        ),
        (
            "student: {from_teacher: {every: 2}}",
            "3:25 student.from_teacher: the run has no teacher to take layers from (add `teacher:`)",
        ),
        (
            "teacher: t\nstudent: {from_teacher: {}, config: c}",
            "4:37 student.config: `from_teacher` and `config` exclude each other (keep one of them)",
        ),
        (
            "teacher: t\nstudent: {from_teacher: {every: 2}, seed: 1}",
            "4:43 student.seed: `seed` is for random weights, and the teacher brings its own (remove it)",
        ),
        (
            "student: {path: m}",
            "3:10 student: the student has no source (give `from_teacher:` or `config:`)\n3:11 student.path: unknown key `path` (a student that exists is written as text: `student: path/of/the/model`; known here: `from_teacher`, `config`, `seed`)",
        ),
        (
            "student: s\nobjective: forward_kl",
            "4:12 objective: a term compares with a teacher, and the run has none (add `teacher:`, or learn from the labels alone with `cross_entropy`)",
        ),
        ("student: o", "1:9 output: the output is a folder that the run reads (name a new folder)"),
        (
            "teacher: o\nstudent: s",
            "1:9 output: the output is a folder that the run reads (name a new folder)",
        ),
        ("student: ''", "3:10 student: the path is empty"),
    ] {
        assert_eq!(problems(&format!("output: o\ndata: {}\n{text}", "{train: a.jsonl}")), expected, "{text}");
    }
}

#[test]
fn data_are_checked() {
    for (text, expected) in [
        (
            "train: a.csv",
            "3:15 data.train: the name of `a.csv` does not say what it holds (data files end in `.jsonl`, `.ndjson`, `.parquet` or `.txt`)",
        ),
        (
            "train: [a.jsonl, 3]",
            "3:25 data.train[1]: the name of `3` does not say what it holds (data files end in `.jsonl`, `.ndjson`, `.parquet` or `.txt`)",
        ),
        (
            "train: a.jsonl, validation: 0",
            "3:36 data.validation: expected files, or a share of the training rows above 0 and below 1, found `0` (for 1 % of the rows write `validation: 0.01`)",
        ),
        (
            "train: a.jsonl, validation: 1.5",
            "3:36 data.validation: expected files, or a share of the training rows above 0 and below 1, found `1.5` (for 1 % of the rows write `validation: 0.01`)",
        ),
        (
            "train: a.jsonl, validation: 200%",
            "3:36 data.validation: expected a percentage from 0 % to 100 %, found `200%`",
        ),
        (
            "train: a.jsonl, validation: a.jsonl",
            "3:36 data.validation: a file is trained on and evaluated on (name another file, or a share of the rows, as in `validation: 0.01`)",
        ),
        (
            "train: a.jsonl, validation: [x]",
            "3:37 data.validation[0]: the name of `x` does not say what it holds (data files end in `.jsonl`, `.ndjson`, `.parquet` or `.txt`)",
        ),
        (
            "train: a.jsonl, sequence_length: 1",
            "3:41 data.sequence_length: expected a whole number of at least 2, found `1`",
        ),
        (
            "train: a.jsonl, sequence_length: 1e9",
            "3:41 data.sequence_length: a sequence of 1000000000 tokens is longer than 16777216 (sequences are usually 512 to 8192 tokens long)",
        ),
        ("train: a.jsonl, packing: maybe", "3:33 data.packing: expected `true` or `false`, found `maybe`"),
        (
            "train: a.jsonl, loss_on: completion",
            "3:33 data.loss_on: expected one of `completions`, `all`, found `completion` (did you mean `completions`?)",
        ),
        (
            "train: a.jsonl, columns: {txt: body}",
            "3:34 data.columns.txt: unknown key `txt` (did you mean `text`?)",
        ),
        (
            "train: a.jsonl, columns: body",
            "3:33 data.columns: expected a mapping, found `body` (its keys are `text`, `messages`, `prompt`, `completion`, `input_ids`, `labels`)",
        ),
        (
            "train: a.jsonl, bad_rows: ignore",
            "3:34 data.bad_rows: expected one of `refuse`, `skip`, found `ignore`",
        ),
        ("train: a.jsonl, chat_template: [a]", "3:39 data.chat_template: expected a path, found a list"),
    ] {
        assert_eq!(problems(&format!("output: o\nstudent: s\ndata: {{{text}}}")), expected, "{text}");
    }
}

#[test]
fn everything_wrong_is_told_at_once_in_order_of_place() {
    let text = "teacher: t\nstudent: {from_teacher: {every: 0}}\ndata: {train: a.csv, sequence_length: x}\nobjective: [magi, {loss: jsd, beta: 3}]\ntrain: {steps: 0, optimiser: adam}\n";
    let lines: Vec<usize> =
        Run::parse(text).unwrap_err().iter().map(|problem| problem.place.as_ref().unwrap().line).collect();
    assert_eq!(lines, [1, 2, 3, 3, 4, 4, 5, 5]);
}

#[test]
fn sorted_probabilities_stand_with_labels_alone() {
    for (lines, expected) in [
        (
            "objective: [uld, forward_kl]",
            "5:12 objective: `uld` stands with no other term that compares with a teacher (keep `uld` and `cross_entropy`, or take `uld` out where both have the same tokens)",
        ),
        (
            "objective: [uld, hidden_mse]",
            "5:12 objective: `uld` stands with no other term that compares with a teacher (keep `uld` and `cross_entropy`, or take `uld` out where both have the same tokens)",
        ),
        ("objective: uld\ntaid: published", "6:7 taid: `uld` has no target that moves (remove `taid`)"),
        (
            "objective: {loss: uld, beta: 1}",
            "5:30 objective.beta: `uld` takes no `beta` (it takes `temperature`, `scale_by_t2`, beside `weight`)",
        ),
    ] {
        assert_eq!(after(lines), expected, "{lines}");
    }
    let of_cache = |teacher: &str, objective: &str| {
        problems(&format!(
            "teacher: {teacher}\nstudent: s\noutput: o\ndata: {{train: a.jsonl}}\nobjective: {objective}"
        ))
    };
    assert_eq!(
        of_cache("{cache: c}", "uld"),
        "1:10 teacher: `uld` needs the tokenizer that the teacher's rows are in (name the folder with the teacher's tokenizer.json: `tokenizer:` under `teacher:`)"
    );
    assert_eq!(
        of_cache("{cache: c, tokenizer: t}", "jsd"),
        "1:32 teacher.tokenizer: only `uld` reads by a tokenizer of the teacher's own (remove it, or compare with `loss: uld`)"
    );
}
