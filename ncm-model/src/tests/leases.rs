//! DHCP bindings, and what they and their subnet, port and router come to for a guest.

use std::net::{Ipv4Addr, Ipv6Addr};

use ncm_common::SERVER_MAC;

use super::kernel::Node;
use super::states::*;
use crate::lease::{Extras, Family, Gateway, LeaseFacts};
use crate::wire::OperationStatus::{InvalidArg, OutOfOrder, Pending, Success};
use crate::wire::subnet_configuration::{DnsEntry, ExtraDhcpOption};
use crate::wire::{
    DhcpConfiguration, DhcpState, GoalState, OperationStatus, OperationType, ResourceType,
    SubnetConfiguration,
};

const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

fn binding(subnet: &str, v4: &str, v6: &str) -> DhcpConfiguration {
    DhcpConfiguration {
        subnet_id: subnet.into(),
        mac_address: mac(1),
        ipv4_address: v4.into(),
        ipv6_address: v6.into(),
        port_host_name: "vm1".into(),
        revision_number: 2,
        ..Default::default()
    }
}

fn dhcp(operation: OperationType, config: DhcpConfiguration) -> GoalState {
    let state = DhcpState { operation_type: operation as i32, configuration: Some(config) };
    GoalState { dhcp_states: vec![state], ..empty() }
}

fn told(mut config: SubnetConfiguration, dns: &[&str], options: &[(&str, &str)]) -> SubnetConfiguration {
    config.dns_entry_list = dns.iter().map(|entry| DnsEntry { entry: (*entry).into() }).collect();
    let option =
        |(name, value): &(&str, &str)| ExtraDhcpOption { name: (*name).into(), value: (*value).into() };
    config.extra_dhcp_options = options.iter().map(option).collect();
    config
}

/// Subnets `s` and `t` over IPv4 and `six` over IPv6, a router with a rule, and port `p` in `s` and `six`.
fn node() -> Node {
    let mut node = Node::new();
    let gateway = mac(0xfe);
    let s = with_gateway(subnet("s", "v", "10.0.0.0/24", 0), "10.0.0.1", &gateway);
    let t = with_gateway(subnet("t", "v", "10.0.1.0/24", 0), "10.0.1.1", &gateway);
    let six = with_gateway(subnet("six", "v", "fd00::/64", 0), "fd00::1", &gateway);
    let rules = [
        rule("a", "192.168.0.0/16", "10.0.0.9", 5),
        rule("b", "192.168.0.0/16", "10.0.0.8", 1),
        rule("c", "10.0.1.0/24", "10.0.0.8", 1),
        rule("d", "172.16.0.0/12", "203.0.113.1", 1),
    ];
    let state = empty()
        .vpc(CREATE, vpc("v", 10))
        .subnet(CREATE, told(s, &["9.9.9.9", "2620:fe::fe", "8.8.8.8"], &[("lease-time", "1h")]))
        .subnet(CREATE, t)
        .subnet(CREATE, told(six, &["2620:fe::fe"], &[("mtu", "1400")]))
        .router(CREATE, router("r", &[("s", &rules), ("t", &[]), ("six", &[])]))
        .port(CREATE, port("p", &mac(1), &[("s", "10.0.0.5"), ("six", "fd00::5")]));
    node.push(&state);
    node.appear("tapp", 7);
    node
}

fn facts(node: &Node) -> LeaseFacts {
    let index = *node.kernel.ports.keys().next().expect("the port");
    node.model.lease_facts(index).expect("facts of the port")
}

fn status(node: &mut Node, state: &GoalState) -> OperationStatus {
    node.one(state).status
}

#[test]
fn a_binding_waits_for_its_subnet() {
    let mut node = Node::new();
    assert_eq!(status(&mut node, &dhcp(CREATE, binding("s", "10.0.0.5", ""))), Pending);
    node.push(&base());
    let view =
        &node.list().into_iter().find(|view| view.resource_type == ResourceType::Dhcp).expect("listed");
    assert_eq!((view.status, &*view.id), (Success, "s 02:00:00:00:00:01"));
    let count = node.model.counts().into_iter().find(|count| count.resource_type == ResourceType::Dhcp);
    assert_eq!(count.map(|count| (count.status, count.count)), Some((Success, 1)));
}

#[test]
fn one_binding_per_subnet_and_mac_whatever_its_id() {
    let mut node = node();
    for id in ["x", "y", ""] {
        let config = DhcpConfiguration { id: id.into(), ..binding("s", "10.0.0.5", "") };
        assert_eq!(status(&mut node, &dhcp(CREATE, config)), Success);
    }
    let listed =
        |node: &Node| node.list().iter().filter(|view| view.resource_type == ResourceType::Dhcp).count();
    assert_eq!(listed(&node), 1);
    let older = DhcpConfiguration { revision_number: 1, ..binding("s", "10.0.0.6", "") };
    assert_eq!(status(&mut node, &dhcp(UPDATE, older)), OutOfOrder);
    for _ in 0..2 {
        assert_eq!(status(&mut node, &dhcp(DELETE, binding("s", "", ""))), Success);
    }
    assert_eq!(listed(&node), 0);
    assert!(facts(&node).v4.is_none());
    let older = DhcpConfiguration { revision_number: 1, ..binding("s", "10.0.0.5", "") };
    assert_eq!(status(&mut node, &dhcp(CREATE, older)), OutOfOrder, "the tombstone knows better");
}

