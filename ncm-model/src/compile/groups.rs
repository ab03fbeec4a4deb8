//! What ports have of their security groups: a policy set, and a class of members.

use std::collections::BTreeSet;

use crate::goalstate::neighbour_view;
use crate::model::Model;
use crate::settings::MissingGroup;
use crate::store::{NONE, Sym};

/// References to texts.
pub(crate) fn refs(groups: &[String]) -> Vec<&str> {
    groups.iter().map(String::as_str).collect()
}

impl Model {
    /// A group that the port names and that is not held.
    pub(crate) fn missing_group(&self, slot: u32) -> Option<&str> {
        self.ports[slot].groups.iter().map(String::as_str).find(|group| !self.policy.holds(group))
    }

    /// A port is in these groups from now on: in order, each once.
    pub(crate) fn name_groups(&mut self, slot: u32, groups: Vec<String>) {
        if self.ports[slot].groups == groups {
            return;
        }
        let members = self.policy.hold_members(&refs(&groups));
        let before = std::mem::replace(&mut self.ports[slot].members, members);
        self.policy.release_members(before);
        for group in std::mem::take(&mut self.ports[slot].groups) {
            if let Some(ports) = self.group_ports.get_mut(&group) {
                ports.remove(&slot);
                if ports.is_empty() {
                    self.group_ports.remove(&group);
                }
            }
        }
        for group in &groups {
            self.group_ports.entry(group.clone()).or_default().insert(slot);
        }
        self.ports[slot].groups = groups;
    }

    /// The neighbour is in groups, but there is no class left for the combination of them.
    pub(crate) fn lacks_class(&self, neighbour: u32) -> bool {
        let Some(neighbour) = self.neighbours.get(neighbour) else { return false };
        let Some(provenance) =
            (neighbour.provenance != NONE).then(|| self.provenances.get(neighbour.provenance))
        else {
            return false;
        };
        provenance.members == 0 && provenance.extra != Sym::EMPTY && {
            let extra = self.strings.bytes(provenance.extra);
            neighbour_view::read(0, Some(&extra))
                .is_ok_and(|extra| extra.groups.iter().any(|group| !group.is_empty()))
        }
    }

    /// Has the ports that name a group looked at again: it is held from now on, or not any more.
    pub(crate) fn disturb_group(&mut self, group: &str) {
        if let Some(ports) = self.group_ports.get(group) {
            self.dirty_ports.extend(ports);
        }
    }

    /// Gives a port the policy set of its groups if it is programmed and all of them are held, else none.
    pub(crate) fn update_set(&mut self, slot: u32) {
        let port = &self.ports[slot];
        let wanted = port.live && !port.groups.is_empty() && self.missing_group(slot).is_none();
        let set = if wanted { self.policy.hold_set(&refs(&port.groups)) } else { 0 };
        let before = std::mem::replace(&mut self.ports[slot].set, set);
        if before != 0 {
            self.policy.release_set(before);
        }
    }

    /// Nothing passes the port: a group of it is not held, or its rules cannot be programmed.
    pub(crate) fn is_closed(&self, slot: u32) -> bool {
        match self.ports[slot].set {
            0 => self.settings.missing_group == MissingGroup::Closed && self.missing_group(slot).is_some(),
            set => self.policy.refusal(set).is_some(),
        }
    }

    /// Compiles policy. Adds the ports whose rules have changed to `ports`, and gives them: their epochs rise.
    pub(crate) fn compile_policy(&mut self, ports: &mut BTreeSet<u32>) -> BTreeSet<u32> {
        let changed: BTreeSet<u32> = self.policy.compile(&mut self.tables).into_iter().collect();
        let mut raised = BTreeSet::new();
        if !changed.is_empty() {
            let has_changed = |slot: &u32| {
                self.ports.get(*slot).is_some_and(|port| port.live && changed.contains(&port.set))
            };
            raised.extend((0..self.ports.bound()).filter(has_changed));
        }
        ports.extend(&raised);
        raised
    }
}
