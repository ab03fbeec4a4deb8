//! Epochs: they rise with every change that flows are decided by, and with nothing else. Checked at every step of every test.

use std::collections::{BTreeMap, BTreeSet};

use ncm_common::tables::{
    Endpoint, MEMBERS, Port, Route, RouteKey, RuleKey, Source, SourceKey, SourcePrefixKey, Subnet, VtepKey,
    epoch_slot, mac_slot, port_flags,
};

use super::kernel::{Kernel, Node};
use super::states::*;
use crate::{Changes, Model, Seed};

/// What a port's flows are decided by, but for the other side.
#[derive(Clone, PartialEq, Debug)]
struct Decision {
    port: Port,
    sources: Vec<(SourceKey, Source)>,
    prefixes: Vec<(SourcePrefixKey, Source)>,
    subnets: Vec<Subnet>,
    routes: Vec<(RouteKey, Route, Option<Subnet>)>,
    /// How many groups ask for each is of no concern.
    rules: Vec<RuleKey>,
    hosts: BTreeSet<VtepKey>,
}

/// What a step finds, to be compared with what it leaves.
pub(super) struct Before {
    ports: BTreeMap<u32, (Port, Decision)>,
    slots: BTreeSet<u32>,
}

fn decision(kernel: &Kernel, index: u32, port: &Port) -> Decision {
    let sources: Vec<_> = kernel
        .sources
        .iter()
        .filter(|(key, _)| key.port == index)
        .map(|(key, value)| (*key, *value))
        .collect();
    let prefixes: Vec<_> = kernel
        .source_prefixes
        .iter()
        .filter(|(key, _)| key.port == index)
        .map(|(key, value)| (*key, *value))
        .collect();
    // References with another generation than the subnet's lead nowhere.
    let live = |index: u32, generation: u32| {
        kernel.subnets.get(&index).filter(|subnet| subnet.generation == generation).copied()
    };
    let sourced = sources.iter().map(|(_, source)| source).chain(prefixes.iter().map(|(_, source)| source));
    let references = sourced.map(|source| (source.subnet, source.subnet_generation));
    let references = references.chain([(port.subnet, port.subnet_generation)]);
    let subnets: BTreeMap<u32, Subnet> =
        references.filter_map(|(index, generation)| Some((index, live(index, generation)?))).collect();
    let routes = kernel.routes.iter().filter(|(key, _)| subnets.contains_key(&key.subnet));
    let routes =
        routes.map(|(key, route)| (*key, *route, live(route.subnet, route.subnet_generation))).collect();
    let subnets: Vec<Subnet> = subnets.into_values().collect();
    let of_set = |key: &RuleKey| key.set >> 1 == port.set && key.class & MEMBERS == 0;
    let rules = kernel.rules.keys().filter(|key| of_set(key)).copied().collect();
    let vnis: BTreeSet<u32> = subnets.iter().map(|subnet| subnet.vni).collect();
    let hosts = kernel.vteps.keys().filter(|key| vnis.contains(&key.vni)).copied().collect();
    let flags = port.flags & !(port_flags::XDP_TARGET | port_flags::GROUPS_OUT);
    let port = Port { epoch: 0, ifindex: 0, mtu: 0, max_flows: 0, flags, ..*port };
    Decision { port, sources, prefixes, subnets, routes, rules, hosts }
}

/// What matters of an endpoint's entry.
fn facts(endpoint: &Endpoint) -> Endpoint {
    Endpoint { subnet: 0, ..*endpoint }
}

