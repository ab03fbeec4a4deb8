//! IPv6 as IPv4: what IPv6 subnets, addresses, pairs and routes come to, and that neither version takes the other's.

use std::net::{IpAddr, Ipv6Addr};

use ncm_common::tables::{IpKey, port_flags, route_flags};

use super::kernel::Node;
use super::states::*;
use crate::wire::OperationStatus::{InvalidArg, Pending, Success};
use crate::wire::port_configuration::AllowAddressPair;

fn ip(text: &str) -> [u8; 16] {
    match text.parse().unwrap() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// A MAC's link-local address.
pub(super) fn link_local(mac: [u8; 6]) -> IpAddr {
    let [a, b, c, d, e, f] = mac.map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f).into()
}

/// [`base`] with an IPv6 subnet `t` beside, of the same VNI.
fn dual() -> crate::wire::GoalState {
    base().subnet(CREATE, with_gateway(subnet("t", "v", "fd00::/64", 0), "fd00::1", &mac(101)))
}

#[test]
fn a_dual_stack_port_is_one_port_with_several_addresses() {
    let mut node = Node::new();
    let fixed = [("t", "fd00::5"), ("s", "10.0.0.5"), ("t", "fd00::6"), ("s", "10.0.0.6")];
    node.push(&dual().port(CREATE, port("p", &mac(1), &fixed)));
    node.check();
    let port = node.kernel.ports.values().next().unwrap();
    assert_eq!(port.ip, ip("10.0.0.5"), "the first IPv4 address is the port's");
    assert_ne!(port.flags & port_flags::SOURCES, 0);
    let mut sources: Vec<_> = node.kernel.sources.iter().map(|(key, value)| (key.ip, value.subnet)).collect();
    sources.sort_unstable();
    let of = |text: &str| node.kernel.endpoints_ip[&IpKey { vni: 10, ip: ip(text) }].subnet;
    let mut expected = vec![
        (ip("10.0.0.6"), of("10.0.0.6")),
        (ip("fd00::5"), of("fd00::5")),
        (ip("fd00::6"), of("fd00::6")),
        (ip("fe80::ff:fe00:1"), of("fd00::5")),
    ];
    expected.sort_unstable();
    assert_eq!(sources, expected);
    assert_ne!(of("10.0.0.5"), of("fd00::5"));
    assert_eq!(node.kernel.endpoints_ip.len(), 4);
    assert_eq!(node.kernel.endpoints_mac.len(), 1);
}

#[test]
fn a_port_with_ipv6_alone_counts_by_its_first_address() {
    let mut node = Node::new();
    node.push(&dual().port(CREATE, port("p", &mac(1), &[("t", "fd00::5"), ("t", "fd00::6")])));
    node.check();
    let port = node.kernel.ports.values().next().unwrap();
    assert_eq!(port.ip, ip("fd00::5"));
    assert!(port.subnet != 0 && port.vni == 10);
    assert_eq!(node.kernel.sources.len(), 1);
}

#[test]
fn a_dual_stack_port_waits_for_the_subnet_of_either_version_and_works_in_the_other() {
    let mut node = Node::new();
    node.push(&base().port(CREATE, port("p", &mac(1), &[("s", "10.0.0.5"), ("t", "fd00::5")])));
    node.appear("tapp", 7);
    let (status, cause) = node.standing("p");
    assert_eq!(status, Pending);
    assert!(cause.contains("subnet t"), "{cause}");
    assert_eq!(node.kernel.endpoints_ip.len(), 1);
    node.check();
    node.push(&empty().subnet(CREATE, subnet("t", "v", "fd00::/64", 0)));
    assert_eq!(node.standing("p").0, Success);
    assert_eq!(node.kernel.endpoints_ip.len(), 2);
    node.check();
}

