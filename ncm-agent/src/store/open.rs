//! Reading the journal at start: what it tells, and where it is gone on with.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::disk::{Disk, HostDisk};
use super::frame::{End, Frame, Frames, Kind, long, word};
use super::log::{self, Segment, State, Store};
use super::{Durability, StoreError};

/// Version of the format. Another one is set aside: better nothing than something misread.
const FORMAT: u32 = 1;

/// What is set aside has this at the end of its name.
const ASIDE: &str = ".set-aside";

const UNFINISHED: &str = ".unfinished";

pub(super) fn segment_name(number: u64) -> String {
    format!("log-{number:010}")
}

pub(super) fn snapshot_name(number: u64) -> String {
    format!("snapshot-{number:010}")
}

pub(super) fn unfinished_name(number: u64) -> String {
    format!("{}{UNFINISHED}", snapshot_name(number))
}

/// The number in the name of a segment or a snapshot.
pub(super) fn number_of(name: &str, prefix: &str) -> Option<u64> {
    name.strip_prefix(prefix)?.parse().ok()
}

/// A number that nobody knows beforehand.
pub(super) fn salt() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}

/// The first frame of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct FileHead {
    pub(super) salt: u32,
    /// It is a snapshot.
    pub(super) snapshot: bool,
    /// The journal tells of everything that there should be.
    pub(super) complete: bool,
    pub(super) number: u64,
    /// Of a segment: how many frames the one before it has; 0 if it has not been asked.
    pub(super) frames_before: u64,
}

impl FileHead {
    pub(super) fn encode(&self, instance: &str) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(28 + instance.len());
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&self.salt.to_le_bytes());
        bytes.extend_from_slice(&[u8::from(self.snapshot), u8::from(self.complete), 0, 0]);
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&self.frames_before.to_le_bytes());
        bytes.extend_from_slice(instance.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<(Self, String), String> {
        let format = word(bytes, 0);
        if bytes.len() < 28 || format != FORMAT {
            return Err(format!("is of format {format}, and this agent reads format {FORMAT}"));
        }
        let head = Self {
            salt: word(bytes, 4),
            snapshot: bytes[8] != 0,
            complete: bytes[9] != 0,
            number: long(bytes, 12),
            frames_before: long(bytes, 20),
        };
        Ok((head, String::from_utf8_lossy(&bytes[28..]).into_owned()))
    }
}

/// What the journal was when it was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// There is none yet.
    New,
    /// It tells of everything that there should be (`complete`), or of what came since an earlier one was lost.
    Known {
        /// What it does not tell of should not be.
        complete: bool,
    },
    /// There was one, and it is set aside: why.
    Lost(String),
}

/// What one frame tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    /// What it is.
    pub(crate) kind: Kind,
    /// What is in it.
    pub(crate) payload: Vec<u8>,
}

/// An opened journal: to be replayed, then gone on with.
pub(crate) struct Journal {
    disk: Arc<Mutex<dyn Disk>>,
    directory: PathBuf,
    instance: String,
    /// What there is to go on with: set by the replay.
    at: Option<At>,
}

/// Where the log ends.
#[derive(Clone, Copy, Default, Debug)]
struct At {
    segment: u64,
    /// Bytes and frames of it that count; 0: it is to be begun.
    length: u64,
    frames: u64,
    salt: u32,
    complete: bool,
    /// Bytes of all segments that are there, and of the snapshot.
    log_bytes: u64,
    snapshot_bytes: u64,
    /// Runs that have been given numbers.
    runs: u64,
}

/// Why files do not tell anything.
enum Fault {
    Damage(String),
    Io(String, io::Error),
    Other(String),
}

impl Journal {
    /// Opens the journal in a directory, made if missing.
    ///
    /// # Errors
    ///
    /// The directory cannot be used, or somebody else has it.
    pub(crate) fn open(directory: &Path, instance: &str) -> Result<Self, StoreError> {
        let disk = HostDisk::open(directory).map_err(|source| StoreError::Io {
            directory: directory.to_owned(),
            action: "open it".into(),
            source,
        })?;
        let disk = disk.ok_or_else(|| StoreError::Busy { directory: directory.to_owned() })?;
        Ok(Self::on(Arc::new(Mutex::new(disk)), directory, instance))
    }

