//! Reads files that come from elsewhere: regular ones, and of those that are held in memory no more than a stated size.
//!
//! A pipe would block its reader and a device never end; a text larger than any real one would take all memory. A link in a
//! model folder may lead elsewhere only to what is still that file: the copy of a private file would otherwise travel with the output.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::Error;

/// The most that a file beside weights is read of, in bytes: real tokenizers have up to 40 million.
pub const LARGEST_SIDE_FILE: u64 = 256 << 20;

/// Opens a regular file for reading. Folders, pipes and devices are refused: reading them could block or never end.
pub(crate) fn open(path: &Path) -> Result<File, Error> {
    is_regular(path)?;
    File::open(path).map_err(Error::io("open", path))
}

/// Reads a regular file of at most `most_bytes`.
///
/// Errors: [`Error::Io`]; [`Error::Unsupported`] where it is none; [`Error::Damaged`] where it is larger.
pub fn read_bounded(path: &Path, most_bytes: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    open(path)?
        .take(most_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    if bytes.len() as u64 > most_bytes {
        return Err(Error::damaged(path, format!("it is larger than {most_bytes} bytes")));
    }
    Ok(bytes)
}

/// As [`read_bounded`], of text.
///
/// Errors: as [`read_bounded`], and [`Error::Damaged`] where it is not UTF-8.
pub fn read_text(path: &Path, most_bytes: u64) -> Result<String, Error> {
    String::from_utf8(read_bounded(path, most_bytes)?)
        .map_err(|error| Error::damaged(path, format!("it is not UTF-8: {error}")))
}

/// Refuses what is no regular file, and a link out of its folder, unless it leads to a file of the same name (a folder of links to a model) or into a
/// folder `blobs` (how hubs' caches lay their snapshots out).
pub(crate) fn check_side_file(folder: &Path, name: &Path) -> Result<(), Error> {
    let path = folder.join(name);
    is_regular(&path)?;
    let real = path.canonicalize().map_err(Error::io("read", &path))?;
    let home = folder.canonicalize().map_err(Error::io("read", folder))?;
    let is_same = real.file_name() == name.file_name();
    let is_blob = real.parent().and_then(Path::file_name) == Some(OsStr::new("blobs"));
    if real.starts_with(home) || is_same || is_blob {
        return Ok(());
    }
    let detail = format!(
        "it is a link to {}, out of its folder, which would travel with the output under another name: \
         put the file itself there, or remove the link",
        real.display()
    );
    Err(Error::unsupported(&path, detail))
}

fn is_regular(path: &Path) -> Result<(), Error> {
    match path.metadata().map_err(Error::io("read", path))?.is_file() {
        true => Ok(()),
        false => Err(Error::unsupported(path, "it is not a regular file")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_bound_and_no_further() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, b"12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert!(matches!(read_bounded(&path, 4), Err(Error::Damaged { .. })));
        assert!(matches!(read_bounded(folder.path(), 4), Err(Error::Unsupported { .. })));
        fs::write(&path, [0xff]).unwrap();
        assert!(matches!(read_text(&path, 4), Err(Error::Damaged { .. })));
    }

    #[test]
    #[cfg(unix)]
    fn what_never_ends_is_not_read() {
        let endless = Path::new("/dev/zero");
        assert!(matches!(read_bounded(endless, u64::MAX), Err(Error::Unsupported { .. })));
    }

    #[test]
    #[cfg(unix)]
    fn links_lead_to_the_same_file_or_nowhere_else() {
        use std::os::unix::fs::symlink;
        let all = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = all.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (model, other, blobs) = (folder("model"), folder("other"), folder("blobs"));
        for path in
            [other.join("tokenizer.json"), other.join("id_rsa"), blobs.join("0a1b"), model.join("within")]
        {
            fs::write(path, b"{}").unwrap();
        }
        let name = Path::new("tokenizer.json");
        let linked = |to: &Path| {
            let link = model.join(name);
            let _ = fs::remove_file(&link);
            symlink(to, &link).unwrap();
            check_side_file(&model, name)
        };
        linked(&other.join("tokenizer.json")).unwrap();
        linked(&blobs.join("0a1b")).unwrap();
        linked(Path::new("within")).unwrap();
        let error = linked(&other.join("id_rsa")).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("id_rsa"), "{error}");
        assert!(matches!(linked(Path::new("/dev/zero")), Err(Error::Unsupported { .. })));
        assert!(matches!(linked(Path::new("nowhere")), Err(Error::Io { .. })));
    }
}
