//! Measures aludel beside another tool, keeps dated records, and renders them into the documents.
//!
//! In: definitions under `benches/definitions`. Out: records under `benches/record` and tables in README.md and docs/. What is
//! measured is the program that users run, as a process of its own; nothing here is linked into it.
//!
//! Modules in reading order: `definition`, `shape`, `values`, `make`, `disk`, `measure`, `verify`, `capture`, `copying`, `moving`, `run`,
//! `record`, `figure`, `render`.
#![forbid(unsafe_code)]

mod capture;
mod copying;
mod definition;
mod disk;
mod figure;
mod make;
mod measure;
mod moving;
mod record;
mod render;
mod run;
mod shape;
mod values;
mod verify;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser, Subcommand};

use crate::definition::{Case, Definition};
use crate::record::Machine;
use crate::run::Runner;
use crate::shape::ModelSpec;

/// Measure aludel beside another tool.
#[derive(Debug, Parser)]
#[command(max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the synthetic models of a spec: base, a, b and c
    Make {
        /// llama-tiny, llama-163m, llama-wide-head, llama-1.1b, llama-3b, llama-5.5b, llama-7b, llama-405b-layer, llama-405b or experts-128; with -zero, files of zeros that take no room
        spec: ModelSpec,
        folder: PathBuf,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Average models by reading whole tensors into buffers: a baseline, for definitions
    Copying {
        /// The folder to write
        out: PathBuf,
        /// Weight files
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
        /// A weight for each
        #[arg(long, value_delimiter = ',')]
        weights: Vec<f32>,
    },
    /// Move as many bytes through memory as a merge of these files must: a floor, for definitions
    Moving {
        /// Weight files
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
        /// How often
        #[arg(long, default_value_t = 5)]
        passes: usize,
    },
    /// Run a definition and record the results
    Run(RunArguments),
    /// Bring the tables of README.md and docs/ up to date with the newest records
    Render {
        /// Write nothing, and fail when a document is out of date
        #[arg(long)]
        check: bool,
        /// The repository
        #[arg(long, default_value = ".")]
        root: PathBuf,
    },
}

#[derive(Debug, Args)]
struct RunArguments {
    /// The name of a definition in benches/definitions, or the path of one
    definition: PathBuf,
    /// Holds models and outputs; a RAM disk where times matter
    #[arg(long)]
    work: PathBuf,
    /// The program to measure
    #[arg(long)]
    aludel: PathBuf,
    /// Run the reference too, by this command (split at spaces); empty for the definition's own
    #[arg(long, value_name = "COMMAND", num_args = 0..=1, default_missing_value = "")]
    reference: Option<String>,
    /// The reference's name and version in the record [default: the definition's]
    #[arg(long, value_name = "TEXT")]
    reference_version: Option<String>,
    /// Run only these
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Rounds [default: the definition's]
    #[arg(long)]
    runs: Option<usize>,
    /// What the program was built from [default: the commit of the repository that this folder is in]
    #[arg(long)]
    commit: Option<String>,
    /// Where records are kept
    #[arg(long, default_value = "benches/record")]
    record: PathBuf,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Make { spec, folder, seed } => make::make(&spec, seed, &folder),
        Command::Copying { out, inputs, weights } => copying::merge(&inputs, &weights, &out),
        Command::Moving { inputs, passes } => {
            println!("{}", serde_json::json!({"step_seconds": moving::passes(&inputs, passes)?}));
            Ok(())
        }
        Command::Run(arguments) => run(&arguments),
        Command::Render { check, root } => render::render(&root, check),
    }
}

fn run(arguments: &RunArguments) -> anyhow::Result<()> {
    let definition = Definition::read(&definition_path(&arguments.definition))?;
    let cases = chosen(&definition, &arguments.cases)?;
    let runs = arguments.runs.unwrap_or(definition.runs);
    ensure!(runs > 0, "`--runs` is 0");
    let own = definition.reference.as_ref();
    let reference = match (arguments.reference.as_deref(), own) {
        (Some(_), None) => bail!("the definition has no reference"),
        (Some(""), Some(own)) => Some(own.command.as_str()),
        (given, _) => given,
    };
    let aludel = arguments.aludel.canonicalize();
    let aludel = aludel.with_context(|| format!("cannot find {}", arguments.aludel.display()))?;
    let runner = Runner {
        definition: &definition,
        work: &arguments.work,
        aludel: &aludel,
        reference,
        reference_version: arguments.reference_version.clone().or_else(|| own.map(|own| own.name.clone())),
        runs,
        machine: Machine::here(),
        commit: arguments.commit.clone().unwrap_or_else(record::commit),
    };
    let order: Vec<String> = definition.cases.iter().map(|case| case.name.clone()).collect();
    for compared in compared(&cases) {
        let path = runner.run(&compared)?.save(&arguments.record, &order)?;
        let names: Vec<&str> = compared.iter().map(|case| case.name.as_str()).collect();
        println!("{}: recorded in {}", names.join(", "), path.display());
    }
    Ok(())
}

/// Cases in sets, each with those that its bars compare with one another.
fn compared<'a>(cases: &[&'a Case]) -> Vec<Vec<&'a Case>> {
    let mut sets: Vec<Vec<&Case>> = Vec::new();
    for &case in cases {
        let is_near = |other: &&Case| case.bars.names(&other.name) || other.bars.names(&case.name);
        let (near, far) = sets.into_iter().partition(|set: &Vec<&Case>| set.iter().any(is_near));
        sets = far;
        sets.push(near.into_iter().flatten().chain([case]).collect());
    }
    sets
}

fn definition_path(named: &Path) -> PathBuf {
    if named.extension().is_some_and(|extension| extension == "toml") {
        return named.to_path_buf();
    }
    Path::new("benches/definitions").join(named).with_extension("toml")
}

fn chosen<'a>(definition: &'a Definition, names: &[String]) -> anyhow::Result<Vec<&'a Case>> {
    if names.is_empty() {
        return Ok(definition.cases.iter().collect());
    }
    let find = |name: &String| {
        let found = definition.cases.iter().find(|case| case.name == *name);
        found.with_context(|| format!("the definition has no case `{name}`"))
    };
    names.iter().map(find).collect()
}
