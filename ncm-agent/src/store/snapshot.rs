//! Writing a snapshot: beside what there is, and in its place only when all of it is durable.

use std::io;
use std::sync::PoisonError;

use super::disk::{Append, Disk};
use super::frame::{HEAD, Head, Kind};
use super::log::{Cause, Store};
use super::open::{FileHead, number_of, salt, segment_name, snapshot_name, unfinished_name};

/// So many bytes are made durable at a time, so that the last step is a short one.
const PIECE: u64 = 16 << 20;

/// A snapshot that is being written.
pub(crate) struct SnapshotFile {
    store: Store,
    segment: u64,
    file: Box<dyn Append>,
    salt: u32,
    frames: u64,
    length: u64,
    unsynced: u64,
}

impl SnapshotFile {
    /// Begins a snapshot of what is held when a segment begins.
    pub(crate) fn begin(store: &Store, segment: u64) -> io::Result<Self> {
        let name = unfinished_name(segment);
        let file = store.disk().lock().unwrap_or_else(PoisonError::into_inner).create(&name)?;
        let head = FileHead {
            salt: salt(),
            snapshot: true,
            complete: store.is_complete(),
            number: segment,
            frames_before: 0,
        };
        let mut snapshot =
            Self { store: store.clone(), segment, file, salt: 0, frames: 0, length: 0, unsynced: 0 };
        snapshot.append(Kind::File, &head.encode(store.instance()))?;
        snapshot.salt = head.salt;
        Ok(snapshot)
    }

    /// Adds a frame.
    pub(crate) fn append(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let head = Head::of(kind, self.frames, 0, &[payload])?;
        self.file.append(&[&head.encode(self.salt), payload])?;
        let length = (HEAD + payload.len()) as u64;
        self.frames += 1;
        self.length += length;
        self.unsynced += length;
        if self.unsynced > PIECE {
            self.file.sync()?;
            self.unsynced = 0;
        }
        Ok(())
    }

    /// Makes it durable, and has it take the place of everything before.
    pub(crate) fn publish(mut self) -> Result<u64, Cause> {
        let synced = self.file.sync();
        synced
            .map_err(|error| Cause::from(format!("the journal cannot make a snapshot durable: {error}")))?;
        self.store.publish(self.segment, self.length)?;
        Ok(std::mem::take(&mut self.length))
    }
}

impl Drop for SnapshotFile {
    /// One that was given up is gone.
    fn drop(&mut self) {
        if self.length > 0 {
            let mut disk = self.store.disk().lock().unwrap_or_else(PoisonError::into_inner);
            let _gone = disk.remove(&unfinished_name(self.segment));
        }
    }
}

/// Gives a durable snapshot its name, and removes what it replaces.
pub(super) fn publish(disk: &mut dyn Disk, segment: u64) -> io::Result<()> {
    disk.rename(&unfinished_name(segment), &snapshot_name(segment))?;
    disk.sync()?;
    // Whoever finds both takes the snapshot: what cannot be removed now goes with the next.
    let Ok(names) = disk.list() else { return Ok(()) };
    for name in names {
        let is_older = |prefix: &str, own: fn(u64) -> String| {
            number_of(&name, prefix).is_some_and(|number| number < segment && own(number) == name)
        };
        if is_older("log-", segment_name) || is_older("snapshot-", snapshot_name) {
            let _left = disk.remove(&name);
        }
    }
    Ok(())
}
