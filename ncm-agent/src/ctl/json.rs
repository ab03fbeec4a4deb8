//! Messages as JSON, in protobuf's JSON mapping with all fields present and 64-bit numbers as numbers.

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::{Map, Value};

use super::failure::Failure;
use crate::ncm_v1;

/// Turns messages into JSON by their descriptors.
pub(super) struct Json {
    own: DescriptorPool,
    alcor: DescriptorPool,
}

impl Json {
    pub(super) fn new() -> Result<Self, Failure> {
        let broken = |error| Failure::failed(format!("the built-in schema is broken: {error}"));
        Ok(Self {
            own: DescriptorPool::decode(ncm_v1::FILE_DESCRIPTOR_SET).map_err(broken)?,
            alcor: super::document::descriptors().map_err(Failure::failed)?,
        })
    }

    /// A message of `ncm.v1` by the name of its type.
    pub(super) fn own(&self, name: &str, message: &impl Message) -> Result<Value, Failure> {
        // Every field is shown, also at its default: scripts need not guess.
        convert(&self.own, &format!("ncm.v1.{name}"), &message.encode_to_vec(), false)
    }

    /// An encoded message of `alcor.schema` by the name of its type, with what is set only.
    pub(super) fn alcor(&self, name: &str, bytes: &[u8]) -> Result<Value, Failure> {
        convert(&self.alcor, &format!("alcor.schema.{name}"), bytes, true)
    }
}

fn convert(pool: &DescriptorPool, name: &str, bytes: &[u8], skip_defaults: bool) -> Result<Value, Failure> {
    let broken = |error: String| Failure::failed(format!("cannot show {name}: {error}"));
    let descriptor = pool.get_message_by_name(name).ok_or_else(|| broken("unknown type".into()))?;
    let message = DynamicMessage::decode(descriptor, bytes).map_err(|error| broken(error.to_string()))?;
    let options = SerializeOptions::new().stringify_64_bit_integers(false).skip_default_fields(skip_defaults);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| broken(error.to_string()))
}

/// An object from names and values.
pub(super) fn object<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    Value::Object(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}
