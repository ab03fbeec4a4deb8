//! Digests and the changes since a version, as somebody outside would make and use them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;
use prost::Message as _;
use xxhash_rust::xxh3::xxh3_128;

use super::kernel::Node;
use super::properties::{Event, event};
use super::states::{Build, CREATE, DELETE, empty, mac, neighbour, port, subnet, vpc};
use crate::wire::{
    DhcpState, GatewayState, GoalState, NeighborConfiguration, NeighborState, PortState, ResourceType,
    RouterState, SecurityGroupState, SubnetState, VpcState,
};
use crate::{Change, Digest, StateView, Told};

fn text(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as u32).to_le_bytes());
    into.extend(text.as_bytes());
}

fn mapped(text: &str) -> [u8; 16] {
    match text.parse().unwrap() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// What is hashed of a neighbour, after the head.
fn neighbour_bytes(config: &NeighborConfiguration) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        config.mac_address.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.extend(mapped(&config.host_ip_address));
    text(&mut bytes, &config.vpc_id);
    let rest = NeighborConfiguration {
        name: config.name.clone(),
        host_mac_address: config.host_mac_address.clone(),
        allow_address_pairs: config.allow_address_pairs.clone(),
        security_group_ids: config.security_group_ids.clone(),
        ..Default::default()
    };
    let rest = rest.encode_to_vec();
    bytes.extend((rest.len() as u32).to_le_bytes());
    bytes.extend(rest);
    let mut fixed: Vec<_> = config.fixed_ips.iter().map(|fixed| (mapped(&fixed.ip_address), fixed)).collect();
    fixed.sort_by_key(|(ip, _)| *ip);
    bytes.extend((fixed.len() as u32).to_le_bytes());
    for (ip, fixed) in fixed {
        bytes.extend(ip);
        bytes.extend(fixed.tunnel_id.to_le_bytes());
        text(&mut bytes, &fixed.subnet_id);
    }
    bytes
}

/// The VPC that a listed resource is in, and its hash, by what proto/ncm/v1/states.proto says.
fn outside(view: &StateView, vpc_of: &dyn Fn(&str) -> Option<String>) -> (String, u128) {
    let mut bytes = vec![view.resource_type as u8, u8::from(view.variant == "L3")];
    bytes.extend(view.revision.to_le_bytes());
    text(&mut bytes, &view.id);
    macro_rules! plain {
        ($state:ident) => {{
            let mut config = $state::decode(&view.state[..]).unwrap().configuration.unwrap();
            (config.revision_number, config.update_type) = (0, 0);
            config.request_id.clear();
            config
        }};
    }
    let vpc = match view.resource_type {
        ResourceType::Vpc => {
            bytes.extend(plain!(VpcState).encode_to_vec());
            view.id.clone()
        }
        ResourceType::Subnet => {
            let config = plain!(SubnetState);
            bytes.extend(config.encode_to_vec());
            config.vpc_id
        }
        ResourceType::Port => {
            let config = plain!(PortState);
            bytes.extend(config.encode_to_vec());
            config.vpc_id
        }
        ResourceType::Neighbor => {
            let config = plain!(NeighborState);
            bytes.extend(neighbour_bytes(&config));
            config.vpc_id
        }
        ResourceType::Securitygroup => {
            let mut config = plain!(SecurityGroupState);
            let rules = std::mem::take(&mut config.security_group_rules);
            bytes.extend(config.encode_to_vec());
            bytes.extend((rules.len() as u64).to_le_bytes());
            let hashes = rules.iter().map(|rule| xxh3_128(&rule.encode_to_vec()));
            bytes.extend(hashes.fold(0, u128::wrapping_add).to_le_bytes());
            config.vpc_id
        }
        ResourceType::Dhcp => {
            let config = plain!(DhcpState);
            bytes.extend(config.encode_to_vec());
            vpc_of(&config.subnet_id).unwrap_or_default()
        }
        ResourceType::Router => {
            let config = plain!(RouterState);
            bytes.extend(config.encode_to_vec());
            let vpcs = config.subnet_routing_tables.iter().filter_map(|table| vpc_of(&table.subnet_id));
            vpcs.min().unwrap_or_default()
        }
        ResourceType::Gateway => {
            let mut config = GatewayState::decode(&view.state[..]).unwrap().configuration.unwrap();
            config.revision_number = 0;
            config.request_id.clear();
            bytes.extend(config.encode_to_vec());
            String::new()
        }
    };
    (vpc, xxh3_128(&bytes))
}

