//! Gives each test a folder of its own, in which the program runs and models have short names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as StdCommand;

use snapbox::cmd::{Command, cargo_bin};
use tempfile::TempDir;

/// A working folder with some models, and a place for the program's cache outside it.
pub(crate) struct Sandbox {
    folder: TempDir,
    home: TempDir,
}

impl Sandbox {
    /// With these models of `tests/golden` under `models/`.
    pub(crate) fn new(models: &[&str]) -> Self {
        Self::with("models", models)
    }

    /// With these models of a folder in `tests/golden` under `models/`.
    pub(crate) fn with(golden: &str, models: &[&str]) -> Self {
        let sandbox = Self { folder: tempfile::tempdir().unwrap(), home: tempfile::tempdir().unwrap() };
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(golden);
        for model in models {
            let target = sandbox.path("models").join(model);
            fs::create_dir_all(&target).unwrap();
            for entry in golden.join(model).read_dir().unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, target.join(path.file_name().unwrap())).unwrap();
            }
        }
        sandbox
    }

    /// The path of a file in the working folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, its folders made.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// The program with these arguments, its streams captured.
    pub(crate) fn aludel(&self, arguments: &[&str]) -> Command {
        Command::from_std(self.process(arguments))
    }

    /// The program with these arguments, its streams to be set by the test.
    pub(crate) fn process(&self, arguments: &[&str]) -> StdCommand {
        let mut command = StdCommand::new(cargo_bin!("aludel"));
        command.args(arguments).current_dir(self.folder.path());
        command
            .env("XDG_CACHE_HOME", self.home.path())
            .env("HOME", self.home.path())
            .env("LOCALAPPDATA", self.home.path())
            // No test may ask a hub but one of its own.
            .env("HF_HUB_OFFLINE", "1");
        for variable in [
            "NO_COLOR",
            "CLICOLOR",
            "CLICOLOR_FORCE",
            "TERM",
            "COLUMNS",
            "HF_HOME",
            "HF_HUB_CACHE",
            "HF_ENDPOINT",
            "HF_TOKEN",
            "MASTER_ADDR",
        ] {
            command.env_remove(variable);
        }
        command
    }

    /// The program where it finds CUDA in software; `None` where that cannot be compiled.
    pub(crate) fn with_cuda(&self, arguments: &[&str]) -> Option<StdCommand> {
        let mut command = self.process(arguments);
        command.env("LD_LIBRARY_PATH", aludel_soft_cuda::library_path()?);
        Some(command)
    }

    /// What the program printed as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        printed(&mut self.process(arguments))
    }

    /// The names in a folder of the sandbox, hidden ones too, sorted.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let entries = self.path(folder).read_dir().unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Every file of a folder with its content.
    pub(crate) fn contents(&self, folder: &str) -> Vec<(String, Vec<u8>)> {
        let read = |name: String| {
            let content = fs::read(self.path(folder).join(&name)).unwrap();
            (name, content)
        };
        self.names(folder).into_iter().map(read).collect()
    }
}

/// What a program printed as JSON.
pub(crate) fn printed(program: &mut StdCommand) -> serde_json::Value {
    let output = program.output().unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no JSON, but: {}", String::from_utf8_lossy(&output.stderr)))
}
