//! Protobuf's JSON mapping, strictly: a tree with lines becomes an encoded message, or a list of what is wrong and where.
//!
//! Fields go by their JSON name (`macAddress`) or the original one (`mac_address`). Unknown fields, duplicates, wrong
//! types and unknown enum values are refused. A number may be written as a string, as the mapping allows; a string
//! may not be written as a number, since YAML would change it (`1e3`, `0x10`).

use std::collections::HashSet;
use std::fmt;

use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

use super::yaml::{Content, Entry, Node};
use super::{Problem, nearest};

/// Problems beyond this many are not collected: the first ones tell enough.
const MOST_PROBLEMS: usize = 50;

/// Translates trees into messages and collects what is wrong with them.
#[derive(Default)]
pub(super) struct Translation {
    pub(super) problems: Vec<Problem>,
}

impl Translation {
    /// Appends the encoded message that `node` describes to `out`; what is wrong is in `problems`, and then the bytes are
    /// not to be used.
    pub(super) fn message(
        &mut self,
        node: &Node,
        descriptor: &MessageDescriptor,
        path: &Path<'_>,
        out: &mut Vec<u8>,
    ) {
        let Content::Mapping(entries) = &node.content else {
            self.expected(node, path, &format!("a mapping ({})", descriptor.name()));
            return;
        };
        let mut seen = Vec::with_capacity(entries.len());
        for entry in entries {
            let here = path.field(&entry.key);
            let Some(field) = find(descriptor, &entry.key) else {
                self.refuse(entry.line, &here, unknown_field(descriptor, &entry.key));
                continue;
            };
            if seen.contains(&field.number()) {
                self.refuse(entry.line, &here, "this field is given twice".into());
                continue;
            }
            seen.push(field.number());
            if !entry.value.is_null() {
                self.field(&entry.value, &field, &here, out);
            }
        }
    }

    fn field(&mut self, node: &Node, field: &FieldDescriptor, path: &Path<'_>, out: &mut Vec<u8>) {
        let kind = field.kind();
        if field.is_map() {
            self.map(node, field.number(), &kind, path, out);
        } else if field.is_list() {
            let Content::Sequence(items) = &node.content else {
                return self.expected(node, path, "a list");
            };
            for (index, item) in items.iter().enumerate() {
                self.single(item, field.number(), &kind, &path.item(index), out);
            }
        } else {
            self.single(node, field.number(), &kind, path, out);
        }
    }

    /// A map is a list of messages with the key as field 1 and the value as field 2.
    fn map(&mut self, node: &Node, number: u32, kind: &Kind, path: &Path<'_>, out: &mut Vec<u8>) {
        let Content::Mapping(entries) = &node.content else {
            return self.expected(node, path, "a mapping from keys to values");
        };
        let Some(value_kind) = kind.as_message().map(|entry| entry.map_entry_value_field().kind()) else {
            return;
        };
        let mut seen = HashSet::with_capacity(entries.len());
        let mut encoded = Vec::new();
        for Entry { line, key, value } in entries {
            let here = path.field(key);
            if !seen.insert(key.as_str()) {
                self.refuse(*line, &here, "this key is given twice".into());
                continue;
            }
            encoded.clear();
            // Every map of the schema is keyed by strings.
            put_bytes(1, key.as_bytes(), &mut encoded);
            self.single(value, 2, &value_kind, &here, &mut encoded);
            put_bytes(number, &encoded, out);
        }
    }

    /// A value that is neither a list nor a map, with its field's number.
    fn single(&mut self, node: &Node, number: u32, kind: &Kind, path: &Path<'_>, out: &mut Vec<u8>) {
        let varint = match kind {
            Kind::Message(descriptor) => {
                let mut encoded = Vec::new();
                self.message(node, descriptor, path, &mut encoded);
                return put_bytes(number, &encoded, out);
            }
            Kind::String => match string(node) {
                Some(text) => return put_bytes(number, text.as_bytes(), out),
                None => None,
            },
            Kind::Enum(descriptor) => match enumeration(node, descriptor) {
                // Negative numbers take ten bytes, as their sign is extended.
                Some(value) => Some(i64::from(value).cast_unsigned()),
                None => {
                    let names: Vec<String> =
                        descriptor.values().map(|value| value.name().to_owned()).collect();
                    return self.expected(node, path, &format!("one of {}", names.join(", ")));
                }
            },
            Kind::Uint32 => scalar::<u32>(node).map(u64::from),
            Kind::Uint64 => scalar::<u64>(node),
            Kind::Int32 => scalar::<i32>(node).map(|value| i64::from(value).cast_unsigned()),
            Kind::Int64 => scalar::<i64>(node).map(i64::cast_unsigned),
            Kind::Bool => boolean(node).map(u64::from),
            // A test sees to it that the schema has no field of another type.
            _ => None,
        };
        match varint {
            Some(value) => {
                encode_key(number, WireType::Varint, out);
                encode_varint(value, out);
            }
            None => self.expected(node, path, expectation(kind, node)),
        }
    }

