//! The journal on a disk that loses power, and on one whose bytes are not what they were.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::disk::{Append, Disk};
use super::{Beginning, Durability, FrameKind, Journal, Record, SnapshotFile, Store};

/// A small generator of numbers: tests are the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % sides.max(1)
    }
}

#[derive(Clone, Default)]
struct MemFile {
    bytes: Vec<u8>,
    /// So many of them are durable; what was cut off is gone at once.
    durable: usize,
}

#[derive(Clone)]
enum NameChange {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

/// A disk in memory whose power goes after so many steps.
#[derive(Clone, Default)]
struct Mem {
    files: Vec<MemFile>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending: Vec<NameChange>,
    /// Steps until the power goes.
    left: Option<usize>,
    gone: bool,
    steps: usize,
}

fn change(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Create(name, file) => drop(names.insert(name.clone(), *file)),
        NameChange::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        NameChange::Remove(name) => drop(names.remove(name)),
    }
}

impl Mem {
    fn step(&mut self) -> io::Result<()> {
        self.steps += 1;
        match &mut self.left {
            Some(0) => {
                self.gone = true;
                Err(io::Error::other("the power is gone"))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn name(&mut self, what: NameChange) {
        change(&mut self.names, &what);
        self.pending.push(what);
    }

    /// What is left after the power went: what was durable, and of the rest whatever had got as far.
    fn survivor(&self, dice: &mut Dice) -> Self {
        let mut names = self.durable_names.clone();
        let applied = dice.roll(self.pending.len() + 1);
        self.pending[..applied].iter().for_each(|what| change(&mut names, what));
        let mut files = self.files.clone();
        for file in &mut files {
            let unsynced = file.bytes.len() - file.durable;
            match dice.roll(4) {
                0 => file.bytes.truncate(file.durable),
                1 => file.bytes.truncate(file.durable + dice.roll(unsynced + 1)),
                // Blocks get to the disk in any order.
                2 => {
                    let hole = file.durable + dice.roll(unsynced + 1);
                    let end = (hole + dice.roll(200)).min(file.bytes.len());
                    file.bytes[hole..end].fill(0);
                }
                _ => {}
            }
            file.durable = file.bytes.len();
        }
        Self { files, names: names.clone(), durable_names: names, ..Self::default() }
    }
}

type Shared = Arc<Mutex<Mem>>;

struct MemDisk(Shared);

struct MemAppend {
    disk: Shared,
    file: usize,
}

impl Disk for MemDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<(Box<dyn Read + Send>, u64)> {
        let disk = self.0.lock().unwrap();
        let file = disk.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let bytes = disk.files[*file].bytes.clone();
        let length = bytes.len() as u64;
        Ok((Box::new(Cursor::new(bytes)), length))
    }

    fn create(&mut self, name: &str) -> io::Result<Box<dyn Append>> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        let file = disk.files.len();
        disk.files.push(MemFile::default());
        disk.name(NameChange::Create(name.to_owned(), file));
        Ok(Box::new(MemAppend { disk: Arc::clone(&self.0), file }))
    }

    fn reopen(&mut self, name: &str, length: u64) -> io::Result<Box<dyn Append>> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        let file = *disk.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let mut append = MemAppend { disk: Arc::clone(&self.0), file };
        drop(disk);
        append.cut(length)?;
        Ok(Box::new(append))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        disk.name(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        if !disk.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.name(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        disk.durable_names = disk.names.clone();
        disk.pending.clear();
        Ok(())
    }
}

impl Append for MemAppend {
    fn append(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        let gone = disk.gone;
        let outcome = disk.step();
        let bytes: Vec<u8> = parts.concat();
        // The power goes in the middle of a write.
        let kept = match &outcome {
            Ok(()) => bytes.len(),
            Err(_) if gone => 0,
            Err(_) => bytes.len() / 2,
        };
        disk.files[self.file].bytes.extend_from_slice(&bytes[..kept]);
        outcome
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        disk.step()?;
        let file = &mut disk.files[self.file];
        file.bytes.truncate(length as usize);
        file.durable = file.durable.min(length as usize);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        disk.step()?;
        let file = &mut disk.files[self.file];
        file.durable = file.bytes.len();
        Ok(())
    }
}

fn journal(disk: &Shared) -> Journal {
    let shared: Arc<Mutex<dyn Disk>> = Arc::new(Mutex::new(MemDisk(Arc::clone(disk))));
    Journal::on(shared, Path::new("/nowhere"), "test")
}

/// The messages that a journal tells of: a snapshot holds them as text.
fn told(journal: &mut Journal) -> (Beginning, Vec<String>) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let sink = |told: &mut Vec<String>, Record { kind, payload }: Record| {
        match kind {
            FrameKind::Message => told.push(text(&payload[8..])),
            FrameKind::Neighbours => told.extend(text(&payload).lines().map(str::to_owned)),
            _ => {}
        }
        Ok(())
    };
    journal.replay(Vec::new, sink, |_| Ok(())).unwrap()
}

fn start(journal: Journal) -> Store {
    journal.start(true, b"facts".to_vec(), Durability::Always).unwrap()
}

/// Appends a message; whether it was answered as kept.
fn append(store: &Store, text: &str) -> bool {
    let run = store.begin(&[], Bytes::copy_from_slice(text.as_bytes()));
    store.step(run, 10);
    store.commit().blocking_recv().unwrap().is_ok()
}

fn snapshot(store: &Store, held: &[String]) -> bool {
    let number = match store.failure() {
        Some(_) => store.next_segment(),
        None => match store.cut() {
            Ok(number) => number,
            Err(_) => return false,
        },
    };
    let write = || {
        let mut file = SnapshotFile::begin(store, number).ok()?;
        file.append(FrameKind::Neighbours, held.join("\n").as_bytes()).ok()?;
        file.append(FrameKind::End, &[]).ok()?;
        file.publish().ok()
    };
    write().is_some() && (store.failure().is_none() || store.cut().is_ok())
}

/// Waits until the thread has done everything.
fn end(store: Store) {
    futures::executor::block_on(store.close());
}

fn messages(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("message {number} {}", "x".repeat(number * 7))).collect()
}