/// The digests that a listing comes to.
fn expected(node: &Node) -> Vec<Digest> {
    let views = node.list();
    let subnets: BTreeMap<String, String> = views
        .iter()
        .filter(|view| view.resource_type == ResourceType::Subnet)
        .map(|view| {
            let config = SubnetState::decode(&view.state[..]).unwrap().configuration.unwrap();
            (view.id.clone(), config.vpc_id)
        })
        .collect();
    let mut sums: BTreeMap<(i32, String), (u64, u128)> = BTreeMap::new();
    for view in &views {
        let (vpc, hash) = outside(view, &|subnet| subnets.get(subnet).cloned());
        let (count, sum) = sums.entry((view.resource_type as i32, vpc)).or_default();
        (*count, *sum) = (*count + 1, sum.wrapping_add(hash));
    }
    sums.into_iter()
        .map(|((resource, vpc), (count, sum))| Digest {
            resource_type: ResourceType::try_from(resource).unwrap(),
            vpc,
            count,
            sum,
        })
        .collect()
}

/// Somebody who follows what is held, in parts.
#[derive(Default)]
struct Follower {
    told: Option<Told>,
    held: BTreeMap<(i32, String, &'static str), (u64, u128)>,
}

impl Follower {
    fn follow(&mut self, node: &Node, limit: usize) -> Result<(), crate::Forgotten> {
        let mut told = self.told.unwrap_or(Told::up_to(0));
        while told.version() < node.model.version() {
            let part = node.model.changes(&mut told, node.model.version(), true, limit)?;
            assert!(part.len() <= limit, "{} at once", part.len());
            part.into_iter().for_each(|change| self.take(change));
        }
        self.told = Some(told);
        Ok(())
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::Held(view) => {
                // What is about the push, such as its update type, may change without a version.
                let hash = outside(&view, &|_| None).1;
                self.held.insert((view.resource_type as i32, view.id, view.variant), (view.version, hash));
            }
            Change::Gone { gone, .. } => {
                let variant = gone.variant();
                self.held.remove(&(gone.resource_type as i32, gone.id.into(), variant));
            }
        }
    }

    fn check(&self, node: &Node) {
        let held = node.list().into_iter().map(|view| {
            let hash = outside(&view, &|_| None).1;
            ((view.resource_type as i32, view.id, view.variant), (view.version, hash))
        });
        assert_eq!(self.held, held.collect());
    }
}

fn push(node: &mut Node, events: &[Event]) {
    let state = events.iter().fold(empty(), |state, event| event.add(state, None));
    node.push(&state);
    events.iter().for_each(|event| event.interface(node));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// After every message the digests that were kept are what a listing comes to, and who follows holds what is held.
    #[test]
    fn kept_digests_are_those_of_a_listing_and_followers_know_all(
        messages in prop::collection::vec(prop::collection::vec(event(), 1..5), 1..25),
        step in 1_usize..6,
        limit in 1_usize..5,
    ) {
        let mut node = Node { step, ..Node::new() };
        let (mut steady, mut seldom) = (Follower::default(), Follower::default());
        for (number, events) in messages.iter().enumerate() {
            push(&mut node, events);
            prop_assert_eq!(node.model.digests(), expected(&node));
            steady.follow(&node, limit).unwrap();
            if number % 7 == 3 {
                seldom.follow(&node, limit).unwrap();
                seldom.check(&node);
            }
            steady.check(&node);
        }
        let mut late = Follower::default();
        late.follow(&node, limit).unwrap();
        late.check(&node);
    }
}

fn world() -> GoalState {
    empty()
        .vpc(CREATE, vpc("v", 10))
        .subnet(CREATE, subnet("s", "v", "10.0.0.0/24", 0))
        .port(CREATE, port("p", &mac(1), &[("s", "10.0.0.5")]))
        .neighbour(CREATE, neighbour("n", &mac(2), "192.168.0.2", &[(0, "s", "10.0.0.6")]))
}

