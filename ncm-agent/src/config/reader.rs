//! Walks a TOML document key by key, so that every fault is reported with the key's full name, its line and what was
//! expected, and all of them at once.

use std::borrow::Cow;
use std::fmt::Display;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One fault in the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Full name of the key, such as `underlay.mode`; empty when the file as a whole is at fault.
    pub key: String,
    /// Line in the file, counted from 1; 0 when the fault has no place.
    pub line: usize,
    /// What was expected and what was found.
    pub problem: String,
}

/// A table of the document whose keys are taken one by one; what is left over at the end is unknown.
pub(super) struct Section<'a, 'i> {
    text: &'a str,
    path: Vec<String>,
    table: Cow<'a, DeTable<'i>>,
    known: Vec<&'static str>,
    faults: &'a mut Vec<Fault>,
}

impl<'a, 'i> Section<'a, 'i> {
    /// The whole document.
    pub(super) fn root(text: &'a str, table: &'a DeTable<'i>, faults: &'a mut Vec<Fault>) -> Self {
        Self { text, path: Vec::new(), table: Cow::Borrowed(table), known: Vec::new(), faults }
    }

    fn name(&self, key: &str) -> String {
        self.path.iter().map(String::as_str).chain([key]).collect::<Vec<_>>().join(".")
    }

    fn line(&self, offset: usize) -> usize {
        1 + self.text.as_bytes()[..offset.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count()
    }

    /// Reports that `key` is not as it has to be.
    pub(super) fn fault(&mut self, key: &str, problem: impl Into<String>) {
        let line = self.get(key).map_or(0, |value| self.line(value.span().start));
        self.faults.push(Fault { key: self.name(key), line, problem: problem.into() });
    }

    fn get(&self, key: &str) -> Option<&Spanned<DeValue<'i>>> {
        self.table.get(key)
    }

    fn take(&mut self, key: &'static str) -> Option<Spanned<DeValue<'i>>> {
        self.known.push(key);
        self.get(key).cloned()
    }

    /// The table under `key`; an empty one if there is none.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'_, 'i> {
        let table = match self.take(key).map(Spanned::into_inner) {
            None => DeTable::new(),
            Some(DeValue::Table(table)) => table,
            Some(other) => {
                self.fault(key, format!("expected a table ([{}]), found {}", self.name(key), shown(&other)));
                DeTable::new()
            }
        };
        let mut path = self.path.clone();
        path.push(key.to_owned());
        Section { text: self.text, path, table: Cow::Owned(table), known: Vec::new(), faults: self.faults }
    }

    /// A string that `parse` understands; `expected` says in words what it may be. An empty string is as good as none.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(key)?.into_inner();
        match value.as_str() {
            Some("") => None,
            Some(text) => parse(text).or_else(|| {
                self.fault(key, format!("expected {expected}, found {text:?}"));
                None
            }),
            None => {
                self.fault(key, format!("expected {expected}, found {}", shown(&value)));
                None
            }
        }
    }

    /// Whether `key` is there and an empty string.
    pub(super) fn is_empty_text(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value.get_ref().as_str() == Some(""))
    }

    /// Whether `key` is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// A string in the form that `T` parses.
    pub(super) fn form<T: FromStr>(&mut self, key: &'static str, expected: &str) -> Option<T> {
        self.parsed(key, expected, |text| text.parse().ok())
    }

    /// Any string.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        self.form(key, "a string")
    }

    /// One of the given words, each standing for a value.
    pub(super) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let expected = format!(
            "one of {}",
            words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(", ")
        );
        self.parsed(key, &expected, |text| {
            words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
        })
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.take(key) else { return default };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.fault(key, format!("expected true or false, found {}", shown(value.get_ref())));
            default
        })
    }

    /// An integer between `least` and `most`.
    pub(super) fn integer(&mut self, key: &'static str, least: u64, most: u64, default: u64) -> u64 {
        let Some(value) = self.take(key) else { return default };
        let number = value.get_ref().as_integer().and_then(|integer| {
            let digits: String = integer.as_str().chars().filter(|digit| *digit != '_').collect();
            u64::from_str_radix(digits.trim_start_matches('+'), integer.radix()).ok()
        });
        match number {
            Some(number) if (least..=most).contains(&number) => number,
            _ => {
                let found = shown(value.get_ref());
                self.fault(key, format!("expected an integer from {least} to {most}, found {found}"));
                default
            }
        }
    }

    /// A list of strings, each in a form that `parse` understands.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let value = self.take(key)?.into_inner();
        let Some(items) = value.as_array() else {
            self.fault(key, format!("expected a list of strings, each {expected}, found {}", shown(&value)));
            return None;
        };
        let mut list = Vec::new();
        for item in items {
            match item.get_ref().as_str().and_then(&parse) {
                Some(item) => list.push(item),
                None => self.fault(
                    key,
                    format!("expected a list of strings, each {expected}; one is {}", shown(item.get_ref())),
                ),
            }
        }
        Some(list)
    }

    /// Reports every key that nobody asked for.
    pub(super) fn finish(self) {
        let unknown: Vec<_> = self
            .table
            .iter()
            .filter(|(key, _)| !self.known.contains(&key.get_ref().as_ref()))
            .map(|(key, _)| (key.get_ref().to_string(), self.line(key.span().start)))
            .collect();
        let place = if self.path.is_empty() { "at the top level" } else { "in this section" };
        for (key, line) in unknown {
            let problem = format!("unknown key; expected {place} one of {}", self.known.join(", "));
            let key = self.name(&key);
            self.faults.push(Fault { key, line, problem });
        }
    }
}

fn shown(value: &DeValue<'_>) -> impl Display + use<> {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => format!("the integer {}", number.as_str()),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
