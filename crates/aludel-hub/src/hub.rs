//! Finds a model and, where it is on a hub, brings what is needed of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aludel_checkpoint::{expand_home, free_space, needed_adapter_files, needed_files};
use tempfile::TempDir;

use crate::cache::Place;
use crate::client::Client;
use crate::download::Download;
use crate::error::Error;
use crate::headers::stand_in;
use crate::id::{Id, SCHEME, is_beneath_a_folder};
use crate::listing::{Fault, Listing, RemoteFile};
use crate::settings::Settings;

/// Where models are looked for, and who is told of downloads. Clones share what they brought.
#[derive(Clone)]
pub struct Hub {
    settings: Option<Settings>,
    on_event: Arc<dyn Fn(Event<'_>) + Send + Sync>,
    headers_only: bool,
    /// Finds what is neither on disk nor on the hub.
    elsewhere: Option<Arc<Elsewhere>>,
    /// Folders of stand-ins, removed with the last clone.
    stand_ins: Arc<Mutex<Vec<TempDir>>>,
}

/// Something that happens on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A download goes on.
    Progress {
        /// The model.
        model: &'a str,
        /// The file.
        file: &'a str,
        /// Bytes of all its files that are there.
        bytes: u64,
        /// Bytes of all its files.
        total_bytes: u64,
    },
    /// All of a model is there.
    Finished {
        /// The model.
        model: &'a str,
        /// Bytes that were downloaded.
        bytes: u64,
    },
    /// The hub does not answer, so that the copy in the cache is used.
    FromCache {
        /// The model.
        model: &'a str,
        /// Why.
        reason: &'a str,
    },
}

/// Finds the folder of what lies in another place, by its address; `None` for a text that is no address, and why it is not there.
type Elsewhere = dyn Fn(&str) -> Option<Result<PathBuf, String>> + Send + Sync;

/// Chooses the files that are needed of those that there are, or says why they are of no use.
pub(crate) type Needed = fn(&[String]) -> Result<Vec<String>, String>;

/// A model that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Its folder or file.
    pub path: PathBuf,
    /// Bytes of weights that are to be downloaded before it can be read: `path` then has stand-ins for them.
    pub missing_bytes: u64,
}

impl Hub {
    /// Looks on disk only.
    pub fn none() -> Self {
        Self {
            settings: None,
            on_event: Arc::new(|_| {}),
            headers_only: false,
            elsewhere: None,
            stand_ins: Arc::default(),
        }
    }

    /// Looks on disk, in the cache and on the hub of these settings, and tells `on_event` what happens.
    pub fn new(settings: Settings, on_event: impl Fn(Event<'_>) + Send + Sync + 'static) -> Self {
        Self { settings: Some(settings), on_event: Arc::new(on_event), ..Self::none() }
    }

    /// The same hub, that asks `find` first: it gives the folder of what lies in another place, by its address; `None` for a text that is no
    /// address, or why it is not there.
    #[must_use]
    pub fn with_elsewhere(
        mut self,
        find: impl Fn(&str) -> Option<Result<PathBuf, String>> + Send + Sync + 'static,
    ) -> Self {
        self.elsewhere = Some(Arc::new(find));
        self
    }

    /// The same hub, that brings no weights but only the headers of those in safetensors, for as long as it or a clone of it lives.
    #[must_use]
    pub fn with_headers_only(mut self) -> Self {
        self.headers_only = true;
        self
    }

    /// Finds the model that a user wrote as `text`, with a revision where one was given. What exists on disk goes before what is on the hub, and
    /// what is no `owner/name` is a path, whether it exists or not.
    ///
    /// Errors: [`Error`].
    pub fn locate(&self, text: &str, revision: Option<&str>) -> Result<Located, Error> {
        self.find(text, revision, needed_files)
    }

    /// As [`Hub::locate`], of an adapter in peft's layout.
    ///
    /// Errors: [`Error`].
    pub fn locate_adapter(&self, text: &str, revision: Option<&str>) -> Result<Located, Error> {
        self.find(text, revision, needed_adapter_files)
    }

    fn find(&self, text: &str, revision: Option<&str>, needed: Needed) -> Result<Located, Error> {
        let on_disk = |path: PathBuf| Located { path, missing_bytes: 0 };
        if let Some(found) =
            self.elsewhere.as_ref().filter(|_| revision.is_none()).and_then(|find| find(text))
        {
            return found.map(on_disk).map_err(|detail| Error::Elsewhere { detail });
        }
        let (name, is_forced) = match text.strip_prefix(SCHEME) {
            Some(name) => (name, true),
            None => (text, false),
        };
        let owned = || (text.to_owned(), revision.unwrap_or_default().to_owned());
        let path = expand_home(text);
        let exists = !is_forced && path.exists();
        if exists && revision.is_some() {
            let (model, revision) = owned();
            return Err(Error::NoRevisions { model, revision });
        }
        let id = Id::parse(name, revision).filter(|_| is_forced || (!exists && !is_beneath_a_folder(text)));
        match (id, &self.settings) {
            (Some(id), Some(settings)) => self.fetch(&id, settings, needed),
            (None, _) | (_, None) if revision.is_some() => {
                let (model, revision) = owned();
                Err(Error::NoName { model, revision })
            }
            _ => Ok(on_disk(path)),
        }
    }

    fn fetch(&self, id: &Id, settings: &Settings, needed: Needed) -> Result<Located, Error> {
        let model = id.shown();
        let Some(cache) = &settings.cache else {
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, "no home folder; set HF_HOME");
            return Err(Error::io("find", Path::new("the folder of the hub's cache"))(source));
        };
        let place = Place::of(id, cache);
        if settings.is_offline {
            let known = place.known(needed).map(|path| Located { path, missing_bytes: 0 });
            return known.ok_or_else(|| Error::Offline { model, cache: cache.clone() });
        }
        let client = Client::new(settings);
        let text = match client.describe(id) {
            Ok(text) => text,
            Err(Error::Unreachable { model, endpoint, detail }) => {
                let Some(path) = place.known(needed) else {
                    return Err(Error::Unreachable { model, endpoint, detail });
                };
                (self.on_event)(Event::FromCache { model: &model, reason: &detail });
                return Ok(Located { path, missing_bytes: 0 });
            }
            Err(error) => return Err(error),
        };
        let endpoint = client.endpoint().to_owned();
        let listing = Listing::parse(&text, needed).map_err(|fault| match fault {
            Fault::Protocol(detail) => Error::Protocol { model: model.clone(), endpoint, detail },
            Fault::NoWeights(detail) => Error::NoWeights { model: model.clone(), detail },
        })?;
        Fetch { hub: self, id, model: &model, client: &client, place: &place, listing: &listing, cache }.run()
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("settings", &self.settings)
            .field("headers_only", &self.headers_only)
            .finish_non_exhaustive()
    }
}

