//! Makes one request until it is answered, or until there is no hope.
//!
//! In: a body. Out: what its reader makes of the answer. What passes (no connection, a status that asks to wait, an answer cut short)
//! is tried again, each time after a longer wait of random length, or after what the server asks for; how often is bounded, and so is the
//! length of an answer. Redirections are not followed, so a key goes to no other host. The key is in no message.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::Body;
use ureq::http::{HeaderMap, Response, header};

/// A connection to a server.
pub(super) struct Client {
    agent: Agent,
    key: Option<String>,
    retries: u32,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The server refuses, with its words.
    Refused { status: u16, said: String },
    /// There was none, however often it was asked.
    Unanswered { detail: String, times: u32 },
    /// There was one, and it is none to this request.
    Wrong { detail: String },
    /// It was asked to stop.
    Stopped,
}

/// One attempt.
enum Attempt {
    /// Another may do.
    Passing {
        detail: String,
        wait: Option<Duration>,
    },
    /// Another may do, but not many more.
    Wrong(String),
    Final(Fault),
}

impl Client {
    pub(super) fn new(key: Option<String>, retries: u32, timeout: Duration) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(timeout))
            .user_agent(concat!("aludel/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Self { agent, key, retries }
    }

    /// The same with fewer attempts: whether a server is there at all is to be known soon.
    pub(super) fn impatient(&self) -> Self {
        Self { agent: self.agent.clone(), key: self.key.clone(), retries: self.retries.min(PROBING) }
    }

    /// What `read` makes of the answer, of at most so many bytes, to a request; without a body it is a GET.
    pub(super) fn ask<T>(
        &self,
        url: &str,
        body: Option<&Value>,
        most: u64,
        stop: &AtomicBool,
        read: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Result<T, Fault> {
        let body = match body {
            Some(body) => Some(serde_json::to_vec(body).map_err(|e| Fault::Wrong { detail: e.to_string() })?),
            None => None,
        };
        let (mut times, mut wrong) = (0, 0);
        loop {
            if stop.load(Relaxed) {
                return Err(Fault::Stopped);
            }
            times += 1;
            let attempt =
                self.once(url, body.as_deref(), most).and_then(|bytes| read(&bytes).map_err(Attempt::Wrong));
            let wait = match attempt {
                Ok(value) => return Ok(value),
                Err(Attempt::Final(fault)) => return Err(fault),
                Err(Attempt::Wrong(detail)) => {
                    wrong += 1;
                    if wrong > WRONG_ANSWERS || times > self.retries {
                        return Err(Fault::Wrong { detail });
                    }
                    None
                }
                Err(Attempt::Passing { detail, .. }) if times > self.retries => {
                    return Err(Fault::Unanswered { detail, times });
                }
                Err(Attempt::Passing { wait, .. }) => wait,
            };
            sleep(wait.map_or_else(|| back_off(times), |wait| wait.min(LONGEST_WISH)), stop);
        }
    }

    fn once(&self, url: &str, body: Option<&[u8]>, most: u64) -> Result<Vec<u8>, Attempt> {
        let key = self.key.as_ref().map(|key| format!("Bearer {key}"));
        let result = match body {
            Some(body) => {
                let mut request = self.agent.post(url).header(header::CONTENT_TYPE, "application/json");
                if let Some(key) = key {
                    request = request.header(header::AUTHORIZATION, key);
                }
                request.send(body)
            }
            None => {
                let mut request = self.agent.get(url);
                if let Some(key) = key {
                    request = request.header(header::AUTHORIZATION, key);
                }
                request.call()
            }
        };
        let response = result.map_err(|error| self.failed(&error))?;
        let status = response.status().as_u16();
        let wait = wish(response.headers());
        if (200..300).contains(&status) {
            return self.body(response, most);
        }
        let said = self.body(response, LONGEST_REFUSAL).unwrap_or_default();
        let said = self.shown(&String::from_utf8_lossy(&said));
        Err(match status {
            408 | 425 | 429 | 500.. => Attempt::Passing { detail: format!("status {status}: {said}"), wait },
            status => Attempt::Final(Fault::Refused { status, said }),
        })
    }

    fn body(&self, response: Response<Body>, most: u64) -> Result<Vec<u8>, Attempt> {
        response.into_body().into_with_config().limit(most).read_to_vec().map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &ureq::Error) -> Attempt {
        let detail = self.shown(&error.to_string());
        match error {
            ureq::Error::BodyExceedsLimit(most) => {
                Attempt::Wrong(format!("it is longer than {most} bytes, which no answer to this request is"))
            }
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
                Attempt::Final(Fault::Wrong { detail })
            }
            _ => Attempt::Passing { detail, wait: None },
        }
    }

    /// What a server said, fit to be shown: on one line, not long, and without the key.
    fn shown(&self, text: &str) -> String {
        let text = match &self.key {
            Some(key) => text.replace(key.as_str(), "[key]"),
            None => text.to_owned(),
        };
        let mut line: String =
            text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_QUOTE).collect();
        if text.chars().nth(LONGEST_QUOTE).is_some() {
            line.push_str("...");
        }
        line.trim().to_owned()
    }
}

/// What a server wants to be waited for. Dates are not read.
fn wish(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse::<u32>().ok().map(|seconds| Duration::from_secs(seconds.into()))
}

/// Half a second, twice as long each time, up to half a minute; of that a random share between half and all.
fn back_off(times: u32) -> Duration {
    let longest = FIRST_WAIT.saturating_mul(1 << times.saturating_sub(1).min(16)).min(LONGEST_WAIT);
    longest.mul_f64(0.5 + 0.5 * fastrand::f64())
}

/// Looks up from time to time to see whether it is to stop.
fn sleep(duration: Duration, stop: &AtomicBool) {
    let end = std::time::Instant::now() + duration;
    while !stop.load(Relaxed) {
        let left = end.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

const CONNECT: Duration = Duration::from_secs(10);
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The longest wait that a server may ask for.
const LONGEST_WISH: Duration = Duration::from_secs(300);
/// Attempts beyond the first at a server that nothing is known of yet.
const PROBING: u32 = 3;
/// How many answers to one request may be wrong before it is given up.
const WRONG_ANSWERS: u32 = 2;
const LONGEST_REFUSAL: u64 = 64 << 10;
/// Characters of what a server says that are shown.
const LONGEST_QUOTE: usize = 400;
