//! Declares the command line as it is typed.
//!
//! In: the process's arguments. Out: structures whose parts are well formed on their own; what they mean together, and with
//! the terminal and the defaults, is for [`crate::settings`] to say.

mod cache;
mod combine;
mod extract;
mod flags;
mod mergekit;
mod search;
mod tokensurgeon;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::settings::Size;
pub(crate) use cache::{
    CacheCommand, CacheConvertArguments, CacheInfoArguments, CacheLayout, CacheMode, CacheVerifyArguments,
    CaptureArguments,
};
pub(crate) use combine::{CombinationName, CombineArguments, SignName};
pub(crate) use extract::ExtractArguments;
pub(crate) use flags::{
    ComputingFlags, DeviceName, FloatName, PlanningFlags, ReadingFlags, ResumableFlags, SeedFlag, StagesFlag,
    WeightName, WritingFlags,
};
use flags::{magnitude, part, position, share};
pub(crate) use mergekit::MergekitFlags;
pub(crate) use search::SearchArguments;
pub(crate) use tokensurgeon::{Approximations, SubwordMethod, Tables, TokensurgeonArguments, WeightScheme};

/// Merge and distil language models.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) talk: TalkFlags,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Merge the models of a recipe into a model folder
    Merge(MergeArguments),
    /// Search for the numbers of a recipe by which its merge does best on held-out text
    Search(SearchArguments),
    /// Build a mixture of experts out of dense models
    Moe(MoeArguments),
    /// Show what a merge would read, compute, hold and write, from the models' headers alone
    Plan(PlanArguments),
    /// Make the model folder of a merge that was stored as what differs from its base
    Apply(ApplyArguments),
    /// Make one model folder of the parts that merges with `--part` have written
    Join(JoinArguments),
    /// List what is in a model, or measure how models differ from the base that they come from
    Inspect(InspectArguments),
    /// Compare two models: tensors, config, tokenizer
    Diff(DiffArguments),
    /// Stack layers drawn at random from several models
    Layershuffle(LayershuffleArguments),
    /// Extract a LoRA adapter from a fine-tuned model and its base
    ExtractLora(ExtractArguments),
    /// Combine LoRA adapters of one base into one adapter
    MergeLora(CombineArguments),
    /// Give a model the tokenizer of another
    Tokensurgeon(TokensurgeonArguments),
    /// Turn a file of weights into a model folder, or write a model folder with another type or shard size
    Convert(ConvertArguments),
    /// List the merge methods, or the parameters of one
    Methods(MethodsArguments),
    /// List the GPUs and what was chosen for them, or tune kernels
    #[command(visible_alias = "tune")]
    Devices(DevicesArguments),
    /// Train a student as a run file says: taught by a teacher, or on text alone
    Distill(DistillArguments),
    /// Store what a teacher says of some data, and look at what is stored
    #[command(subcommand, disable_help_subcommand = true)]
    Cache(CacheCommand),
    /// Render the record of a run as one HTML page
    Report(ReportArguments),
    /// Measure how well a model predicts text, and how near it is to another model
    Eval(EvalArguments),
    /// Run a model over text for what `fisher` and `regmean` merges want to know of it
    Statistics(StatisticsArguments),
    /// Continue a text
    Generate(GenerateArguments),
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct MergeArguments {
    /// A recipe in mergekit's YAML, or `-` for standard input; model paths in it start at the current folder
    pub(crate) recipe: PathBuf,
    /// The model folder to write; it appears under this name only when it is complete
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) planning: PlanningFlags,
    #[command(flatten)]
    pub(crate) seed: SeedFlag,
    #[command(flatten)]
    pub(crate) stages: StagesFlag,
    /// Write one part of the output's files of several, as in `2/8`: each by a process of its own, on any machine that sees the
    /// models and OUTPUT.parts; `aludel join OUTPUT` then makes one folder of them
    #[arg(long, value_name = "I/N", value_parser = part, conflicts_with = "intermediate_dir")]
    pub(crate) part: Option<aludel_cache::Part>,
    /// How the output is stored: `dense` as a model folder, `sparse-delta` as what differs from the base model, for `aludel apply`
    /// (`sparse-delta-fp8`: rounded to E4M3 where that is smaller), `fp8` as a model folder whose linear weights are E4M3 with a scale for each row (compressed-tensors)
    #[arg(long = "output", value_name = "FORM", value_enum, default_value_t = OutputForm::Dense, hide_possible_values = true)]
    pub(crate) form: OutputForm,
    /// What is computed on: `exact`, or `fp8` for what E4M3 leaves of task vectors, or of tensors where there is no base: approximate, and no faster
    #[arg(long, value_name = "VALUES", value_enum, default_value_t = ComputeName::Exact, hide_possible_values = true)]
    pub(crate) compute: ComputeName,
    /// Where tensors are computed: `cpu`, `cuda` (or `cuda:1`, ...), `wgpu` (or `wgpu:1`, ...) for any GPU by Metal, Vulkan or Direct3D 12, or
    /// `auto` for a GPU where there is one; every bit of the output is the same
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: MergeDevice,
    #[command(flatten)]
    pub(crate) writing: ResumableFlags,
    #[command(flatten)]
    pub(crate) mergekit: MergekitFlags,
}

