//! Reads the definition of a benchmark: which commands run on which models, and what is demanded of them.
//!
//! In: a TOML file of `benches/definitions`. Out: a [`Definition`] in which every name means something. Commands are
//! templates; the names in them are given in `run`.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::shape::ModelSpec;
use crate::values::ROLES;

/// A benchmark.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Definition {
    /// The file's name without its ending.
    #[serde(skip)]
    pub(crate) name: String,
    /// What is measured, in one sentence.
    pub(crate) title: String,
    /// How aludel is called: `{aludel} merge {recipe} {out} --json`.
    pub(crate) command: String,
    /// How often each case runs.
    pub(crate) runs: usize,
    /// What aludel is held against.
    pub(crate) reference: Option<Reference>,
    /// Commands that together do the least that any tool must: `{inputs}` and `{first}` are weight files, `{copy}` is a
    /// file that they may write.
    #[serde(default)]
    pub(crate) floor: Vec<String>,
    /// How a cache is held against its teacher, once, by a command that prints what it found as JSON; [`Job::Capture`] alone.
    pub(crate) verify: Option<String>,
    pub(crate) cases: Vec<Case>,
}

/// Another tool that runs the same recipes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reference {
    pub(crate) name: String,
    /// As [`Definition::command`]; `--reference` replaces it.
    pub(crate) command: String,
    /// How often each case runs; at most as often as aludel.
    pub(crate) runs: usize,
}

/// One recipe on one set of models.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// What is done.
    #[serde(default)]
    pub(crate) job: Job,
    /// A [`ModelSpec`] by name, or of [`Job::Capture`] the name of a folder of the working folder, which has `base`, a model, and
    /// `text.txt`.
    pub(crate) model: String,
    /// The models that the recipe reads.
    pub(crate) inputs: Vec<String>,
    /// Whether aludel knows the digests of its inputs.
    pub(crate) digests: Digests,
    /// The recipe; the models lie in `{models}`, the output in `{out}` and this repository in `{root}`.
    pub(crate) recipe: String,
    /// What is added to aludel's command for this case; `{options}` in a floor.
    #[serde(default)]
    pub(crate) options: String,
    /// The most megabytes a second that aludel may read from the disk with the models, which then are not in the page cache.
    pub(crate) disk: Option<u32>,
    /// What is added to the reference's command for this case.
    #[serde(default)]
    pub(crate) reference_options: String,
    /// How far the two outputs may differ. Demanded where a reference runs.
    pub(crate) agreement: Option<Agreement>,
    /// How often the reference runs this case, where it is too slow for [`Reference::runs`].
    pub(crate) reference_runs: Option<usize>,
    #[serde(default)]
    pub(crate) bars: Bars,
}

/// What a case does, and so what counts as a right answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Job {
    /// Merges models. The two tools must agree.
    #[default]
    Merge,
    /// Trains a model. Two runs must give the same weights. Steps are timed by the tools themselves: the reference prints
    /// `step_seconds`, aludel keeps a record. The first one is left out, as it meets new memory.
    Train,
    /// Stores what a teacher says. Two runs must give the same bytes, and what `verify` finds is recorded. The time that counts is the one
    /// between opening the teacher and the last record, by the tool's own report.
    Capture,
    /// Searches for the parameters of a merge. Two runs must find the same. A step is a merge, timed by aludel.
    Search,
}

impl Job {
    /// What two runs must have the same of.
    pub(crate) const fn output(self) -> &'static str {
        match self {
            Self::Merge | Self::Train => "weights",
            Self::Capture => "caches",
            Self::Search => "recipes",
        }
    }
}

/// Whether the digests of the inputs are remembered from an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Digests {
    /// Forgotten before each run.
    Cold,
    /// Remembered from a run that is not counted.
    Warm,
}

/// When two outputs count as the same answer; what is left out is not demanded.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Agreement {
    /// The largest difference of two values, at most.
    pub(crate) max_abs: Option<f64>,
    /// The share of values that differ, at most.
    pub(crate) differing: Option<f64>,
    /// How far the outputs' changes from the base may be apart: the share of changed values, and mean and mean magnitude
    /// of the change relative to that magnitude. All that can be demanded of random methods.
    pub(crate) change: f64,
}

