//! What the program says of itself, and of command lines that it does not understand.

use snapbox::str;

use crate::sandbox::Sandbox;

#[test]
fn help_lists_the_commands_and_the_exit_codes() {
    Sandbox::new(&[]).aludel(&["--help"]).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
Merge and distil language models

Usage: aludel [OPTIONS] <COMMAND>

Commands:
  merge         Merge the models of a recipe into a model folder
  search        Search for the numbers of a recipe by which its merge does best on held-out text
  moe           Build a mixture of experts out of dense models
  plan          Show what a merge would read, compute, hold and write, from the models' headers
                alone
  apply         Make the model folder of a merge that was stored as what differs from its base
  join          Make one model folder of the parts that merges with `--part` have written
  inspect       List what is in a model, or measure how models differ from the base that they come
                from
  diff          Compare two models: tensors, config, tokenizer
  layershuffle  Stack layers drawn at random from several models
  extract-lora  Extract a LoRA adapter from a fine-tuned model and its base
  merge-lora    Combine LoRA adapters of one base into one adapter
  tokensurgeon  Give a model the tokenizer of another
  convert       Turn a file of weights into a model folder, or write a model folder with another
                type or shard size
  methods       List the merge methods, or the parameters of one
  devices       List the GPUs and what was chosen for them, or tune kernels [alias: tune]
  distill       Train a student as a run file says: taught by a teacher, or on text alone
  cache         Store what a teacher says of some data, and look at what is stored
  report        Render the record of a run as one HTML page
  eval          Measure how well a model predicts text, and how near it is to another model
  statistics    Run a model over text for what `fisher` and `regmean` merges want to know of it
  generate      Continue a text

Options:
  -h, --help     Print help
  -V, --version  Print version

Global options:
      --json          Print the result, or the error, as one JSON value on standard output
  -v, --verbose...    Say more: the plan's summary before a merge, every step in a plan, a
                      training's checkpoints; twice: every step before a merge
  -q, --quiet         Say nothing but errors
      --color <WHEN>  When to colour messages; `auto` means on a terminal and without NO_COLOR
                      [default: auto] [possible values: auto, always, never]

Exit codes:
  0    done
  1    failed while running: a file cannot be read or written, a model or a training has NaN
  2    the command line is wrong
  3    refused before any work was done: recipe or run, models, data or the output folder do not fit
  130  interrupted (Ctrl-C); 143: terminated

"#]]);
}

