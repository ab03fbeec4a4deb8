//! The contract's names and numbers, compared with a copy that is checked in.

use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};

const CHECKED_IN: &str = include_str!("contract.txt");

fn enum_text(prefix: &str, value: &EnumDescriptorProto, into: &mut Vec<String>) {
    let values: Vec<String> =
        value.value.iter().map(|value| format!("{} = {}", value.name(), value.number())).collect();
    into.push(format!("enum {prefix}{}: {}", value.name(), values.join("; ")));
}

fn message_text(prefix: &str, message: &DescriptorProto, into: &mut Vec<String>) {
    if message.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry) {
        return;
    }
    let name = format!("{prefix}{}", message.name());
    let fields: Vec<String> = message
        .field
        .iter()
        .map(|field| {
            let short = field.type_name().rsplit('.').next().unwrap_or_default().to_owned();
            let map = message.nested_type.iter().find(|nested| {
                nested.name() == short
                    && nested.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry)
            });
            let kind = match (field.r#type(), map) {
                (_, Some(map)) => {
                    let value = map.field[1].type_name().rsplit('.').next().unwrap_or_default().to_owned();
                    format!("map <string, {value}>")
                }
                (Type::Message | Type::Enum, None) => short,
                (Type::String, None) => "string".into(),
                (Type::Uint32, None) => "uint32".into(),
                (Type::Uint64, None) => "uint64".into(),
                (Type::Bool, None) => "bool".into(),
                (other, None) => format!("{other:?}"),
            };
            let repeated =
                if field.label() == prost_types::field_descriptor_proto::Label::Repeated && map.is_none() {
                    "repeated "
                } else {
                    ""
                };
            let oneof = if field.oneof_index.is_some() { " (oneof)" } else { "" };
            format!("{} {}: {repeated}{kind}{oneof}", field.number(), field.name())
        })
        .collect();
    into.push(format!("message {name}: {}", fields.join("; ")));
    message.enum_type.iter().for_each(|nested| enum_text(&format!("{name}."), nested, into));
    message.nested_type.iter().for_each(|nested| message_text(&format!("{name}."), nested, into));
}

fn contract() -> Vec<String> {
    let set = FileDescriptorSet::decode(crate::wire::FILE_DESCRIPTOR_SET).unwrap();
    let mut lines = Vec::new();
    for file in &set.file {
        lines.push(format!("file {} package {} {}", file.name(), file.package(), file.syntax()));
        file.enum_type.iter().for_each(|value| enum_text("", value, &mut lines));
        file.message_type.iter().for_each(|message| message_text("", message, &mut lines));
        for service in &file.service {
            for method in &service.method {
                let stream = |streaming: bool| if streaming { "stream " } else { "" };
                let name = |full: &str| full.rsplit('.').next().unwrap_or_default().to_owned();
                lines.push(format!(
                    "rpc {}/{} ({}{}) returns ({}{})",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    name(method.input_type()),
                    stream(method.server_streaming()),
                    name(method.output_type())
                ));
            }
        }
    }
    lines.sort();
    lines
}

#[test]
fn names_and_numbers_are_the_contracts() {
    let ours = contract();
    let checked_in: Vec<&str> =
        CHECKED_IN.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    for line in &ours {
        assert!(checked_in.contains(&line.as_str()), "not in src/tests/contract.txt:\n{line}");
    }
    for line in &checked_in {
        assert!(ours.iter().any(|ours| ours == line), "only in src/tests/contract.txt:\n{line}");
    }
}
