//! gRPC's framing for the goal-state services: length-prefixed messages over an HTTP/2 body.
//!
//! Why not tonic's own codec: messages here reach a gigabyte. They are received into one allocation of exactly their
//! length, after their length was reserved from the [`Budget`], and the allocation goes when the message does; tonic's
//! decoder would keep it for as long as the stream stays open.

use std::ops::Range;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt;
use tonic::Status;
use tonic::body::Body;

use super::budget::{Budget, Reserved};

/// Flag and length in front of each message.
pub(super) const PREFIX: usize = 5;

/// Bytes that have to arrive in each stall interval, unless the message needs fewer to be complete.
const PROGRESS: usize = 64 << 10;

/// Bytes a second that a sender has to reach over a whole message, beyond the stall interval: whoever has reserved much of
/// the budget may not keep it by sending little.
const LEAST_RATE: f64 = (1 << 20) as f64;

/// What bounds the messages of one stream.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Bytes of all messages together.
    pub budget: Budget,
    /// Largest message, in bytes.
    pub max_message: u64,
    /// How long a message that has begun may make no progress.
    pub stall: Duration,
}

/// A message as received, and the part of the budget that it holds.
#[derive(Debug)]
pub struct Received {
    /// The encoded message.
    pub bytes: Bytes,
    /// Given back when the message is done with.
    pub reserved: Reserved,
}

/// The messages of one request body.
#[derive(Debug)]
pub struct Messages {
    body: Body,
    pending: Bytes,
    bounds: Bounds,
    number: u64,
}

impl Messages {
    /// Reads messages from `body`.
    #[must_use]
    pub fn new(body: Body, bounds: Bounds) -> Self {
        Self { body, pending: Bytes::new(), bounds, number: 0 }
    }

    /// How many messages were begun so far.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The next message, or `None` when the sender has half-closed. Waits without limit for a message to begin, and
    /// without limit for the budget.
    ///
    /// # Errors
    ///
    /// The body is not gRPC, is cut short, is larger than allowed, or makes no progress.
    pub async fn next(&mut self) -> Result<Option<Received>, Status> {
        while self.pending.is_empty() {
            match self.frame(None).await? {
                Some(data) => self.pending = data,
                None => return Ok(None),
            }
        }
        self.number += 1;
        let mut prefix = [0; PREFIX];
        self.fill(&mut prefix.as_mut_slice(), 0..PREFIX, PREFIX).await?;
        let length = (&prefix[1..]).get_u32();
        match prefix[0] {
            0 => {}
            1 => {
                return Err(Status::unimplemented(format!(
                    "message {}: compressed messages are not accepted",
                    self.number
                )));
            }
            flag => {
                return Err(Status::invalid_argument(format!(
                    "message {}: byte 0 is {flag}: gRPC's compression flag is 0 or 1",
                    self.number
                )));
            }
        }
        if u64::from(length) > self.bounds.max_message {
            return Err(Status::resource_exhausted(format!(
                "message {}: {length} bytes, more than api.max_message_bytes ({}) allows",
                self.number, self.bounds.max_message
            )));
        }
        let whole = length as usize;
        let mut message = BytesMut::new();
        if self.pending.len() < whole {
            message.reserve(whole.min(PROGRESS));
            // Whoever announces a message and sends next to nothing of it takes nothing from the others' budget.
            self.fill(&mut message, 0..whole.min(PROGRESS), whole).await?;
        }
        let reserved = self.bounds.budget.reserve(length).await.ok_or_else(|| {
            Status::resource_exhausted(format!(
                "message {}: {length} bytes are more than api.max_buffered_bytes allows",
                self.number
            ))
        })?;
        let begun = message.len();
        let bytes = if begun == 0 {
            // A copy, so that a small message does not keep the frame it came in.
            Bytes::copy_from_slice(&self.pending.split_to(whole))
        } else {
            message.reserve(whole - begun);
            self.fill(&mut message, begun..whole, whole).await?;
            message.freeze()
        };
        Ok(Some(Received { bytes, reserved }))
    }