/// The numbers in proto/ncm/v1/states.proto.
#[test]
fn the_documented_examples_hold() {
    let mut node = Node::new();
    node.push(&empty().vpc(
        CREATE,
        crate::wire::VpcConfiguration {
            revision_number: 7,
            request_id: "whatever".into(),
            id: "vpc-1".into(),
            cidr: "10.0.0.0/16".into(),
            tunnel_id: 100,
            ..Default::default()
        },
    ));
    let mut config =
        neighbour("neighbor-1", "02:00:00:00:00:01", "192.0.2.1", &[(0, "subnet-1", "10.0.0.5")]);
    (config.revision_number, config.vpc_id) = (3, "vpc-1".into());
    node.push(&empty().neighbour(CREATE, config));
    let digests = node.model.digests();
    let shown: Vec<String> = digests
        .iter()
        .map(|digest| format!("{} {} {:032x}", digest.resource_type.as_str_name(), digest.vpc, digest.sum))
        .collect();
    assert_eq!(
        shown,
        ["VPC vpc-1 c39cbfd558b75e2f5b87e5e5eed97718", "NEIGHBOR vpc-1 b91ca9ecf5f9fa14a0e4787efd9cde41",]
    );
    // The same, byte by byte.
    let hex = |text: &str| -> Vec<u8> {
        let digits: Vec<u8> = text.chars().filter_map(|digit| Some(digit.to_digit(16)? as u8)).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    };
    let vpc = hex("00 00 07000000 05000000 7670632d31 \
         1a05 7670632d31 3a0b 31302e302e302e302f3136 4064");
    assert_eq!(xxh3_128(&vpc), digests[0].sum);
    let neighbour =
        hex("03 00 03000000 0a000000 6e65696768626f722d31 020000000001 00000000000000000000ffffc0000201 \
         05000000 7670632d31 00000000 01000000 00000000000000000000ffff0a000005 00000000 \
         08000000 7375626e65742d31");
    assert_eq!(xxh3_128(&neighbour), digests[1].sum);
}

#[test]
fn order_and_batches_do_not_matter_and_what_goes_leaves_no_trace() {
    let mut one = Node::new();
    one.push(&world());
    let mut other = Node::new();
    other.push(&empty().neighbour(CREATE, neighbour("n", &mac(2), "192.168.0.2", &[(0, "s", "10.0.0.6")])));
    other
        .push(&empty().neighbour(CREATE, neighbour("gone", &mac(3), "192.168.0.2", &[(0, "s", "10.0.0.7")])));
    assert_ne!(one.model.digests(), other.model.digests());
    other.push(&empty().neighbour(DELETE, neighbour("gone", "", "", &[])));
    other.push(&empty().port(CREATE, port("p", &mac(1), &[("s", "10.0.0.5")])));
    other.push(&empty().subnet(CREATE, subnet("s", "v", "10.0.0.0/24", 0)));
    other.push(&empty().vpc(CREATE, vpc("v", 10)));
    assert_eq!(one.model.digests(), other.model.digests());
    // What is refused changes nothing.
    let before = one.model.digests();
    one.push(&empty().neighbour(CREATE, neighbour("n", "no mac", "192.168.0.2", &[(0, "s", "10.0.0.6")])));
    assert_eq!(one.model.digests(), before);
}

#[test]
fn who_missed_more_than_is_kept_looks_through_all_and_who_missed_deletions_begins_anew() {
    let mut node = Node::new();
    node.push(&world());
    let mut follower = Follower::default();
    follower.follow(&node, 100).unwrap();
    // More changes than are kept.
    let many = |operation, from: u32, count: u32| {
        (from..from + count).fold(empty(), |state, number| {
            let ip = format!("10.1.{}.{}", number >> 8 & 255, number & 255);
            state.neighbour(
                operation,
                neighbour(&format!("n{number}"), &mac(9), "192.168.0.2", &[(0, "s", &ip)]),
            )
        })
    };
    node.push(&many(CREATE, 0, 33_000));
    follower.follow(&node, 1000).unwrap();
    follower.check(&node);
    // And more deletions.
    for round in 0..3 {
        node.push(&many(CREATE, round * 33_000, 33_000));
        node.push(&many(DELETE, round * 33_000, 33_000));
    }
    let forgotten = follower.follow(&node, 1000).unwrap_err();
    assert!(forgotten.to_string().contains("is not known any more"), "{forgotten}");
    let mut anew = Follower::default();
    anew.follow(&node, 1000).unwrap();
    anew.check(&node);
}
