//! Policy sets and classes of members.

use crate::compile::flush::Tables;
use crate::settings::Settings;

/// What security groups come to.
#[derive(Debug, Default)]
pub(crate) struct Policy;

#[allow(clippy::unused_self, reason = "no group is held yet")]
impl Policy {
    pub(crate) fn new(_first_set: u32, _first_members: u32, _settings: &Settings) -> Self {
        Self
    }

    pub(crate) fn holds(&self, _group: &str) -> bool {
        false
    }

    pub(crate) fn hold_set(&mut self, _groups: &[&str]) -> u32 {
        0
    }

    pub(crate) fn release_set(&mut self, _set: u32) {}

    pub(crate) fn hold_members(&mut self, groups: &[&str]) -> u32 {
        if groups.is_empty() { 0 } else { ncm_common::tables::MEMBERS | 1 }
    }

    pub(crate) fn retain_members(&mut self, _class: u32) {}

    pub(crate) fn release_members(&mut self, _class: u32) {}

    pub(crate) fn compile(&mut self, _tables: &mut Tables) -> Vec<u32> {
        Vec::new()
    }

    pub(crate) fn refusal(&self, _set: u32) -> Option<&str> {
        None
    }
}