    pub(super) fn on(disk: Arc<Mutex<dyn Disk>>, directory: &Path, instance: &str) -> Self {
        Self { disk, directory: directory.to_owned(), instance: instance.to_owned(), at: None }
    }

    /// Hands what the journal tells to `sink`, in order; before each attempt, `begin` makes it forget what it was told. What is damaged
    /// or cannot be taken is set aside.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or is another instance's.
    pub(crate) fn replay<S>(
        &mut self,
        mut begin: impl FnMut() -> S,
        mut sink: impl FnMut(&mut S, Record) -> Result<(), String>,
        mut end: impl FnMut(&mut S) -> Result<(), String>,
    ) -> Result<(Origin, S), StoreError> {
        let names = self.step("list it", |disk| disk.list())?;
        for name in names.iter().filter(|name| name.ends_with(UNFINISHED)) {
            self.step("remove an unfinished snapshot", |disk| disk.remove(name))?;
        }
        let numbers = |prefix| {
            let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name, prefix)).collect();
            numbers.sort_unstable();
            numbers
        };
        let (mut segments, snapshots) = (numbers("log-"), numbers("snapshot-"));
        if let Some(last) = segments.last().copied()
            && self.is_unborn(last)?
        {
            segments.pop();
        }
        if segments.is_empty() && snapshots.is_empty() {
            self.at = Some(At { segment: 1, ..At::default() });
            return Ok((Origin::New, begin()));
        }
        let mut first_damage = None;
        // Of a crash between the making of a snapshot and the removal of what it replaces, both are left.
        for snapshot in snapshots.iter().rev().copied().map(Some).chain([None]) {
            let from = snapshot.unwrap_or(1);
            let follows: Vec<u64> = segments.iter().copied().filter(|number| *number >= from).collect();
            let gap = follows.iter().zip(from..).any(|(number, expected)| *number != expected);
            if snapshot.is_none() && (follows.is_empty() || gap) {
                let missing = "what was accepted first is missing: neither a whole snapshot nor the first segment is there";
                first_damage.get_or_insert_with(|| missing.to_owned());
                continue;
            }
            let mut state = begin();
            let read = if gap {
                Err(Fault::Damage("a segment is missing".into()))
            } else {
                self.read(snapshot, &follows, &mut |record| sink(&mut state, record))
            };
            let read = read.and_then(|at| end(&mut state).map(|()| at).map_err(Fault::Damage));
            match read {
                Ok(at) => {
                    self.at = Some(at);
                    return Ok((Origin::Known { complete: at.complete }, state));
                }
                Err(Fault::Damage(what)) => {
                    tracing::warn!("the journal in {}: {what}", self.directory.display());
                    first_damage.get_or_insert(what);
                }
                Err(Fault::Io(action, source)) => return Err(self.failed(&action, source)),
                Err(Fault::Other(other)) => {
                    let (directory, own) = (self.directory.clone(), self.instance.clone());
                    return Err(StoreError::Other { directory, other, own });
                }
            }
        }
        self.set_aside(&names)?;
        self.at = Some(At { segment: 1, ..At::default() });
        Ok((Origin::Lost(first_damage.unwrap_or_default()), begin()))
    }

    /// Reads a snapshot and the segments that follow it.
    fn read(
        &self,
        snapshot: Option<u64>,
        segments: &[u64],
        sink: &mut dyn FnMut(Record) -> Result<(), String>,
    ) -> Result<At, Fault> {
        let mut at = At { segment: snapshot.unwrap_or(1), complete: true, ..At::default() };
        if let Some(number) = snapshot {
            let (bytes, complete) = self.read_snapshot(number, sink)?;
            (at.snapshot_bytes, at.complete) = (bytes, complete);
        }
        let mut frames_before = 0;
        for (position, number) in segments.iter().enumerate() {
            let is_last = position + 1 == segments.len();
            let name = segment_name(*number);
            let mut frames = self.frames(&name)?;
            let damage = |at: u64, what: &str| Fault::Damage(format!("{name} {what} (byte {at})"));
            let head = match frames.next() {
                Ok(frame) => self.head_of(&name, &frame, false, *number)?,
                Err(End::Failed(error)) => return Err(Fault::Io(format!("read {name}"), error)),
                Err(End::Clean | End::Broken { .. }) => return Err(damage(0, "is no journal of this agent")),
            };
            if frames_before != 0 && head.frames_before != frames_before {
                return Err(damage(0, "follows on another segment than the one that is there"));
            }
            if position == 0 && snapshot.is_none() {
                at.complete = head.complete;
            }
            frames.salt(head.salt);
            loop {
                match frames.next() {
                    Ok(Frame { head, payload }) => {
                        at.complete |= head.kind == Kind::Complete;
                        if head.kind == Kind::Message {
                            at.runs = at.runs.max(long(&payload, 0) + 1);
                        }
                        let record = Record { kind: head.kind, payload };
                        sink(record)
                            .map_err(|fault| damage(frames.at(), &format!("cannot be replayed: {fault}")))?;
                    }
                    Err(End::Clean) => break,
                    Err(End::Broken { known: false, .. }) if is_last => {
                        tracing::info!(
                            "{name}: what was being written when the power or the agent went is cut off at byte {}",
                            frames.at()
                        );
                        break;
                    }
                    Err(End::Broken { .. }) => return Err(damage(frames.at(), "is damaged")),
                    Err(End::Failed(error)) => return Err(Fault::Io(format!("read {name}"), error)),
                }
            }
            frames_before = frames.number();
            at.log_bytes += frames.at();
            (at.segment, at.length, at.frames, at.salt) = (*number, frames.at(), frames.number(), head.salt);
        }
        Ok(at)
    }

    /// A segment whose head never was durable: nothing can have been answered by it.
    fn is_unborn(&self, number: u64) -> Result<bool, StoreError> {
        let name = segment_name(number);
        let (from, length) = self.step(&format!("read {name}"), |disk| disk.read(&name))?;
        match Frames::new(from, length).next() {
            Err(End::Broken { known: false, empty: true } | End::Clean) => Ok(true),
            Err(End::Failed(source)) => Err(self.failed(&format!("read {name}"), source)),
            Ok(_) | Err(End::Broken { .. }) => Ok(false),
        }
    }

    /// Reads a snapshot: neighbours come last, though they were written first. Gives its size, and whether it is of everything.
    fn read_snapshot(
        &self,
        number: u64,
        sink: &mut dyn FnMut(Record) -> Result<(), String>,
    ) -> Result<(u64, bool), Fault> {
        let name = snapshot_name(number);
        let is_neighbours = |kind| matches!(kind, Kind::Neighbours | Kind::Gone);
        let mut bytes = 0;
        let mut complete = false;
        for neighbours in [false, true] {
            let mut frames = self.frames(&name)?;
            let mut ended = None;
            loop {
                match frames.next() {
                    Ok(frame) if frame.head.kind == Kind::File => {
                        let head = self.head_of(&name, &frame, true, number)?;
                        complete = head.complete;
                        frames.salt(head.salt);
                    }
                    Ok(Frame { head, payload }) => {
                        let record = Record { kind: head.kind, payload };
                        if head.kind == Kind::End {
                            ended = Some(record);
                        } else if is_neighbours(head.kind) == neighbours {
                            sink(record).map_err(|fault| {
                                Fault::Damage(format!("{name} cannot be replayed: {fault}"))
                            })?;
                        }
                    }
                    Err(End::Clean) => break,
                    Err(End::Broken { .. }) => {
                        return Err(Fault::Damage(format!("{name} is damaged (byte {})", frames.at())));
                    }
                    Err(End::Failed(error)) => return Err(Fault::Io(format!("read {name}"), error)),
                }
            }
            let Some(end) = ended else {
                return Err(Fault::Damage(format!("{name} has no end (byte {})", frames.at())));
            };
            if neighbours {
                sink(end).map_err(|fault| Fault::Damage(format!("{name} cannot be replayed: {fault}")))?;
            }
            bytes = frames.at();
        }
        Ok((bytes, complete))
    }

    fn frames(&self, name: &str) -> Result<Frames, Fault> {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, length) = disk.read(name).map_err(|error| Fault::Io(format!("read {name}"), error))?;
        Ok(Frames::new(from, length))
    }

    fn head_of(&self, name: &str, frame: &Frame, snapshot: bool, number: u64) -> Result<FileHead, Fault> {
        let (head, instance) =
            FileHead::decode(&frame.payload).map_err(|what| Fault::Damage(format!("{name} {what}")))?;
        if instance != self.instance {
            return Err(Fault::Other(instance));
        }
        if frame.head.kind != Kind::File || head.snapshot != snapshot || head.number != number {
            return Err(Fault::Damage(format!("{name} is another file than its name says")));
        }
        Ok(head)
    }

    /// Renames everything that there is; what was set aside before goes.
    fn set_aside(&self, names: &[String]) -> Result<(), StoreError> {
        for name in names.iter().filter(|name| name.ends_with(ASIDE)) {
            self.step("remove what was set aside before", |disk| disk.remove(name))?;
        }
        let ours = |name: &&String| number_of(name, "log-").or(number_of(name, "snapshot-")).is_some();
        for name in names.iter().filter(ours) {
            self.step("set a file aside", |disk| disk.rename(name, &format!("{name}{ASIDE}")))?;
        }
        self.step("set files aside", |disk| disk.sync())
    }

    /// Goes on with the journal. `complete`: what it does not tell of should not be; it stays so once it is. `facts`: what messages are
    /// applied by from now on.
    ///
    /// # Errors
    ///
    /// The files cannot be written.
    pub(crate) fn start(
        self,
        complete: bool,
        facts: Vec<u8>,
        durability: Durability,
    ) -> Result<Store, StoreError> {
        let at = self.at.unwrap_or(At { segment: 1, ..At::default() });
        let segment = if at.length == 0 {
            let head = FileHead { salt: salt(), complete, number: at.segment, ..FileHead::default() };
            self.step("begin a segment", |disk| log::begin_segment(disk, &head, &self.instance))?
        } else {
            let name = segment_name(at.segment);
            let unborn = segment_name(at.segment + 1);
            self.step("remove a segment that was never begun", |disk| match disk.remove(&unborn) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => disk.sync(),
            })?;
            let file = self.step("go on with the last segment", |disk| {
                let mut file = disk.reopen(&name, at.length)?;
                // What was written and not yet durable when the agent went counts: it is replayed.
                file.sync()?;
                Ok(file)
            })?;
            Segment { number: at.segment, file, salt: at.salt, length: at.length, frames: at.frames }
        };
        let state = State::default();
        state.log_bytes.store(at.log_bytes.max(segment.length), Ordering::Relaxed);
        state.snapshot_bytes.store(at.snapshot_bytes, Ordering::Relaxed);
        state.complete.store(complete, Ordering::Relaxed);
        state.segment.store(segment.number, Ordering::Relaxed);
        state.runs.store(at.runs, Ordering::Relaxed);
        let store = log::start(Arc::clone(&self.disk), segment, &self.instance, facts, durability, state)
            .map_err(|source| self.failed("start its thread", source))?;
        store.facts();
        if at.length != 0 && complete && !at.complete {
            store.complete();
        }
        Ok(store)
    }

    fn step<T>(
        &self,
        action: &str,
        step: impl FnOnce(&mut dyn Disk) -> io::Result<T>,
    ) -> Result<T, StoreError> {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        step(&mut *disk).map_err(|source| self.failed(action, source))
    }

    fn failed(&self, action: &str, source: io::Error) -> StoreError {
        StoreError::Io { directory: self.directory.clone(), action: action.to_owned(), source }
    }
}
