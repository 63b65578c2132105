//! A hub on this machine with one model, `owner/tiny`, on a thread of its own. Every connection serves one request.
#![allow(dead_code, reason = "each test program compiles this module for itself and uses a part of it")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// How it answers.
#[derive(Clone, Copy)]
pub(crate) enum Manner {
    Plain,
    /// Weights break off after so many bytes.
    BreaksOff {
        every: usize,
    },
    /// A byte of the weights is another.
    Corrupts,
    /// Every answer has this status.
    Answers(u16),
    /// Those who have no such token are refused.
    WantsToken(&'static str),
}

pub(crate) struct Server {
    pub(crate) endpoint: String,
    log: Arc<Mutex<Vec<Request>>>,
}

#[derive(Clone)]
struct Request {
    path: String,
    range: Option<String>,
    token: Option<String>,
}

impl Server {
    pub(crate) fn start(files: Vec<(&'static str, Vec<u8>)>, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&log);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let Some(request) = read(&stream) else { continue };
                seen.lock().unwrap().push(request.clone());
                let _ = answer(stream, &request, &files, manner);
            }
        });
        Self { endpoint, log }
    }

    pub(crate) fn requests(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    pub(crate) fn ranges(&self) -> Vec<String> {
        self.log.lock().unwrap().iter().filter_map(|request| request.range.clone()).collect()
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let (mut range, mut token) = (None, None);
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "range" => range = Some(value.to_owned()),
                "authorization" => token = value.strip_prefix("Bearer ").map(str::to_owned),
                _ => {}
            }
        }
    }
    Some(Request { path, range, token })
}

fn answer(
    mut stream: TcpStream,
    request: &Request,
    files: &[(&'static str, Vec<u8>)],
    manner: Manner,
) -> std::io::Result<()> {
    let status = match manner {
        Manner::Answers(status) => Some(status),
        Manner::WantsToken(token) if request.token.as_deref() != Some(token) => Some(401),
        _ => None,
    };
    if let Some(status) = status {
        return write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    if let Some(revision) = request.path.strip_prefix("/api/models/owner/tiny/revision/") {
        let known = revision.strip_suffix("?blobs=true");
        if !known.is_some_and(|revision| ["main", "v1", COMMIT].contains(&revision)) {
            return write!(stream, "HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        let text = description(files);
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        );
    }
    let name = request.path.strip_prefix(&format!("/owner/tiny/resolve/{COMMIT}/"));
    let Some((_, content)) = files.iter().find(|(known, _)| Some(*known) == name) else {
        return write!(stream, "HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let mut content = content.clone();
    if matches!(manner, Manner::Corrupts) && content.len() > 1000 {
        content[999] ^= 1;
    }
    let (start, end) =
        match request.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) {
            Some((start, end)) => {
                (start.parse().unwrap(), end.parse().map_or(content.len(), |last: usize| last + 1))
            }
            None => (0, content.len()),
        };
    let all = content.len();
    let part = &content[start..end];
    let status = if request.range.is_some() { "206 Partial Content" } else { "200 OK" };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{all}\r\nConnection: close\r\n\r\n",
        part.len(),
        end - 1
    )?;
    match manner {
        Manner::BreaksOff { every } if part.len() > every => stream.write_all(&part[..every]),
        _ => stream.write_all(part),
    }
}

/// What a hub says of its files: large ones by their SHA-256, others by git's digest, which nobody checks.
fn description(files: &[(&'static str, Vec<u8>)]) -> String {
    let file = |(name, content): &(&str, Vec<u8>)| {
        let blob = format!("{:040x}", content.len() + name.len() * 1_000_000);
        let size = content.len();
        let large =
            format!(r#", "lfs": {{"sha256": "{}", "size": {size}, "pointerSize": 134}}"#, sha256(content));
        let large = if size > 1000 { large } else { String::new() };
        format!(r#"{{"rfilename": "{name}", "size": {size}, "blobId": "{blob}"{large}}}"#)
    };
    let files: Vec<String> = files.iter().map(file).collect();
    format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, files.join(", "))
}
