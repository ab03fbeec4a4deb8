//! Texts that occur many times, stored once: ids, request ids. A canonical UUID takes 16 bytes.

use std::borrow::Cow;

use super::index::Index;
use super::slab::Slab;

/// A stored text. [`Sym::EMPTY`] is the empty one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Sym(pub(crate) u32);

impl Sym {
    /// The empty text.
    pub(crate) const EMPTY: Self = Self(0);
}

#[derive(Debug, Default)]
enum Text {
    #[default]
    Free,
    Uuid([u8; 16]),
    Bytes(Box<[u8]>),
}

#[derive(Debug, Default)]
struct Entry {
    text: Text,
    holders: u32,
}

#[derive(Hash, PartialEq, Eq)]
enum Key<'a> {
    Uuid([u8; 16]),
    Bytes(&'a [u8]),
}

impl<'a> Key<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        uuid_of(bytes).map_or(Key::Bytes(bytes), Key::Uuid)
    }
}

impl Entry {
    fn key(&self) -> Key<'_> {
        match &self.text {
            Text::Free => Key::Bytes(&[]),
            Text::Uuid(uuid) => Key::Uuid(*uuid),
            Text::Bytes(bytes) => Key::Bytes(bytes),
        }
    }
}

/// Texts with a count of their holders; a text goes with its last holder.
#[derive(Debug)]
pub(crate) struct Strings {
    entries: Slab<Entry>,
    index: Index,
    /// Texts found last: in one message the same few come again and again.
    recent: [(Vec<u8>, Sym); RECENT],
}

const RECENT: usize = 4;

/// Where a text is among the recent ones.
fn recent_place(bytes: &[u8]) -> usize {
    let ends = bytes.first().copied().unwrap_or_default() ^ bytes.last().copied().unwrap_or_default();
    usize::from(ends) % RECENT
}

impl Default for Strings {
    fn default() -> Self {
        let mut entries = Slab::default();
        // The empty text is slot 0 and never goes.
        entries.insert(Entry { text: Text::Bytes(Box::default()), holders: 1 });
        Self { entries, index: Index::default(), recent: Default::default() }
    }
}

impl Strings {
    /// The symbol of a text that is already stored.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<Sym> {
        if bytes.is_empty() {
            return Some(Sym::EMPTY);
        }
        let key = Key::new(bytes);
        self.index.find(&key, |slot| self.entries[*slot].key() == key).map(Sym)
    }

    /// Stores a text, or counts one more holder of it.
    pub(crate) fn hold(&mut self, bytes: &[u8]) -> Sym {
        if bytes.is_empty() {
            return Sym::EMPTY;
        }
        let place = recent_place(bytes);
        let (recent, sym) = &self.recent[place];
        if recent == bytes {
            let sym = *sym;
            self.retain(sym);
            return sym;
        }
        if let Some(sym) = self.find(bytes) {
            if bytes.len() <= 64 {
                let (recent, symbol) = &mut self.recent[place];
                recent.clear();
                recent.extend_from_slice(bytes);
                *symbol = sym;
            }
            self.retain(sym);
            return sym;
        }
        let key = Key::new(bytes);
        let text = match &key {
            Key::Uuid(uuid) => Text::Uuid(*uuid),
            Key::Bytes(bytes) => Text::Bytes(Box::from(*bytes)),
        };
        let slot = self.entries.insert(Entry { text, holders: 1 });
        let entries = &self.entries;
        self.index.insert(&key, slot, |slot| entries[slot].key());
        Sym(slot)
    }

    /// Counts one more holder.
    pub(crate) fn retain(&mut self, sym: Sym) {
        if sym != Sym::EMPTY {
            self.entries[sym.0].holders += 1;
        }
    }

    /// Counts one holder less.
    pub(crate) fn release(&mut self, sym: Sym) {
        if sym == Sym::EMPTY {
            return;
        }
        let entry = &mut self.entries[sym.0];
        entry.holders -= 1;
        if entry.holders == 0 {
            for (recent, symbol) in &mut self.recent {
                if *symbol == sym {
                    (*recent, *symbol) = (Vec::new(), Sym::EMPTY);
                }
            }
            self.index.remove(&self.entries[sym.0].key(), |slot| *slot == sym.0);
            self.entries.remove(sym.0);
        }
    }

    /// The text.
    pub(crate) fn text(&self, sym: Sym) -> Cow<'_, str> {
        match &self.entries[sym.0].text {
            Text::Free => Cow::Borrowed(""),
            Text::Uuid(uuid) => Cow::Owned(uuid_text(uuid)),
            Text::Bytes(bytes) => String::from_utf8_lossy(bytes),
        }
    }

    /// Adds the text's bytes to `into`.
    pub(crate) fn put(&self, sym: Sym, into: &mut Vec<u8>) {
        match &self.entries[sym.0].text {
            Text::Free => {}
            Text::Uuid(uuid) => put_uuid(uuid, into),
            Text::Bytes(bytes) => into.extend_from_slice(bytes),
        }
    }

    /// The text's bytes (they need not be UTF-8 where none were stored).
    pub(crate) fn bytes(&self, sym: Sym) -> Cow<'_, [u8]> {
        match &self.entries[sym.0].text {
            Text::Free => Cow::Borrowed(&[]),
            Text::Uuid(uuid) => Cow::Owned(uuid_text(uuid).into_bytes()),
            Text::Bytes(bytes) => Cow::Borrowed(bytes),
        }
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// The value of each hex digit in lower case; 0xff for every other byte.
const VALUES: [u8; 256] = {
    let mut values = [0xff; 256];
    let mut digit = 0;
    while digit < 16 {
        values[HEX[digit] as usize] = digit as u8;
        digit += 1;
    }
    values
};

/// Where the digits of each byte begin in a UUID's text.
const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];

/// The sixteen bytes of a UUID in its canonical text form (lower case, RFC 9562, section 4); `None` for any other text.
pub(crate) fn uuid_of(text: &[u8]) -> Option<[u8; 16]> {
    let text: &[u8; 36] = text.try_into().ok()?;
    if [text[8], text[13], text[18], text[23]] != [b'-'; 4] {
        return None;
    }
    let mut uuid = [0; 16];
    let mut all = 0;
    for (byte, place) in uuid.iter_mut().zip(PLACES) {
        let (high, low) = (VALUES[usize::from(text[place])], VALUES[usize::from(text[place + 1])]);
        all |= high | low;
        *byte = high << 4 | (low & 15);
    }
    (all < 16).then_some(uuid)
}

/// Adds the canonical text form of a UUID.
fn put_uuid(uuid: &[u8; 16], into: &mut Vec<u8>) {
    let mut text = [b'-'; 36];
    for (byte, place) in uuid.iter().zip(PLACES) {
        text[place] = HEX[usize::from(byte >> 4)];
        text[place + 1] = HEX[usize::from(byte & 15)];
    }
    into.extend_from_slice(&text);
}

/// The canonical text form of a UUID.
pub(crate) fn uuid_text(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (position, byte) in uuid.iter().enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push(HEX[usize::from(byte >> 4)] as char);
        text.push(HEX[usize::from(byte & 15)] as char);
    }
    text
}
