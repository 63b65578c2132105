//! Runs one command and measures it.
//!
//! In: the words of a command and where to run it. Out: its processor time, wall time and peak memory, as the system
//! accounted them to that process. It repeats nothing and judges nothing.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use aludel_checkpoint::resident;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use wait4::Wait4;

/// What one run took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Seconds of processor time outside of the kernel, over all threads.
    pub(crate) user: f64,
    /// Seconds of processor time in the kernel.
    pub(crate) system: f64,
    /// Seconds from start to exit.
    pub(crate) wall: f64,
    /// The most memory resident at a time, mapped pages included, in bytes. `None` where it cannot be told.
    pub(crate) peak_bytes: Option<u64>,
    /// The peak that the program had planned, by its own report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) planned_peak_bytes: Option<u64>,
    /// Bytes of inputs whose digests the program computed, by its own report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hashed_bytes: Option<u64>,
    /// Seconds of one training step, the median of all but the first, by the program's own report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) step_seconds: Option<f64>,
    /// Seconds that a capture took once its teacher and files were open, by the program's own report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pass_seconds: Option<f64>,
}

impl Sample {
    /// Seconds of processor time.
    pub(crate) fn cpu(&self) -> f64 {
        self.user + self.system
    }

    /// Both, one after the other.
    pub(crate) fn then(self, next: Self) -> Self {
        let peak_bytes = self.peak_bytes.max(next.peak_bytes);
        let (user, system) = (self.user + next.user, self.system + next.system);
        let pass_seconds = self.pass_seconds.zip(next.pass_seconds).map(|(x, y)| x + y);
        Self { user, system, wall: self.wall + next.wall, peak_bytes, pass_seconds, ..self }
    }
}

/// What a command's run leaves besides its files.
pub(crate) struct Outcome {
    pub(crate) sample: Sample,
    pub(crate) stdout: String,
}

/// Where commands run and leave their messages.
pub(crate) struct Stage<'a> {
    /// The current folder of the command.
    pub(crate) folder: &'a Path,
    /// What the command finds as the user's cache.
    pub(crate) cache: &'a Path,
}

impl Stage<'_> {
    /// Runs a command and keeps what it prints.
    ///
    /// Errors: the command cannot be started or fails; its last messages are quoted.
    pub(crate) fn measure(&self, words: &[OsString]) -> anyhow::Result<Outcome> {
        let path = self.folder.join("stdout.txt");
        let stdout = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let sample = self.run(words, stdout.into())?;
        Ok(Outcome { sample, stdout: fs::read_to_string(path).unwrap_or_default() })
    }

    /// Runs a command whose output goes to the null device.
    pub(crate) fn measure_silent(&self, words: &[OsString]) -> anyhow::Result<Sample> {
        self.run(words, Stdio::null())
    }

    fn run(&self, words: &[OsString], stdout: Stdio) -> anyhow::Result<Sample> {
        let [program, arguments @ ..] = words else { bail!("the command is empty") };
        let messages = self.folder.join("stderr.txt");
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.folder).env("XDG_CACHE_HOME", self.cache);
        command.stdin(Stdio::null()).stdout(stdout).stderr(File::create(&messages)?);
        let start = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let used = child.wait4()?;
        let wall = start.elapsed().as_secs_f64();
        if !used.status.success() {
            bail!("{} failed ({}):\n{}", program.display(), used.status, last_lines(&messages));
        }
        Ok(Sample {
            user: used.rusage.utime.as_secs_f64(),
            system: used.rusage.stime.as_secs_f64(),
            wall,
            // A child begins as a share of its parent, and Linux counts the parent's peak until then as the child's.
            peak_bytes: Some(used.rusage.maxrss).filter(|&peak| peak > resident::peak().unwrap_or(0)),
            ..Sample::default()
        })
    }
}

