//! Plays object storage on this machine: one bucket, `shelf`, in memory, with the part of S3's protocol that files need.
//!
//! Signatures are not checked, but who signs is. Every connection serves one request, on a thread of its own.
#![allow(dead_code, reason = "each test program compiles this module for itself and uses a part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

pub(crate) struct Bucket {
    /// For `AWS_ENDPOINT_URL`.
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    /// Parts of objects that are not complete, by their keys.
    parts: BTreeMap<String, BTreeMap<usize, Vec<u8>>>,
    /// What was asked for, as `METHOD /path`.
    log: Vec<String>,
    /// So many requests to come are answered with 503.
    busy: usize,
    /// Whether nothing may be put there.
    is_read_only: bool,
}

/// Whose requests are answered.
pub(crate) const KEY: &str = "AKTESTKEY";

/// Objects of one page of a list.
const PAGE: usize = 3;

impl Bucket {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                thread::spawn(move || {
                    let _ = serve(&stream, &state);
                });
            }
        });
        Self { endpoint, state }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.state.lock().unwrap().objects.keys().cloned().collect()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>)) {
        change(&mut self.state.lock().unwrap().objects);
    }

    pub(crate) fn be_busy(&self, requests: usize) {
        self.state.lock().unwrap().busy = requests;
    }

    pub(crate) fn be_read_only(&self, is_read_only: bool) {
        self.state.lock().unwrap().is_read_only = is_read_only;
    }

    /// The requests that begin so, in order.
    pub(crate) fn asked(&self, beginning: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.log.iter().filter(|line| line.starts_with(beginning)).cloned().collect()
    }

    /// How many requests there were that begin so.
    pub(crate) fn requests(&self, beginning: &str) -> usize {
        self.asked(beginning).len()
    }
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn serve(stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let request = read(stream)?;
    let mut state = state.lock().unwrap();
    state.log.push(format!("{} {}", request.method, request.path));
    let mut out = stream;
    if state.busy > 0 {
        state.busy -= 1;
        return answer(&mut out, "503 Slow Down", &[], b"");
    }
    let signer = request
        .headers
        .get("authorization")
        .and_then(|text| text.split_once("Credential=")?.1.split('/').next());
    if signer != Some(KEY) || (state.is_read_only && request.method == "PUT") {
        let text = b"<Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>";
        return answer(&mut out, "403 Forbidden", &[], text);
    }
    let Some(key) = request.path.strip_prefix("/shelf") else {
        return answer(&mut out, "404 Not Found", &[], b"<Error><Code>NoSuchBucket</Code></Error>");
    };
    let key = key.trim_start_matches('/').to_owned();
    match request.method.as_str() {
        "GET" if key.is_empty() => list(&mut out, &request, &state.objects),
        "GET" | "HEAD" => get(&mut out, &request, state.objects.get(&key)),
        "PUT"
            if request.headers.get("if-none-match").is_some_and(|tag| tag == "*")
                && state.objects.contains_key(&key) =>
        {
            answer(
                &mut out,
                "412 Precondition Failed",
                &[],
                b"<Error><Code>PreconditionFailed</Code></Error>",
            )
        }
        "POST" if request.query.contains_key("uploads") => {
            state.parts.insert(key, BTreeMap::new());
            let text = "<InitiateMultipartUploadResult><Bucket>shelf</Bucket><Key>k</Key><UploadId>1</UploadId></InitiateMultipartUploadResult>";
            answer(&mut out, "200 OK", &[], text.as_bytes())
        }
        "PUT" if request.query.contains_key("partNumber") => {
            let number = request.query["partNumber"].parse().unwrap();
            let tag = tag(&request.body);
            state.parts.entry(key).or_default().insert(number, request.body);
            answer(&mut out, "200 OK", &[("ETag".into(), tag)], b"")
        }
        "POST" => {
            let parts = state.parts.remove(&key).unwrap_or_default();
            state.objects.insert(key, parts.into_values().flatten().collect());
            let text = "<CompleteMultipartUploadResult><Location>l</Location><Bucket>shelf</Bucket><Key>k</Key><ETag>\"x\"</ETag></CompleteMultipartUploadResult>";
            answer(&mut out, "200 OK", &[], text.as_bytes())
        }
        "DELETE" => {
            state.parts.remove(&key);
            state.objects.remove(&key);
            answer(&mut out, "204 No Content", &[], b"")
        }
        "PUT" => {
            let tag = tag(&request.body);
            state.objects.insert(key, request.body);
            answer(&mut out, "200 OK", &[("ETag".into(), tag)], b"")
        }
        _ => answer(&mut out, "405 Method Not Allowed", &[], b""),
    }
}

