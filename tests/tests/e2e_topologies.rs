//! Who may reach whom, on what: small topologies with their tables of expectations, in `topologies/`, each line of which is
//! tried with real sockets against real agents.
//!
//! How they are written: [`ncm_tests::testbed::Topology`].

use ncm_tests::testbed::{Cloud, HostOptions, Lab, Topology, TwoHosts, reach_as_told};

macro_rules! topologies {
    ($($name:literal),+ $(,)?) => {
        [$(($name, include_str!(concat!("topologies/", $name, ".txt")))),+]
    };
}

const RULES: &[(&str, &str)] = &topologies![
    "no_groups",
    "default_deny",
    "http",
    "port_ranges",
    "protocols",
    "icmp_types",
    "both_ends",
    "host_beside_any",
];

const GROUPS: &[(&str, &str)] = &topologies![
    "default_group",
    "several_groups",
    "remote_groups",
    "remote_groups_routed",
    "web_and_database",
    "missing_group",
];

const PLACES: &[(&str, &str)] = &topologies![
    "nested_prefixes",
    "egress",
    "admin_down",
    "allowed_pairs",
    "subnets_without_router",
    "several_addresses",
];

const IPV6: &[(&str, &str)] =
    &topologies!["ipv6", "ipv6_routed", "icmpv6_types", "dual_stack", "dual_stack_routed"];

/// Builds topologies in one lab and checks all that they expect.
fn hold(options: HostOptions, taps: bool, texts: &[(&str, &str)]) {
    Lab::story(|lab| {
        let mut topologies = Vec::new();
        for (number, (name, text)) in (1..).zip(texts) {
            let topology = Topology::read(name, number, text)?;
            let cloud = Cloud { taps, ..topology.cloud };
            topologies.push(Topology { cloud, ..topology });
        }
        let net = TwoHosts::new(lab, options)?;
        reach_as_told(lab, &net, &topologies)
    });
}

#[test]
fn rules_by_protocol_port_and_direction() {
    hold(HostOptions::default(), false, RULES);
}

#[test]
fn groups_and_their_members() {
    hold(HostOptions::default(), false, GROUPS);
}

#[test]
fn prefixes_addresses_and_states_of_ports() {
    hold(HostOptions::default(), false, PLACES);
}

#[test]
fn ipv6_and_both_families() {
    hold(HostOptions::default(), false, IPV6);
}

#[test]
fn ipv6_and_both_families_with_taps_over_a_virtual_wire() {
    hold(HostOptions::virtual_wire(), true, IPV6);
}

#[test]
fn groups_and_their_members_with_taps_where_the_kernel_decapsulates() {
    hold(HostOptions::default().with("underlay", "mode", "\"tc\""), true, GROUPS);
}

#[test]
fn every_topology_is_held_to() -> anyhow::Result<()> {
    let known: Vec<String> =
        [RULES, GROUPS, PLACES, IPV6].concat().into_iter().map(|(name, _)| format!("{name}.txt")).collect();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/topologies"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        anyhow::ensure!(known.contains(&name), "no test holds to {name}");
    }
    Ok(())
}