/// Splits a template at spaces and puts words in for the `{names}`; a name with several words must stand alone.
pub(crate) fn expand(template: &str, names: &[(&str, Vec<OsString>)]) -> anyhow::Result<Vec<OsString>> {
    let values = |name: &str| match names.iter().find(|(known, _)| *known == name) {
        Some((_, values)) => Ok(values.as_slice()),
        None => bail!("`{{{name}}}` in `{template}` is none of the names known here"),
    };
    let mut words = Vec::new();
    for word in template.split_whitespace() {
        match word.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            Some(name) if !name.contains('{') => words.extend(values(name)?.iter().cloned()),
            _ => words.push(fill(word, &values)?),
        }
    }
    Ok(words)
}

/// A word with the value of each `{name}` in its place.
fn fill<'a>(
    word: &str,
    values: &impl Fn(&str) -> anyhow::Result<&'a [OsString]>,
) -> anyhow::Result<OsString> {
    let (mut filled, mut rest) = (OsString::new(), word);
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, after)) = after.split_once('}') else {
            bail!("`{word}` has a brace that is not closed")
        };
        let [value] = values(name)? else { bail!("`{{{name}}}` in `{word}` does not stand for one word") };
        filled.push(before);
        filled.push(value);
        rest = after;
    }
    filled.push(rest);
    Ok(filled)
}

/// A command with the folders of its absolute paths left out: what may be published of it.
pub(crate) fn without_folders(template: &str) -> String {
    let file_name = |word| Path::new(word).file_name().and_then(OsStr::to_str).unwrap_or(word);
    let shown = |word| if Path::new(word).is_absolute() { file_name(word) } else { word };
    template.split_whitespace().map(shown).collect::<Vec<_>>().join(" ")
}

fn last_lines(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn outcome(words: &[OsString]) -> anyhow::Result<Outcome> {
        let folder = tempfile::tempdir().unwrap();
        Stage { folder: folder.path(), cache: folder.path() }.measure(words)
    }

    #[test]
    fn a_command_is_charged_with_its_own_work() {
        let busy = ["sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done"];
        let outcome = outcome(&busy.map(OsString::from)).unwrap();
        assert_eq!(outcome.stdout, "done\n");
        assert!(outcome.sample.cpu() > 0.0, "{:?}", outcome.sample);
        let waiting = self::outcome(&words("sleep 0.3")).unwrap().sample;
        assert!(waiting.wall >= 0.3 && waiting.cpu() < waiting.wall, "{waiting:?}");
    }

    /// The peak of `true` read as that of this process, which started it, until it was left out.
    #[test]
    fn the_memory_of_this_process_is_not_taken_for_the_commands() {
        let ballast = vec![1u8; 64 << 20];
        assert_eq!(outcome(&words("true")).unwrap().sample.peak_bytes, None);
        let large = outcome(&words("dd if=/dev/zero of=/dev/null bs=256M count=1")).unwrap();
        assert!(large.sample.peak_bytes.is_some_and(|peak| peak > 256 << 20 && peak < 300 << 20));
        assert_eq!(ballast[ballast.len() - 1], 1);
    }

    #[test]
    fn a_failing_command_is_an_error_with_its_messages() {
        let error = outcome(&["sh", "-c", "echo no room >&2; exit 3"].map(OsString::from)).err().unwrap();
        assert!(error.to_string().contains("no room") && error.to_string().contains('3'), "{error}");
    }

    #[test]
    fn names_in_a_template_stand_for_words_even_with_spaces() {
        let names = [("out", vec!["a b".into()]), ("inputs", vec!["x".into(), "y".into()])];
        assert_eq!(expand("cat {inputs} {out}", &names).unwrap(), ["cat", "x", "y", "a b"]);
        assert_eq!(expand("run {out}/x={out}", &names).unwrap(), ["run", "a b/x=a b"]);
        for wrong in ["cat {in}", "cat {inputs}/x", "cat {out"] {
            assert!(expand(wrong, &names).is_err(), "{wrong}");
        }
        assert_eq!(without_folders("/opt/bin/merge -c /etc/x.yml {out}"), "merge -c x.yml {out}");
    }
}