#[test]
fn help_of_merge_lists_its_options() {
    Sandbox::new(&[]).aludel(&["merge", "--help"]).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
Merge the models of a recipe into a model folder

Usage: aludel merge [OPTIONS] <RECIPE> <OUTPUT>

Arguments:
  <RECIPE>  A recipe in mergekit's YAML, or `-` for standard input; model paths in it start at the
            current folder
  <OUTPUT>  The model folder to write; it appears under this name only when it is complete

Options:
  -j, --threads <N>             Threads that compute [default: one for each core]
      --memory <SIZE>           Memory that the work may take beyond the process itself [default:
                                128MiB]
      --shard-size <SIZE>       The most weights in one output file [default: 5GB]
      --allow-nan               Compute with NaN and infinities in the models instead of refusing
                                them
      --seed <N>                Key of the random masks of DARE; the same seed gives the same output
                                everywhere [default: 0]
  -I, --intermediate-dir <DIR>  Write each named recipe of a file with several into a folder of its
                                own in DIR, one merge after the other, instead of all of them in one
                                pass
      --part <I/N>              Write one part of the output's files of several, as in `2/8`: each
                                by a process of its own, on any machine that sees the models and
                                OUTPUT.parts; `aludel join OUTPUT` then makes one folder of them
      --output <FORM>           How the output is stored: `dense` as a model folder, `sparse-delta`
                                as what differs from the base model, for `aludel apply`
                                (`sparse-delta-fp8`: rounded to E4M3 where that is smaller), `fp8`
                                as a model folder whose linear weights are E4M3 with a scale for
                                each row (compressed-tensors) [default: dense]
      --compute <VALUES>        What is computed on: `exact`, or `fp8` for what E4M3 leaves of task
                                vectors, or of tensors where there is no base: approximate, and no
                                faster [default: exact]
      --device <DEVICE>         Where tensors are computed: `cpu`, `cuda` (or `cuda:1`, ...), `wgpu`
                                (or `wgpu:1`, ...) for any GPU by Metal, Vulkan or Direct3D 12, or
                                `auto` for a GPU where there is one; every bit of the output is the
                                same [default: cpu]
  -f, --force                   Replace the output folder if it exists, once the new one is complete
      --no-sync                 Leave it to the system when the files reach the disk: faster, but a
                                power cut soon after may lose them
      --resume                  Go on with what a run that was interrupted or failed has left; begin
                                where there is nothing
      --no-overlap              Read, compute and write in turn instead of all at once; slower, and
                                for measuring by how much
      --no-group                Merge small tensors one at a time, and on a GPU all, instead of many
                                at once; slower, and for measuring by how much
  -h, --help                    Print help

Global options:
      --json          Print the result, or the error, as one JSON value on standard output
  -v, --verbose...    Say more: the plan's summary before a merge, every step in a plan, a
                      training's checkpoints; twice: every step before a merge
  -q, --quiet         Say nothing but errors
      --color <WHEN>  When to colour messages; `auto` means on a terminal and without NO_COLOR
                      [default: auto] [possible values: auto, always, never]

Exit codes:
  0    done
  1    failed while running: a file cannot be read or written, a model or a training has NaN
  2    the command line is wrong
  3    refused before any work was done: recipe or run, models, data or the output folder do not fit
  130  interrupted (Ctrl-C); 143: terminated

"#]]);
}

#[test]
fn help_of_convert_lists_its_options() {
    Sandbox::new(&[]).aludel(&["convert", "--help"]).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
Turn a file of weights into a model folder, or write a model folder with another type or shard size

Usage: aludel convert [OPTIONS] <INPUT> <OUTPUT>

Arguments:
  <INPUT>   A model folder, a file of weights (.gguf, .safetensors, .bin, .pt), or
            `owner/name[@revision]` on a hub
  <OUTPUT>  The model folder to write; it appears under this name only when it is complete

Options:
      --dtype <DTYPE>      The type of the weights that are written; with fp8, that of linear
                           weights, in the form of compressed-tensors [default: as they are stored;
                           bfloat16 for quantised ones] [possible values: float32, float16,
                           bfloat16, fp8]
  -j, --threads <N>        Threads that compute [default: one for each core]
      --memory <SIZE>      Memory that the work may take beyond the process itself [default: 128MiB]
      --shard-size <SIZE>  The most weights in one output file [default: 5GB]
      --allow-nan          Compute with NaN and infinities in the models instead of refusing them
  -f, --force              Replace the output folder if it exists, once the new one is complete
      --no-sync            Leave it to the system when the files reach the disk: faster, but a power
                           cut soon after may lose them
      --resume             Go on with what a run that was interrupted or failed has left; begin
                           where there is nothing
      --no-overlap         Read, compute and write in turn instead of all at once; slower, and for
                           measuring by how much
      --no-group           Merge small tensors one at a time, and on a GPU all, instead of many at
                           once; slower, and for measuring by how much
  -h, --help               Print help

Global options:
      --json          Print the result, or the error, as one JSON value on standard output
  -v, --verbose...    Say more: the plan's summary before a merge, every step in a plan, a
                      training's checkpoints; twice: every step before a merge
  -q, --quiet         Say nothing but errors
      --color <WHEN>  When to colour messages; `auto` means on a terminal and without NO_COLOR
                      [default: auto] [possible values: auto, always, never]

Exit codes:
  0    done
  1    failed while running: a file cannot be read or written, a model or a training has NaN
  2    the command line is wrong
  3    refused before any work was done: recipe or run, models, data or the output folder do not fit
  130  interrupted (Ctrl-C); 143: terminated

"#]]);
}

