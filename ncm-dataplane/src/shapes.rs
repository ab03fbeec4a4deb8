//! What tables are made of, as it is kept beside them: by it, any version of the agent takes over the tables of any other.
//!
//! Fields are matched by name. One that is shorter or longer than before (a number of little-endian bytes, or a list) keeps what
//! fits; one that was not there becomes zero, which says what was true without it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::path::Path;

use ncm_common::conversion::{Conversion, Copies, LARGEST, MOST_COPIES, Places};
use ncm_common::fields::Field;
use ncm_common::tables::{TABLES, TableKind, TableSpec};

use crate::pin::path_error;
use crate::sys::{self, NewMap};
use crate::{Error, raw};

/// First line of the text that is kept.
const HEAD: &str = "ncm fields 1";

/// A number, or a list of numbers, somewhere in a key or a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Leaf {
    pub(crate) name: String,
    pub(crate) offset: u32,
    pub(crate) size: u32,
}

/// What a table is made of.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Shape {
    pub(crate) kind: String,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) key: Vec<Leaf>,
    pub(crate) value: Vec<Leaf>,
}

/// What all tables are made of, by name.
pub(crate) type Shapes = BTreeMap<String, Shape>;

/// What is copied: from where, to where, how many bytes.
pub(crate) type Moves = Vec<(usize, usize, usize)>;

impl Shape {
    /// This version's.
    pub(crate) fn of(spec: &TableSpec) -> Self {
        Self {
            kind: format!("{:?}", spec.kind),
            key_size: spec.key_size,
            value_size: spec.value_size,
            key: leaves(spec.key_fields, spec.key_size),
            value: leaves(spec.value_fields, spec.value_size),
        }
    }

