//! Protobuf's JSON mapping, strictly: a tree with lines becomes a message, or a list of what is wrong and where.
//!
//! Fields go by their JSON name (`macAddress`) or the original one (`mac_address`). Unknown fields, duplicates, wrong
//! types and unknown enum values are refused. A number may be written as a string, as the mapping allows; a string
//! may not be written as a number, since YAML would change it (`1e3`, `0x10`).

use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value,
};

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
    /// The message that `node` describes; what is wrong is in `problems`, and then the message is not to be used.
    pub(super) fn message(
        &mut self,
        node: &Node,
        descriptor: &MessageDescriptor,
        path: &str,
    ) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        let Content::Mapping(entries) = &node.content else {
            self.expected(node, path, &format!("a mapping ({})", descriptor.name()));
            return message;
        };
        for (position, entry) in entries.iter().enumerate() {
            let here = join(path, &entry.key);
            let Some(field) = find(descriptor, &entry.key) else {
                self.refuse(entry.line, &here, unknown_field(descriptor, &entry.key));
                continue;
            };
            if entries[..position].iter().any(|other| find(descriptor, &other.key).as_ref() == Some(&field)) {
                self.refuse(entry.line, &here, "this field is given twice".into());
                continue;
            }
            if entry.value.is_null() {
                continue;
            }
            if let Some(value) = self.field(&entry.value, &field, &here) {
                message.set_field(&field, value);
            }
        }
        message
    }

    fn field(&mut self, node: &Node, field: &FieldDescriptor, path: &str) -> Option<Value> {
        if field.is_map() {
            self.map(node, field, path)
        } else if field.is_list() {
            let Content::Sequence(items) = &node.content else {
                self.expected(node, path, "a list");
                return None;
            };
            let kind = field.kind();
            let values = items.iter().enumerate();
            let values =
                values.filter_map(|(index, item)| self.single(item, &kind, &format!("{path}[{index}]")));
            Some(Value::List(values.collect()))
        } else {
            self.single(node, &field.kind(), path)
        }
    }

    fn map(&mut self, node: &Node, field: &FieldDescriptor, path: &str) -> Option<Value> {
        let Content::Mapping(entries) = &node.content else {
            self.expected(node, path, "a mapping from keys to values");
            return None;
        };
        let kind = field.kind();
        let entry_type = kind.as_message()?;
        // Every map of the schema is keyed by strings.
        let value_kind = entry_type.map_entry_value_field().kind();
        let mut map = std::collections::HashMap::with_capacity(entries.len());
        for Entry { line, key, value } in entries {
            let here = join(path, key);
            if map.contains_key(&MapKey::String(key.clone())) {
                self.refuse(*line, &here, "this key is given twice".into());
                continue;
            }
            if let Some(value) = self.single(value, &value_kind, &here) {
                map.insert(MapKey::String(key.clone()), value);
            }
        }
        Some(Value::Map(map))
    }

    fn single(&mut self, node: &Node, kind: &Kind, path: &str) -> Option<Value> {
        let value = match kind {
            Kind::Message(descriptor) => return Some(Value::Message(self.message(node, descriptor, path))),
            Kind::Enum(descriptor) => return self.enumeration(node, descriptor, path),
            Kind::Uint32 | Kind::Fixed32 => number(node).map(Value::U32),
            Kind::Uint64 | Kind::Fixed64 => number(node).map(Value::U64),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => number(node).map(Value::I32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => number(node).map(Value::I64),
            Kind::Float => number(node).map(Value::F32),
            Kind::Double => number(node).map(Value::F64),
            Kind::Bool => boolean(node).map(Value::Bool),
            Kind::String => string(node).map(Value::String),
            // The schema has no field of this type.
            Kind::Bytes => None,
        };
        if value.is_none() {
            self.expected(node, path, expectation(kind, node));
        }
        value
    }

    fn enumeration(&mut self, node: &Node, descriptor: &EnumDescriptor, path: &str) -> Option<Value> {
        let known = match &node.content {
            Content::Scalar { text, .. } => descriptor
                .get_value_by_name(text)
                .or_else(|| text.parse().ok().and_then(|number| descriptor.get_value(number))),
            _ => None,
        };
        if let Some(value) = known {
            return Some(Value::EnumNumber(value.number()));
        }
        let names: Vec<String> = descriptor.values().map(|value| value.name().to_owned()).collect();
        self.expected(node, path, &format!("one of {}", names.join(", ")));
        None
    }

    fn expected(&mut self, node: &Node, path: &str, what: &str) {
        self.refuse(node.line, path, format!("expected {what}, found {}", node.describe()));
    }

    fn refuse(&mut self, line: usize, path: &str, what: String) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(Problem::new(line, path, what));
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
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

fn number<T: std::str::FromStr>(node: &Node) -> Option<T> {
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

fn string(node: &Node) -> Option<String> {
    match &node.content {
        Content::Scalar { text, plain: false } => Some(text.clone()),
        Content::Scalar { text, plain: true } => {
            (!looks_like_number(text) && boolean(node).is_none() && !node.is_null()).then(|| text.clone())
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
        Kind::Uint32 | Kind::Fixed32 => "a whole number from 0 to 4294967295",
        Kind::Uint64 | Kind::Fixed64 => "a whole number from 0 to 18446744073709551615",
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "a whole number from -2147483648 to 2147483647",
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => "a whole number of 64 bits",
        Kind::Float | Kind::Double => "a number",
        Kind::Bool => "true or false",
        Kind::String if matches!(node.content, Content::Scalar { .. }) && !node.is_null() => {
            "a string (put it in quotes)"
        }
        Kind::String => "a string",
        Kind::Bytes | Kind::Message(_) | Kind::Enum(_) => "something else",
    }
}
