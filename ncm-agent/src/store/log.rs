//! Appending to the journal: one thread writes what is there, makes all of it durable at once, and answers those who wait.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Durability;
use super::disk::{Append, Disk};
use super::frame::{HEAD, Head, Kind};
use super::open::{FileHead, segment_name};
use crate::fault;

/// So many bytes that nobody waits for yet are made durable all the same: a large message's are on their way while it is applied.
const LARGE: u64 = 8 << 20;

/// Longest piece of a message that is written at once.
const PIECE: usize = 4 << 20;

/// What nobody waits for yet is handed to the thread with what somebody does, unless it is longer than this: waking it for each
/// step of each message would cost more than what it does then.
const WAKES: usize = 64 << 10;

/// Why something is not durable.
pub(crate) type Cause = Arc<str>;

/// Who waits for what was appended so far.
pub(crate) type Ticket = oneshot::Receiver<Result<(), Cause>>;

pub(super) enum Job {
    Append { kind: Kind, head: Vec<u8>, body: Bytes },
    Facts,
    Commit(oneshot::Sender<Result<(), Cause>>),
    Cut(oneshot::Sender<Result<u64, Cause>>),
    Publish { segment: u64, bytes: u64, answer: oneshot::Sender<Result<(), Cause>> },
    Close(oneshot::Sender<()>),
}

impl Job {
    /// Whether the thread is to be told at once.
    fn wakes(&self) -> bool {
        match self {
            Self::Append { kind: Kind::Message | Kind::Step, body, .. } => body.len() >= WAKES,
            _ => true,
        }
    }
}

/// What is known of the journal without asking its thread.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Bytes since the latest snapshot.
    pub(super) log_bytes: AtomicU64,
    pub(super) snapshot_bytes: AtomicU64,
    pub(super) complete: AtomicBool,
    /// Number of the segment that is appended to.
    pub(super) segment: AtomicU64,
    /// Number of the next message.
    pub(super) runs: AtomicU64,
    failure: Mutex<Option<Cause>>,
}

/// The running journal. When the last of its clones is gone, its thread ends.
#[derive(Clone)]
pub(crate) struct Store {
    jobs: Sender<Vec<Job>>,
    /// What is handed to the thread with the next that wakes it.
    kept: Arc<Mutex<Vec<Job>>>,
    state: Arc<State>,
    disk: Arc<Mutex<dyn Disk>>,
    instance: Arc<str>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Store").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Store {
    /// Appends a message that was accepted: `head` is what it is to be applied by. Gives its number.
    pub(crate) fn begin(&self, head: &[u8], message: Bytes) -> u64 {
        let run = self.state.runs.fetch_add(1, Ordering::Relaxed);
        let head = [&run.to_le_bytes(), head].concat();
        self.send(Job::Append { kind: Kind::Message, head, body: message });
        run
    }

    /// Appends that a step of a message was applied. To be called in the order of steps.
    pub(crate) fn step(&self, run: u64, most: usize) {
        let head = [run.to_le_bytes(), (most as u64).to_le_bytes()].concat();
        self.send(Job::Append { kind: Kind::Step, head, body: Bytes::new() });
    }

    /// From now on the journal tells of everything that there should be.
    pub(crate) fn complete(&self) {
        self.state.complete.store(true, Ordering::Relaxed);
        self.send(Job::Append { kind: Kind::Complete, head: Vec::new(), body: Bytes::new() });
    }

    /// What messages are applied by from now on: of the start of the agent.
    pub(super) fn facts(&self) {
        self.send(Job::Facts);
    }

    /// The number that the next segment will have.
    pub(crate) fn next_segment(&self) -> u64 {
        self.state.segment.load(Ordering::Relaxed) + 1
    }

    /// Waits, as far as the configuration says, until what was appended so far is durable.
    pub(crate) fn commit(&self) -> Ticket {
        let (answer, ticket) = oneshot::channel();
        self.send(Job::Commit(answer));
        ticket
    }

    /// Begins a new segment, and gives its number: what is appended from now on is in it.
    pub(crate) fn cut(&self) -> Result<u64, Cause> {
        let (answer, number) = oneshot::channel();
        self.send(Job::Cut(answer));
        number.blocking_recv().unwrap_or_else(|_| Err("the journal has ended".into()))
    }

    /// A snapshot of what was held when a segment began is durable: it takes the place of everything before.
    pub(super) fn publish(&self, segment: u64, bytes: u64) -> Result<(), Cause> {
        let (answer, done) = oneshot::channel();
        self.send(Job::Publish { segment, bytes, answer });
        done.blocking_recv().unwrap_or_else(|_| Err("the journal has ended".into()))
    }

    /// Makes durable what is not, and ends.
    pub(crate) async fn close(&self) {
        let (answer, done) = oneshot::channel();
        self.send(Job::Close(answer));
        drop(done.await);
    }