#[test]
fn ipv6_neighbours_are_endpoints_by_address_l2_and_l3() {
    let mut node = Node::new();
    node.push(&dual());
    let fixed = [(0, "t", "fd00::6"), (1, "t", "fd00::6"), (0, "s", "10.0.0.6")];
    node.push(&empty().neighbour(CREATE, neighbour("n", &mac(1), "192.168.0.2", &fixed)));
    let flags = |node: &Node| node.kernel.endpoints_ip[&IpKey { vni: 10, ip: ip("fd00::6") }].flags;
    assert_eq!(flags(&node), 2, "L3 waits for a router");
    node.push(&empty().router(CREATE, router("r", &[("s", &[]), ("t", &[])])));
    assert_eq!(flags(&node), 2 | 4);
    node.check();
}

#[test]
fn ipv6_routes_are_marked_so_and_take_next_hops_of_their_own_version() {
    let mut node = Node::new();
    let rules = [
        rule("a", "::/0", "fd00::9", 0),
        rule("b", "0.0.0.0/0", "10.0.0.9", 0),
        rule("c", "fd09::/16", "10.0.0.9", 0),
        rule("d", "fd08::8/128", "fd00::8", 0),
    ];
    node.push(&dual().router(CREATE, router("r", &[("t", &rules)])));
    node.check();
    let routes: Vec<_> = node
        .kernel
        .routes
        .iter()
        .map(|(key, route)| (key.prefix_len - 32, Ipv6Addr::from(key.ip), route.flags))
        .collect();
    let expected = [
        (0, "::".parse().unwrap(), route_flags::V6),
        (64, "fd00::".parse().unwrap(), route_flags::V6 | route_flags::CONNECTED),
        (128, "fd08::8".parse().unwrap(), route_flags::V6),
    ];
    assert_eq!(routes, expected, "no way to a next hop of another version, or in no subnet of the router");
    assert_eq!(node.standing("r").0, Pending);
    node.push(&empty().router(UPDATE, router("r", &[("s", &[]), ("t", &rules[..2])])));
    assert!(node.kernel.routes.iter().any(|(key, route)| key.prefix_len == 32 + 96 && route.flags == 0));
    assert_eq!(node.standing("r").0, Success);
    node.check();
}

#[test]
fn allowed_pairs_of_either_version_count_as_the_subnet_of_that_version() {
    let mut node = Node::new();
    let mut config = port("p", &mac(1), &[("s", "10.0.0.5"), ("t", "fd00::5")]);
    let pair = |ip: &str| AllowAddressPair { ip_address: ip.into(), mac_address: String::new() };
    config.allow_address_pairs = vec![
        pair("::/0"),
        pair("fd00::77"),
        pair("10.0.0.77"),
        pair("0.0.0.0/0"),
        pair("::ffff:10.9.0.0/112"),
    ];
    node.push(&dual().port(CREATE, config));
    node.check();
    let v4 = node.kernel.endpoints_ip[&IpKey { vni: 10, ip: ip("10.0.0.5") }].subnet;
    let v6 = node.kernel.endpoints_ip[&IpKey { vni: 10, ip: ip("fd00::5") }].subnet;
    let prefixes: Vec<_> = node
        .kernel
        .source_prefixes
        .iter()
        .map(|(key, source)| (key.prefix_len - 96, key.family, source.subnet))
        .collect();
    assert_eq!(prefixes, [(0, 6, v6), (96, 4, v4), (112, 4, v4)]);
    let subnet = |text: &str| {
        node.kernel.sources.iter().find(|(key, _)| key.ip == ip(text)).map(|(_, source)| source.subnet)
    };
    assert_eq!((subnet("fd00::77"), subnet("10.0.0.77")), (Some(v6), Some(v4)));
}

#[test]
fn a_subnet_may_not_have_the_mapped_addresses_in_it() {
    let mut node = Node::new();
    node.push(&base());
    for cidr in ["::/0", "::/64", "::/80"] {
        assert_eq!(node.one(&empty().subnet(CREATE, subnet("w", "v", cidr, 0))).status, InvalidArg, "{cidr}");
    }
    assert_eq!(node.one(&empty().subnet(CREATE, subnet("w", "v", "::ffff:10.4.0.0/112", 0))).status, Success);
    assert!(
        node.kernel
            .subnets
            .values()
            .any(|subnet| subnet.prefix_len == 112 && subnet.network == ip("10.4.0.0"))
    );
    node.check();
}