#[test]
fn delta_leaves_what_is_empty_and_full_does_not() {
    let mut node = node();
    node.push(&dhcp(CREATE, binding("s", "10.0.0.5", "fd00::5")));
    let delta = DhcpConfiguration { port_host_name: "vm2".into(), ..binding("s", "", "") };
    assert_eq!(status(&mut node, &dhcp(UPDATE, delta)), Success);
    let lease = facts(&node).v4.expect("a lease");
    assert_eq!((lease.address, &*lease.host_name), (Ipv4Addr::new(10, 0, 0, 5), "vm2"));
    let full = DhcpConfiguration { update_type: FULL, ..binding("s", "", "fd00::5") };
    assert_eq!(status(&mut node, &dhcp(UPDATE, full)), Success);
    assert!(facts(&node).v4.is_none());
}

#[test]
fn malformed_bindings_are_refused() {
    let mut node = node();
    let mut refused = |config: DhcpConfiguration, part: &str| {
        let answer = node.one(&dhcp(CREATE, config));
        assert_eq!(answer.status, InvalidArg, "{part}");
        assert!(answer.cause.contains(part), "{}", answer.cause);
    };
    refused(binding("s", "10.0.0.300", ""), "ipv4_address");
    refused(binding("s", "fd00::5", ""), "ipv4_address");
    refused(binding("s", "", "10.0.0.5"), "ipv6_address");
    refused(binding("s", "", ""), "nothing to lease");
    refused(binding("", "10.0.0.5", ""), "subnet_id");
    refused(DhcpConfiguration { mac_address: "x".into(), ..binding("s", "10.0.0.5", "") }, "mac_address");
    refused(
        DhcpConfiguration { port_host_name: "a b".into(), ..binding("s", "10.0.0.5", "") },
        "port_host_name",
    );
    refused(DhcpConfiguration { update_type: 7, ..binding("s", "10.0.0.5", "") }, "update_type");
}

#[test]
fn a_guest_is_told_what_its_subnet_router_and_port_say() {
    let mut node = node();
    node.push(&dhcp(CREATE, binding("s", "10.0.0.5", "")));
    node.push(&dhcp(CREATE, binding("six", "", "fd00::5")));
    let facts = facts(&node);
    assert_eq!((facts.mac, facts.mtu), ([2, 0, 0, 0, 0, 1], 1500));
    let lease = facts.v4.expect("a lease");
    assert_eq!(lease.address, Ipv4Addr::new(10, 0, 0, 5));
    assert_eq!(lease.gateway, Some(Gateway { ip: Ipv4Addr::new(10, 0, 0, 1), mac: GATEWAY }));
    assert_eq!(lease.dns, [Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(8, 8, 8, 8)]);
    assert_eq!(lease.extras.v4(51), Some(&3600_u32.to_be_bytes()[..]));
    let expected = ("192.168.0.0/16".parse().expect("a prefix"), Ipv4Addr::new(10, 0, 0, 8));
    assert_eq!(lease.routes, [expected], "by priority, without connected and pending ones");
    let [link] = &facts.v6[..] else { panic!("one link was expected, and there are {}", facts.v6.len()) };
    assert_eq!(link.gateway_mac, GATEWAY);
    assert!(link.routed);
    let five: Ipv6Addr = "fd00::5".parse().expect("an address");
    assert_eq!((link.lease, &link.fixed[..]), (Some(five), &[five][..]));
    assert_eq!(link.extras.mtu, Some(1400));
    assert_eq!(node.model.advertised_ports(), node.kernel.ports.keys().copied().collect::<Vec<_>>());
}

#[test]
fn one_binding_may_give_both_addresses() {
    let mut node = node();
    node.push(&dhcp(CREATE, binding("s", "10.0.0.5", "fd00::5")));
    assert!(facts(&node).v4.is_some());
    assert_eq!(facts(&node).v6[0].lease, "fd00::5".parse().ok());
}

#[test]
fn another_macs_or_subnets_binding_is_not_the_ports() {
    let mut node = node();
    node.push(&dhcp(CREATE, DhcpConfiguration { mac_address: mac(9), ..binding("s", "10.0.0.5", "") }));
    node.push(&dhcp(CREATE, binding("t", "10.0.1.5", "")));
    assert!(facts(&node).v4.is_none());
}

