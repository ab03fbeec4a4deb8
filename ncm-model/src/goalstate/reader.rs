//! Reading protobuf from a slice without copying (<https://protobuf.dev/programming-guides/encoding>).
//!
//! prost would copy every string of a million neighbours; here they stay where they were received.

use std::fmt;

/// Groups may nest this deep in fields that are skipped, as with prost.
const MAX_DEPTH: u32 = 100;

/// What is wrong with the bytes, and where they are. Boxed: results are returned for every field, faults hardly ever.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fault(Box<Details>);

/// What a [`Fault`] tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Details {
    /// Address of the byte; an offset once the start of the message is subtracted.
    pub(crate) at: usize,
    /// Field names, innermost first.
    pub(crate) path: Vec<&'static str>,
    pub(crate) problem: String,
}

impl Fault {
    /// A fault at the byte that `bytes` begins with.
    #[cold]
    pub(crate) fn new(bytes: &[u8], problem: impl Into<String>) -> Self {
        Self(Box::new(Details { at: bytes.as_ptr() as usize, path: Vec::new(), problem: problem.into() }))
    }

    pub(crate) fn details(self) -> Details {
        *self.0
    }

    pub(crate) fn within(mut self, field: &'static str) -> Self {
        self.0.path.push(field);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.problem)
    }
}

/// How a field is encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wire {
    Varint,
    Fixed64,
    Bytes,
    GroupStart,
    GroupEnd,
    Fixed32,
}

/// A position in encoded fields.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn fault(&self, problem: impl Into<String>) -> Fault {
        Fault::new(self.rest, problem)
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64, Fault> {
        if let [byte @ 0..=0x7f, rest @ ..] = self.rest {
            self.rest = rest;
            return Ok(u64::from(*byte));
        }
        if let [low, high @ 0..=0x7f, rest @ ..] = self.rest {
            self.rest = rest;
            return Ok(u64::from(low & 0x7f) | u64::from(*high) << 7);
        }
        self.long_varint()
    }

    /// A number of more than two bytes, or a faulty one.
    fn long_varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0_u64;
        for (position, byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * position);
            if byte & 0x80 == 0 {
                if position == 9 && *byte > 1 {
                    return Err(self.fault("a number of more than 64 bits"));
                }
                self.rest = &self.rest[position + 1..];
                return Ok(value);
            }
        }
        Err(self.fault(if self.rest.len() < 10 {
            "the message ends within a number"
        } else {
            "a number of more than 64 bits"
        }))
    }

    /// The next field's number and encoding, or `None` at the end.
    #[inline]
    pub(crate) fn field(&mut self) -> Result<Option<(u32, Wire)>, Fault> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let start = *self;
        let key = self.varint()?;
        let wire = match key & 7 {
            0 => Wire::Varint,
            1 => Wire::Fixed64,
            2 => Wire::Bytes,
            3 => Wire::GroupStart,
            4 => Wire::GroupEnd,
            5 => Wire::Fixed32,
            other => return Err(start.fault(format!("an unknown encoding ({other}) of a field"))),
        };
        match u32::try_from(key) {
            Ok(key) if key >> 3 != 0 => Ok(Some((key >> 3, wire))),
            _ => Err(start.fault("a field number out of range")),
        }
    }

    /// The bytes of a field that carries its length.
    #[inline]
    pub(crate) fn bytes(&mut self, wire: Wire) -> Result<&'a [u8], Fault> {
        if wire != Wire::Bytes {
            return Err(self.fault("a field is encoded as another type than the contract's"));
        }
        let start = *self;
        let length = self.varint()?;
        let rest = self.rest;
        match usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length)) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => {
                Err(start.fault(format!("a length of {length} bytes where only {} are left", rest.len())))
            }
        }
    }

    /// A string field.
    #[inline]
    pub(crate) fn text(&mut self, wire: Wire) -> Result<&'a str, Fault> {
        let bytes = self.bytes(wire)?;
        std::str::from_utf8(bytes)
            .map_err(|error| Fault::new(&bytes[error.valid_up_to()..], "a text that is not UTF-8"))
    }

    /// A number field: `uint32`, an enum or `bool` take the low bits, as protobuf wants it.
    #[inline]
    pub(crate) fn number(&mut self, wire: Wire) -> Result<u64, Fault> {
        if wire != Wire::Varint {
            return Err(self.fault("a field is encoded as another type than the contract's"));
        }
        self.varint()
    }

    /// Skips a field that the contract does not know.
    pub(crate) fn skip(&mut self, number: u32, wire: Wire) -> Result<(), Fault> {
        self.skip_nested(number, wire, MAX_DEPTH)
    }

    fn skip_nested(&mut self, number: u32, wire: Wire, depth: u32) -> Result<(), Fault> {
        match wire {
            Wire::Varint => self.varint().map(drop),
            Wire::Fixed64 => self.advance(8),
            Wire::Fixed32 => self.advance(4),
            Wire::Bytes => self.bytes(wire).map(drop),
            Wire::GroupEnd => Err(self.fault("the end of a group that did not begin")),
            Wire::GroupStart => {
                if depth == 0 {
                    return Err(self.fault("groups nested too deep"));
                }
                loop {
                    match self.field()? {
                        None => return Err(self.fault("the message ends within a group")),
                        Some((end, Wire::GroupEnd)) if end == number => return Ok(()),
                        Some((inner, wire)) => self.skip_nested(inner, wire, depth - 1)?,
                    }
                }
            }
        }
    }

    /// Bytes that are still to be read.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    fn advance(&mut self, count: usize) -> Result<(), Fault> {
        match self.rest.get(count..) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => Err(self.fault("the message ends within a field")),
        }
    }
}
