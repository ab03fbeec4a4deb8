//! YAML (and JSON, which YAML 1.2 contains) as a tree in which every node knows its line.
//!
//! Aliases and tags are refused: goal states have no use for them, and aliases let a small file expand without bound.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};

use super::Problem;

/// Nesting beyond this is refused; goal states are at most 7 deep.
const DEEPEST: usize = 32;

/// A value and where it is written.
#[derive(Debug)]
pub(super) struct Node {
    /// Line in the file, from 1.
    pub(super) line: usize,
    pub(super) content: Content,
}

/// What a node holds.
#[derive(Debug)]
pub(super) enum Content {
    /// A scalar; `plain` if it is written without quotes.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    /// Entries in the order in which they are written.
    Mapping(Vec<Entry>),
}

/// An entry of a mapping.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) value: Node,
}

impl Node {
    /// Whether the node is `null` in YAML 1.2's core schema.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.content, Content::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What the node is, for a message.
    pub(super) fn describe(&self) -> String {
        match &self.content {
            _ if self.is_null() => "nothing".to_owned(),
            Content::Scalar { text, plain: true } => format!("`{}`", shorten(text)),
            Content::Scalar { text, plain: false } => format!("the string \"{}\"", shorten(text)),
            Content::Sequence(_) => "a list".to_owned(),
            Content::Mapping(_) => "a mapping".to_owned(),
        }
    }
}

fn shorten(text: &str) -> String {
    const LONGEST: usize = 60;
    if text.chars().count() <= LONGEST {
        text.to_owned()
    } else {
        text.chars().take(LONGEST).chain(['…']).collect()
    }
}

/// Every document of the stream. Empty documents (nothing between two `---`) are left out.
///
/// # Errors
///
/// The first place that is not YAML, or is YAML that is refused here.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, Problem> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            Problem::new(error.marker().line(), "", format!("not valid YAML or JSON: {}", error.info()))
        })?;
        builder.take(event, span)?;
    }
    Ok(builder.documents)
}

/// A collection that is still open.
enum Open {
    Sequence { line: usize, items: Vec<Node> },
    Mapping { line: usize, entries: Vec<Entry>, key: Option<(usize, String)> },
}

#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<Open>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Problem> {
        let line = line_of(span.start);
        match event {
            Event::Alias(_) => Err(Problem::new(line, "", "aliases (`*name`) are not supported here".into())),
            Event::Scalar(_, _, _, Some(tag))
            | Event::SequenceStart(_, Some(tag))
            | Event::MappingStart(_, Some(tag)) => {
                Err(Problem::new(line, "", format!("tags (`{tag}`) are not supported here")))
            }
            Event::Scalar(text, style, _, None) => {
                let plain = style == ScalarStyle::Plain;
                self.add(Node { line, content: Content::Scalar { text: text.into_owned(), plain } })
            }
            Event::SequenceStart(..) => self.enter(Open::Sequence { line, items: Vec::new() }, line),
            Event::MappingStart(..) => {
                self.enter(Open::Mapping { line, entries: Vec::new(), key: None }, line)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::Sequence { line, items }) => {
                    self.add(Node { line, content: Content::Sequence(items) })
                }
                Some(Open::Mapping { line, entries, .. }) => {
                    self.add(Node { line, content: Content::Mapping(entries) })
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn enter(&mut self, collection: Open, line: usize) -> Result<(), Problem> {
        if let Some(Open::Mapping { key: None, .. }) = self.open.last() {
            return Err(Problem::new(line, "", "a key has to be a string".into()));
        }
        if self.open.len() >= DEEPEST {
            return Err(Problem::new(line, "", format!("nested more than {DEEPEST} deep")));
        }
        self.open.push(collection);
        Ok(())
    }

    fn add(&mut self, node: Node) -> Result<(), Problem> {
        match self.open.last_mut() {
            None if node.is_null() => {}
            None => self.documents.push(node),
            Some(Open::Sequence { items, .. }) => items.push(node),
            Some(Open::Mapping { entries, key, .. }) => match key.take() {
                Some((line, key)) => entries.push(Entry { line, key, value: node }),
                None => match node.content {
                    Content::Scalar { text, .. } => *key = Some((node.line, text)),
                    _ => return Err(Problem::new(node.line, "", "a key has to be a string".into())),
                },
            },
        }
        Ok(())
    }
}

fn line_of(marker: Marker) -> usize {
    marker.line()
}
