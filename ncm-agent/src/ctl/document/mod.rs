//! Goal states in files: YAML or JSON in protobuf's JSON mapping of `alcor.schema.GoalStateV2`, one document or
//! several in a file. Everything is read and checked before anything is used.

mod json;
mod message;
mod yaml;

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use ncm_model::wire;
use prost::Message as _;
use prost_reflect::{DescriptorPool, MessageDescriptor};

/// What is wrong in a document, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// File as it was named, or `standard input`.
    pub file: String,
    /// Line, from 1; 0 if it concerns the whole file.
    pub line: usize,
    /// Path of the field, such as `portStates.p1.configuration.macAdress`; empty for the document itself.
    pub path: String,
    /// What is wrong there.
    pub what: String,
}

impl Problem {
    fn new(line: usize, path: &str, what: String) -> Self {
        Self { file: String::new(), line, path: path.to_owned(), what }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.file)?;
        if self.line > 0 {
            write!(out, ":{}", self.line)?;
        }
        if !self.path.is_empty() {
            write!(out, ": {}", self.path)?;
        }
        write!(out, ": {}", self.what)
    }
}

/// A goal state and the place it comes from.
#[derive(Clone, Debug)]
pub struct Document {
    /// File and document number, for messages: `states.yaml` or `states.yaml (document 2)`.
    pub place: String,
    /// The goal state.
    pub state: wire::GoalStateV2,
}

/// Reads all documents of all `sources`: files, directories (their `.yaml`, `.yml` and `.json` files in order of name)
/// and `-` for standard input.
///
/// # Errors
///
/// Everything that is wrong in any of the files.
pub fn load(sources: &[PathBuf]) -> Result<Vec<Document>, Vec<Problem>> {
    let mut documents = Vec::new();
    let mut problems = Vec::new();
    for source in sources {
        match files(source) {
            Ok(files) => {
                for file in files {
                    match read(&file).and_then(|(name, text)| parse(&name, &text)) {
                        Ok(mut more) => documents.append(&mut more),
                        Err(mut more) => problems.append(&mut more),
                    }
                }
            }
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(documents) } else { Err(problems) }
}

/// All documents of `text`; `file` is its name for messages.
///
/// # Errors
///
/// Everything that is wrong in it.
pub fn parse(file: &str, text: &str) -> Result<Vec<Document>, Vec<Problem>> {
    let name = |mut problem: Problem| {
        problem.file = file.to_owned();
        problem
    };
    let descriptor = goal_state_descriptor().map_err(|problem| vec![name(problem)])?;
    if let Some(node) = json::parse(text)
        && let Ok(documents) = translate(file, vec![node], &descriptor)
    {
        return Ok(documents);
    }
    yaml::parse(text)
        .map_err(|problem| vec![problem])
        .and_then(|nodes| translate(file, nodes, &descriptor))
        .map_err(|problems| problems.into_iter().map(name).collect())
}

fn translate(
    file: &str,
    nodes: Vec<yaml::Node>,
    descriptor: &MessageDescriptor,
) -> Result<Vec<Document>, Vec<Problem>> {
    let mut translation = message::Translation::default();
    let mut documents = Vec::with_capacity(nodes.len());
    let total = nodes.len();
    for (index, node) in nodes.into_iter().enumerate() {
        let mut encoded = Vec::new();
        translation.message(&node, descriptor, &message::Path::Root, &mut encoded);
        let line = node.line;
        // A tree takes many times the memory of the message.
        drop(node);
        let place = if total == 1 { file.to_owned() } else { format!("{file} (document {})", index + 1) };
        match wire::GoalStateV2::decode(encoded.as_slice()) {
            Ok(state) => documents.push(Document { place, state }),
            Err(error) => translation.problems.push(Problem::new(line, "", error.to_string())),
        }
    }
    if translation.problems.is_empty() { Ok(documents) } else { Err(translation.problems) }
}

/// The descriptors of the goal-state contract.
///
/// # Errors
///
/// A text, if the built-in descriptors do not decode: a fault of the build.
pub fn descriptors() -> Result<DescriptorPool, String> {
    DescriptorPool::decode(wire::FILE_DESCRIPTOR_SET)
        .map_err(|error| format!("the built-in schema is broken: {error}"))
}

fn goal_state_descriptor() -> Result<MessageDescriptor, Problem> {
    let pool = descriptors().map_err(|text| Problem::new(0, "", text))?;
    pool.get_message_by_name("alcor.schema.GoalStateV2")
        .ok_or_else(|| Problem::new(0, "", "the built-in schema has no alcor.schema.GoalStateV2".into()))
}

fn files(source: &Path) -> Result<Vec<PathBuf>, Problem> {
    if source == Path::new("-") || !source.is_dir() {
        return Ok(vec![source.to_owned()]);
    }
    let broken = |error: std::io::Error| unreadable(source, &error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(source).map_err(broken)? {
        let path = entry.map_err(broken)?.path();
        let fits = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        if fits && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() {
        let what = "no .yaml, .yml or .json file in this directory".to_owned();
        return Err(Problem { file: source.display().to_string(), line: 0, path: String::new(), what });
    }
    Ok(found)
}

fn read(file: &Path) -> Result<(String, String), Vec<Problem>> {
    let (name, bytes) = if file == Path::new("-") {
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().read_to_end(&mut bytes);
        ("standard input".to_owned(), read.map(|_| bytes))
    } else {
        (file.display().to_string(), std::fs::read(file))
    };
    let bytes = bytes.map_err(|error| vec![unreadable(Path::new(&name), &error)])?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok((name, text)),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count() + 1;
            Err(vec![Problem { file: name, line, path: String::new(), what: "not valid UTF-8".into() }])
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    let file = path.display().to_string();
    Problem { file, line: 0, path: String::new(), what: format!("cannot be read: {error}") }
}

/// The candidate nearest to `word`, if one is near enough to be what was meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = normalise(word);
    let limit = (word.len() / 3).max(1);
    candidates
        .map(|candidate| (distance(&word, &normalise(candidate)), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn normalise(word: &str) -> Vec<char> {
    word.chars().filter(|c| *c != '_' && *c != '-').flat_map(char::to_lowercase).collect()
}

/// Levenshtein's distance: insertions, deletions and replacements of single characters.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replace = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