    /// The table's definition. That of another version is kept for good: a run takes over from one other at most.
    pub(crate) fn spec(&self, like: &'static TableSpec) -> Option<&'static TableSpec> {
        if *self == Self::of(like) {
            return Some(like);
        }
        (self.kind == format!("{:?}", like.kind)).then(|| {
            let spec = TableSpec { key_size: self.key_size, value_size: self.value_size, ..*like };
            &*Box::leak(Box::new(spec))
        })
    }

    fn leaf(&self, name: &str) -> Option<&Leaf> {
        self.value.iter().find(|leaf| leaf.name == name)
    }
}

fn leaves(fields: &[Field], size: u32) -> Vec<Leaf> {
    let mut found = Vec::new();
    if fields.is_empty() {
        found.push(Leaf { name: "number".to_owned(), offset: 0, size });
    }
    gather(fields, "", 0, &mut found);
    found
}

fn gather(fields: &[Field], prefix: &str, offset: u32, found: &mut Vec<Leaf>) {
    for field in fields {
        let (name, offset) = (format!("{prefix}{}", field.name), offset + field.offset);
        if field.fields.is_empty() {
            found.push(Leaf { name, offset, size: field.size });
            continue;
        }
        let each = field.size / field.count.max(1);
        for element in 0..field.count {
            gather(field.fields, &format!("{name}.{element}."), offset + element * each, found);
        }
    }
}

/// What this version's tables are made of.
pub(crate) fn own() -> Shapes {
    TABLES.iter().map(|spec| (spec.name.to_owned(), Shape::of(spec))).collect()
}

/// What is to be copied from one layout to another, field by field.
pub(crate) fn moves(from: &[Leaf], to: &[Leaf]) -> Moves {
    let is_spare = |leaf: &Leaf| leaf.name.rsplit('.').next().is_some_and(|name| name == "reserved");
    let mut moves: Moves = Vec::new();
    for target in to.iter().filter(|leaf| !is_spare(leaf)) {
        if let Some(source) = from.iter().find(|leaf| leaf.name == target.name) {
            let size = source.size.min(target.size) as usize;
            moves.push((source.offset as usize, target.offset as usize, size));
        }
    }
    moves.sort_unstable();
    moves
}

/// Copies what is to be copied; the rest of `to` is left as it is.
pub(crate) fn convert(moves: &Moves, from: &[u8], to: &mut [u8]) {
    for (source, target, size) in moves {
        if let (Some(source), Some(target)) =
            (from.get(*source..source + size), to.get_mut(*target..target + size))
        {
            target.copy_from_slice(source);
        }
    }
}

/// What programs need to know of tables of flows that are `theirs`; `None` if they lack what a flow cannot be without, or are larger
/// than programs have room for.
pub(crate) fn conversion(theirs: &Shape, ours: &Shape) -> Option<Conversion> {
    if theirs.key_size as usize > LARGEST || theirs.value_size as usize > LARGEST {
        return None;
    }
    let at = |name: &str, size: u32| {
        let leaf = theirs.leaf(name)?;
        (leaf.offset % 4 == 0 && leaf.size >= size).then(|| u8::try_from(leaf.offset).ok()).flatten()
    };
    // All that tells flows apart.
    let is_there =
        |leaf: &Leaf| leaf.name == "reserved" || theirs.key.iter().any(|other| other.name == leaf.name);
    if !ours.key.iter().all(is_there) {
        return None;
    }
    Some(Conversion {
        key: copies(&moves(&ours.key, &theirs.key))?,
        to_old: copies(&moves(&ours.value, &theirs.value))?,
        from_old: copies(&moves(&theirs.value, &ours.value))?,
        at: Places {
            port: at("port", 4)?,
            port_again: at("port_again", 4)?,
            state: at("state", 4)?,
            seen: at("seen", 8)?,
            timeout: at("timeout", 4)?,
            port_epoch: at("port_epoch", 4)?,
            remote_slot: at("remote_slot", 4)?,
            remote_epoch: at("remote_epoch", 4)?,
        },
    })
}

fn copies(moves: &Moves) -> Option<Copies> {
    let mut pieces: [Vec<[u8; 2]>; 3] = Default::default();
    for (source, target, size) in moves {
        let (mut source, mut target, mut left) = (*source, *target, *size);
        while left > 0 {
            let (kind, width) = match source | target {
                both if both % 4 == 0 && left >= 4 => (0, 4),
                both if both % 2 == 0 && left >= 2 => (1, 2),
                _ => (2, 1),
            };
            pieces[kind].push([u8::try_from(source).ok()?, u8::try_from(target).ok()?]);
            (source, target, left) = (source + width, target + width, left - width);
        }
    }
    let mut copies = Copies::NONE;
    let all = pieces.concat();
    if all.len() > MOST_COPIES {
        return None;
    }
    copies.places[..all.len()].copy_from_slice(&all);
    for (count, pieces) in copies.counts.iter_mut().zip(&pieces) {
        *count = u8::try_from(pieces.len()).ok()?;
    }
    Some(copies)
}

/// The text that is kept.
fn to_text(shapes: &Shapes) -> String {
    let mut text = format!("{HEAD}\n");
    for (name, shape) in shapes {
        // Writing to a text does not fail.
        let _ = writeln!(text, "table {name} {} {} {}", shape.kind, shape.key_size, shape.value_size);
        for (what, leaves) in [("key", &shape.key), ("value", &shape.value)] {
            for leaf in leaves {
                let _ = writeln!(text, "{what} {} {} {}", leaf.name, leaf.offset, leaf.size);
            }
        }
    }
    text
}

fn parse(text: &str) -> Option<Shapes> {
    let mut lines = text.lines();
    if lines.next() != Some(HEAD) {
        return None;
    }
    let mut shapes = Shapes::new();
    let mut last = None;
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["table", name, kind, key_size, value_size] => {
                let (key_size, value_size) = (key_size.parse().ok()?, value_size.parse().ok()?);
                let shape = Shape { kind: kind.to_owned(), key_size, value_size, ..Shape::default() };
                shapes.insert(name.to_owned(), shape);
                last = Some(name.to_owned());
            }
            [what @ ("key" | "value"), name, offset, size] => {
                let shape = shapes.get_mut(last.as_ref()?)?;
                let (offset, size): (u32, u32) = (offset.parse().ok()?, size.parse().ok()?);
                let (leaves, most) = match what {
                    "key" => (&mut shape.key, shape.key_size),
                    _ => (&mut shape.value, shape.value_size),
                };
                // Nothing is copied beyond a key's or a value's end, whoever wrote this.
                if offset.checked_add(size)? > most {
                    return None;
                }
                leaves.push(Leaf { name: name.to_owned(), offset, size });
            }
            _ => return None,
        }
    }
    Some(shapes)
}