#[test]
fn help_of_distill_lists_its_options() {
    Sandbox::new(&[]).aludel(&["distill", "--help"]).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
Train a student as a run file says: taught by a teacher, or on text alone

Usage: aludel distill [OPTIONS] <RUN>

Arguments:
  <RUN>  A run in YAML, or `-` for standard input; paths in it start at the current folder

Options:
      --resume           Go on from the last checkpoint of this run; begin where there is none
      --dry-run          Predict memory, speed and time, and train nothing
  -f, --force            Discard an earlier run, and replace the output folder once the new one is
                         complete
      --memory <SIZE>    Memory that the run may take, of a GPU's own with `--device cuda`; settings
                         that the run leaves open are chosen so that it fits [default: what is free]
      --device <DEVICE>  Where models are computed: `cpu`, or, by `distill` and `eval`, `cuda` (or
                         `cuda:1`, ...) [default: cpu]
      --threads <N>      Threads that compute; no result depends on it [default: one for each core]
  -h, --help             Print help

Global options:
      --json          Print the result, or the error, as one JSON value on standard output
  -v, --verbose...    Say more: the plan's summary before a merge, every step in a plan, a
                      training's checkpoints; twice: every step before a merge
  -q, --quiet         Say nothing but errors
      --color <WHEN>  When to colour messages; `auto` means on a terminal and without NO_COLOR
                      [default: auto] [possible values: auto, always, never]

Exit codes:
  0    done
  1    failed while running: a file cannot be read or written, a model or a training has NaN
  2    the command line is wrong
  3    refused before any work was done: recipe or run, models, data or the output folder do not fit
  130  interrupted (Ctrl-C); 143: terminated

"#]]);
}

#[test]
fn help_of_eval_lists_its_options() {
    Sandbox::new(&[]).aludel(&["eval", "--help"]).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
Measure how well a model predicts text, and how near it is to another model

Usage: aludel eval [OPTIONS] --data <FILE> <MODEL>

Arguments:
  <MODEL>  A model folder, a .gguf file, or `owner/name[@revision]` of a model on a hub

Options:
      --data <FILE>      Text (.txt), JSON lines (.jsonl) or Parquet; may be given several times
      --against <MODEL>  A model to compare with, such as the teacher: adds KL and top-1 agreement
      --window <TOKENS>  Tokens of a window; longer documents are scored in windows that overlap
                         [default: the positions of the model, 1024 at the most]
      --stride <TOKENS>  Tokens from the beginning of a window to that of the next [default: half a
                         window]
      --device <DEVICE>  Where models are computed: `cpu`, or, by `distill` and `eval`, `cuda` (or
                         `cuda:1`, ...) [default: cpu]
      --threads <N>      Threads that compute; no result depends on it [default: one for each core]
  -h, --help             Print help

Global options:
      --json          Print the result, or the error, as one JSON value on standard output
  -v, --verbose...    Say more: the plan's summary before a merge, every step in a plan, a
                      training's checkpoints; twice: every step before a merge
  -q, --quiet         Say nothing but errors
      --color <WHEN>  When to colour messages; `auto` means on a terminal and without NO_COLOR
                      [default: auto] [possible values: auto, always, never]

Exit codes:
  0    done
  1    failed while running: a file cannot be read or written, a model or a training has NaN
  2    the command line is wrong
  3    refused before any work was done: recipe or run, models, data or the output folder do not fit
  130  interrupted (Ctrl-C); 143: terminated

"#]]);
}