impl Before {
    pub(super) fn of(kernel: &Kernel, changes: &Changes) -> Self {
        let mut slots = BTreeSet::new();
        let by_ip = &kernel.endpoints_ip;
        for put in &changes.endpoints_ip.put {
            if by_ip.get(&put.key).map(facts) != Some(facts(&put.value)) {
                slots.insert(epoch_slot(put.key.vni, &put.key.ip));
            }
        }
        let gone = changes.endpoints_ip.del.iter().filter(|key| by_ip.contains_key(key));
        slots.extend(gone.map(|key| epoch_slot(key.vni, &key.ip)));
        let by_mac = &kernel.endpoints_mac;
        for put in &changes.endpoints_mac.put {
            if by_mac.get(&put.key).is_some_and(|before| facts(before) != facts(&put.value)) {
                slots.insert(mac_slot(put.key.vni, &put.key.mac));
            }
        }
        let gone = changes.endpoints_mac.del.iter().filter(|key| by_mac.contains_key(key));
        slots.extend(gone.map(|key| mac_slot(key.vni, &key.mac)));
        let ports =
            kernel.ports.iter().map(|(index, port)| (*index, (*port, decision(kernel, *index, port))));
        Self { ports: ports.collect(), slots }
    }

    /// After a restart (`resumed`) more epochs rise than have to: the model does not know what there is.
    pub(super) fn check(&self, kernel: &Kernel, changes: &Changes, resumed: bool) {
        let mut slots: Vec<u32> = self.slots.iter().copied().collect();
        if resumed {
            assert!(slots.iter().all(|slot| changes.epochs.contains(slot)), "{slots:?}: {changes:#?}");
            slots.clone_from(&changes.epochs);
        }
        assert_eq!(changes.epochs, slots, "slots of changed endpoints: {changes:#?}");
        for put in &changes.ports.put {
            let before = self.ports.get(&put.key).filter(|(port, _)| port.generation == put.value.generation);
            assert!(
                before.is_none_or(|(port, _)| port.epoch == put.value.epoch),
                "the epoch rises before everything is written: {put:?}"
            );
        }
        let quiet = changes.routes.is_empty()
            && changes.subnets.is_empty()
            && changes.sources.is_empty()
            && changes.source_prefixes.is_empty()
            && changes.rules.is_empty()
            && changes.classes.is_empty()
            && changes.vteps.is_empty();
        for (index, (port, before)) in &self.ports {
            let Some(now) = kernel.ports.get(index).filter(|now| now.generation == port.generation) else {
                continue;
            };
            let mut after = decision(kernel, *index, now);
            if after.hosts.is_superset(&before.hosts) {
                // That more hosts may send changes nothing for flows that are there.
                after.hosts.clone_from(&before.hosts);
            }
            if after != *before {
                assert_ne!(now.epoch, port.epoch, "{before:#?} became {after:#?}");
            } else if quiet {
                assert_eq!(now.epoch, port.epoch, "nothing has changed for port {index}: {changes:#?}");
            }
        }
    }
}

fn epoch(node: &Node) -> u32 {
    node.kernel.ports.values().next().unwrap().epoch
}

#[test]
fn rewriting_what_is_there_raises_nothing() {
    let mut node = Node::new();
    let neighbours = |revision: u32| {
        let mut config = neighbour("n", &mac(1), "192.168.0.2", &[(0, "s", "10.0.0.6"), (0, "s", "fd00::6")]);
        config.revision_number = revision;
        config
    };
    let state = base().port(CREATE, port("p", &mac(9), &[("s", "10.0.0.5")]));
    node.push(&state.clone().neighbour(CREATE, neighbours(1)));
    let other = neighbour("o", &mac(2), "192.168.0.3", &[(0, "s", "10.0.0.6")]);
    node.push(&empty().neighbour(CREATE, other));
    let before = epoch(&node);
    let raised = node.raised;
    node.push(&state);
    // Beside another claim of its address, a revision has the entries written again.
    node.push(&empty().neighbour(CREATE, neighbours(2)));
    node.push(&empty().neighbour(CREATE, neighbours(3)));
    assert_eq!(epoch(&node), before);
    assert_eq!(node.raised, raised + 1, "the first revision passes the address over");
}