    /// Puts the next bytes of the body into `target`: that part of `whole` bytes.
    async fn fill(
        &mut self,
        target: &mut impl BufMut,
        part: Range<usize>,
        whole: usize,
    ) -> Result<(), Status> {
        let (mut missing, mut arrived) = (part.len(), 0);
        let stall = self.bounds.stall;
        let last = Instant::now() + stall + Duration::from_secs_f64(whole as f64 / LEAST_RATE);
        let mut deadline = last.min(Instant::now() + stall);
        loop {
            let here = self.pending.len().min(missing);
            target.put(self.pending.split_to(here));
            missing -= here;
            if missing == 0 {
                return Ok(());
            }
            arrived += here;
            if arrived >= PROGRESS {
                arrived = 0;
                deadline = last.min(Instant::now() + stall);
            }
            self.pending = self.frame(Some(deadline)).await?.ok_or_else(|| {
                Status::invalid_argument(format!(
                    "message {}: the stream ends after {} of {whole} bytes",
                    self.number,
                    part.end - missing
                ))
            })?;
        }
    }

    async fn frame(&mut self, deadline: Option<Instant>) -> Result<Option<Bytes>, Status> {
        loop {
            let frame = match deadline {
                None => self.body.frame().await,
                Some(deadline) => timeout_at(deadline, self.body.frame()).await.map_err(|_| {
                    Status::deadline_exceeded(format!(
                        "message {}: too slow: fewer than {PROGRESS} bytes in {} s, or over the whole message fewer \
                         than {} bytes a second; api.stall_seconds sets the limit",
                        self.number,
                        self.bounds.stall.as_secs(),
                        LEAST_RATE
                    ))
                })?,
            };
            let Some(frame) = frame else { return Ok(None) };
            // Trailers carry nothing here.
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
    }
}

/// An encoded message with its prefix.
#[must_use]
pub fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX + message.len());
    bytes.put_bytes(0, PREFIX);
    bytes.put_slice(message);
    frame(&mut bytes);
    bytes.freeze()
}

/// Fills in the prefix, for which there is room in front of the message.
pub(super) fn frame(bytes: &mut BytesMut) {
    let length = u32::try_from(bytes.len() - PREFIX).unwrap_or(u32::MAX);
    bytes[..PREFIX].copy_from_slice(&[&[0], &length.to_be_bytes()[..]].concat());
}

