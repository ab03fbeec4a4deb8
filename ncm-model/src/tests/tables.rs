//! What the tables hold: claims, routes, admission, indices over a restart.

use ncm_common::tables::{IpKey, Name, NameKey, endpoint_flags, name_kinds, port_flags, route_flags};

use super::kernel::Node;
use super::states::*;
use crate::wire::{GoalState, NeighborConfiguration};
use crate::{Model, Seed, Settings};

fn mapped(ip: [u8; 4]) -> [u8; 16] {
    std::net::Ipv4Addr::from(ip).to_ipv6_mapped().octets()
}

fn two_subnets() -> GoalState {
    base().subnet(CREATE, with_gateway(subnet("t", "v", "10.0.1.0/24", 11), "10.0.1.1", &mac(101)))
}

fn at(config: NeighborConfiguration, revision: u32) -> NeighborConfiguration {
    NeighborConfiguration { revision_number: revision, ..config }
}

/// The address of the host that the endpoint is on, or "local".
fn location(node: &Node, vni: u32, ip: [u8; 4]) -> Option<String> {
    let endpoint = node.kernel.endpoints_ip.get(&IpKey { vni, ip: mapped(ip) })?;
    if endpoint.flags & endpoint_flags::LOCAL != 0 {
        return Some("local".into());
    }
    let (generation, address) = node.kernel.hosts[&endpoint.target];
    assert_eq!(generation, endpoint.generation);
    Some(address.to_string())
}

#[test]
fn of_two_claims_the_highest_revision_then_the_latest_wins_and_deleting_it_reinstates_the_other() {
    let mut node = Node::new();
    node.push(&base());
    let claim = |id: &str, host: &str| neighbour(id, &mac(1), host, &[(0, "s", "10.0.0.5")]);
    let here = |node: &Node| location(node, 10, [10, 0, 0, 5]);
    node.push(&empty().neighbour(CREATE, claim("a", "192.168.0.2")));
    node.push(&empty().neighbour(CREATE, claim("b", "192.168.0.3")));
    assert_eq!(here(&node).as_deref(), Some("192.168.0.3"), "the latest");
    node.push(&empty().neighbour(CREATE, claim("a", "192.168.0.2")));
    assert_eq!(here(&node).as_deref(), Some("192.168.0.3"), "a repetition is no change");
    node.push(&empty().neighbour(CREATE, at(claim("a", "192.168.0.2"), 2)));
    assert_eq!(here(&node).as_deref(), Some("192.168.0.2"), "the highest revision");
    node.push(&empty().port(CREATE, port("p", &mac(1), &[("s", "10.0.0.5")])));
    assert_eq!(here(&node).as_deref(), Some("192.168.0.2"), "a port competes by the same rule");
    node.check();
    node.push(&empty().neighbour(DELETE, claim("a", "")).neighbour(DELETE, at(claim("a", ""), 2)));
    assert_eq!(here(&node).as_deref(), Some("local"));
    node.push(&empty().port(DELETE, port("p", "", &[])));
    assert_eq!(here(&node).as_deref(), Some("192.168.0.3"));
    node.push(&empty().neighbour(DELETE, claim("b", "")));
    assert_eq!(here(&node), None);
    node.check();
}

