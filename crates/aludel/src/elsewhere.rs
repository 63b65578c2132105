//! Lets models lie in object storage: what is read is fetched once, what is written is put there when it is whole here.
//!
//! In: addresses. Out: folders of this machine, under the user's folder for caches. A fetched model is kept by the names, lengths and versions
//! of its files, so that another content is fetched anew. An output has its weights first and `config.json` last: a model without one is
//! not taken, so nobody reads what is there in part.

use std::fs;
use std::path::{Path, PathBuf};

use aludel_checkpoint::{free_space, needed_adapter_files, needed_files};
use aludel_document::Problem;
use aludel_merge::plan::Bytes;
use aludel_storage::{Object, Storage};

use crate::failure::Refusal;
use crate::printer::Printer;
use crate::progress::{Progress, Stage};
use crate::settings::Verbosity;
use crate::storage::{folder, name, open, problem, refused};

/// The folder of a model that a text is the address of; `None` for any other text.
pub(crate) fn model(text: &str, printer: &Printer) -> Option<Result<PathBuf, String>> {
    match open(Path::new(text)) {
        Ok(None) => None,
        Ok(Some(storage)) => Some(fetched(&storage, printer)),
        Err(error) => Some(Err(error.to_string())),
    }
}

fn fetched(storage: &Storage, printer: &Printer) -> Result<PathBuf, String> {
    let told = |error: aludel_storage::Error| error.to_string();
    let address = storage.address();
    let objects = storage.list().map_err(told)?;
    let names: Vec<String> = objects.iter().map(|object| object.name.clone()).collect();
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    let needed = match (has("adapter_config.json"), has(CONFIG)) {
        (true, _) => needed_adapter_files(&names),
        (false, true) => needed_files(&names),
        (false, false) => Err(format!("it has no {CONFIG}, which is put there last")),
    };
    let needed = needed.map_err(|reason| format!("{address} is no model: {reason}"))?;
    let objects: Vec<&Object> = objects.iter().filter(|object| needed.contains(&object.name)).collect();
    let versions =
        objects.iter().map(|object| format!("{}\n{}\n{}\n", object.name, object.bytes, object.version));
    let versions = name(versions.collect::<String>().as_bytes());
    let root = folder().map_err(|refusal| refusal.problems.to_string())?;
    let folder = root.join("models").join(name(&storage.id())).join(versions);
    fs::create_dir_all(&folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
    let is_here = |object: &&Object| {
        folder.join(&object.name).metadata().is_ok_and(|metadata| metadata.len() == object.bytes)
    };
    let missing: Vec<&Object> = objects.into_iter().filter(|object| !is_here(object)).collect();
    let total = missing.iter().map(|object| object.bytes).sum();
    if let Some(free) = free_space(&folder).ok().flatten().filter(|free| *free < total) {
        let place = folder.display();
        return Err(format!("{address} takes {} in {place}, which has {} free", Bytes(total), Bytes(free)));
    }
    let progress = Progress::new(printer);
    let mut done = 0;
    for object in missing {
        let mut show = |bytes| progress.show(Stage::bytes("fetching", done + bytes, total));
        storage.fetch(&object.name, &folder, &mut show).map_err(told)?;
        done += object.bytes;
    }
    drop(progress);
    if done > 0 {
        printer.say(Verbosity::Normal, &format_args!("fetched {} of {address}", Bytes(done)));
    }
    Ok(folder)
}

/// An output that is to be in object storage.
pub(crate) struct Destination {
    storage: Storage,
    staged: PathBuf,
}

impl Destination {
    /// Where an output is to be put; `None` for a path.
    pub(crate) fn of(output: &Path) -> Result<Option<Self>, Refusal> {
        let Some(storage) = open(output).map_err(refused)? else { return Ok(None) };
        let place = folder()?.join("outputs").join(name(&storage.id()));
        // The output is called what the address ends with.
        let last = storage.address().prefix().rsplit('/').next().filter(|last| !last.is_empty());
        let staged = place.join(last.unwrap_or("model"));
        Ok(Some(Self { storage, staged }))
    }

    /// Where it is made whole before.
    pub(crate) fn staged(&self) -> &Path {
        &self.staged
    }

    /// The address.
    pub(crate) fn address(&self) -> String {
        self.storage.address().to_string()
    }

    /// Refuses an address under which there is something, unless it gives way.
    pub(crate) fn check(&self, gives_way: bool) -> Result<(), Refusal> {
        let there = self.storage.list().map_err(refused)?;
        match there.first().filter(|_| !gives_way) {
            None => Ok(()),
            Some(object) => {
                let message = format!("{}/{} is there already", self.address(), object.name);
                Err(problem(
                    Problem::general(message)
                        .with_hint("name another prefix, or replace what is there with `--force`"),
                ))
            }
        }
    }

    /// Puts the files there, and removes them here. Files of the same length are taken for those of an earlier try where it goes on.
    pub(crate) fn put(&self, goes_on: bool, printer: &Printer) -> anyhow::Result<()> {
        let files = files(&self.staged)?;
        let there = self.storage.list()?;
        let is_there = |file: &File| {
            goes_on && there.iter().any(|object| object.name == file.name && object.bytes == file.bytes)
        };
        // What another output has left would be read with this one's: its config first, so that nobody reads either meanwhile.
        if !files.iter().all(|file| file.name != CONFIG || is_there(file)) {
            self.storage.remove(CONFIG)?;
        }
        for object in there.iter().filter(|object| !files.iter().any(|file| file.name == object.name)) {
            self.storage.remove(&object.name)?;
        }
        let total: u64 = files.iter().map(|file| file.bytes).sum();
        let progress = Progress::new(printer);
        let mut done = 0;
        for file in &files {
            if !is_there(file) {
                let mut show = |bytes| progress.show(Stage::bytes("putting", done + bytes, total));
                self.storage.put(&file.name, &self.staged.join(&file.name), &mut show)?;
            }
            done += file.bytes;
        }
        drop(progress);
        let line = format!("put {} files ({}) into {}", files.len(), Bytes(total), self.address());
        printer.say(Verbosity::Normal, &line);
        fs::remove_dir_all(&self.staged)?;
        Ok(())
    }
}

struct File {
    /// Parts of it are parted by slashes.
    name: String,
    bytes: u64,
}

/// The files of a folder in the order in which they are put: weights, then what is small, then what says that all is there.
fn files(folder: &Path) -> std::io::Result<Vec<File>> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in folder.read_dir()? {
            let entry = entry?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            match entry.file_type()?.is_dir() {
                true => folders.push((entry.path(), format!("{name}/"))),
                false => found.push(File { name, bytes: entry.metadata()?.len() }),
            }
        }
    }
    let place = |name: &str| match name {
        CONFIG => 3,
        name if name.ends_with(".index.json") => 2,
        name if name.ends_with(".safetensors") => 0,
        _ => 1,
    };
    found.sort_by(|a, b| (place(&a.name), &a.name).cmp(&(place(&b.name), &b.name)));
    Ok(found)
}

const CONFIG: &str = "config.json";
