//! Netlink messages and their attributes, read and written as bytes: requests that are new to the kernel, and
//! attributes that are new to us, never make a message unreadable.

/// Bytes of a message header (`struct nlmsghdr`).
const HEADER: usize = 16;
/// Bit that marks an attribute as nested, and the one that marks it as being in network order.
const ATTRIBUTE_FLAGS: u16 = 0x8000 | 0x4000;
const NESTED: u16 = 0x8000;

/// Flags of requests and of dump answers (`NLM_F_*`).
pub(crate) mod flags {
    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const ACK: u16 = 0x4;
    pub(crate) const DUMP_INTERRUPTED: u16 = 0x10;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const REPLACE: u16 = 0x100;
    pub(crate) const EXCLUSIVE: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
}

/// Message types that every netlink family uses.
pub(crate) const ERROR: u16 = 2;
pub(crate) const DONE: u16 = 3;
pub(crate) const OVERRUN: u16 = 4;

/// One received message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// The messages of one datagram; stops at the first that is cut short.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

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
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The attributes behind a family's own header of `header` bytes.
    pub(crate) fn after(payload: &'a [u8], header: usize) -> Self {
        Self(payload.get(header..).unwrap_or_default())
    }

    /// The value of the first attribute of that type.
    pub(crate) fn find(self, wanted: u16) -> Option<&'a [u8]> {
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
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// Four bytes in host order at `offset`.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The text of a string attribute, without its terminator.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// A request under construction.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request of that type and with these flags (beside REQUEST), followed by the family's own header.
    pub(crate) fn new(kind: u16, request_flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(request_flags | flags::REQUEST).to_ne_bytes());
        bytes.extend_from_slice(header);
        bytes.resize(align(bytes.len()), 0);
        Self { bytes }
    }

    /// Appends an attribute.
    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&value[..usize::from(length) - 4]);
        self.bytes.resize(align(self.bytes.len()), 0);
        self
    }

    /// Appends a string attribute with its terminator.
    pub(crate) fn string(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Appends an attribute that holds what `fill` appends.
    pub(crate) fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self = fill(self.attribute(kind | NESTED, &[]));
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Type of the request.
    pub(crate) fn kind(&self) -> u16 {
        u16_at(&self.bytes, 4).unwrap_or_default()
    }

    /// The finished message.
    pub(crate) fn finish(mut self, sequence: u32, more_flags: u16) -> Vec<u8> {
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