#[test]
fn a_port_s_epoch_rises_with_its_routes_pairs_and_state() {
    let mut node = Node::new();
    let config = port("p", &mac(9), &[("s", "10.0.0.5")]);
    node.push(&base().port(CREATE, config.clone()));
    let mut last = epoch(&node);
    let mut rises = |node: &mut Node, state: &crate::wire::GoalState, what: &str| {
        node.push(state);
        assert!(epoch(node) > last, "{what}");
        last = epoch(node);
    };
    let down = crate::wire::PortConfiguration { admin_state_up: false, ..config.clone() };
    rises(&mut node, &empty().port(UPDATE, down), "admin state");
    rises(&mut node, &empty().port(UPDATE, config.clone()), "admin state again");
    let mut paired = config.clone();
    paired.allow_address_pairs = vec![crate::wire::port_configuration::AllowAddressPair {
        ip_address: "fd00::/48".into(),
        mac_address: String::new(),
    }];
    rises(&mut node, &empty().port(UPDATE, paired), "pairs");
    rises(&mut node, &empty().router(CREATE, router("r", &[("s", &[])])), "router");
    let rules = [rule("d", "0.0.0.0/0", "10.0.0.9", 0)];
    rises(&mut node, &empty().router(UPDATE, router("r", &[("s", &rules)])), "routes");
    let second = subnet("t", "v", "10.0.1.0/24", 11);
    node.push(&empty().subnet(CREATE, second.clone()));
    rises(&mut node, &empty().router(UPDATE, router("r", &[("s", &rules), ("t", &[])])), "connected routes");
    rises(
        &mut node,
        &empty().subnet(UPDATE, with_gateway(second, "10.0.1.1", &mac(77))),
        "another subnet's gateway",
    );
    rises(&mut node, &empty().vpc(UPDATE, vpc("v", 12)), "VNI");
    node.push(&empty().subnet(CREATE, subnet("u", "v", "10.0.2.0/24", 13)));
    assert_eq!(epoch(&node), last, "a subnet of no concern");
}

#[test]
fn a_neighbour_that_moves_or_joins_a_group_raises_its_slot() {
    let mut node = Node::new();
    node.push(&base());
    let config = neighbour("n", &mac(1), "192.168.0.2", &[(0, "s", "10.0.0.6")]);
    node.push(&empty().neighbour(CREATE, config.clone()));
    let moved =
        crate::wire::NeighborConfiguration { host_ip_address: "192.168.0.3".into(), ..config.clone() };
    let before = node.raised;
    node.push(&empty().neighbour(UPDATE, moved));
    assert_eq!(node.raised, before + 2, "its address's and its MAC's");
    let renamed = crate::wire::NeighborConfiguration { name: "x".into(), ..config };
    node.push(&empty().neighbour(UPDATE, renamed.clone()));
    let before = node.raised;
    node.push(&empty().neighbour(UPDATE, crate::wire::NeighborConfiguration { name: "y".into(), ..renamed }));
    assert_eq!(node.raised, before, "its name is of no concern");
}

#[test]
fn after_a_restart_epochs_go_on_above_those_that_flows_have() {
    let mut first = Node::new();
    let state = base().port(CREATE, port("p", &mac(9), &[("s", "10.0.0.5")]));
    first.push(&state);
    for up in [false, true, false, true] {
        let mut config = port("p", &mac(9), &[("s", "10.0.0.5")]);
        config.admin_state_up = up;
        first.push(&empty().port(UPDATE, config));
    }
    let names = first.kernel.names.iter().map(|(key, name)| (*key, *name)).collect();
    let ports = first.kernel.ports.iter().map(|(index, port)| (*index, *port)).collect();
    let mut second = Node::new();
    let settings = second.model.settings().clone();
    second.model = Model::new(settings, &Seed { names, ports, ..Seed::default() });
    second.push(&state);
    assert_eq!(epoch(&second), epoch(&first) + 1);
}
