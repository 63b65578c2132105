//! Declares the command line as it is typed.
//!
//! In: the process's arguments. Out: structures whose parts are well formed on their own; what they mean together, and with
//! the terminal and the defaults, is for [`crate::settings`] to say.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::settings::{Size, Tile};

/// Merge language models by recipe.
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
    /// Show what a merge would read, compute, hold and write, from the models' headers alone
    Plan(PlanArguments),
    /// Turn a GGUF file into a model folder, or write a model folder with another type or shard size
    Convert(ConvertArguments),
    /// List the merge methods, or the parameters of one
    Methods(MethodsArguments),
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
    pub(crate) writing: WritingFlags,
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
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct ConvertArguments {
    /// A .gguf file, a model folder or a .safetensors file
    pub(crate) input: PathBuf,
    /// The model folder to write; it appears under this name only when it is complete
    pub(crate) output: PathBuf,
    /// The type of the weights that are written [default: as they are stored; bfloat16 for quantised ones]
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<FloatName>,
    #[command(flatten)]
    pub(crate) planning: PlanningFlags,
    #[command(flatten)]
    pub(crate) writing: WritingFlags,
}

#[derive(Debug, Args)]
pub(crate) struct MethodsArguments {
    /// A merge method, such as `ties`
    pub(crate) name: Option<String>,
}

/// What shapes a plan.
#[derive(Debug, Args)]
pub(crate) struct PlanningFlags {
    /// Threads that compute [default: one for each core]
    #[arg(long, value_name = "N", alias = "num-threads")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Memory that the work may take beyond the process itself
    #[arg(long, value_name = "SIZE", default_value = "128MiB")]
    pub(crate) memory: Size,
    /// The most weights in one output file
    #[arg(long, value_name = "SIZE", default_value = "5GB", alias = "out-shard-size")]
    pub(crate) shard_size: Size,
    /// Compute with NaN and infinities in the models instead of refusing them
    #[arg(long)]
    pub(crate) allow_nan: bool,
    /// Elements per unit of work; the output does not depend on it
    #[arg(long, value_name = "ELEMENTS", hide = true)]
    pub(crate) tile: Option<Tile>,
}

#[derive(Debug, Args)]
pub(crate) struct SeedFlag {
    /// Key of the random masks of DARE; the same seed gives the same output everywhere
    #[arg(long, value_name = "N", default_value_t = 0, alias = "random-seed")]
    pub(crate) seed: u64,
}

/// How an output folder comes to be.
#[derive(Debug, Args)]
pub(crate) struct WritingFlags {
    /// Replace the output folder if it exists, once the new one is complete
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Leave it to the system when the files reach the disk: faster, but a power cut soon after may lose them
    #[arg(long)]
    pub(crate) no_sync: bool,
}

const TALK: &str = "Global options";

/// How the program talks.
#[derive(Debug, Args)]
pub(crate) struct TalkFlags {
    /// Print the result, or the error, as one JSON value on standard output
    #[arg(long, global = true, help_heading = TALK)]
    pub(crate) json: bool,
    /// Say more: the plan's summary before a merge, every step in a plan; twice: every step before a merge
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

/// An element type by torch's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FloatName {
    #[value(alias = "f32", alias = "fp32")]
    Float32,
    #[value(alias = "f16", alias = "fp16")]
    Float16,
    #[value(alias = "bf16")]
    Bfloat16,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed while running: a file could not be read or written, or a model has NaN or infinities
  2    the command line is wrong
  3    refused before any weight was read: the recipe, the models or the output folder do not fit
  130  interrupted (Ctrl-C); 143: terminated";
