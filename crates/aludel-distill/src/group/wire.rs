//! Carries bytes and sums between the first process and the others, over TCP.
//!
//! In and out: frames, a length of eight bytes and as many bytes. Everything goes to the first process or comes from it, in the order of the processes.
//! Nothing is encrypted or authenticated beyond a digest of the run: the network between the machines of a training is taken to be its own, as by
//! other tools of this kind.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::ops::AddAssign;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Place;
use crate::error::Error;

/// How long processes are waited for.
const PATIENCE: Duration = Duration::from_secs(600);

/// Between two tries to reach the first process.
const PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a frame at most: those of a piece of a buffer, and room for what is told at the beginning.
const MOST: u64 = 64 << 20;

/// The connections of one process.
#[derive(Debug)]
pub(super) enum Links {
    /// Of the first, to all others in their order.
    First(Vec<TcpStream>),
    /// Of another, to the first.
    Other(TcpStream),
}

impl Links {
    /// Connects all processes of a run.
    pub(super) fn open(place: &Place, run: &str) -> Result<Self, Error> {
        if place.rank == 0 { Self::listen(place, run, PATIENCE) } else { Self::call(place, run, PATIENCE) }
    }

    fn listen(place: &Place, run: &str, patience: Duration) -> Result<Self, Error> {
        let at = format!("port {}", place.port);
        let failed = |what: &str, error: io::Error| Error::group(format!("cannot {what} {at}: {error}"));
        let listener =
            TcpListener::bind(("0.0.0.0", place.port)).map_err(|error| failed("listen at", error))?;
        listener.set_nonblocking(true).map_err(|error| failed("listen at", error))?;
        let begin = Instant::now();
        let mut links: Vec<Option<TcpStream>> = (1..place.size).map(|_| None).collect();
        while let Some(missing) = links.iter().position(Option::is_none) {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if begin.elapsed() > patience {
                        let missing = missing + 1;
                        return Err(Error::group(format!(
                            "process {missing} of {} has not come",
                            place.size
                        )));
                    }
                    sleep(PAUSE);
                    continue;
                }
                Err(error) => return Err(failed("listen at", error)),
            };
            // Whoever says nothing, or something else, is not of the group.
            let Ok(hello) = prepare(&stream).and_then(|()| receive(&mut stream)) else { continue };
            let Some((rank, named)) = parse_hello(&hello) else { continue };
            let answer = match links.get_mut(rank.wrapping_sub(1)) {
                _ if named != format!("{} {run}", place.size) => {
                    "it is of another run, or of another number of processes"
                }
                Some(link @ None) => {
                    send(&mut stream, b"").map_err(|error| lost(rank, &error))?;
                    stream.set_read_timeout(None).map_err(|error| lost(rank, &error))?;
                    *link = Some(stream);
                    continue;
                }
                Some(Some(_)) => "there are two processes of its number",
                None => "its number is not of the group",
            };
            let _ = send(&mut stream, answer.as_bytes());
            return Err(Error::group(format!("process {rank} cannot take part: {answer}")));
        }
        Ok(Self::First(links.into_iter().flatten().collect()))
    }

    fn call(place: &Place, run: &str, patience: Duration) -> Result<Self, Error> {
        let begin = Instant::now();
        let mut stream = loop {
            match connect(&place.host, place.port) {
                Ok(stream) => break stream,
                Err(_) if begin.elapsed() <= patience => sleep(PAUSE),
                Err(error) => {
                    let (host, port) = (&place.host, place.port);
                    return Err(Error::group(format!(
                        "cannot reach the first process at {host}:{port}: {error}"
                    )));
                }
            }
        };
        let hello = format!("{HELLO} {} {} {run}", place.rank, place.size);
        let answer = send(&mut stream, hello.as_bytes()).and_then(|()| receive(&mut stream));
        match answer.map_err(|error| lost(0, &error))?.as_slice() {
            [] => Ok(Self::Other(stream)),
            refusal => Err(Error::group(format!(
                "the first process refuses this one: {}",
                String::from_utf8_lossy(refusal)
            ))),
        }
    }

    /// The first process's bytes, in all; what the others give is not looked at.
    pub(super) fn broadcast(&mut self, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        match self {
            Self::First(links) => {
                for (place, link) in links.iter_mut().enumerate() {
                    send(link, &bytes).map_err(|error| lost(place + 1, &error))?;
                }
                Ok(bytes)
            }
            Self::Other(link) => receive(link).map_err(|error| lost(0, &error)),
        }
    }

    /// Sends bytes to the first process; of another.
    pub(super) fn give(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Self::First(_) => Err(Error::internal("the first process gives itself something")),
            Self::Other(link) => send(link, bytes).map_err(|error| lost(0, &error)),
        }
    }

    /// What process `rank` has sent to the first; of the first.
    pub(super) fn take(&mut self, rank: usize) -> Result<Vec<u8>, Error> {
        match self {
            Self::First(links) => match links.get_mut(rank.wrapping_sub(1)) {
                Some(link) => receive(link).map_err(|error| lost(rank, &error)),
                None => Err(Error::internal(format!("there is no process {rank} to take from"))),
            },
            Self::Other(_) => Err(Error::internal("only the first process takes")),
        }
    }

    /// The bytes of process `owner`, in all, by way of the first; `own` is this process's number.
    pub(super) fn spread(&mut self, own: usize, owner: usize, mut bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        match self {
            Self::First(_) => {
                if owner != own {
                    bytes = self.take(owner)?;
                }
                let Self::First(links) = self else { return Ok(bytes) };
                for (place, link) in links.iter_mut().enumerate().filter(|(place, _)| place + 1 != owner) {
                    send(link, &bytes).map_err(|error| lost(place + 1, &error))?;
                }
                Ok(bytes)
            }
            Self::Other(_) if owner == own => self.give(&bytes).map(|()| bytes),
            Self::Other(link) => receive(link).map_err(|error| lost(0, &error)),
        }
    }

    /// Sums over all processes, in their order.
    pub(super) fn sum<T: bytemuck::Pod + AddAssign>(&mut self, numbers: &mut [T]) -> Result<(), Error> {
        match self {
            Self::First(links) => {
                for (place, link) in links.iter_mut().enumerate() {
                    let bytes = receive(link).map_err(|error| lost(place + 1, &error))?;
                    let given = bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>);
                    if given.len() != numbers.len() {
                        return Err(Error::group(format!(
                            "process {} has other things to add up",
                            place + 1
                        )));
                    }
                    numbers.iter_mut().zip(given).for_each(|(sum, number)| *sum += number);
                }
                for (place, link) in links.iter_mut().enumerate() {
                    send(link, bytemuck::cast_slice(numbers)).map_err(|error| lost(place + 1, &error))?;
                }
            }
            Self::Other(link) => {
                let sums = send(link, bytemuck::cast_slice(numbers)).and_then(|()| receive(link));
                let sums = sums.map_err(|error| lost(0, &error))?;
                let to: &mut [u8] = bytemuck::cast_slice_mut(numbers);
                if sums.len() != to.len() {
                    return Err(Error::group("the first process has other things to add up"));
                }
                to.copy_from_slice(&sums);
            }
        }
        Ok(())
    }
}

/// What a process says first, before its number, how many it counts, and its run.
const HELLO: &str = "aludel-group-1";

/// The number of a process, and the rest of what it says.
fn parse_hello(bytes: &[u8]) -> Option<(usize, &str)> {
    let rest = std::str::from_utf8(bytes).ok()?.strip_prefix(HELLO)?.strip_prefix(' ')?;
    let (rank, named) = rest.split_once(' ')?;
    Some((rank.parse().ok()?, named))
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A connection that was accepted: it waits for what is sent, for a while until it has said who it is.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))
}

fn send(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(&(bytes.len() as u64).to_le_bytes())?;
    stream.write_all(bytes)
}

fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 8];
    stream.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    if len > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "what was sent is no frame"));
    }
    // Memory is taken as bytes arrive.
    let mut bytes = Vec::new();
    stream.take(len).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn lost(rank: usize, error: &io::Error) -> Error {
    let hint = "its own output says why";
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            Error::group(format!("process {rank} has gone; {hint}"))
        }
        _ => Error::group(format!("process {rank} cannot be reached: {error}; {hint}")),
    }
}
