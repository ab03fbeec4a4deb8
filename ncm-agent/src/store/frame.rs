//! Frames: what a journal's file is made of.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | `NCMj` |
//! | 1 | kind |
//! | 3 | zero |
//! | 4 | length of the payload |
//! | 4 | CRC-32 of the payload |
//! | 8 | number: one more than the frame's before, the first has 0 |
//! | 8 | so many frames were durable when this one was written |
//! | 4 | CRC-32 of the above and of the file's salt |
//!
//! and the payload. All numbers are little-endian. The salt is a random number in the file's first frame (whose own is 0): no
//! message can hold bytes that pass as frames.

use std::io::{self, Read};

/// Bytes before the payload.
pub(super) const HEAD: usize = 36;

const MAGIC: [u8; 4] = *b"NCMj";

/// Longest payload: a message has at most 2 GiB.
const LONGEST: u32 = (1 << 31) + 4096;

/// A file's first frame is never longer.
const LONGEST_FIRST: usize = 128;

/// What a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The first of each file.
    File = 1,
    /// What the node was told of itself: what messages are applied by.
    Facts = 2,
    /// A message that was accepted.
    Message = 3,
    /// A part of a message was applied.
    Step = 4,
    /// From here on the journal tells of everything that there should be.
    Complete = 5,
    /// Only says what is durable.
    Durable = 6,
    /// Of snapshots: held neighbours.
    Neighbours = 16,
    /// Neighbours that went while the snapshot was made.
    Gone = 17,
    /// Everything else that is held.
    Others = 18,
    /// The last of a snapshot.
    End = 19,
}

impl Kind {
    fn of(number: u8) -> Option<Self> {
        use Kind as K;
        [
            K::File,
            K::Facts,
            K::Message,
            K::Step,
            K::Complete,
            K::Durable,
            K::Neighbours,
            K::Gone,
            K::Others,
            K::End,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }
}

/// What comes before a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) length: u32,
    pub(super) checksum: u32,
    pub(super) number: u64,
    pub(super) durable: u64,
}

fn salted(bytes: &[u8], salt: u32) -> u32 {
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(bytes);
    checksum.update(&salt.to_le_bytes());
    checksum.finalize()
}

/// A number at a place; 0 where there is none.
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// A long number at a place; 0 where there is none.
pub(super) fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl Head {
    /// The head of a frame with this payload.
    ///
    /// # Errors
    ///
    /// The payload is too long for a frame.
    pub(super) fn of(kind: Kind, number: u64, durable: u64, payload: &[&[u8]]) -> io::Result<Self> {
        let length: usize = payload.iter().map(|part| part.len()).sum();
        let length = u32::try_from(length).ok().filter(|length| *length <= LONGEST);
        let length = length.ok_or_else(|| io::Error::other("a message is too long for the journal"))?;
        let mut checksum = crc32fast::Hasher::new();
        payload.iter().for_each(|part| checksum.update(part));
        Ok(Self { kind, length, checksum: checksum.finalize(), number, durable })
    }

    pub(super) fn encode(&self, salt: u32) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = self.kind as u8;
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.durable.to_le_bytes());
        let checksum = salted(&bytes[..32], salt);
        bytes[32..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The head in these bytes, if they are one.
    pub(super) fn decode(bytes: &[u8], salt: u32) -> Option<Self> {
        let bytes = bytes.get(..HEAD)?;
        if bytes[..4] != MAGIC || word(bytes, 32) != salted(&bytes[..32], salt) {
            return None;
        }
        let length = word(bytes, 8);
        (length <= LONGEST).then_some(())?;
        Some(Self {
            kind: Kind::of(bytes[4])?,
            length,
            checksum: word(bytes, 12),
            number: long(bytes, 16),
            durable: long(bytes, 24),
        })
    }
}

/// A frame as read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Frame {
    pub(super) head: Head,
    pub(super) payload: Vec<u8>,
}

/// Why a file has no further frame.
#[derive(Debug)]
pub(super) enum End {
    /// It ends where a frame does.
    Clean,
    /// What follows is no frame.
    Broken {
        /// A later frame knows this place to have been durable.
        known: bool,
        /// What follows is no longer than a file's first frame, which is durable before there is anything else.
        empty: bool,
    },
    /// It cannot be read.
    Failed(io::Error),
}

/// Reads the frames of a file.
pub(super) struct Frames {
    from: Box<dyn Read + Send>,
    length: u64,
    /// Where the next frame begins.
    at: u64,
    /// Number that the next frame has to have.
    number: u64,
    salt: u32,
}

/// Fills `bytes` as far as the file goes.
fn fill(from: &mut dyn Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match from.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl Frames {
    pub(super) fn new(from: Box<dyn Read + Send>, length: u64) -> Self {
        Self { from, length, at: 0, number: 0, salt: 0 }
    }

    /// Where the next frame begins.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The number of the next frame.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The salt of the frames that follow the first.
    pub(super) fn salt(&mut self, salt: u32) {
        self.salt = salt;
    }

    /// The next frame.
    pub(super) fn next(&mut self) -> Result<Frame, End> {
        let mut head = [0; HEAD];
        let read = fill(&mut *self.from, &mut head).map_err(End::Failed)?;
        if read == 0 {
            return Err(End::Clean);
        }
        let follows = |head: &Head| {
            let end = self.at + HEAD as u64 + u64::from(head.length);
            end <= self.length && self.number == head.number
        };
        let Some(found) = Head::decode(&head[..read], self.salt).filter(follows) else {
            return Err(self.broken(&head[..read], &[]));
        };
        let mut payload = vec![0; found.length as usize];
        let read = fill(&mut *self.from, &mut payload).map_err(End::Failed)?;
        if read < payload.len() || crc32fast::hash(&payload) != found.checksum {
            return Err(self.broken(&head, &payload[..read]));
        }
        self.at += (HEAD + payload.len()) as u64;
        self.number += 1;
        Ok(Frame { head: found, payload })
    }

    /// Looks through what follows for a frame that knows of the broken one.
    fn broken(&mut self, head: &[u8], payload: &[u8]) -> End {
        let mut rest = [head, payload].concat();
        if let Err(error) = self.from.read_to_end(&mut rest) {
            return End::Failed(error);
        }
        let empty = rest.len() <= LONGEST_FIRST;
        let mut from = 1;
        while let Some(found) = find(rest.get(from..).unwrap_or_default()) {
            let at = from + found;
            if let Some(head) = Head::decode(&rest[at..], self.salt)
                && let Some(payload) = rest.get(at + HEAD..at + HEAD + head.length as usize)
                && crc32fast::hash(payload) == head.checksum
                && head.durable > self.number
            {
                return End::Broken { known: true, empty };
            }
            from = at + 1;
        }
        End::Broken { known: false, empty }
    }
}

fn find(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MAGIC.len()).position(|window| *window == MAGIC)
}