/// Pins a description: an array of one long text.
pub(crate) fn keep(shapes: &Shapes, path: &Path) -> Result<(), Error> {
    let failed = path_error("keep the description of tables at", path);
    let mut text = to_text(shapes).into_bytes();
    text.resize(text.len().next_multiple_of(4096), 0);
    let map = sys::create_map(&NewMap {
        kind: raw::map_type(TableKind::Array),
        key_size: 4,
        value_size: u32::try_from(text.len()).unwrap_or(u32::MAX),
        max_entries: 1,
        flags: 0,
        inner: None,
    })
    .map_err(&failed)?;
    sys::update(map.as_fd(), &[0; 4], &text).map_err(&failed)?;
    sys::pin(map.as_fd(), path).map_err(&failed)
}

/// The description that is pinned there; `None` if there is none, or none that can be read.
pub(crate) fn kept(path: &Path) -> Option<Shapes> {
    let map = sys::get_pinned(path, true).ok()?;
    let info = sys::map_info(map.as_fd()).ok()?;
    if info.key_size != 4 {
        return None;
    }
    let mut text = vec![0; info.value_size as usize];
    sys::lookup(map.as_fd(), &[0; 4], &mut text).ok()?;
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    parse(std::str::from_utf8(&text[..end]).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again() {
        let shapes = own();
        assert_eq!(parse(&to_text(&shapes)), Some(shapes));
        assert_eq!(parse("something else"), None);
        let beyond = format!("{HEAD}\ntable T Hash 4 4\nvalue number 2 4\n");
        assert_eq!(parse(&beyond), None, "a field that ends behind its value");
    }

    #[test]
    fn structures_in_structures_are_told_by_their_numbers() {
        let hosts = &own()["HOSTS"];
        let names: Vec<&str> = hosts.value.iter().map(|leaf| leaf.name.as_str()).collect();
        assert!(names.contains(&"halves.0.mtu") && names.contains(&"halves.1.headers"), "{names:?}");
        let end = hosts.value.iter().map(|leaf| leaf.offset + leaf.size).max();
        assert_eq!(end, Some(hosts.value_size));
    }

    #[test]
    fn fields_are_found_by_name_wherever_they_are_and_whatever_their_size() {
        let leaf = |name: &str, offset, size| Leaf { name: name.to_owned(), offset, size };
        let from = [leaf("a", 0, 2), leaf("b", 2, 6), leaf("gone", 8, 4), leaf("reserved", 12, 4)];
        let to = [leaf("b", 0, 6), leaf("new", 6, 2), leaf("a", 8, 4), leaf("reserved", 12, 4)];
        let mut value = [0; 16];
        convert(&moves(&from, &to), &[1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9, 7, 7, 7, 7], &mut value);
        assert_eq!(value, [3, 4, 5, 6, 7, 8, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn programs_get_copies_that_are_aligned_at_both_ends() {
        let flows = &own()["FLOWS"];
        let conversion = conversion(flows, flows).expect("a layout can be converted to itself");
        let list = conversion.from_old;
        let counts = list.counts.map(usize::from);
        let mut copied = vec![0; flows.value_size as usize];
        for (at, [from, to]) in list.places[..counts.iter().sum()].iter().enumerate() {
            let width = if at < counts[0] {
                4
            } else if at < counts[0] + counts[1] {
                2
            } else {
                1
            };
            assert!(usize::from(*from) % width == 0 && usize::from(*to) % width == 0);
            copied[usize::from(*to)..][..width].fill(1);
        }
        assert!(copied.iter().all(|byte| *byte == 1), "every byte is copied: {copied:?}");
    }
}