/// What is demanded of a case; everything else is only reported.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Bars {
    /// The reference's processor time over aludel's, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu: Option<f64>,
    /// The reference's wall time over aludel's, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) wall: Option<f64>,
    /// Aludel's wall time over the floor's, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) floor: Option<f64>,
    /// The time of a capture over the floor's, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pass: Option<f64>,
    /// Bytes that a cache has for each token, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes_a_token: Option<f64>,
    /// Aludel's peak memory in megabytes, below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peak_mb: Option<f64>,
    /// How far the planned peak may be off, as a share of the measured one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) plan_within: Option<f64>,
    /// Aludel's peak memory over that of another case, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peak_over: Option<OverCase>,
    /// Aludel's wall time over those of other cases, at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) wall_over: Vec<OverCase>,
    /// The reference's seconds for a step over aludel's, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) step: Option<f64>,
    /// Aludel's seconds for a step over those of another case, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) step_over: Option<OverCase>,
    /// Aludel's peak memory over the reference's, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peak_over_reference: Option<f64>,
}

impl Bars {
    fn between_cases(&self) -> impl Iterator<Item = &OverCase> {
        [&self.peak_over, &self.step_over].into_iter().flatten().chain(&self.wall_over)
    }

    /// Whether one of the bars is over this case.
    pub(crate) fn names(&self, case: &str) -> bool {
        self.between_cases().any(|over| over.case == case)
    }
}

/// A bar between two cases.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OverCase {
    pub(crate) case: String,
    pub(crate) at_most: f64,
}

impl Definition {
    /// Reads and checks a definition.
    ///
    /// Errors: the file cannot be read, is no TOML, has unknown keys, or names what does not exist.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Self::parse(&text, name).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str, name: String) -> anyhow::Result<Self> {
        let mut definition: Self = toml::from_str(text)?;
        definition.name = name;
        ensure!(definition.runs > 0, "`runs` is 0");
        for case in &definition.cases {
            definition.check(case).with_context(|| format!("case {}", case.name))?;
        }
        Ok(definition)
    }

    fn check(&self, case: &Case) -> anyhow::Result<()> {
        let file_safe = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        match case.job {
            Job::Capture => ensure!(case.model.chars().all(file_safe), "its model is no name of a folder"),
            Job::Merge | Job::Train | Job::Search => {
                case.model.parse::<ModelSpec>()?;
                ensure!(self.verify.is_none(), "`verify` is for captures");
            }
        }
        ensure!(!case.name.is_empty() && case.name.chars().all(file_safe), "its name is no file name");
        ensure!(!case.inputs.is_empty(), "it has no inputs");
        if let Some(input) = case.inputs.iter().find(|input| !ROLES.contains(&input.as_str())) {
            bail!("unknown input `{input}`");
        }
        ensure!(
            self.reference.is_none() || case.job != Job::Merge || case.agreement.is_some(),
            "it has a reference and no `agreement`"
        );
        for over in case.bars.between_cases() {
            ensure!(self.cases.iter().any(|other| other.name == over.case), "unknown case `{}`", over.case);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Definition> {
        Definition::parse(text, "test".into())
    }

    const HEAD: &str =
        "title = 't'\ncommand = '{aludel}'\nruns = 1\n[[cases]]\nname = 'x'\ndigests = 'cold'\nrecipe = ''\n";

    #[test]
    fn every_definition_that_ships_is_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/definitions");
        let paths: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(paths.len() >= 3, "{paths:?}");
        for path in paths {
            let definition = Definition::read(&path).unwrap();
            assert!(!definition.cases.is_empty(), "{}", path.display());
        }
    }

    #[test]
    fn what_a_definition_names_must_exist() {
        assert!(parse(&format!("{HEAD}model = 'llama-tiny'\ninputs = ['a']")).is_ok());
        for (rest, complaint) in [
            ("model = 'llama'\ninputs = ['a']", "unknown model `llama`"),
            ("model = 'llama-tiny'\ninputs = ['d']", "unknown input `d`"),
            ("model = 'llama-tiny'\ninputs = ['a']\nbar = 1", "unknown field `bar`"),
            ("model = '../up'\ninputs = ['base']\njob = 'capture'", "no name of a folder"),
            (
                "model = 'llama-tiny'\ninputs = ['a']\nbars.peak_over = { case = 'y', at_most = 1 }",
                "unknown case `y`",
            ),
        ] {
            let error = format!("{:#}", parse(&format!("{HEAD}{rest}")).unwrap_err());
            assert!(error.contains(complaint), "{error}");
        }
    }
}
