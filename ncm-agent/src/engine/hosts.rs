//! Remote hosts on their way from the model to the underlay, which writes their templates; and what refers to a host
//! that could not be written.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ncm_common::tables::{Endpoint, endpoint_flags};
use ncm_model::{HostChange, Put};

use super::writer::{Refusal, Refused};
use crate::netlink::underlay::Underlay;
use crate::telemetry::own;

/// The writer's side of the remote hosts.
#[derive(Default)]
pub(super) struct RemoteHosts {
    /// Hosts without an entry, by index, and why: endpoints on them cannot be reached.
    refused: HashMap<u32, (HostChange, Arc<str>)>,
}

impl RemoteHosts {
    /// Has the templates of added hosts written. Returns the removals, which come last: what refers to those hosts is
    /// still there.
    pub(super) fn add(&mut self, underlay: Option<&Underlay>, changes: Vec<HostChange>) -> Vec<HostChange> {
        // An index that is given to another host within the step is free for it now: generations keep them apart.
        let given: HashSet<u32> = changes
            .iter()
            .filter_map(|change| match change {
                HostChange::Add { index, .. } => Some(*index),
                HostChange::Remove { .. } => None,
            })
            .collect();
        let (now, later): (Vec<_>, Vec<_>) = changes.into_iter().partition(|change| match change {
            HostChange::Add { .. } => true,
            HostChange::Remove { index, .. } => given.contains(index),
        });
        self.change(underlay, &now);
        later
    }

    /// Passes changes on, in their order.
    pub(super) fn change(&mut self, underlay: Option<&Underlay>, changes: &[HostChange]) {
        let Some(underlay) = underlay.filter(|_| !changes.is_empty()) else { return };
        let mut before = HashMap::new();
        for change in changes {
            let (HostChange::Add { index, .. } | HostChange::Remove { index, .. }) = change;
            before.extend(self.refused.remove_entry(index));
        }
        let failed: HashMap<u32, String> = underlay.change_hosts(changes).into_iter().collect();
        if failed.is_empty() {
            return;
        }
        for change in changes {
            if let HostChange::Add { index, address, .. } = change
                && let Some(cause) = failed.get(index)
            {
                own::ENTRIES_FAILED.increment();
                let text = format!("the entry of the remote host {address} was refused: {cause}");
                // It is tried again and again, and said once.
                if before.get(index).is_none_or(|(_, known)| **known != *text) {
                    tracing::error!("{text}");
                }
                self.refused.insert(*index, (*change, text.into()));
            }
        }
    }

    /// Reports endpoints on hosts that have no entry, after trying these hosts once more.
    pub(super) fn check<K>(
        &mut self,
        underlay: Option<&Underlay>,
        table: &'static str,
        puts: &[Put<K, Endpoint>],
        refused: &mut Refused,
    ) {
        if self.refused.is_empty() {
            return;
        }
        let remote = |put: &&Put<K, Endpoint>| put.value.flags & endpoint_flags::LOCAL == 0;
        let needed: HashSet<u32> = puts.iter().filter(remote).map(|put| put.value.target).collect();
        let again: Vec<_> = self
            .refused
            .iter()
            .filter(|(index, _)| needed.contains(index))
            .map(|(_, (change, _))| *change)
            .collect();
        self.change(underlay, &again);
        for put in puts.iter().filter(remote) {
            if let Some((_, text)) = self.refused.get(&put.value.target) {
                refused.push(Refusal { cause: put.cause, table, text: Arc::clone(text) });
            }
        }
    }
}
