//! Downloads from a server on this machine that speaks the few endpoints of a hub, and now and then speaks badly.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions too")]

mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aludel_checkpoint::Checkpoint;
use aludel_hub::{Error, Event, Hub, Settings};
use server::{COMMIT, Manner, Server};

struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn settings(&self, endpoint: &str) -> Settings {
        let cache = Some(self.folder.path().join("hub"));
        Settings { endpoint: endpoint.to_owned(), cache, token: None, is_offline: false }
    }

    fn hub(&self, server: &Server) -> Hub {
        Hub::new(self.settings(&server.endpoint), |_| {})
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("hub/models--owner--tiny")
    }
}

/// A safetensors file of one tensor of so many bytes.
fn weights(bytes: usize) -> Vec<u8> {
    let header = format!(r#"{{"w":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[0,{bytes}]}}}}"#);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend((0..bytes).map(|at| (at * 7 % 251) as u8));
    file
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", b"{\"model_type\": \"llama\"}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("model.safetensors", weights(300_000)),
        ("pytorch_model.bin", b"never asked for".to_vec()),
        ("README.md", b"never asked for".to_vec()),
    ]
}

fn content(path: &Path, name: &str) -> Vec<u8> {
    fs::read(path.join(name)).unwrap()
}

#[test]
fn a_model_is_downloaded_once_into_pythons_layout() {
    let (home, server) = (Home::new(), Server::start(files(), Manner::Plain));
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let hub = Hub::new(home.settings(&server.endpoint), move |event| {
        seen.lock().unwrap().push(format!("{event:?}"));
    });
    let found = hub.locate("owner/tiny", None).unwrap();
    assert_eq!((&found.path, found.missing_bytes), (&home.model().join("snapshots").join(COMMIT), 0));
    assert_eq!(content(&found.path, "model.safetensors"), weights(300_000));
    assert_eq!(Checkpoint::open(&found.path).unwrap().tensors().len(), 1);
    assert_eq!(fs::read_to_string(home.model().join("refs/main")).unwrap(), COMMIT);
    assert!(!found.path.join("pytorch_model.bin").exists() && !found.path.join("README.md").exists());
    #[cfg(unix)]
    {
        let link = fs::read_link(found.path.join("config.json")).unwrap();
        assert!(link.starts_with("../../blobs"), "{link:?}");
    }
    let events: Vec<String> = std::mem::take(&mut *events.lock().unwrap());
    assert!(events.last().unwrap().starts_with("Finished"), "{events:?}");
    let before = server.requests();
    assert_eq!(hub.locate("owner/tiny", None).unwrap(), found);
    assert_eq!(server.requests(), before + 1, "what is there is not asked for again");
}

#[test]
fn a_revision_is_a_branch_or_a_commit() {
    let (home, server) = (Home::new(), Server::start(files(), Manner::Plain));
    let hub = home.hub(&server);
    for revision in ["v1", COMMIT] {
        let found = hub.locate("owner/tiny", Some(revision)).unwrap();
        assert!(found.path.ends_with(COMMIT));
    }
    assert!(home.model().join("refs/v1").is_file() && !home.model().join("refs").join(COMMIT).exists());
    let unknown = hub.locate("owner/tiny", Some("missing")).unwrap_err();
    assert!(matches!(&unknown, Error::Unknown { model, .. } if model == "owner/tiny@missing"), "{unknown}");
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    let (home, server) = (Home::new(), Server::start(files(), Manner::BreaksOff { every: 70_000 }));
    let found = home.hub(&server).locate("owner/tiny", None).unwrap();
    assert_eq!(content(&found.path, "model.safetensors"), weights(300_000));
    assert!(server.ranges().iter().any(|range| range == "bytes=70000-"), "{:?}", server.ranges());
}

#[test]
fn an_earlier_partial_file_is_gone_on_with() {
    let (home, server) = (Home::new(), Server::start(files(), Manner::Plain));
    let blob = home.model().join("blobs").join(server::sha256(&weights(300_000)));
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(format!("{}.incomplete", blob.display()), &weights(300_000)[..1234]).unwrap();
    let found = home.hub(&server).locate("owner/tiny", None).unwrap();
    assert_eq!(content(&found.path, "model.safetensors"), weights(300_000));
    assert!(server.ranges().contains(&"bytes=1234-".to_owned()), "{:?}", server.ranges());
}

#[test]
fn what_is_not_what_the_hub_says_is_removed() {
    let (home, server) = (Home::new(), Server::start(files(), Manner::Corrupts));
    let error = home.hub(&server).locate("owner/tiny", None).unwrap_err();
    assert!(matches!(&error, Error::Damaged { file, .. } if file == "model.safetensors"), "{error}");
    let blobs: Vec<_> =
        fs::read_dir(home.model().join("blobs")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        blobs.iter().all(|name| !name.to_string_lossy().starts_with(&server::sha256(&weights(300_000)))),
        "{blobs:?}"
    );
}

#[test]
fn a_plan_needs_headers_only() {
    let (home, server) = (Home::new(), Server::start(files(), Manner::Plain));
    let hub = home.hub(&server).with_headers_only();
    let found = hub.locate("owner/tiny", None).unwrap();
    let bytes = weights(300_000).len() as u64;
    assert_eq!(found.missing_bytes, bytes);
    let checkpoint = Checkpoint::open(&found.path).unwrap();
    assert_eq!((checkpoint.files()[0].bytes, checkpoint.tensor("w").unwrap().bytes), (bytes, 300_000));
    assert!(checkpoint.config().is_some());
    assert!(!home.model().join("snapshots").join(COMMIT).join("model.safetensors").exists());
    drop(hub);
    assert!(!found.path.exists(), "stand-ins go with the hub");
    let whole = home.hub(&server).locate("owner/tiny", None).unwrap();
    let hub = home.hub(&server).with_headers_only();
    assert_eq!(hub.locate("owner/tiny", None).unwrap(), whole, "what is there needs no stand-in");
}

#[test]
fn folders_go_before_names() {
    let (home, server) = (Home::new(), Server::start(files(), Manner::Plain));
    let hub = home.hub(&server);
    let text = home.folder.path().to_str().unwrap();
    assert_eq!(hub.locate(text, None).unwrap().path, home.folder.path());
    let error = hub.locate(text, Some("main")).unwrap_err();
    assert!(
        matches!(&error, Error::NoRevisions { .. }) && error.to_string().contains("leave out `@main`"),
        "{error}"
    );
    // The tests run in the crate's folder, which has `src`: what is written beneath it is meant to be there.
    assert_eq!(hub.locate("src/absent", None).unwrap().path, Path::new("src/absent"));
    let error = hub.locate("a/b/c", Some("v1")).unwrap_err();
    assert!(matches!(error, Error::NoName { .. }), "{error}");
    assert_eq!(server.requests(), 0);
    let forced = hub.locate("hf://owner/tiny", None).unwrap();
    assert!(forced.path.ends_with(COMMIT));
}

#[test]
fn without_the_network_the_cache_serves_or_the_error_tells_the_way() {
    let home = Home::new();
    let offline = |is_offline, endpoint: &str| {
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        let settings = Settings { is_offline, ..home.settings(endpoint) };
        let hub = Hub::new(settings, move |event| {
            if matches!(event, Event::FromCache { .. }) {
                seen.lock().unwrap().push(format!("{event:?}"));
            }
        });
        let found = hub.locate("owner/tiny", None);
        (found, events.lock().unwrap().len())
    };
    // A port of this machine at which nobody listens.
    let nobody = "http://127.0.0.1:9";
    let error = offline(false, nobody).0.unwrap_err();
    assert!(
        matches!(&error, Error::Unreachable { .. }) && error.to_string().contains("HF_ENDPOINT"),
        "{error}"
    );
    let error = offline(true, nobody).0.unwrap_err();
    assert!(
        matches!(&error, Error::Offline { .. }) && error.to_string().contains("HF_HUB_OFFLINE"),
        "{error}"
    );
    let server = Server::start(files(), Manner::Plain);
    let whole = home.hub(&server).locate("owner/tiny", None).unwrap();
    let (found, told) = offline(false, nobody);
    assert_eq!((found.unwrap(), told), (whole.clone(), 1));
    let (found, told) = offline(true, nobody);
    assert_eq!((found.unwrap(), told), (whole, 0));
}

#[test]
fn models_that_are_gated_private_or_unknown_are_told_apart() {
    let home = Home::new();
    let error = |manner, token: Option<&str>| {
        let server = Server::start(files(), manner);
        let settings = Settings { token: token.map(str::to_owned), ..home.settings(&server.endpoint) };
        Hub::new(settings, |_| {}).locate("owner/tiny", None)
    };
    let gated = error(Manner::Answers(403), None).unwrap_err();
    assert!(
        matches!(gated, Error::Forbidden { status: 403, .. }) && gated.to_string().contains("HF_TOKEN"),
        "{gated}"
    );
    assert!(matches!(error(Manner::Answers(401), None), Err(Error::Unknown { .. })));
    assert!(matches!(error(Manner::Answers(401), Some("t")), Err(Error::Forbidden { .. })));
    assert!(matches!(error(Manner::Answers(404), None), Err(Error::Unknown { .. })));
    assert!(matches!(error(Manner::Answers(500), None), Err(Error::Protocol { .. })));
    assert!(matches!(error(Manner::WantsToken("hf_secret"), Some("wrong")), Err(Error::Forbidden { .. })));
    assert!(error(Manner::WantsToken("hf_secret"), Some("hf_secret")).is_ok());
}

#[test]
fn a_model_of_gguf_files_says_which() {
    let (home, server) = (Home::new(), Server::start(vec![("tiny-Q4_0.gguf", vec![1])], Manner::Plain));
    let error = home.hub(&server).locate("owner/tiny", None).unwrap_err();
    assert!(
        matches!(&error, Error::NoWeights { .. }) && error.to_string().contains("tiny-Q4_0.gguf"),
        "{error}"
    );
}