fn read(stream: &TcpStream) -> std::io::Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let query = query.map(|(name, value)| (name.to_owned(), plain(value))).collect();
    let path = plain(path);
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length: &String| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Request { method, path, query, headers, body })
}

fn get(out: &mut impl Write, request: &Request, object: Option<&Vec<u8>>) -> std::io::Result<()> {
    let Some(object) = object else {
        return answer(out, "404 Not Found", &[], b"<Error><Code>NoSuchKey</Code></Error>");
    };
    let range = request.headers.get("range").and_then(|text| text.strip_prefix("bytes=")?.split_once('-'));
    let (status, bytes, mut headers) = match range {
        Some((start, end)) => {
            let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
            let end = end.min(object.len() - 1);
            let range = format!("bytes {start}-{end}/{}", object.len());
            ("206 Partial Content", &object[start..=end], vec![("Content-Range".to_owned(), range)])
        }
        None => ("200 OK", &object[..], Vec::new()),
    };
    headers.push(("ETag".to_owned(), tag(object)));
    headers.push(("Last-Modified".to_owned(), MODIFIED_HTTP.to_owned()));
    if request.method == "HEAD" {
        headers.push(("Content-Length".to_owned(), object.len().to_string()));
        return head(out, status, &headers);
    }
    answer(out, status, &headers, bytes)
}

fn list(out: &mut impl Write, request: &Request, objects: &BTreeMap<String, Vec<u8>>) -> std::io::Result<()> {
    let prefix = request.query.get("prefix").cloned().unwrap_or_default();
    let after = request.query.get("continuation-token").cloned().unwrap_or_default();
    let mut found = objects.iter().filter(|(key, _)| key.starts_with(&prefix) && **key > after);
    let page: Vec<_> = found.by_ref().take(PAGE).collect();
    let more = found.next().is_some();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult><Name>shelf</Name><IsTruncated>{more}</IsTruncated>"
    );
    if let Some((last, _)) = page.last().filter(|_| more) {
        text.push_str(&format!("<NextContinuationToken>{last}</NextContinuationToken>"));
    }
    for (key, object) in page {
        text.push_str(&format!(
            "<Contents><Key>{key}</Key><LastModified>{MODIFIED}</LastModified><ETag>{}</ETag><Size>{}</Size></Contents>",
            tag(object),
            object.len()
        ));
    }
    text.push_str("</ListBucketResult>");
    answer(out, "200 OK", &[], text.as_bytes())
}

fn answer(
    out: &mut impl Write,
    status: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> std::io::Result<()> {
    let length = ("Content-Length".to_owned(), body.len().to_string());
    head(out, status, &[headers, &[length]].concat())?;
    out.write_all(body)
}

fn head(out: &mut impl Write, status: &str, headers: &[(String, String)]) -> std::io::Result<()> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(out, "HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n")
}

/// Another for another content.
fn tag(content: &[u8]) -> String {
    let hash =
        content.iter().fold(0u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("\"{hash:x}-{}\"", content.len())
}

/// Undoes the escapes of an address.
fn plain(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = || {
            std::str::from_utf8(after.get(..2)?).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok())
        };
        match (first, code()) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = after;
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap()
}

const MODIFIED: &str = "2026-01-01T00:00:00.000Z";
const MODIFIED_HTTP: &str = "Thu, 01 Jan 2026 00:00:00 GMT";
