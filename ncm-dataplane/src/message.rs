//! Netlink messages and their attributes, read and written as bytes: requests that are new to the kernel, and
//! attributes that are new to us, never make a message unreadable. For filters here, and for all that the agent follows.

use std::io;

/// Bytes of a message header (`struct nlmsghdr`).
const HEADER: usize = 16;
/// Bit that marks an attribute as nested, and the one that marks it as being in network order.
const ATTRIBUTE_FLAGS: u16 = 0x8000 | 0x4000;
const NESTED: u16 = 0x8000;

/// Flags of requests and of dump answers (`NLM_F_*`).
pub mod flags {
    /// It is a request.
    pub const REQUEST: u16 = 0x1;
    /// An acknowledgement is wanted.
    pub const ACK: u16 = 0x4;
    /// What others are told is wanted too.
    pub const ECHO: u16 = 0x8;
    /// What is dumped changed meanwhile.
    pub const DUMP_INTERRUPTED: u16 = 0x10;
    /// All is wanted.
    pub const DUMP: u16 = 0x300;
    /// Instead of what is there.
    pub const REPLACE: u16 = 0x100;
    /// Only if it is not there.
    pub const EXCLUSIVE: u16 = 0x200;
    /// Also if it is not there.
    pub const CREATE: u16 = 0x400;
    /// Beside what is there.
    pub const APPEND: u16 = 0x800;
}

/// Type of a message, of any family: an error, or an acknowledgement.
pub const ERROR: u16 = 2;
/// The end of a dump.
pub const DONE: u16 = 3;
/// Messages were lost.
pub const OVERRUN: u16 = 4;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words on why it refused.
const EXTENDED_ACK_TEXT: u16 = 1;

/// One received message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The number of the request that it answers.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// Why the kernel refused a request.
#[derive(Debug)]
pub struct Refusal {
    /// The error.
    pub error: io::Error,
    /// The kernel's explanation.
    pub words: Option<String>,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self { error, words: None }
    }
}

impl Message<'_> {
    /// What an ERROR or DONE message says.
    ///
    /// # Errors
    /// The refusal, unless it is an acknowledgement.
    pub fn outcome(&self) -> Result<(), Refusal> {
        let code = u32_at(self.payload, 0).unwrap_or_default().cast_signed();
        if code >= 0 {
            return Ok(());
        }
        // An error carries the request's header (or all of it), then attributes; DONE carries attributes at once.
        let skipped = match self.kind {
            DONE => 4,
            _ if self.flags & 0x100 != 0 => 4 + HEADER,
            _ => 4 + u32_at(self.payload, 4).unwrap_or_default() as usize,
        };
        let words = Attributes::after(self.payload, align(skipped))
            .find(EXTENDED_ACK_TEXT)
            .map(text)
            .filter(|_| self.flags & 0x200 != 0);
        Err(Refusal { error: io::Error::from_raw_os_error(code.wrapping_neg()), words })
    }
}

/// The messages of one datagram; stops at the first that is cut short.
#[derive(Clone, Debug)]
pub struct Messages<'a>(
    /// The datagram.
    pub &'a [u8],
);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = u32_at(self.0, 0)? as usize;
        let body = self.0.get(HEADER..length)?;
        let message = Message {
            kind: u16_at(self.0, 4)?,
            flags: u16_at(self.0, 6)?,
            sequence: u32_at(self.0, 8)?,
            payload: body,
        };
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(message)
    }
}

/// The attributes in a buffer, as (type without its flag bits, value); stops at the first that is cut short.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(
    /// The buffer.
    pub &'a [u8],
);

impl<'a> Attributes<'a> {
    /// The attributes behind a family's own header of `header` bytes.
    #[must_use]
    pub fn after(payload: &'a [u8], header: usize) -> Self {
        Self(payload.get(header..).unwrap_or_default())
    }

    /// The value of the first attribute of that type.
    #[must_use]
    pub fn find(self, wanted: u16) -> Option<&'a [u8]> {
        let mut all = self;
        all.find_map(|(kind, value)| (kind == wanted).then_some(value))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & !ATTRIBUTE_FLAGS;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Two bytes in host order at `offset`.
#[must_use]
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// Four bytes in host order at `offset`.
#[must_use]
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The text of a string attribute, without its terminator.
#[must_use]
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// A request under construction.
#[derive(Clone, Debug)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request of that type and with these flags (beside REQUEST), followed by the family's own header.
    #[must_use]
    pub fn new(kind: u16, request_flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(request_flags | flags::REQUEST).to_ne_bytes());
        bytes.extend_from_slice(header);
        bytes.resize(align(bytes.len()), 0);
        Self { bytes }
    }

    /// Appends an attribute.
    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&value[..usize::from(length) - 4]);
        self.bytes.resize(align(self.bytes.len()), 0);
        self
    }

    /// Appends a string attribute with its terminator.
    #[must_use]
    pub fn string(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Appends an attribute that holds what `fill` appends.
    #[must_use]
    pub fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self = fill(self.attribute(kind | NESTED, &[]));
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Type of the request.
    #[must_use]
    pub fn kind(&self) -> u16 {
        u16_at(&self.bytes, 4).unwrap_or_default()
    }

    /// The finished message.
    #[must_use]
    pub fn finish(mut self, sequence: u32, more_flags: u16) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let all_flags = u16_at(&self.bytes, 6).unwrap_or_default() | more_flags;
        self.bytes[6..8].copy_from_slice(&all_flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back_with_its_nested_attributes() {
        let bytes = Request::new(16, flags::CREATE, &[7; 6])
            .string(3, "eth0")
            .nested(18, |inner| inner.attribute(1, &[1, 2, 3]).attribute(2, &[]))
            .attribute(4, &9u32.to_ne_bytes())
            .finish(5, flags::ACK);
        let message = Messages(&bytes).next().unwrap();
        assert_eq!((message.kind, message.sequence), (16, 5));
        assert_eq!(message.flags, flags::CREATE | flags::ACK | flags::REQUEST);
        let attributes = Attributes::after(message.payload, 8);
        assert_eq!(attributes.find(3).map(text).as_deref(), Some("eth0"));
        let inner: Vec<_> = Attributes(attributes.find(18).unwrap()).collect();
        assert_eq!(inner, [(1, &[1u8, 2, 3][..]), (2, &[][..])]);
        assert_eq!(attributes.find(4).and_then(|value| u32_at(value, 0)), Some(9));
    }

    #[test]
    fn cut_and_contradicting_lengths_end_the_iteration() {
        let bytes = Request::new(16, 0, &[]).attribute(1, &[1; 8]).finish(1, 0);
        for cut in 0..bytes.len() {
            assert!(Messages(&bytes[..cut]).next().is_none(), "a message cut to {cut} bytes was read");
        }
        for length in [0u16, 1, 3, 200] {
            let mut attribute = [0u8; 8];
            attribute[..2].copy_from_slice(&length.to_ne_bytes());
            assert!(Attributes(&attribute).next().is_none(), "an attribute of length {length} was read");
        }
        assert!(Messages(&[0; 64]).next().is_none());
    }
}
