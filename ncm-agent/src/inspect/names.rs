//! Names of numbered things: ports, subnets, hosts, next-hop groups, policy sets and members' classes by the table of
//! names, interfaces by the kernel's, so that a dump shows what an operator knows them by.

use std::collections::HashMap;

use ncm_common::tables::{Name, NameKey, name_kinds};

use super::KeyError;

/// The names known when a table is shown.
#[derive(Clone, Default, Debug)]
pub struct Names {
    by_index: HashMap<(u32, u32), (u32, String)>,
    by_name: HashMap<(u32, String), u32>,
    interfaces: HashMap<u32, String>,
}

impl Names {
    /// Names from the entries of the table of names, and interfaces by index.
    #[must_use]
    pub fn new(
        entries: impl IntoIterator<Item = (NameKey, Name)>,
        interfaces: impl IntoIterator<Item = (u32, String)>,
    ) -> Self {
        let mut names = Self { interfaces: interfaces.into_iter().collect(), ..Self::default() };
        for (key, name) in entries {
            let mut text = name_text(&name);
            if matches!(key.kind, name_kinds::SET | name_kinds::MEMBERS) {
                // Lists of security groups: in a key's text a comma ends a column.
                text = text.replace(',', "+");
            }
            // An identity that had two indices one after the other keeps both names; text leads to the newer one.
            let newest = names.by_name.get(&(key.kind, text.clone())).copied();
            let older = newest
                .and_then(|index| names.by_index.get(&(key.kind, index)))
                .is_none_or(|(generation, _)| *generation < name.generation);
            if older {
                names.by_name.insert((key.kind, text.clone()), key.index);
            }
            names.by_index.insert((key.kind, key.index), (name.generation, text));
        }
        names
    }

    /// What to call the thing of that kind and index: its name, or `#index` where there is none or it is ambiguous
    /// or would not survive in a key's text.
    #[must_use]
    pub fn show(&self, kind: u32, index: u32) -> String {
        match self.by_index.get(&(kind, index)) {
            Some((_, name)) if self.leads_back(kind, index, name) => name.clone(),
            _ => format!("#{index}"),
        }
    }

    /// Like [`Names::show`], for a reference: what it leads to has to have that generation, else it is called stale.
    #[must_use]
    pub fn show_reference(&self, kind: u32, index: u32, generation: u32) -> String {
        match self.by_index.get(&(kind, index)) {
            Some((current, _)) if *current != generation => format!("#{index} (stale)"),
            _ => self.show(kind, index),
        }
    }

    fn leads_back(&self, kind: u32, index: u32, name: &str) -> bool {
        let plain = !name.is_empty() && !name.starts_with('#') && !name.contains([',', '=']);
        plain && self.by_name.get(&(kind, name.to_owned())) == Some(&index)
    }

    /// The index behind what [`Names::show`] gave.
    pub(super) fn parse(&self, kind: u32, text: &str) -> Result<u32, KeyError> {
        let by_number = || text.strip_prefix('#').unwrap_or(text).parse().ok();
        let expected = match kind {
            name_kinds::PORT => "a known port's id or #index",
            name_kinds::SUBNET => "a known subnet's id or #index",
            name_kinds::HOST => "a known host's address or #index",
            name_kinds::SET => "a known policy set: its security groups' ids with `+` between, or #number",
            name_kinds::MEMBERS => "known security groups' ids with `+` between, or #number",
            _ => "a known name or #index",
        };
        self.by_name
            .get(&(kind, text.to_owned()))
            .copied()
            .or_else(by_number)
            .ok_or_else(|| KeyError::Unknown { text: text.to_owned(), expected })
    }

    /// The full name of a thing, however odd; `None` if it has none.
    #[must_use]
    pub fn get(&self, kind: u32, index: u32) -> Option<&str> {
        self.by_index.get(&(kind, index)).map(|(_, name)| name.as_str())
    }

    /// What to call an interface: its name, or `#index`; `-` for none.
    #[must_use]
    pub fn show_interface(&self, index: u32) -> String {
        match (index, self.interfaces.get(&index)) {
            (0, _) => "-".to_owned(),
            (_, Some(name)) => name.clone(),
            (_, None) => format!("#{index}"),
        }
    }

    /// The index behind what [`Names::show_interface`] gave.
    pub(super) fn parse_interface(&self, text: &str) -> Result<u32, KeyError> {
        let by_name = self.interfaces.iter().find(|(_, name)| *name == text).map(|(index, _)| *index);
        by_name.or_else(|| text.strip_prefix('#').unwrap_or(text).parse().ok()).ok_or_else(|| {
            KeyError::Unknown { text: text.to_owned(), expected: "an interface's name or #index" }
        })
    }
}

/// The text in an entry of the table of names.
pub(super) fn name_text(name: &Name) -> String {
    let len = usize::try_from(name.len).unwrap_or(usize::MAX).min(name.text.len());
    String::from_utf8_lossy(&name.text[..len]).into_owned()
}
