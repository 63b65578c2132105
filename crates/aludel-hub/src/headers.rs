//! Makes stand-ins for safetensors files that only have their headers, so that a merge can be planned without its weights.
//!
//! A stand-in has the size of the file and, but for the header, no content: it takes no room on the disk. Planning reads nothing but
//! headers, so a plan of it is the plan of the file.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use crate::client::{Client, Range};
use crate::error::Error;
use crate::id::Id;
use crate::listing::RemoteFile;

/// Writes the stand-in of a file to a path.
pub(crate) fn stand_in(
    client: &Client,
    (id, commit): (&Id, &str),
    file: &RemoteFile,
    path: &Path,
) -> Result<(), Error> {
    let protocol = |detail: &str| Error::Protocol {
        model: format!("{} of {}", file.name, id.shown()),
        endpoint: client.endpoint().to_owned(),
        detail: detail.to_owned(),
    };
    let fetch = |bytes: std::ops::Range<u64>| -> Result<Vec<u8>, Error> {
        let wanted = bytes.end - bytes.start;
        let answer = client
            .file(id, commit, &file.name, Range::Of(bytes))
            .map_err(|detail| client.unreachable(id, detail))?;
        client.check(id, answer.status)?;
        if answer.status.as_u16() != 206 {
            return Err(protocol("all of a file of which a part was asked for"));
        }
        let mut part = Vec::new();
        answer
            .body
            .take(wanted)
            .read_to_end(&mut part)
            .map_err(|error| client.unreachable(id, error.to_string()))?;
        if part.len() as u64 == wanted {
            Ok(part)
        } else {
            Err(protocol("less of a file than was asked for"))
        }
    };
    let mut start = fetch(0..file.bytes.min(FIRST_BYTES))?;
    let Some(length) = start.first_chunk::<8>().map(|length| u64::from_le_bytes(*length)) else {
        return Err(protocol("a file of safetensors that is too short for a header"));
    };
    let end = length.saturating_add(8);
    if end > file.bytes || end > LARGEST_HEADER {
        return Err(protocol("a file of safetensors whose header is too long"));
    }
    if end > start.len() as u64 {
        let rest = fetch(start.len() as u64..end)?;
        start.extend(rest);
    }
    start.truncate(end as usize);
    let mut to = File::create(path).map_err(Error::io("create", path))?;
    to.write_all(&start).map_err(Error::io("write", path))?;
    to.set_len(file.bytes).map_err(Error::io("write", path))
}

/// Most headers are shorter.
const FIRST_BYTES: u64 = 256 << 10;

/// The format's own limit.
const LARGEST_HEADER: u64 = 100_000_008;