#[test]
fn what_was_kept_is_told_again_and_gone_on_with() {
    let disk = Shared::default();
    let mut opened = journal(&disk);
    assert_eq!(told(&mut opened), (Beginning::New, vec![]));
    let store = start(opened);
    assert!(messages(3).iter().all(|text| append(&store, text)));
    end(store);
    for round in 0..3 {
        let mut opened = journal(&disk);
        let (beginning, before) = told(&mut opened);
        assert_eq!((beginning, before.len()), (Beginning::Known { complete: true }, 3 + round));
        let store = start(opened);
        assert!(append(&store, "one more"));
        if round == 1 {
            assert!(snapshot(&store, &told(&mut journal(&disk)).1));
        }
        end(store);
    }
    let names: Vec<String> = disk.lock().unwrap().names.keys().cloned().collect();
    assert_eq!(names, ["log-0000000002", "snapshot-0000000002"]);
}

/// A journal of a few messages, each answered, as bytes.
fn written() -> Shared {
    let disk = Shared::default();
    let mut opened = journal(&disk);
    told(&mut opened);
    let store = start(opened);
    assert!(messages(6).iter().all(|text| append(&store, text)));
    end(store);
    disk
}

#[test]
fn a_log_that_is_cut_anywhere_tells_whole_messages_and_is_gone_on_with() {
    let whole = written().lock().unwrap().clone();
    let length = whole.files[0].bytes.len();
    let all = messages(6);
    let mut seen = 0;
    for cut in 0..=length {
        let disk = Arc::new(Mutex::new(whole.clone()));
        disk.lock().unwrap().files[0].bytes.truncate(cut);
        let mut opened = journal(&disk);
        let (beginning, some) = told(&mut opened);
        assert!(!matches!(beginning, Beginning::Lost(_)), "cut at {cut}: {beginning:?}");
        assert_eq!(some[..], all[..some.len()], "cut at {cut}");
        assert!(some.len() >= seen, "cut at {cut}: less than before");
        seen = some.len();
        let store = start(opened);
        assert!(append(&store, "after"), "cut at {cut}");
        end(store);
        let (beginning, after) = told(&mut journal(&disk));
        assert!(matches!(beginning, Beginning::Known { .. }), "cut at {cut}: {beginning:?}");
        assert_eq!(after.len(), some.len() + 1, "cut at {cut}");
    }
    assert_eq!(seen, all.len());
}

