//! The end of a step: what has been marked becomes entries to put and keys to delete.

use std::collections::BTreeSet;

use ncm_common::tables::{
    ClassKey, Classes, Name, NameKey, Port, Reference, Route, RouteKey, Rule, RuleKey, Source, SourceKey,
    SourcePrefixKey, Subnet, SubnetPrefixKey, Vni, VtepKey,
};

use crate::compile::mirror::Mirror;
use crate::compile::{Changes, Handle, HandleKind};
use crate::model::Model;

/// The tables that are kept as written.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) names: Mirror<NameKey, Name>,
    pub(crate) rules: Mirror<RuleKey, Rule>,
    pub(crate) classes: Mirror<ClassKey, Classes>,
    pub(crate) subnets: Mirror<u32, Subnet>,
    pub(crate) ports: Mirror<u32, Port>,
    pub(crate) vnis: Mirror<u32, Vni>,
    pub(crate) subnet_prefixes: Mirror<SubnetPrefixKey, Reference>,
    pub(crate) vteps: Mirror<VtepKey, Reference>,
    pub(crate) routes: Mirror<RouteKey, Route>,
    pub(crate) sources: Mirror<SourceKey, Source>,
    pub(crate) source_prefixes: Mirror<SourcePrefixKey, Source>,
    pub(crate) devices: Mirror<u32, u32>,
    pub(crate) port_by_interface: Mirror<u32, Reference>,
}

/// Does the same with each table that is kept.
macro_rules! each_table {
    ($run:ident!($($more:tt)*)) => {
        $run!($($more)*; names, rules, classes, subnets, ports, vnis, subnet_prefixes, vteps, routes, sources,
            source_prefixes, devices, port_by_interface)
    };
}

impl Tables {
    fn flush(&mut self, changes: &mut Changes) {
        macro_rules! flush {
            (; $($table:ident),+) => { $(self.$table.flush(&mut changes.$table);)+ };
        }
        each_table!(flush!());
    }

    /// Writes again what comes from one of these resources.
    pub(crate) fn resend(&mut self, from: impl Fn(Handle) -> bool) {
        macro_rules! resend {
            (; $($table:ident),+) => { $(self.$table.resend(&from);)+ };
        }
        each_table!(resend!());
    }
}

impl Model {
    /// Ends a step: everything marked is decided and its differences are added to `changes`.
    pub(crate) fn flush(&mut self, changes: &mut Changes) {
        self.stirred += 1;
        if self.replaying.is_some() {
            // Endpoints are not kept beside the kernel's: what they should be is asked at the end.
            self.dirty_ip.clear();
            self.dirty_mac.clear();
        }
        self.use_freed_room();
        let mut ports = BTreeSet::new();
        while let Some(port) = self.dirty_ports.pop_first() {
            self.update_port(port);
            ports.insert(port);
        }
        let by_policy = self.compile_policy(&mut ports);
        let share = self.fair_share();
        if std::mem::replace(&mut self.flow_share, share) != share {
            ports.extend(self.port_by_index.values());
        }
        let mut raised = BTreeSet::new();
        for port in ports {
            if self.write_port(port) {
                raised.insert(port);
            }
        }
        self.release_hosts(changes);
        self.write_routes();
        self.write_endpoints(changes);
        let again = std::mem::take(&mut self.resend);
        if !again.is_empty() {
            self.tables.resend(|cause| again.contains(&cause));
            if again.iter().any(|handle| handle.kind() == Some(HandleKind::Group)) {
                // Flows may have been decided without the rules that the kernel had refused.
                raised.extend((0..self.ports.bound()).filter(|slot| self.ports[*slot].set != 0));
            }
        }
        self.tables.flush(changes);
        // Rules that came and went within the step have changed nothing.
        let sets = changes.written_sets();
        raised.extend(by_policy.into_iter().filter(|slot| sets.contains(&self.ports[*slot].set)));
        // What covers more is written later, and goes sooner.
        changes.classes.put.reverse();
        self.raise_epochs(raised, changes);
        self.announce_interfaces(&mut changes.interfaces);
    }
}