#[test]
fn help_of_generate_lists_its_options() {
    Sandbox::new(&[]).aludel(&["generate", "--help"]).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
Continue a text

Usage: aludel generate [OPTIONS] --prompt <TEXT> <MODEL>

Arguments:
  <MODEL>  A model folder, a .gguf file, or `owner/name[@revision]` of a model on a hub

Options:
  -p, --prompt <TEXT>    The text to continue
      --chat             Take the prompt for a user's turn, by the model's chat template
      --max-tokens <N>   The most tokens that are added [default: 256]
      --temperature <X>  How freely tokens are chosen; 0 takes the most likely one [default: 0]
      --top-p <SHARE>    Choose among the most likely tokens that have this share of the probability
                         [default: 1]
      --top-k <N>        Choose among so many of the most likely tokens; 0 for all [default: 0]
      --seed <N>         Key of the random numbers: the same seed gives the same text [default: 0]
      --device <DEVICE>  Where models are computed: `cpu`, or, by `distill` and `eval`, `cuda` (or
                         `cuda:1`, ...) [default: cpu]
      --threads <N>      Threads that compute; no result depends on it [default: one for each core]
  -h, --help             Print help

Global options:
      --json          Print the result, or the error, as one JSON value on standard output
  -v, --verbose...    Say more: the plan's summary before a merge, every step in a plan, a
                      training's checkpoints; twice: every step before a merge
  -q, --quiet         Say nothing but errors
      --color <WHEN>  When to colour messages; `auto` means on a terminal and without NO_COLOR
                      [default: auto] [possible values: auto, always, never]

Exit codes:
  0    done
  1    failed while running: a file cannot be read or written, a model or a training has NaN
  2    the command line is wrong
  3    refused before any work was done: recipe or run, models, data or the output folder do not fit
  130  interrupted (Ctrl-C); 143: terminated

"#]]);
}

#[test]
fn numbers_out_of_range_are_usage_errors() {
    let sandbox = Sandbox::new(&[]);
    for [flag, value] in
        [["--temperature", "-1"], ["--temperature", "inf"], ["--top-p", "1.5"], ["--top-k", "x"]]
    {
        let given = format!("{flag}={value}");
        sandbox.aludel(&["generate", "m", "-p", "a", &given]).assert().code(2).stdout_eq("");
    }
    sandbox.aludel(&["distill", "run.yml", "--resume", "--force"]).assert().code(2).stdout_eq("");
}

#[test]
fn the_version_is_one_line() {
    Sandbox::new(&[]).aludel(&["--version"]).assert().code(0).stdout_eq(concat!(
        "aludel ",
        env!("CARGO_PKG_VERSION"),
        "\n"
    ));
}

#[test]
fn no_command_is_a_usage_error() {
    Sandbox::new(&[]).aludel(&[]).assert().code(2).stdout_eq("");
}

#[test]
fn no_threads_are_a_usage_error() {
    let sandbox = Sandbox::new(&[]);
    let merge = sandbox.aludel(&["merge", "r.yml", "out", "--threads", "0"]);
    merge.assert().code(2).stdout_eq("").stderr_eq(str![[r#"
error: invalid value '0' for '--threads <N>': number would be zero for non-zero type

For more information, try '--help'.

"#]]);
}

#[test]
fn a_size_in_mergekit_s_letters_is_asked_about_and_not_taken_for_bytes() {
    let sandbox = Sandbox::new(&[]);
    let merge = sandbox.aludel(&["merge", "r.yml", "out", "--out-shard-size", "5B"]);
    merge.assert().code(2).stdout_eq("").stderr_eq(str![[r#"
error: invalid value '5B' for '--shard-size <SIZE>': write `5GB` for billions of bytes, or `5` for bytes

For more information, try '--help'.

"#]]);
}

#[test]
fn quiet_and_verbose_exclude_each_other() {
    Sandbox::new(&[]).aludel(&["plan", "r.yml", "-q", "-v"]).assert().code(2).stdout_eq("");
}
