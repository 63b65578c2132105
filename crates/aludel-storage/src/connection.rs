//! Carries the requests of the protocol's library over the HTTP client that the rest of the program has.
//!
//! In: requests with bodies in memory. Out: answers whose bodies are read as they are asked for. A call blocks its thread. It does so
//! because everything that calls it waits anyway; a second HTTP client with a second TLS would be most of this crate's build.

use std::io::Read;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService,
};
use ureq::Agent;
use ureq::config::AutoHeaderValue;
use ureq::http::{Request, Response};

/// Makes connections.
#[derive(Debug)]
pub(crate) struct Connector;

#[derive(Debug)]
struct Connection(Agent);

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding(AutoHeaderValue::None)
            .timeout_resolve(Some(PATIENCE))
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(6 * PATIENCE))
            .timeout_per_read(Some(3 * PATIENCE))
            .user_agent(concat!("aludel/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Ok(HttpClient::new(Connection(agent)))
    }
}

#[async_trait]
impl HttpService for Connection {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let answer = if body.is_empty() {
            self.0.run(Request::from_parts(parts, ()))
        } else {
            self.0.run(Request::from_parts(parts, &body[..]))
        };
        let (parts, body) = answer.map_err(failed)?.into_parts();
        let body = HttpResponseBody::new(Answer(Mutex::new(Box::new(body.into_reader()))));
        Ok(Response::from_parts(parts, body))
    }
}

fn failed(error: ureq::Error) -> HttpError {
    let kind = match &error {
        ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
        ureq::Error::Io(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
            HttpErrorKind::Connect
        }
        _ => HttpErrorKind::Request,
    };
    HttpError::new(kind, error)
}

/// The body of an answer.
struct Answer(Mutex<Box<dyn Read + Send>>);

impl Body for Answer {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let mut piece = vec![0; PIECE];
        let read = self.0.lock().unwrap_or_else(PoisonError::into_inner).read(&mut piece);
        Poll::Ready(match read {
            Ok(0) => None,
            Ok(length) => {
                piece.truncate(length);
                Some(Ok(Frame::data(piece.into())))
            }
            Err(error) => Some(Err(HttpError::new(HttpErrorKind::Interrupted, error))),
        })
    }
}

/// A storage that has not answered by then is not there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes that are read at once.
const PIECE: usize = 128 << 10;