#[test]
fn a_gateway_without_mac_is_no_router_and_a_port_that_goes_is_told_nothing() {
    let mut node = node();
    let six = SubnetConfiguration { update_type: FULL, ..subnet("six", "v", "fd00::/64", 0) };
    node.push(&empty().subnet(UPDATE, six));
    assert_eq!((facts(&node).v6[0].gateway_mac, facts(&node).v6[0].routed), (SERVER_MAC, false));
    let index = *node.kernel.ports.keys().next().expect("the port");
    node.push(&empty().port(DELETE, port("p", "", &[])));
    assert!(node.model.lease_facts(index).is_none());
    assert!(node.model.advertised_ports().is_empty());
}

#[test]
fn options_that_cannot_be_sent_are_refused_with_their_name() {
    let mut node = node();
    for (name, value) in [
        ("mtu", "large"),
        ("mtu", "20"),
        ("router", "10.0.0"),
        ("no-such-option", "1"),
        ("256", "1"),
        ("0", "1"),
        ("255", "1"),
        ("53", "5"),
        ("54", "1.2.3.4"),
        ("client-id", "x"),
        ("classless-static-route", "10.0.0.0/8"),
        ("domain-search", "a..b"),
        ("tag:ipxe", "x"),
        ("lease-time", "2"),
        ("bootfile-name", "with\ncontrol"),
        ("root-path", &"x".repeat(256)),
        ("option6:dns-server", "1.1.1.1"),
        ("server-ip-address", "nobody"),
    ] {
        let config =
            told(subnet("u", "v", "10.0.2.0/24", 0), &[], &[("dns-server", "1.1.1.1"), (name, value)]);
        let answer = node.one(&empty().subnet(CREATE, config));
        assert_eq!(answer.status, InvalidArg, "{name} = {value}");
        assert!(answer.cause.contains(&format!("extra_dhcp_options: \"{name}\"")), "{}", answer.cause);
    }
    let config = told(subnet("u", "v", "10.0.2.0/24", 0), &["", "ns.example"], &[]);
    let answer = node.one(&empty().subnet(CREATE, config));
    assert_eq!(answer.status, InvalidArg);
    assert!(answer.cause.contains("ns.example"), "{}", answer.cause);
}

#[test]
fn options_are_the_bytes_that_the_rfcs_say() {
    let v4 = |name: &str, value: &str| {
        let extras = Extras::read(Family::V4, [(name, value)]).expect("a valid option");
        extras.v4.into_iter().next().expect("an option")
    };
    assert_eq!(v4("mtu", "1450"), (26, vec![5, 0xaa]));
    assert_eq!(v4("interface_mtu", "0x5aa"), (26, vec![5, 0xaa]));
    assert_eq!(v4("26", "1450"), (26, vec![5, 0xaa]));
    assert_eq!(v4("option:26", "1450"), (26, vec![5, 0xaa]));
    assert_eq!(v4("dns-server", "1.2.3.4, 5.6.7.8"), (6, vec![1, 2, 3, 4, 5, 6, 7, 8]));
    assert_eq!(v4("bootfile-name", "a b"), (67, b"a b".to_vec()));
    assert_eq!(v4("ip-forward-enable", "1"), (19, vec![1]));
    assert_eq!(v4("time-offset", "-1"), (2, vec![0xff; 4]));
    assert_eq!(v4("T1", "2h"), (58, 7200_u32.to_be_bytes().to_vec()));
    assert_eq!(v4("domain-search", "a.b,c"), (119, b"\x01a\x01b\x00\x01c\x00".to_vec()));
    assert_eq!(
        v4("classless-static-route", "{10.0.0.0/8,1.1.1.1, 0.0.0.0/0,1.1.1.2}"),
        (121, vec![8, 10, 1, 1, 1, 1, 0, 1, 1, 1, 2])
    );
    assert_eq!(v4("vendor-encap", "01:02:ff"), (43, vec![1, 2, 0xff]));
    assert_eq!(v4("router", ""), (3, Vec::new()), "no value: not to be sent");
    assert_eq!(v4("224", "10.0.0.1"), (224, vec![10, 0, 0, 1]));
    assert_eq!(v4("224", "70000"), (224, 70_000_u32.to_be_bytes().to_vec()));
    assert_eq!(v4("224", "text"), (224, b"text".to_vec()));
    let v6 =
        Extras::read(Family::V6, [("dns-server", "[fd00::1]"), ("59", "http://b")]).expect("valid options");
    assert_eq!(v6.v6(23), Some(&"fd00::1".parse::<Ipv6Addr>().expect("an address").octets()[..]));
    assert_eq!(v6.v6(59), Some(&b"http://b"[..]));
    let twice = Extras::read(Family::V4, [("mtu", "1400"), ("26", "1300")]).expect("valid options");
    assert_eq!(twice.v4, [(26, vec![5, 0x14])], "the last counts");
    let many: Vec<(String, String)> = (0..65).map(|_| ("mtu".to_owned(), "1400".to_owned())).collect();
    assert!(Extras::read(Family::V4, many.iter().map(|(name, value)| (&**name, &**value))).is_err());
}