/// The response whose messages are `messages` (each with its prefix); an error ends it with that status.
pub fn response(
    messages: impl futures::Stream<Item = Result<Bytes, Status>> + Send + 'static,
) -> Response<Body> {
    let mut failed = None;
    let frames = messages.map(Some).chain(tokio_stream::once(None)).filter_map(move |item| {
        // After an error no more data follows, only its trailers.
        match item {
            Some(Ok(data)) if failed.is_none() => Some(Ok::<_, Status>(Frame::data(data))),
            Some(Ok(_)) => None,
            Some(Err(status)) => {
                failed.get_or_insert(status);
                None
            }
            None => Some(Ok(Frame::trailers(trailers(failed.as_ref())))),
        }
    });
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn trailers(status: Option<&Status>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let added = match status {
        Some(status) => status.add_header(&mut trailers),
        None => Status::ok("").add_header(&mut trailers),
    };
    if added.is_err() {
        trailers.insert("grpc-status", HeaderValue::from(tonic::Code::Internal as i32));
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(parts: &[&[u8]], max_message: u64) -> Messages {
        let frames: Vec<_> =
            parts.iter().map(|part| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(part)))).collect();
        let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
        let budget = Budget::new(1 << 20);
        Messages::new(body, Bounds { budget, max_message, stall: Duration::from_millis(200) })
    }

    #[tokio::test]
    async fn messages_are_put_together_from_any_frames() {
        let mut stream = Vec::new();
        for message in [&b"first"[..], b"", b"the third one"] {
            stream.extend_from_slice(&framed(message));
        }
        for size in 1..stream.len() {
            let parts: Vec<_> = stream.chunks(size).collect();
            let mut messages = messages(&parts, 100);
            for expected in [&b"first"[..], b"", b"the third one"] {
                let message = messages.next().await.expect("valid").expect("there is one more");
                assert_eq!(message.bytes, expected, "with frames of {size} bytes");
            }
            assert!(messages.next().await.expect("valid").is_none());
        }
    }

    #[tokio::test]
    async fn faults_of_the_framing_name_their_place() {
        let cases: [(&[&[u8]], tonic::Code, &str); 4] = [
            (&[b"\x00\x00\x00\x00\x09abc"], tonic::Code::InvalidArgument, "after 3 of 9 bytes"),
            (&[b"\x00\x00"], tonic::Code::InvalidArgument, "after 2 of 5 bytes"),
            (&[b"\x07\x00\x00\x00\x00"], tonic::Code::InvalidArgument, "compression flag"),
            (&[b"\x00\x00\x00\x01\x00"], tonic::Code::ResourceExhausted, "api.max_message_bytes"),
        ];
        for (parts, code, text) in cases {
            let status = messages(parts, 100).next().await.expect_err("must be refused");
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(text), "expected {text:?} in {status}");
        }
    }

    #[tokio::test]
    async fn a_message_that_the_budget_never_has_room_for_is_refused_at_once() {
        let message = framed(&[7; 200]);
        let frames = [Ok::<_, Status>(Frame::data(message))];
        let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
        let bounds = Bounds { budget: Budget::new(100), max_message: 1000, stall: Duration::from_secs(60) };
        let status = Messages::new(body, bounds.clone()).next().await.expect_err("must be refused");
        assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}");
        assert!(status.message().contains("api.max_buffered_bytes"), "{status}");
        assert_eq!(bounds.budget.used(), 0);
    }

    #[tokio::test]
    async fn a_message_of_which_next_to_nothing_came_takes_nothing_from_the_budget() {
        let first =
            futures::stream::iter([Ok::<_, Status>(Frame::data(Bytes::from_static(b"\0\0\x0f\0\0ab")))]);
        let body = Body::new(StreamBody::new(futures::StreamExt::chain(first, futures::stream::pending())));
        let bounds =
            Bounds { budget: Budget::new(1 << 20), max_message: 1 << 20, stall: Duration::from_secs(60) };
        let mut messages = Messages::new(body, bounds.clone());
        let waiting = tokio::time::timeout(Duration::from_millis(50), messages.next()).await;
        assert!(waiting.is_err(), "{waiting:?}");
        assert_eq!(bounds.budget.used(), 0);
    }

    #[tokio::test]
    async fn a_message_longer_than_its_beginning_arrives_whole() {
        let message: Vec<u8> = (0..3 * PROGRESS + 17).map(|number| number as u8).collect();
        let stream = framed(&message);
        let parts: Vec<_> = stream.chunks(4099).collect();
        let received = messages(&parts, 1 << 20).next().await.expect("valid").expect("there is one");
        assert!(received.bytes == message, "{} bytes", received.bytes.len());
        let cut: Vec<_> = stream[..stream.len() - 1].chunks(4099).collect();
        let status = messages(&cut, 1 << 20).next().await.expect_err("must be refused");
        let text = format!("after {} of {} bytes", message.len() - 1, message.len());
        assert!(status.message().contains(&text), "expected {text:?} in {status}");
    }

    #[tokio::test]
    async fn a_sender_that_stalls_within_a_message_is_cut() {
        let first =
            futures::stream::iter([Ok::<_, Status>(Frame::data(Bytes::from_static(b"\0\0\0\0\x09ab")))]);
        let body = Body::new(StreamBody::new(futures::StreamExt::chain(first, futures::stream::pending())));
        let bounds = Bounds { budget: Budget::new(100), max_message: 100, stall: Duration::from_millis(100) };
        let status = Messages::new(body, bounds.clone()).next().await.expect_err("must be cut");
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status}");
        assert_eq!(bounds.budget.used(), 0, "what it had reserved is free again");
    }

    #[tokio::test]
    async fn a_sender_that_goes_on_too_slowly_loses_what_it_reserved() {
        static CHUNK: [u8; PROGRESS] = [0; PROGRESS];
        let begin =
            futures::stream::iter([Ok::<_, Status>(Frame::data(Bytes::from_static(b"\0\0\x08\0\0")))]);
        let rest = futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            Some((Ok(Frame::data(Bytes::from_static(&CHUNK))), ()))
        });
        let body = Body::new(StreamBody::new(futures::StreamExt::chain(begin, Box::pin(rest))));
        let stall = Duration::from_millis(300);
        let bounds = Bounds { budget: Budget::new(1 << 20), max_message: 1 << 20, stall };
        let begun = Instant::now();
        let status = Messages::new(body, bounds.clone()).next().await.expect_err("must be cut");
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status}");
        // At that rate the whole of it would take 1.2 s.
        assert!(begun.elapsed() < Duration::from_millis(1150), "{:?}", begun.elapsed());
        assert_eq!(bounds.budget.used(), 0, "what it had reserved is free again");
    }
}