/// One model that is brought.
struct Fetch<'a> {
    hub: &'a Hub,
    id: &'a Id,
    model: &'a str,
    client: &'a Client,
    place: &'a Place,
    listing: &'a Listing,
    cache: &'a Path,
}

impl Fetch<'_> {
    fn run(&self) -> Result<Located, Error> {
        let missing: Vec<&RemoteFile> = self.files().filter(|file| !self.has(file)).collect();
        let can_stand_in = |file: &&&RemoteFile| self.hub.headers_only && file.name.ends_with(".safetensors");
        let (later, now): (Vec<&RemoteFile>, Vec<&RemoteFile>) =
            missing.iter().partition(|file| can_stand_in(file));
        self.check_room(&now)?;
        self.download(&now)?;
        for file in self.files().filter(|file| self.has(file)) {
            self.place.link(&self.listing.commit, file)?;
        }
        self.place.remember(self.listing)?;
        let snapshot = self.place.snapshot(&self.listing.commit);
        if later.is_empty() {
            return Ok(Located { path: snapshot, missing_bytes: 0 });
        }
        let path = self.stand_ins(&snapshot, &later)?;
        Ok(Located { path, missing_bytes: later.iter().map(|file| file.bytes).sum() })
    }

    fn files(&self) -> impl Iterator<Item = &RemoteFile> {
        self.listing.files.iter()
    }

    fn has(&self, file: &RemoteFile) -> bool {
        self.place.has(&self.listing.commit, file)
    }

    fn check_room(&self, files: &[&RemoteFile]) -> Result<(), Error> {
        let needed: u64 = files.iter().map(|file| file.bytes).sum();
        match free_space(self.cache).ok().flatten() {
            Some(free) if free < needed => Err(Error::NoRoom {
                model: self.model.to_owned(),
                cache: self.cache.to_path_buf(),
                needed: needed.div_ceil(1_000_000),
                free: free / 1_000_000,
            }),
            _ => Ok(()), // Where the system does not say, a full disk shows while writing.
        }
    }

    fn download(&self, files: &[&RemoteFile]) -> Result<(), Error> {
        let total_bytes = files.iter().map(|file| file.bytes).sum();
        let mut done = 0;
        for file in files {
            let download = Download { client: self.client, id: self.id, commit: &self.listing.commit, file };
            download.run(self.place, &mut |bytes| {
                let bytes = done + bytes;
                (self.hub.on_event)(Event::Progress {
                    model: self.model,
                    file: &file.name,
                    bytes,
                    total_bytes,
                });
            })?;
            done += file.bytes;
        }
        if done > 0 {
            (self.hub.on_event)(Event::Finished { model: self.model, bytes: done });
        }
        Ok(())
    }

    /// A folder that has what is there and stand-ins for what is not.
    fn stand_ins(&self, snapshot: &Path, later: &[&RemoteFile]) -> Result<PathBuf, Error> {
        let temporary = std::env::temp_dir();
        let folder = tempfile::Builder::new().prefix("aludel-headers-").tempdir();
        let folder = folder.map_err(Error::io("create a folder in", &temporary))?;
        let path = folder.path().to_path_buf();
        for file in self.files() {
            let to = path.join(&file.name);
            let parent = to.parent().unwrap_or(&path);
            std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            if later.iter().any(|later| later.name == file.name) {
                stand_in(self.client, (self.id, &self.listing.commit), file, &to)?;
            } else {
                std::fs::copy(snapshot.join(&file.name), &to).map_err(Error::io("copy to", &to))?;
            }
        }
        self.hub.stand_ins.lock().unwrap_or_else(PoisonError::into_inner).push(folder);
        Ok(path)
    }
}
