//! Reads what the hub says of a model at a revision, and chooses the files that are needed.
//!
//! In: the hub's JSON, untrusted. Out: the commit, and every needed file with its size and digest, each name of which stays inside a folder.

use serde_json::Value;

use crate::hub::Needed;

/// A model at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    /// 40 hexadecimal digits.
    pub(crate) commit: String,
    /// The files that are needed.
    pub(crate) files: Vec<RemoteFile>,
}

/// A file of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// Its name in the cache: the SHA-256 of a large file, git's digest of any other.
    pub(crate) etag: String,
    /// Whether the etag is the SHA-256 of its content.
    pub(crate) is_hashed: bool,
}

/// Why a description is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is no description.
    Protocol(String),
    /// The model has nothing to read.
    NoWeights(String),
}

impl Listing {
    /// `needed` says which of the files are needed, or that what has to be there is missing.
    pub(crate) fn parse(text: &str, needed: Needed) -> Result<Self, Fault> {
        let protocol = |detail: &str| Fault::Protocol(detail.to_owned());
        let value: Value = serde_json::from_str(text).map_err(|_| protocol("what is no JSON"))?;
        let commit = value.get("sha").and_then(Value::as_str).filter(|commit| is_digest(commit, 40));
        let commit = commit.ok_or_else(|| protocol("no commit"))?.to_owned();
        let siblings =
            value.get("siblings").and_then(Value::as_array).ok_or_else(|| protocol("no list of files"))?;
        let name = |file: &Value| Some(file.get("rfilename")?.as_str()?.to_owned());
        let names: Vec<String> = siblings.iter().filter_map(name).collect();
        let needed = needed(&names).map_err(Fault::NoWeights)?;
        let find = |wanted: &String| siblings.iter().find(|file| name(file).as_ref() == Some(wanted));
        let file = |wanted: String| {
            let described = find(&wanted).and_then(|file| describe(&wanted, file));
            described.ok_or_else(|| Fault::Protocol(format!("no size or digest of {wanted}")))
        };
        Ok(Self { commit, files: needed.into_iter().map(file).collect::<Result<_, _>>()? })
    }
}

fn describe(name: &str, file: &Value) -> Option<RemoteFile> {
    let large = file.get("lfs").filter(|lfs| lfs.is_object());
    let (etag, bytes) = match large {
        Some(lfs) => (lfs.get("sha256")?, lfs.get("size")?),
        None => (file.get("blobId")?, file.get("size")?),
    };
    let etag = etag.as_str().filter(|etag| is_digest(etag, if large.is_some() { 64 } else { 40 }))?;
    Some(RemoteFile {
        name: name.to_owned(),
        bytes: bytes.as_u64()?,
        etag: etag.to_owned(),
        is_hashed: large.is_some(),
    })
}

fn is_digest(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use aludel_checkpoint::needed_files;

    use super::*;

    const COMMIT: &str = "0123456789012345678901234567890123456789";

    #[test]
    fn needed_files_have_their_sizes_and_digests() {
        let sha256 = "ab".repeat(32);
        let text = format!(
            r#"{{"sha": "{COMMIT}", "siblings": [
                {{"rfilename": ".gitattributes", "size": 1, "blobId": "{COMMIT}"}},
                {{"rfilename": "config.json", "size": 12, "blobId": "{COMMIT}"}},
                {{"rfilename": "model.safetensors", "size": 99, "blobId": "{COMMIT}", "lfs": {{"sha256": "{sha256}", "size": 99, "pointerSize": 5}}}},
                {{"rfilename": "pytorch_model.bin", "size": 99, "blobId": "{COMMIT}"}}]}}"#
        );
        let listing = Listing::parse(&text, needed_files).unwrap();
        assert_eq!(listing.commit, COMMIT);
        let file = |name: &str, bytes, etag: &str, is_hashed| RemoteFile {
            name: name.into(),
            bytes,
            etag: etag.into(),
            is_hashed,
        };
        assert_eq!(
            listing.files,
            [file("config.json", 12, COMMIT, false), file("model.safetensors", 99, &sha256, true)]
        );
    }

    #[test]
    fn what_could_leave_the_cache_is_no_description() {
        for text in [
            "",
            "[]",
            r#"{"sha": "../../etc", "siblings": []}"#,
            &format!(r#"{{"sha": "{COMMIT}"}}"#),
            &format!(
                r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "a.safetensors", "size": 1, "blobId": "../x"}}]}}"#
            ),
        ] {
            assert!(matches!(Listing::parse(text, needed_files), Err(Fault::Protocol(_))), "{text}");
        }
        let climbing = format!(
            r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "../a.safetensors", "size": 1, "blobId": "{COMMIT}"}}]}}"#
        );
        assert!(matches!(Listing::parse(&climbing, needed_files), Err(Fault::NoWeights(_))));
    }
}
