//! Asks the hub, with limits on time and on what is read.

use std::io::Read;
use std::time::Duration;

use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, StatusCode};
use ureq::{Agent, Body};

use crate::error::Error;
use crate::id::Id;
use crate::settings::Settings;

/// A connection to the hub.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// The beginning of an answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Box<dyn Read>,
}

impl Client {
    pub(crate) fn new(settings: &Settings) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_resolve(Some(PATIENCE))
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(3 * PATIENCE))
            .timeout_per_read(Some(3 * PATIENCE))
            .user_agent(concat!("aludel/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Self { agent, endpoint: settings.endpoint.clone(), token: settings.token.clone() }
    }

    /// The hub's address.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The text that describes a model at a revision.
    pub(crate) fn describe(&self, id: &Id) -> Result<String, Error> {
        let revision = id.revision.replace('/', "%2F");
        let path = format!("/api/models/{}/revision/{revision}?blobs=true", id.name);
        let answer = self.get(&path, None).map_err(|detail| self.unreachable(id, detail))?;
        self.check(id, answer.status)?;
        let mut text = String::new();
        let read = answer.body.take(LONGEST_DESCRIPTION).read_to_string(&mut text);
        read.map_err(|error| self.unreachable(id, error.to_string()))?;
        Ok(text)
    }

    /// A file of a commit, from a byte on, or so many bytes from its beginning.
    ///
    /// Errors: what went wrong with the connection.
    pub(crate) fn file(&self, id: &Id, commit: &str, name: &str, range: Range) -> Result<Answer, String> {
        let path = format!("/{}/resolve/{commit}/{}", id.name, escaped(name));
        let range = match range {
            Range::From(0) => None,
            Range::From(start) => Some(format!("bytes={start}-")),
            Range::Of(bytes) => Some(format!("bytes={}-{}", bytes.start, bytes.end.saturating_sub(1))),
        };
        self.get(&path, range)
    }

    /// Whether an answer is what was asked for.
    pub(crate) fn check(&self, id: &Id, status: StatusCode) -> Result<(), Error> {
        let (model, endpoint) = (id.shown(), self.endpoint.clone());
        match status.as_u16() {
            200..=299 => Ok(()),
            404 => Err(Error::Unknown { model, endpoint }),
            // The hub answers so for models that it does not show, whether they exist or not.
            401 if self.token.is_none() => Err(Error::Unknown { model, endpoint }),
            status @ (401 | 403) => Err(Error::Forbidden { model, endpoint, status }),
            status => Err(Error::Protocol { model, endpoint, detail: format!("status {status}") }),
        }
    }

    pub(crate) fn unreachable(&self, id: &Id, detail: String) -> Error {
        Error::Unreachable { model: id.shown(), endpoint: self.endpoint.clone(), detail }
    }

    fn get(&self, path: &str, range: Option<String>) -> Result<Answer, String> {
        let mut request =
            self.agent.get(format!("{}{path}", self.endpoint)).header("Accept-Encoding", "identity");
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header("Range", range);
        }
        let (parts, body) = request.call().map_err(|error| error.to_string())?.into_parts();
        Ok(Answer { status: parts.status, headers: parts.headers, body: Box::new(Body::into_reader(body)) })
    }
}

/// Which bytes of a file.
pub(crate) enum Range {
    From(u64),
    Of(std::ops::Range<u64>),
}

/// A name in a path of an address: what is no plain character becomes its code.
fn escaped(name: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    name.bytes().map(escape).collect()
}

/// A hub that has not answered by then is not there.
const PATIENCE: Duration = Duration::from_secs(8);

const LONGEST_DESCRIPTION: u64 = 32 << 20;
