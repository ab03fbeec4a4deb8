//! Tests of the routing table: the kernel's order of preference, and messages as they are on the socket.

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix::around(ip(address), length.parse().unwrap())
}

fn way(interface: u32, gateway: &str) -> Way {
    Way { interface, gateway: Some(ip(gateway)), weight: 1 }
}

fn route(metric: u32, interface: u32) -> Route {
    Route { metric, mtu: None, target: Target::Ways(vec![way(interface, "10.0.0.1")]) }
}

fn new(at: &str, route: Route) -> RouteMessage {
    RouteMessage::New { prefix: prefix(at), route, replace: false, append: false }
}

fn by(table: &RouteTable, address: &str) -> Option<u32> {
    table.lookup(ip(address), |_| true).map(|(ways, _)| ways[0].interface)
}

#[test]
fn a_prefix_spans_from_its_first_to_its_last_address() {
    for (text, first, last) in [
        ("10.1.2.3/16", "10.1.0.0", "10.1.255.255"),
        ("10.1.2.3/32", "10.1.2.3", "10.1.2.3"),
        ("10.1.2.3/0", "0.0.0.0", "255.255.255.255"),
        ("fd00::1/64", "fd00::", "fd00::ffff:ffff:ffff:ffff"),
        ("fd00::1/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("fd00::1/128", "fd00::1", "fd00::1"),
    ] {
        assert_eq!((prefix(text).address, prefix(text).last()), (ip(first), ip(last)), "{text}");
    }
}

#[test]
fn the_longest_prefix_wins_and_then_the_lowest_metric() {
    let mut table = RouteTable::default();
    for (at, metric, interface) in
        [("0.0.0.0/0", 100, 1), ("10.0.0.0/8", 0, 2), ("10.1.0.0/16", 200, 3), ("10.1.0.0/16", 50, 4)]
    {
        assert_eq!(table.apply(new(at, route(metric, interface))), Affected::Within(prefix(at)));
    }
    assert_eq!(by(&table, "10.1.2.3"), Some(4));
    assert_eq!(by(&table, "10.2.2.3"), Some(2));
    assert_eq!(by(&table, "9.9.9.9"), Some(1));
    assert_eq!(table.apply(RouteMessage::Gone { prefix: prefix("10.1.0.0/16"), route: route(50, 4) }), {
        Affected::Within(prefix("10.1.0.0/16"))
    });
    assert_eq!(by(&table, "10.1.2.3"), Some(3));
}

#[test]
fn a_route_over_interfaces_that_are_down_is_passed_over() {
    let mut table = RouteTable::default();
    table.apply(new("0.0.0.0/0", route(0, 1)));
    table.apply(new("10.0.0.0/8", route(10, 3)));
    table.apply(new("10.0.0.0/8", route(5, 2)));
    let by = |down: &[u32]| table.lookup(ip("10.1.1.1"), |interface| !down.contains(&interface));
    assert_eq!(by(&[]).unwrap().0[0].interface, 2);
    assert_eq!(by(&[2]).unwrap().0[0].interface, 3);
    assert_eq!(by(&[2, 3]).unwrap().0[0].interface, 1);
    assert_eq!(by(&[1, 2, 3]), None);
}

#[test]
fn replacing_and_appending_follow_the_kernels_order() {
    let mut table = RouteTable::default();
    let change = |interface, replace, append| RouteMessage::New {
        prefix: prefix("10.0.0.0/8"),
        route: route(0, interface),
        replace,
        append,
    };
    table.apply(change(1, false, false));
    assert_eq!(table.apply(change(1, false, false)), Affected::Nothing, "the same route again");
    table.apply(change(2, false, true));
    assert_eq!(by(&table, "10.1.1.1"), Some(1), "an appended route is the second");
    table.apply(change(3, true, false));
    assert_eq!(by(&table, "10.1.1.1"), Some(3), "the first is replaced");
    table.apply(RouteMessage::Gone { prefix: prefix("10.0.0.0/8"), route: route(0, 3) });
    assert_eq!(by(&table, "10.1.1.1"), Some(2));
    let unknown = RouteMessage::Gone { prefix: prefix("10.0.0.0/8"), route: route(0, 9) };
    assert_eq!(table.apply(unknown), Affected::Unknown, "a route that was never told of");
}

#[test]
fn a_blackhole_ends_the_search() {
    let mut table = RouteTable::default();
    table.apply(new("0.0.0.0/0", route(0, 1)));
    table.apply(new("10.0.0.0/8", Route { metric: 0, mtu: None, target: Target::Nowhere }));
    assert_eq!(by(&table, "10.1.1.1"), None);
    assert_eq!(by(&table, "11.1.1.1"), Some(1));
}

#[test]
fn next_hop_objects_and_their_groups_are_resolved() {
    let mut table = RouteTable::default();
    table.apply(new("10.0.0.0/8", Route { metric: 0, mtu: Some(1400), target: Target::Object(9) }));
    assert_eq!(by(&table, "10.1.1.1"), None, "the object is not known yet");
    for (id, interface) in [(1, 11), (2, 12)] {
        let object = Object::Way(way(interface, "10.0.0.1"));
        assert_eq!(table.apply(RouteMessage::NewObject { id, object }), Affected::Everything);
    }
    table.apply(RouteMessage::NewObject { id: 9, object: Object::Group(vec![(2, 3), (1, 1), (7, 1)]) });
    let (ways, mtu) = table.lookup(ip("10.1.1.1"), |_| true).unwrap();
    let found: Vec<_> = ways.iter().map(|way| (way.interface, way.weight)).collect();
    assert_eq!((found, mtu), (vec![(11, 1), (12, 3)], Some(1400)));
    assert_eq!(table.apply(RouteMessage::ObjectGone { id: 9 }), Affected::Unknown);
}

/// A route message as the kernel sends it, with the attributes given.
fn message(header: [u8; ROUTE_HEADER], fill: impl FnOnce(Request) -> Request) -> Vec<u8> {
    fill(Request::new(RTM_NEWROUTE, 0, &header)).finish(1, 0)
}

fn read(bytes: &[u8]) -> Option<RouteMessage> {
    super::super::super::message::Messages(bytes).next().and_then(|message| parse(&message))
}

#[test]
fn multipath_routes_and_gateways_of_the_other_family_are_read() {
    let header = [2, 16, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
    let mut paths = Vec::new();
    for (interface, hops, last) in [(5u32, 0u8, 1u8), (6, 2, 2)] {
        paths.extend([16, 0, 0, hops]);
        paths.extend(interface.to_ne_bytes());
        paths.extend([8, 0, 5, 0, 10, 0, 0, last]);
    }
    let bytes = message(header, |request| {
        let metrics = [8, 0, 2, 0, 0x78, 5, 0, 0];
        request
            .attribute(RTA_DST, &[10, 9, 0, 0])
            .attribute(RTA_METRICS, &metrics)
            .attribute(RTA_MULTIPATH, &paths)
    });
    let Some(RouteMessage::New { prefix: at, route, .. }) = read(&bytes) else { panic!("it is a route") };
    let ways = vec![way(5, "10.0.0.1"), Way { weight: 3, ..way(6, "10.0.0.2") }];
    assert_eq!(at, prefix("10.9.0.0/16"));
    assert_eq!(route, Route { metric: 0, mtu: Some(1400), target: Target::Ways(ways) });
    let mut via = vec![10, 0];
    via.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let bytes =
        message(header, |request| request.attribute(RTA_OIF, &7u32.to_ne_bytes()).attribute(RTA_VIA, &via));
    let Some(RouteMessage::New { route, .. }) = read(&bytes) else { panic!("it is a route") };
    assert_eq!(route.target, Target::Ways(vec![way(7, "fe80::1")]));
}

#[test]
fn routes_of_other_tables_and_services_are_no_business_of_ours() {
    let good = [2, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
    assert!(read(&message(good, |request| request)).is_some());
    for (position, value) in [(0, 28), (3, 4), (4, 255), (9, 2)] {
        let mut other = good;
        other[position] = value;
        assert_eq!(read(&message(other, |request| request)), None, "byte {position} is {value}");
    }
    let tabled = message(good, |request| request.attribute(RTA_TABLE, &1000u32.to_ne_bytes()));
    assert_eq!(read(&tabled), None);
}

#[test]
fn routes_of_ipv6_are_read_but_for_those_of_each_link() {
    let read_to = |destination: &str| {
        let Prefix { address: IpAddr::V6(address), length } = prefix(destination) else { panic!("IPv6") };
        let header = [10, length, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
        let bytes = message(header, |request| {
            let request = request.attribute(RTA_OIF, &7u32.to_ne_bytes());
            if length == 0 { request } else { request.attribute(RTA_DST, &address.octets()) }
        });
        match read(&bytes)? {
            RouteMessage::New { prefix, .. } => Some(prefix),
            other => panic!("{other:?}"),
        }
    };
    for destination in ["::/0", "2001:db8::/32", "fd00::1/128", "fe00::/7"] {
        assert_eq!(read_to(destination), Some(prefix(destination)));
    }
    for destination in ["fe80::/64", "fe80::1/128", "ff00::/8", "ff02::1/128"] {
        assert_eq!(read_to(destination), None, "{destination}");
    }
}

#[test]
fn what_the_kernel_joins_into_one_route_of_ipv6_is_asked_for() {
    let mut table = RouteTable::default();
    let at = |route| new("fd09::/16", route);
    let gone = |route| RouteMessage::Gone { prefix: prefix("fd09::/16"), route };
    let one = Route { metric: 1024, mtu: None, target: Target::Ways(vec![way(1, "fd01::2")]) };
    let other = Route { target: Target::Ways(vec![way(2, "fd02::2")]), ..one.clone() };
    let better = Route { metric: 50, ..other.clone() };
    let within = Affected::Within(prefix("fd09::/16"));
    assert_eq!(table.apply(at(one.clone())), within);
    assert_eq!(table.apply(at(one.clone())), Affected::Nothing, "as it is held");
    assert_eq!(table.apply(at(other.clone())), Affected::Unknown, "of the same metric");
    assert_eq!(by(&table, "fd09::1"), Some(1));
    assert_eq!(table.apply(at(better.clone())), within);
    assert_eq!(by(&table, "fd09::1"), Some(2));
    assert_eq!(table.apply(gone(better)), within);
    assert_eq!(table.apply(gone(other.clone())), Affected::Unknown, "that is not held");
    // A dump says what there is.
    let mut table = RouteTable::default();
    for route in [one, other] {
        table.load(at(route));
    }
    assert_eq!(by(&table, "fd09::1"), Some(1));
}

#[test]
fn messages_cut_short_are_not_read() {
    let bytes = message([2, 16, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0], |request| {
        request.attribute(RTA_DST, &[10, 9, 0, 0]).attribute(RTA_MULTIPATH, &[16, 0, 0, 0, 5, 0, 0, 0])
    });
    for cut in 16..bytes.len() {
        let mut shorter = bytes[..cut].to_vec();
        shorter[..4].copy_from_slice(&u32::try_from(cut).unwrap().to_ne_bytes());
        let _ = read(&shorter);
    }
}
