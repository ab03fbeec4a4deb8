//! What keys and values are made of, field by field: it is kept beside the tables, so that a version of the agent can take over
//! tables of any other by the names of their fields.
//!
//! A name means the same in every version. What is to mean something else gets another name, and a field that is zero says what was
//! true before there was one.

/// A field of a key or a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Bytes in front of it.
    pub offset: u32,
    /// Its bytes: those of all elements, if it is an array.
    pub size: u32,
    /// How many elements it has: 1 if it is no array of structures.
    pub count: u32,
    /// What each element is made of; nothing if it is a number, or an array of numbers.
    pub fields: &'static [Field],
}

/// A type of which the fields are known.
pub trait Described {
    /// Its fields; none if it is a number.
    const FIELDS: &'static [Field] = &[];
    /// How many structures it has in a row.
    const COUNT: u32 = 1;
}

impl Described for u8 {}
impl Described for u16 {}
impl Described for u32 {}
impl Described for u64 {}

impl<T: Described, const N: usize> Described for [T; N] {
    const FIELDS: &'static [Field] = T::FIELDS;
    const COUNT: u32 = if T::FIELDS.is_empty() { 1 } else { N as u32 };
}