/// Where a merge is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MergeDevice {
    Cpu,
    /// One of NVIDIA's GPUs by its position.
    Cuda(usize),
    /// Any GPU by its position.
    Wgpu(usize),
    /// The first GPU, where there is one.
    Auto,
}

impl std::str::FromStr for MergeDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "auto" => Ok(Self::Auto),
            other => {
                let cuda = position(other, "cuda").map(Self::Cuda);
                let gpu = cuda.or_else(|| position(other, "wgpu").map(Self::Wgpu));
                gpu.ok_or_else(|| "write cpu, cuda, cuda:N, wgpu, wgpu:N or auto".to_owned())
            }
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct DevicesArguments {
    /// Find out how kernels share their work out best on each GPU, and remember it; takes some minutes
    #[arg(long)]
    pub(crate) tune: bool,
}

/// What a merge computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ComputeName {
    /// The models' values
    Exact,
    /// What FP8 leaves of them
    Fp8,
}

/// How an output is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputForm {
    /// A model folder
    Dense,
    /// What differs from the base model, for `aludel apply`
    SparseDelta,
    /// The same with differences rounded to FP8 where that is smaller
    #[value(name = "sparse-delta-fp8")]
    SparseDeltaFp8,
    /// A model folder whose linear weights are FP8
    Fp8,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct ApplyArguments {
    /// The folder of a merge with `--output sparse-delta`
    pub(crate) delta: PathBuf,
    /// The model folder to write; it appears under this name only when it is complete
    pub(crate) output: PathBuf,
    /// The base model [default: the one that the delta names]
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<String>,
    /// Threads that compute [default: one for each core]
    #[arg(long, short = 'j', value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// The most weights in one output file
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    pub(crate) shard_size: Size,
    #[command(flatten)]
    pub(crate) writing: WritingFlags,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct JoinArguments {
    /// The output of merges with `--part`, whose parts are in OUTPUT.parts; it appears under this name only when it is complete
    pub(crate) output: PathBuf,
    /// Threads that read [default: one for each core]
    #[arg(long, short = 'j', value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) writing: WritingFlags,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct MoeArguments {
    /// A recipe in the YAML of mergekit-moe, or `-` for standard input; model paths in it start at the current folder
    pub(crate) recipe: PathBuf,
    /// The model folder to write; it appears under this name only when it is complete
    pub(crate) output: PathBuf,
    /// Take one model for all experts, which computes what it does until it is trained
    #[arg(long = "i-understand-this-is-not-useful-without-training")]
    pub(crate) all_the_same: bool,
    /// mergekit's flags for how it loads the base model
    #[arg(long, hide = true)]
    pub(crate) load_in_4bit: bool,
    #[arg(long, hide = true)]
    pub(crate) load_in_8bit: bool,
    #[command(flatten)]
    pub(crate) planning: PlanningFlags,
    #[command(flatten)]
    pub(crate) seed: SeedFlag,
    #[command(flatten)]
    pub(crate) writing: ResumableFlags,
    #[command(flatten)]
    pub(crate) mergekit: MergekitFlags,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct InspectArguments {
    /// A model folder, a .safetensors file, or whatever else may stand for a model in a recipe; several with --against
    #[arg(required = true, value_name = "MODEL")]
    pub(crate) models: Vec<String>,
    /// Measure how the models differ from this base, and from each other; reads all weights once
    #[arg(long, value_name = "BASE")]
    pub(crate) against: Option<String>,
    /// Count differences of no larger magnitude as small
    #[arg(long, value_name = "X", default_value_t = 1e-5, requires = "against", value_parser = magnitude)]
    pub(crate) threshold: f64,
    /// Write a page with heatmaps by kind of tensor and layer
    #[arg(long, value_name = "FILE", requires = "against")]
    pub(crate) html: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
}

#[derive(Debug, Args)]
#[command(after_help = DIFF_CODES)]
pub(crate) struct DiffArguments {
    /// A model
    #[arg(value_name = "A")]
    pub(crate) first: String,
    /// Another model
    #[arg(value_name = "B")]
    pub(crate) second: String,
    /// Take values as equal that lie no farther apart
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = magnitude)]
    pub(crate) tolerance: f64,
    /// And so much farther for each unit of the value in B
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = magnitude)]
    pub(crate) relative_tolerance: f64,
    /// Let the types differ in which weights are stored
    #[arg(long)]
    pub(crate) ignore_dtype: bool,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct LayershuffleArguments {
    /// The model folder to write; may be left out with --dry-run
    #[arg(required_unless_present = "dry_run")]
    pub(crate) output: Option<PathBuf>,
    /// A model to draw layers from; given several times
    #[arg(long, short, value_name = "MODEL", required = true)]
    pub(crate) model: Vec<String>,
    /// How often a model is drawn, one for each model in their order; with --full-random, the share of its layers that
    /// are drawn [default: the same for all]
    #[arg(long, short, value_name = "X", value_parser = magnitude)]
    pub(crate) weight: Vec<f64>,
    /// Draw layers from anywhere in their models, instead of a model for every place
    #[arg(long, overrides_with = "no_full_random")]
    pub(crate) full_random: bool,
    #[arg(long, hide = true)]
    pub(crate) no_full_random: bool,
    /// Print the recipe
    #[arg(long, overrides_with = "no_print_yaml")]
    pub(crate) print_yaml: bool,
    #[arg(long, hide = true)]
    pub(crate) no_print_yaml: bool,
    /// Write the recipe to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) write_yaml: Option<PathBuf>,
    /// Make the recipe and merge nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The type of the weights that are written [default: as they are stored]
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<FloatName>,
    /// mergekit's way to say `--dtype float16`
    #[arg(long, hide = true, conflicts_with = "dtype", overrides_with = "no_fp16")]
    pub(crate) fp16: bool,
    #[arg(long, hide = true)]
    pub(crate) no_fp16: bool,
    #[command(flatten)]
    pub(crate) planning: PlanningFlags,
    #[command(flatten)]
    pub(crate) seed: SeedFlag,
    #[command(flatten)]
    pub(crate) writing: ResumableFlags,
    #[command(flatten)]
    pub(crate) mergekit: MergekitFlags,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct PlanArguments {
    /// A recipe in mergekit's YAML, or `-` for standard input; model paths in it start at the current folder
    pub(crate) recipe: PathBuf,
    /// The model folder that would be written; with it, the free space of its disk is checked as well
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) planning: PlanningFlags,
    #[command(flatten)]
    pub(crate) seed: SeedFlag,
    #[command(flatten)]
    pub(crate) stages: StagesFlag,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct ConvertArguments {
    /// A model folder, a file of weights (.gguf, .safetensors, .bin, .pt), or `owner/name[@revision]` on a hub
    pub(crate) input: PathBuf,
    /// The model folder to write; it appears under this name only when it is complete
    pub(crate) output: PathBuf,
    /// The type of the weights that are written; with fp8, that of linear weights, in the form of compressed-tensors
    /// [default: as they are stored; bfloat16 for quantised ones]
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<WeightName>,
    #[command(flatten)]
    pub(crate) planning: PlanningFlags,
    #[command(flatten)]
    pub(crate) writing: ResumableFlags,
}

#[derive(Debug, Args)]
pub(crate) struct MethodsArguments {
    /// A merge method, such as `ties`
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct DistillArguments {
    /// A run in YAML, or `-` for standard input; paths in it start at the current folder
    pub(crate) run: PathBuf,
    /// Go on from the last checkpoint of this run; begin where there is none
    #[arg(long, conflicts_with = "force")]
    pub(crate) resume: bool,
    /// Predict memory, speed and time, and train nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Discard an earlier run, and replace the output folder once the new one is complete
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Memory that the run may take, of a GPU's own with `--device cuda`; settings that the run leaves open are chosen so that it fits [default: what is free]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
    #[command(flatten)]
    pub(crate) computing: ComputingFlags,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArguments {
    /// The folder of a run (`OUTPUT.run`), or its output
    pub(crate) run: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct EvalArguments {
    /// A model folder, a .gguf file, or `owner/name[@revision]` of a model on a hub
    pub(crate) model: PathBuf,
    /// Text (.txt), JSON lines (.jsonl) or Parquet; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) data: Vec<PathBuf>,
    /// A model to compare with, such as the teacher: adds KL and top-1 agreement
    #[arg(long, value_name = "MODEL")]
    pub(crate) against: Option<PathBuf>,
    /// Tokens of a window; longer documents are scored in windows that overlap [default: the
    /// positions of the model, 1024 at the most]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) window: Option<NonZeroUsize>,
    /// Tokens from the beginning of a window to that of the next [default: half a window]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) stride: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) computing: ComputingFlags,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct StatisticsArguments {
    /// A model folder, a .gguf file, or `owner/name[@revision]` of a model on a hub
    pub(crate) model: PathBuf,
    /// The folder to write, which a recipe names as the model's `fisher` or `gram`; it appears under this name only when
    /// it is complete. May be left out with --dry-run
    #[arg(required_unless_present = "dry_run")]
    pub(crate) output: Option<PathBuf>,
    /// What is collected
    #[arg(long, value_enum)]
    pub(crate) kind: StatisticsKind,
    /// Text (.txt), JSON lines (.jsonl) or Parquet; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) data: Vec<PathBuf>,
    /// Tokens that go through the model at once, and the longest piece of a document [default: the positions of the
    /// model, 1024 at the most]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) window: Option<NonZeroUsize>,
    /// Stop after so many tokens of the data [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) tokens: Option<std::num::NonZeroU64>,
    /// Memory that sums may take, beyond the model; with less of it there are more passes over the data
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(crate) memory: Size,
    /// Say what it takes, and collect nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The most bytes in one output file
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    pub(crate) shard_size: Size,
    #[command(flatten)]
    pub(crate) writing: WritingFlags,
    #[command(flatten)]
    pub(crate) computing: ComputingFlags,
}

/// What `aludel statistics` collects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatisticsKind {
    /// For `regmean`: the mean of x x^T over what goes into each linear layer
    Gram,
    /// For `fisher`: squared gradients of the log-likelihood, for every weight
    Fisher,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct GenerateArguments {
    /// A model folder, a .gguf file, or `owner/name[@revision]` of a model on a hub
    pub(crate) model: PathBuf,
    /// The text to continue
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// Take the prompt for a user's turn, by the model's chat template
    #[arg(long)]
    pub(crate) chat: bool,
    /// The most tokens that are added
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// How freely tokens are chosen; 0 takes the most likely one
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = magnitude)]
    pub(crate) temperature: f64,
    /// Choose among the most likely tokens that have this share of the probability
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    pub(crate) top_p: f64,
    /// Choose among so many of the most likely tokens; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Key of the random numbers: the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) computing: ComputingFlags,
}

const TALK: &str = "Global options";

/// How the program talks.
#[derive(Debug, Args)]
pub(crate) struct TalkFlags {
    /// Print the result, or the error, as one JSON value on standard output
    #[arg(long, global = true, help_heading = TALK)]
    pub(crate) json: bool,
    /// Say more: the plan's summary before a merge, every step in a plan, a training's checkpoints;
    /// twice: every step before a merge
    #[arg(short, long, global = true, help_heading = TALK, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,
    /// Say nothing but errors
    #[arg(short, long, global = true, help_heading = TALK)]
    pub(crate) quiet: bool,
    /// When to colour messages; `auto` means on a terminal and without NO_COLOR
    #[arg(long, global = true, help_heading = TALK, value_enum, default_value_t = ColorWhen::Auto, value_name = "WHEN")]
    pub(crate) color: ColorWhen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorWhen {
    Auto,
    Always,
    Never,
}

const DIFF_CODES: &str = "\
Exit codes:
  0    the models are equal
  1    they differ
  2    the command line is wrong
  3    they could not be compared
  130  interrupted (Ctrl-C); 143: terminated";

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed while running: a file cannot be read or written, a model or a training has NaN
  2    the command line is wrong
  3    refused before any work was done: recipe or run, models, data or the output folder do not fit
  130  interrupted (Ctrl-C); 143: terminated";
