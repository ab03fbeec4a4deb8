//! What cases are drawn from: few values each, so that rules and packets meet, and the borders of each are met.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ncm_model::wire::security_group_configuration::SecurityGroupRule;
use ncm_tests::packet::{C1, GROUPS, GUESTS, Guest, RA, REMOTES, Station, Talk, mac};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{TestCaseError, TestError};

const PORTS: [(u32, u32); 9] =
    [(0, 0), (80, 80), (80, 90), (81, 443), (1, 65_535), (0, 100), (443, 443), (91, 1_000), (65_535, 65_535)];
const ASKED: [u16; 11] = [0, 1, 79, 80, 90, 91, 100, 443, 444, 1_000, 65_535];
const TYPES: [u32; 8] = [0, 3, 8, 11, 13, 128, 129, 200];
const V4: [u8; 8] = [0, 1, 8, 24, 25, 28, 31, 32];
const V6: [u8; 8] = [0, 1, 16, 64, 121, 124, 127, 128];

/// Somebody in subnet A, whom nobody has told us of.
pub(crate) fn stranger(last: u8) -> Station {
    let known = Station::from(RA);
    let (mut ip, mut ip_v6) = (known.ip, known.ip_v6);
    (ip[3], ip_v6[15]) = (last, last);
    Station { mac: mac(0x77_0000 + u32::from(last)), ip, ip_v6, ..known }
}

prop_compose! {
    /// A rule; by prefix it covers at least one of the stations.
    pub(crate) fn any_rule()(
        to_guest in any::<bool>(), v6 in any::<bool>(), protocol in select(vec![0, 0, 0, 1, 1, 2, 2, 3, 4, 1000]),
        ports in select(PORTS.to_vec()), kind in select(TYPES.to_vec()), code in 0..3_u32,
        remote in 0..4_usize, who in 0..REMOTES.len() + GUESTS.len(), len in 0..V4.len(), group in select(GROUPS.to_vec()),
    ) -> SecurityGroupRule {
        let station = |at: usize| GUESTS.get(at).map_or_else(|| Station::from(REMOTES[at - GUESTS.len()]), |guest| (*guest).into());
        let address = station(who).address(v6);
        let len = if v6 { V6[len] } else { V4[len] };
        SecurityGroupRule {
            direction: i32::from(to_guest),
            ethertype: i32::from(v6),
            protocol,
            port_range_min: match protocol { 2 => if code == 2 { 0 } else { kind }, 1000 => 0, _ => ports.0 },
            port_range_max: match protocol { 2 => if code == 2 { 0 } else { code }, 1000 => 0, _ => ports.1 },
            remote_ip_prefix: if remote == 1 || remote == 2 { prefix(address, len) } else { String::new() },
            remote_group_id: if remote == 3 { group.to_owned() } else { String::new() },
            ..SecurityGroupRule::default()
        }
    }
}

/// The network of so many bits that an address is in.
fn prefix(address: IpAddr, len: u8) -> String {
    match address {
        IpAddr::V4(ip) => {
            let mask = if len == 0 { 0 } else { u32::MAX << (32 - len) };
            format!("{}/{len}", Ipv4Addr::from(u32::from(ip) & mask))
        }
        IpAddr::V6(ip) => {
            let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
            format!("{}/{len}", Ipv6Addr::from(u128::from(ip) & mask))
        }
    }
}

/// Rules of a group, each once.
pub(crate) fn any_rules() -> impl Strategy<Value = Vec<SecurityGroupRule>> {
    prop::collection::vec(any_rule(), 0..8).prop_map(|rules| {
        let mut each: Vec<SecurityGroupRule> = Vec::new();
        for rule in rules {
            if !each.contains(&rule) {
                each.push(rule);
            }
        }
        each
    })
}

/// A list of groups, often none.
pub(crate) fn any_groups() -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(GROUPS.to_vec(), 0..=3)
}

/// What is said over IPv4 or IPv6: nothing that the network itself answers or keeps quiet.
pub(crate) fn any_talk(flags: &'static [u8]) -> impl Strategy<Value = Talk> {
    let port = || select(ASKED.to_vec());
    prop_oneof![
        4 => (select(flags.to_vec()), port(), port()).prop_map(|(flags, from, to)| Talk::Tcp(flags, from, to)),
        3 => (port(), port()).prop_map(|(from, to)| Talk::Udp(from, to)),
        3 => (select(TYPES.to_vec()), 0..2_u8, 0..2_u16)
            .prop_map(|(kind, code, id)| Talk::Icmp(u8::try_from(kind).unwrap_or(0), code, id)),
        1 => select(vec![47_u8, 50, 51, 59, 132, 255]).prop_map(Talk::Other),
    ]
}

/// Who speaks to whom: two stations of one tenant, of which at least one is here. Whom nobody knows only speaks.
pub(crate) fn any_pair() -> impl Strategy<Value = (Station, Station)> {
    let of = |guests: Vec<Guest>| -> Vec<Station> { guests.into_iter().map(Station::from).collect() };
    let (ours, theirs): (Vec<_>, Vec<_>) =
        GUESTS.into_iter().partition(|guest| guest.subnet.vni != C1.subnet.vni);
    let (near, far): (Vec<_>, Vec<_>) =
        REMOTES.into_iter().partition(|remote| remote.subnet.vni != C1.subnet.vni);
    let (ours, theirs) = (of(ours), of(theirs));
    let near: Vec<Station> = near.into_iter().map(Station::from).collect();
    let far: Vec<Station> = far.into_iter().map(Station::from).collect();
    let strangers = select(vec![2_u8, 63, 64, 126, 129, 254]).prop_map(stranger);
    prop_oneof![
        3 => (select(ours.clone()), select(ours.clone()))
            .prop_filter("two guests", |(from, to)| from.mac != to.mac),
        4 => (select(ours.clone()), select(near.clone())),
        4 => (select(near), select(ours.clone())),
        1 => (strangers, select(ours)),
        1 => (select(theirs.clone()), select(far)),
        1 => Just((theirs[0], theirs[1])),
    ]
}

/// Runs cases, and shows the smallest that fails.
pub(crate) fn run<S: Strategy>(
    cases: u32,
    strategy: &S,
    mut check: impl FnMut(&S::Value) -> Result<(), TestCaseError>,
) where
    S::Value: Clone,
{
    let check = std::cell::RefCell::new(&mut check);
    match super::runner(cases).run(strategy, |case| check.borrow_mut()(&case)) {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => panic!("{reason}\nthe smallest such case: {case:?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}