#[test]
fn many_claims_of_one_key_stay_quick() {
    let mut node = Node::new();
    node.step = 8192;
    node.push(&base());
    let claims: Vec<_> = (0..20_000_u32)
        .map(|number| {
            let host = format!("192.168.{}.{}", 1 + number / 250, 1 + number % 250);
            at(neighbour(&format!("n{number}"), &mac(1), &host, &[(0, "s", "10.0.0.5")]), number + 1)
        })
        .collect();
    let state = claims.iter().fold(empty(), |state, claim| state.neighbour(CREATE, claim.clone()));
    let start = std::time::Instant::now();
    node.push(&state);
    assert_eq!(location(&node, 10, [10, 0, 0, 5]).as_deref(), Some("192.168.80.250"));
    let state = claims.iter().rev().fold(empty(), |state, claim| state.neighbour(DELETE, claim.clone()));
    node.push(&state);
    assert!(node.kernel.endpoints_ip.is_empty());
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn routed_subnets_get_connected_routes_and_rules_by_priority() {
    let mut node = Node::new();
    let rules = [
        rule("b", "10.5.0.0/16", "10.0.1.9", 2),
        rule("a", "10.5.0.0/16", "10.0.1.8", 1),
        rule("c", "10.0.1.0/24", "10.0.0.9", 0),
        rule("d", "10.6.0.0/16", "10.9.9.9", 0),
        rule("e", "10.6.0.0/16", "10.0.0.7", 5),
    ];
    node.push(&two_subnets().router(CREATE, router("r", &[("s", &rules), ("t", &[])])));
    node.check();
    let next_hops: Vec<_> =
        node.kernel.routes.values().map(|route| (route.flags, route.next_hop_ip)).collect();
    let connected = (route_flags::CONNECTED, [0; 16]);
    assert_eq!(node.kernel.routes.len(), 6, "{:#?}", node.kernel.routes);
    assert_eq!(next_hops.iter().filter(|hop| **hop == connected).count(), 4, "connected wins over rule c");
    assert!(next_hops.contains(&(0, mapped([10, 0, 1, 8]))), "the lowest priority wins");
    assert!(next_hops.contains(&(0, mapped([10, 0, 0, 7]))), "a rule without way gives way");
    let (status, cause) = node.standing("r");
    assert_eq!(status, crate::wire::OperationStatus::Pending);
    assert!(cause.contains("10.9.9.9"), "{cause}");
    node.push(&empty().subnet(CREATE, subnet("u", "v", "10.9.0.0/16", 12)));
    node.push(&empty().router(UPDATE, router("r", &[("s", &rules), ("t", &[]), ("u", &[])])));
    assert!(node.kernel.routes.values().any(|route| route.next_hop_ip == mapped([10, 9, 9, 9])));
    node.check();
}

#[test]
fn hosts_are_admitted_into_the_vnis_of_the_whole_router() {
    let mut node = Node::new();
    node.push(&two_subnets());
    node.push(&empty().neighbour(CREATE, neighbour("n", &mac(1), "192.168.0.2", &[(0, "s", "10.0.0.5")])));
    let vnis = |node: &Node| node.kernel.vteps.keys().map(|key| key.vni).collect::<Vec<_>>();
    assert_eq!(vnis(&node), [10]);
    node.push(&empty().router(CREATE, router("r", &[("s", &[]), ("t", &[])])));
    assert_eq!(vnis(&node), [10, 11]);
    node.push(&empty().subnet(UPDATE, subnet("t", "v", "10.0.1.0/24", 15)));
    assert_eq!(vnis(&node), [10, 15]);
    node.push(&empty().router(DELETE, router("r", &[])));
    assert_eq!(vnis(&node), [10]);
    node.check();
}

#[test]
fn a_subnet_that_changes_its_vni_takes_everything_along() {
    let mut node = Node::new();
    node.step = 2;
    node.push(&base());
    let state = (0..20_u8).fold(empty(), |state, number| {
        let ip = format!("10.0.0.{}", 100 + number);
        state.neighbour(
            CREATE,
            neighbour(&format!("n{number}"), &mac(number), "192.168.0.2", &[(0, "s", &ip)]),
        )
    });
    node.push(&state.port(CREATE, port("p", &mac(90), &[("s", "10.0.0.5"), ("s", "10.0.0.6")])));
    node.push(&empty().vpc(UPDATE, vpc("v", 33)));
    assert!(node.kernel.endpoints_ip.keys().all(|key| key.vni == 33));
    assert!(node.kernel.endpoints_mac.keys().all(|key| key.vni == 33));
    assert_eq!(node.kernel.endpoints_ip.len(), 22);
    node.check();
    node.push(&empty().vpc(DELETE, vpc("v", 0)));
    assert!(node.kernel.endpoints_ip.is_empty() && node.kernel.ports.is_empty());
    node.check();
}

#[test]
fn allowed_pairs_become_sources_and_macs() {
    let mut node = Node::new();
    node.push(&base());
    let mut config = port("p", &mac(1), &[("s", "10.0.0.5"), ("s", "10.0.0.6"), ("s", "fd00::5")]);
    let pair = |ip: &str, mac: &str| crate::wire::port_configuration::AllowAddressPair {
        ip_address: ip.into(),
        mac_address: mac.into(),
    };
    config.allow_address_pairs =
        vec![pair("10.0.0.77", ""), pair("0.0.0.0/0", &mac(7)), pair("10.0.0.78", &mac(7))];
    node.push(&empty().port(CREATE, config));
    node.check();
    let port = node.kernel.ports.values().next().unwrap();
    assert_ne!(port.flags & port_flags::SOURCES, 0);
    assert_ne!(port.flags & port_flags::SOURCE_PREFIXES, 0);
    assert_eq!(node.kernel.sources.len(), 4, "{:?}", node.kernel.sources);
    assert_eq!(node.kernel.source_prefixes.keys().map(|key| key.prefix_len).collect::<Vec<_>>(), [192]);
    assert_eq!(node.kernel.endpoints_mac.len(), 2);
    assert_eq!(node.kernel.endpoints_ip.len(), 3);
}

#[test]
fn the_ipv6_subnets_of_a_port_that_is_in_several_are_known_to_it() {
    let mut node = Node::new();
    let subnets = [("six", "fd00:1::/64", 20), ("seven", "fd00:2::/56", 21)];
    let state = subnets
        .iter()
        .fold(base(), |state, (id, cidr, vni)| state.subnet(CREATE, subnet(id, "v", cidr, *vni)));
    node.push(&state);
    let both = [("s", "10.0.0.5"), ("six", "fd00:1::5"), ("seven", "fd00:2::5"), ("six", "fd00:1::6")];
    node.push(&empty().port(CREATE, port("p", &mac(1), &both)));
    node.check();
    let index = |vni| *node.kernel.subnets.iter().find(|(_, subnet)| subnet.vni == vni).expect("held").0;
    let links: Vec<_> = (node.kernel.source_prefixes.iter())
        .map(|(key, source)| (key.prefix_len - 96, key.mac, key.family, source.subnet))
        .collect();
    assert_eq!(links, [(56, [0; 6], 0, index(21)), (64, [0; 6], 0, index(20))]);
    // In one alone there is nothing to tell apart.
    let alone = port("p", &mac(1), &both[..2]);
    node.push(&empty().port(UPDATE, crate::wire::PortConfiguration { update_type: FULL, ..alone }));
    node.check();
    assert!(node.kernel.source_prefixes.is_empty());
}

#[test]
fn tenants_with_the_same_addresses_do_not_meet() {
    let mut node = Node::new();
    let state = base()
        .vpc(CREATE, vpc("w", 20))
        .subnet(CREATE, subnet("x", "w", "10.0.0.0/24", 0))
        .neighbour(CREATE, neighbour("a", &mac(1), "192.168.0.2", &[(0, "s", "10.0.0.5")]))
        .neighbour(CREATE, neighbour("b", &mac(1), "192.168.0.3", &[(0, "x", "10.0.0.5")]));
    node.push(&state);
    assert_eq!(location(&node, 10, [10, 0, 0, 5]).as_deref(), Some("192.168.0.2"));
    assert_eq!(location(&node, 20, [10, 0, 0, 5]).as_deref(), Some("192.168.0.3"));
    node.push(&empty().vpc(DELETE, vpc("w", 0)));
    assert_eq!(location(&node, 10, [10, 0, 0, 5]).as_deref(), Some("192.168.0.2"));
    assert_eq!(location(&node, 20, [10, 0, 0, 5]), None);
    node.check();
}

#[test]
fn subnets_that_share_a_vni_are_told_apart_by_prefix() {
    let mut node = Node::new();
    node.push(&base().subnet(CREATE, subnet("t", "v", "10.0.1.0/24", 0)));
    assert_eq!(node.kernel.subnet_prefixes.len(), 2);
    assert_eq!(node.kernel.vnis[&10].subnets, 2);
    node.push(&empty().subnet(DELETE, subnet("t", "", "", 0)));
    assert_eq!(node.kernel.vnis[&10].subnets, 1);
    node.check();
}

#[test]
fn a_restart_gives_the_same_identities_the_same_indices() {
    let mut first = Node::new();
    let build = |node: &mut Node, order: [&str; 3]| {
        node.push(&two_subnets());
        for id in order {
            let number = id.as_bytes()[0];
            let ip = format!("10.0.0.{number}");
            node.push(&empty().port(CREATE, port(id, &mac(number), &[("s", &ip)])));
            let (ip, host) = (format!("10.0.1.{number}"), format!("192.168.0.{number}"));
            node.push(&empty().neighbour(CREATE, neighbour(id, &mac(number), &host, &[(0, "t", &ip)])));
        }
    };
    build(&mut first, ["a", "b", "c"]);
    first.push(&empty().port(DELETE, port("a", "", &[])));
    let names = first.kernel.names.iter().map(|(key, name)| (*key, *name)).collect();
    let mut second = Node::new();
    let settings = second.model.settings().clone();
    second.model = Model::new(settings, &Seed { names, ..Seed::default() });
    build(&mut second, ["c", "b", "a"]);
    for (key, name) in &first.kernel.names {
        assert_eq!(second.kernel.names.get(key), Some(name), "{key:?}");
    }
    second.check();
}

#[test]
fn a_freed_index_comes_back_with_another_generation() {
    let mut node = Node::new();
    let subnet_index =
        |node: &Node| node.kernel.subnets.iter().map(|(index, value)| (*index, value.generation)).next();
    node.push(&base());
    let before = subnet_index(&node).unwrap();
    node.push(&empty().subnet(DELETE, subnet("s", "", "", 0)));
    node.push(&base());
    let after = subnet_index(&node).unwrap();
    assert_eq!(before.0, after.0);
    assert_ne!(before.1, after.1);
    let name = node.kernel.names[&NameKey { kind: name_kinds::SUBNET, index: after.0 }];
    assert_eq!(name, Name::new("s", after.1));
}

#[test]
fn of_two_ports_on_one_interface_one_has_it_until_it_goes() {
    let mut node = Node::with(Settings::default());
    node.push(&base());
    let named = |id: &str, number: u8| crate::wire::PortConfiguration {
        interface_name: "tap0".into(),
        ..port(id, &mac(number), &[("s", &format!("10.0.0.{number}"))])
    };
    node.push(&empty().port(CREATE, named("q", 5)));
    node.appear("tap0", 7);
    node.push(&empty().port(CREATE, named("p", 6)));
    node.check();
    assert_eq!(node.standing("q").0, crate::wire::OperationStatus::Pending);
    node.push(&empty().port(DELETE, named("p", 6)));
    assert_eq!(node.standing("q").0, crate::wire::OperationStatus::Success);
    node.check();
}

#[test]
fn interface_names_are_cut_as_alcor_cuts_them() {
    let mut node = Node::new();
    node.push(&base().port(CREATE, port("533d4dab-a814-4bf6", &mac(1), &[("s", "10.0.0.5")])));
    assert_eq!(node.wanted.iter().collect::<Vec<_>>(), ["tap533d4dab-a8"]);
}