    fn expected(&mut self, node: &Node, path: &Path<'_>, what: &str) {
        self.refuse(node.line, path, format!("expected {what}, found {}", node.describe()));
    }

    fn refuse(&mut self, line: usize, path: &Path<'_>, what: String) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(Problem::new(line, &path.to_string(), what));
        }
    }
}

/// Where in a document something is: written out only when there is something to say about it.
pub(super) enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl Path<'_> {
    fn field<'a>(&'a self, name: &'a str) -> Path<'a> {
        Path::Field(self, name)
    }

    fn item(&self, index: usize) -> Path<'_> {
        Path::Item(self, index)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Path::Root, name) => out.write_str(name),
            Self::Field(parent, name) => write!(out, "{parent}.{name}"),
            Self::Item(parent, index) => write!(out, "{parent}[{index}]"),
        }
    }
}

/// A field of bytes: a string or an encoded message.
fn put_bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn find(descriptor: &MessageDescriptor, key: &str) -> Option<FieldDescriptor> {
    descriptor.get_field_by_json_name(key).or_else(|| descriptor.get_field_by_name(key))
}

fn unknown_field(descriptor: &MessageDescriptor, key: &str) -> String {
    let names: Vec<String> = descriptor.fields().map(|field| field.json_name().to_owned()).collect();
    match nearest(key, names.iter().map(String::as_str)) {
        Some(name) => format!("unknown field (did you mean {name}?)"),
        None => format!("unknown field; {} has {}", descriptor.name(), names.join(", ")),
    }
}

fn scalar<T: std::str::FromStr>(node: &Node) -> Option<T> {
    match &node.content {
        Content::Scalar { text, .. } => text.parse().ok(),
        _ => None,
    }
}

fn boolean(node: &Node) -> Option<bool> {
    match &node.content {
        Content::Scalar { text, plain: true } => match text.as_str() {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn enumeration(node: &Node, descriptor: &EnumDescriptor) -> Option<i32> {
    let Content::Scalar { text, .. } = &node.content else { return None };
    let by_number = || text.parse().ok().and_then(|number| descriptor.get_value(number));
    descriptor.get_value_by_name(text).or_else(by_number).map(|value| value.number())
}

fn string(node: &Node) -> Option<&str> {
    match &node.content {
        Content::Scalar { text, plain } => {
            let is_other = *plain && (looks_like_number(text) || boolean(node).is_some() || node.is_null());
            (!is_other).then_some(text.as_str())
        }
        _ => None,
    }
}

/// Whether a plain scalar is a number in YAML 1.2's core schema (section 10.3.2).
fn looks_like_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let starts = digits.strip_prefix('.').unwrap_or(digits).starts_with(|c: char| c.is_ascii_digit());
    let radix = |prefix: &str, base: u32| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_digit(base)))
    };
    (starts && digits.parse::<f64>().is_ok())
        || radix("0x", 16)
        || radix("0o", 8)
        || matches!(digits, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN")
}

fn expectation(kind: &Kind, node: &Node) -> &'static str {
    match kind {
        Kind::Uint32 => "a whole number from 0 to 4294967295",
        Kind::Uint64 => "a whole number from 0 to 18446744073709551615",
        Kind::Int32 => "a whole number from -2147483648 to 2147483647",
        Kind::Int64 => "a whole number of 64 bits",
        Kind::Bool => "true or false",
        Kind::String if matches!(node.content, Content::Scalar { .. }) && !node.is_null() => {
            "a string (put it in quotes)"
        }
        Kind::String => "a string",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_goal_state_is_of_a_type_that_is_translated() {
        fn check(descriptor: &MessageDescriptor) {
            for field in descriptor.fields() {
                match field.kind() {
                    Kind::Message(inner) => check(&inner),
                    Kind::String | Kind::Enum(_) | Kind::Bool => {}
                    Kind::Uint32 | Kind::Uint64 | Kind::Int32 | Kind::Int64 => {}
                    other => panic!("{}: {other:?}", field.full_name()),
                }
            }
        }
        let pool = super::super::descriptors().unwrap();
        check(&pool.get_message_by_name("alcor.schema.GoalStateV2").unwrap());
    }
}