#[test]
fn a_byte_that_changed_where_all_was_durable_sets_the_journal_aside() {
    let whole = written().lock().unwrap().clone();
    let bytes = whole.files[0].bytes.clone();
    let all = messages(6);
    // The last message's frames are known by nobody that comes later.
    let last = bytes.windows(9).position(|window| window == b"message 5").unwrap() - 80;
    for at in 0..bytes.len() {
        let disk = Arc::new(Mutex::new(whole.clone()));
        disk.lock().unwrap().files[0].bytes[at] ^= 1 << (at % 8);
        let mut opened = journal(&disk);
        let (beginning, some) = told(&mut opened);
        if at < last - 140 {
            let Beginning::Lost(why) = &beginning else { panic!("byte {at}: {beginning:?}, {some:?}") };
            assert!(why.contains("log-0000000001"), "{why}");
            assert_eq!(some, Vec::<String>::new(), "half a journal tells nothing");
            let names: Vec<String> = disk.lock().unwrap().names.keys().cloned().collect();
            assert_eq!(names, ["log-0000000001.set-aside"]);
        } else {
            assert!(some.len() <= all.len() && some[..] == all[..some.len()], "byte {at}");
        }
        let store = start(opened);
        assert!(append(&store, "after"), "byte {at}");
        end(store);
    }
}

#[test]
fn a_power_cut_at_any_step_loses_nothing_that_was_answered() {
    let mut dice = Dice(7);
    let all = messages(12);
    let mut at = 0;
    loop {
        let disk = Shared::default();
        disk.lock().unwrap().left = Some(at);
        let (mut answered, mut sent) = (0, 0);
        let mut opened = journal(&disk);
        told(&mut opened);
        if let Ok(store) = opened.start(true, b"facts".to_vec(), Durability::Always) {
            for (number, text) in all.iter().enumerate() {
                sent += 1;
                if !append(&store, text) {
                    break;
                }
                answered += 1;
                if number % 4 == 3 && !snapshot(&store, &all[..=number]) {
                    break;
                }
            }
            end(store);
        }
        let done = disk.lock().unwrap().left.is_some_and(|left| left > 0);
        for survivor in 0..20 {
            let left = disk.lock().unwrap().survivor(&mut dice);
            let left = Arc::new(Mutex::new(left));
            let mut opened = journal(&left);
            let (beginning, some) = told(&mut opened);
            let context =
                format!("step {at}, survivor {survivor}: {beginning:?}, {answered} of {sent} answered");
            assert!(!matches!(beginning, Beginning::Lost(_)), "{context}");
            assert!(some.len() >= answered && some.len() <= sent, "{context}, {} told", some.len());
            assert_eq!(some[..], all[..some.len()], "{context}");
            let store = start(opened);
            assert!(append(&store, "after"), "{context}");
            end(store);
            assert_eq!(told(&mut journal(&left)).1.len(), some.len() + 1, "{context}");
        }
        if done {
            break;
        }
        at += 1;
    }
    assert!(at > 60, "{at} steps");
}

#[test]
fn another_instances_journal_is_left_alone() {
    let disk = written();
    let shared: Arc<Mutex<dyn Disk>> = Arc::new(Mutex::new(MemDisk(Arc::clone(&disk))));
    let mut other = Journal::on(shared, Path::new("/nowhere"), "other");
    let refused = other.replay(Vec::new, |_: &mut Vec<()>, _| Ok(()), |_| Ok(())).unwrap_err().to_string();
    assert!(refused.contains("\"test\"") && refused.contains("paths.state"), "{refused}");
    assert_eq!(told(&mut journal(&disk)).1.len(), 6);
}

#[test]
fn a_foreign_file_is_set_aside_by_name() {
    let disk = Shared::default();
    {
        let mut disk = disk.lock().unwrap();
        disk.files.push(MemFile { bytes: b"#!/bin/sh\n".repeat(20), durable: 200 });
        disk.names.insert("log-0000000001".into(), 0);
        disk.durable_names = disk.names.clone();
    }
    let (beginning, _) = told(&mut journal(&disk));
    let Beginning::Lost(why) = beginning else { panic!("{beginning:?}") };
    assert!(why.contains("is no journal of this agent"), "{why}");
}

#[test]
fn a_disk_that_refuses_is_told_and_comes_back_with_a_snapshot() {
    let disk = Shared::default();
    let mut opened = journal(&disk);
    told(&mut opened);
    let store = start(opened);
    assert!(append(&store, "kept"));
    disk.lock().unwrap().left = Some(0);
    assert!(!append(&store, "not kept"));
    assert!(store.failure().is_some_and(|cause| cause.contains("the power is gone")));
    assert!(!append(&store, "not kept either"), "nothing is kept after a gap");
    {
        let mut disk = disk.lock().unwrap();
        (disk.left, disk.gone) = (None, false);
    }
    let held: Vec<String> = ["kept", "not kept", "not kept either"].map(str::to_owned).to_vec();
    assert!(snapshot(&store, &held));
    assert!(append(&store, "kept again"));
    end(store);
    let (_, all) = told(&mut journal(&disk));
    assert_eq!(all, ["kept", "not kept", "not kept either", "kept again"]);
}