    fn send(&self, job: Job) {
        let wakes = job.wakes();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(job);
        if wakes {
            // The thread goes only when the last sender does, or by a fault that ends the process.
            drop(self.jobs.send(std::mem::take(&mut kept)));
        }
    }

    /// Why what is accepted is not durable, while it is not.
    pub(crate) fn failure(&self) -> Option<Cause> {
        self.state.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes appended since the latest snapshot, and bytes of that.
    pub(crate) fn size(&self) -> (u64, u64) {
        (self.state.log_bytes.load(Ordering::Relaxed), self.state.snapshot_bytes.load(Ordering::Relaxed))
    }

    /// The journal tells of everything that there should be.
    pub(crate) fn is_complete(&self) -> bool {
        self.state.complete.load(Ordering::Relaxed)
    }

    pub(super) fn disk(&self) -> &Arc<Mutex<dyn Disk>> {
        &self.disk
    }

    pub(super) fn instance(&self) -> &str {
        &self.instance
    }
}

/// Where a segment is gone on with.
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) file: Box<dyn Append>,
    pub(super) salt: u32,
    /// Bytes of it.
    pub(super) length: u64,
    /// Frames of it, all of them durable.
    pub(super) frames: u64,
}

/// Begins a segment: its first frame is durable when this returns.
pub(super) fn begin_segment(disk: &mut dyn Disk, head: &FileHead, instance: &str) -> io::Result<Segment> {
    let name = segment_name(head.number);
    let begun = (|| {
        let mut file = disk.create(&name)?;
        let payload = head.encode(instance);
        let frame = Head::of(Kind::File, 0, 0, &[&payload])?.encode(0);
        file.append(&[&frame, &payload])?;
        file.sync()?;
        disk.sync()?;
        let length = (frame.len() + payload.len()) as u64;
        Ok(Segment { number: head.number, file, salt: head.salt, length, frames: 1 })
    })();
    if begun.is_err() {
        // It would be taken for one that tells something.
        let _gone = disk.remove(&name);
    }
    begun
}

/// Starts the thread.
pub(super) fn start(
    disk: Arc<Mutex<dyn Disk>>,
    segment: Segment,
    instance: &str,
    facts: Vec<u8>,
    durability: Durability,
    state: State,
) -> io::Result<Store> {
    let (jobs, receiver) = channel();
    let (state, instance) = (Arc::new(state), Arc::<str>::from(instance));
    let store = Store {
        jobs,
        kept: Arc::default(),
        state: Arc::clone(&state),
        disk: Arc::clone(&disk),
        instance: Arc::clone(&instance),
    };
    let durable = segment.frames;
    let mut log = Log { disk, segment, durable, unsynced: 0, facts, instance, durability, state, due: None };
    fault::supervise_thread("ncm-journal", "the journal", move || log.run(&receiver))?;
    Ok(store)
}

struct Log {
    disk: Arc<Mutex<dyn Disk>>,
    segment: Segment,
    /// Frames of the segment that are durable.
    durable: u64,
    /// Bytes that are not.
    unsynced: u64,
    facts: Vec<u8>,
    instance: Arc<str>,
    durability: Durability,
    state: Arc<State>,
    /// When what was answered has to be durable.
    due: Option<Instant>,
}

