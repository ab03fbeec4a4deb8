//! A fast way through JSON, for large files: the same tree as from YAML, but without lines.
//!
//! A YAML parser keeps the whole of a JSON document in memory before it gives its first event. So JSON is read this
//! way first, and again as YAML only if there is something wrong with it, to say on which line.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::yaml::{Content, Entry, Node};

/// The document, if `text` is a JSON object and nothing else.
pub(super) fn parse(text: &str) -> Option<Node> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    serde_json::from_str(text).ok()
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        source.deserialize_any(NodeVisitor).map(|content| Self { line: 0, content })
    }
}

struct NodeVisitor;

fn plain(text: String) -> Content {
    Content::Scalar { text, plain: true }
}

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Content;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(plain(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(plain(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(plain(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Content, E> {
        // With its fraction also where that is zero: a fraction is no whole number, here as in YAML.
        Ok(plain(format!("{value:?}")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Scalar { text: value.to_owned(), plain: false })
    }

    fn visit_string<E>(self, value: String) -> Result<Content, E> {
        Ok(Content::Scalar { text: value, plain: false })
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(plain("null".to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<Content, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = source.next_element()? {
            items.push(item);
        }
        Ok(Content::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<Content, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = source.next_entry()? {
            entries.push(Entry { line: 0, key, value });
        }
        Ok(Content::Mapping(entries))
    }
}