impl Log {
    fn run(&mut self, jobs: &Receiver<Vec<Job>>) {
        let mut waiting = Vec::new();
        loop {
            let wait = self.due.map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()));
            let first = match self.due {
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(_) => jobs.recv_timeout(wait),
            };
            let mut next = match first {
                Ok(jobs) => Some(jobs),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            while let Some(some) = next {
                some.into_iter().for_each(|job| self.take(job, &mut waiting));
                // What came meanwhile is made durable by the same call.
                next = jobs.try_recv().ok();
            }
            self.settle(&mut waiting);
        }
        self.sync();
    }

    fn take(&mut self, job: Job, waiting: &mut Vec<oneshot::Sender<Result<(), Cause>>>) {
        match job {
            Job::Append { kind, head, body } => {
                if !self.has_failed() {
                    let outcome = self.append(kind, &[&head, &body]);
                    self.failed_if("write", outcome);
                }
                if self.unsynced >= LARGE && self.durability == Durability::Always {
                    self.sync();
                }
            }
            Job::Facts => self.append_facts(),
            Job::Commit(answer) => waiting.push(answer),
            // Those who asked before get their answer by the segment that they are in.
            Job::Cut(answer) => {
                self.settle(waiting);
                drop(answer.send(self.cut()));
            }
            Job::Publish { segment, bytes, answer } => {
                let outcome = super::snapshot::publish(&mut *self.disk(), segment);
                if outcome.is_ok() {
                    self.state.snapshot_bytes.store(bytes, Ordering::Relaxed);
                    let log = if segment > self.segment.number { 0 } else { self.segment.length };
                    self.state.log_bytes.store(log, Ordering::Relaxed);
                }
                drop(
                    answer
                        .send(outcome.map_err(|error| Cause::from(explained("publish a snapshot", &error)))),
                );
            }
            Job::Close(answer) => {
                self.settle(waiting);
                self.sync();
                if !self.has_failed() {
                    // It knows all before it to be durable: what is damaged from now on is no torn tail.
                    let outcome = self.append(Kind::Durable, &[]);
                    self.failed_if("write", outcome);
                    self.sync();
                }
                // Who asked may have gone.
                let _asked = answer.send(());
            }
        }
    }

    /// Makes durable what somebody waits for.
    fn settle(&mut self, waiting: &mut Vec<oneshot::Sender<Result<(), Cause>>>) {
        match self.durability {
            Durability::Always if !waiting.is_empty() => self.sync(),
            Durability::Within(_) if self.due.is_some_and(|due| due <= Instant::now()) => self.sync(),
            Durability::Within(most) if self.unsynced > 0 && self.due.is_none() => {
                self.due = Some(Instant::now() + Duration::from_millis(most));
            }
            _ => {}
        }
        let failure = self.failure();
        for answer in waiting.drain(..) {
            // Who asked may have gone.
            drop(answer.send(failure.clone().map_or(Ok(()), Err)));
        }
    }

    fn append_facts(&mut self) {
        if self.has_failed() {
            return;
        }
        let facts = std::mem::take(&mut self.facts);
        let outcome = self.append(Kind::Facts, &[&facts]);
        self.facts = facts;
        self.failed_if("write", outcome);
    }

    fn append(&mut self, kind: Kind, payload: &[&[u8]]) -> io::Result<()> {
        let head = Head::of(kind, self.segment.frames, self.durable, payload)?;
        self.segment.file.append(&[&head.encode(self.segment.salt)])?;
        for part in payload {
            for piece in part.chunks(PIECE) {
                self.segment.file.append(&[piece])?;
            }
        }
        let length = HEAD as u64 + u64::from(head.length);
        self.segment.frames += 1;
        self.segment.length += length;
        self.unsynced += length;
        self.state.log_bytes.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&mut self) {
        self.due = None;
        if self.unsynced == 0 || self.has_failed() || self.durability == Durability::Never {
            return;
        }
        let outcome = self.segment.file.sync();
        if outcome.is_ok() {
            self.unsynced = 0;
            self.durable = self.segment.frames;
        }
        self.failed_if("make durable", outcome);
    }

    /// Ends the segment and begins the next. After a failure that is how the journal comes back: what was not written is in the
    /// snapshot that comes with it.
    fn cut(&mut self) -> Result<u64, Cause> {
        if !self.has_failed() {
            let outcome = self.segment.file.sync();
            self.failed_if("make durable", outcome);
            if let Some(cause) = self.failure() {
                // Its end is not known: a segment that follows would be in the air until there is a snapshot.
                return Err(cause);
            }
        }
        let head = FileHead {
            salt: super::open::salt(),
            complete: self.state.complete.load(Ordering::Relaxed),
            number: self.segment.number + 1,
            frames_before: self.segment.frames,
            ..FileHead::default()
        };
        let begun = begin_segment(
            &mut *self.disk.lock().unwrap_or_else(PoisonError::into_inner),
            &head,
            &self.instance,
        );
        let segment = begun.map_err(|error| Cause::from(explained("begin a segment", &error)))?;
        (self.durable, self.unsynced, self.due) = (segment.frames, 0, None);
        self.segment = segment;
        self.state.segment.store(head.number, Ordering::Relaxed);
        *self.state.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.append_facts();
        Ok(head.number)
    }

    fn disk(&self) -> std::sync::MutexGuard<'_, dyn Disk + 'static> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self) -> Option<Cause> {
        self.state.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_failed(&self) -> bool {
        self.failure().is_some()
    }

    /// After a failure nothing is appended any more: a later message without an earlier one would be another history. What of a
    /// failed fdatasync is on the disk nobody knows, and asking again would not tell.
    fn failed_if(&mut self, action: &str, outcome: io::Result<()>) {
        let Err(error) = outcome else { return };
        let cause = Cause::from(explained(action, &error));
        tracing::error!(
            "what is pushed is programmed and not kept: {cause}; senders are told so until it can be kept again"
        );
        *self.state.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
        // As far as it goes: it is not read on from here.
        let _cut = self.segment.file.cut(self.segment.length);
    }
}

/// What happened, and what helps.
fn explained(action: &str, error: &io::Error) -> String {
    let remedy = match error.raw_os_error() {
        Some(nix::libc::ENOSPC | nix::libc::EDQUOT) => ": make room, or move paths.state",
        Some(nix::libc::EROFS) => ": paths.state is on a read-only file system",
        _ => "",
    };
    format!("the journal cannot {action}: {error}{remedy}")
}
