//! Size matters: what a large message costs, with generous limits, so that a quadratic step fails here.

use std::time::Instant;

use super::kernel::Node;
use super::states::*;
use crate::wire::OperationStatus::{Pending, Success};

const COUNT: u32 = 60_000;

fn many(operation: crate::wire::OperationType, kind: i32) -> crate::wire::GoalState {
    (0..COUNT).fold(empty(), |state, number| {
        let [_, b, c, d] = number.to_be_bytes();
        let mac = format!("02:00:00:{b:02x}:{c:02x}:{d:02x}");
        let ip = format!("10.{b}.{c}.{d}");
        let ip = if number == 0 { "10.250.0.1".to_owned() } else { ip };
        let host = format!("192.168.1.{}", number % 8 + 1);
        state.neighbour(operation, neighbour(&format!("n{number}"), &mac, &host, &[(kind, "s", &ip)]))
    })
}

#[test]
fn parking_completing_and_deleting_many_stays_linear() {
    let mut node = Node::new();
    node.step = 4096;
    let start = Instant::now();
    let answers = node.push(&many(CREATE, 0));
    assert!(answers.iter().all(|answer| answer.status == Pending));
    node.push(&empty().vpc(CREATE, vpc("v", 10)).subnet(CREATE, subnet("s", "v", "10.0.0.0/8", 0)));
    assert_eq!(node.kernel.endpoints_ip.len(), COUNT as usize);
    node.push(&empty().vpc(UPDATE, vpc("v", 11)));
    assert_eq!(node.kernel.endpoints_mac.len(), COUNT as usize);
    node.push(&empty().subnet(DELETE, subnet("s", "", "", 0)));
    assert!(node.kernel.endpoints_mac.is_empty());
    let answers = node.push(&many(DELETE, 0));
    assert!(answers.iter().all(|answer| answer.status == Success));
    assert!(node.list().iter().all(|view| view.id == "v"));
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

#[test]
fn one_neighbour_with_many_addresses_stays_linear() {
    let mut node = Node::new();
    node.push(&base());
    let fixed: Vec<(i32, String)> = (1..COUNT)
        .map(|number| (0, format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255)))
        .collect();
    let fixed: Vec<_> = fixed.iter().map(|(kind, ip)| (*kind, "s", ip.as_str())).collect();
    let mut config = neighbour("n", &mac(1), "192.168.0.2", &fixed);
    let start = Instant::now();
    for _ in 0..2 {
        assert_eq!(node.one(&empty().neighbour(CREATE, config.clone())).status, Success);
    }
    assert_eq!(node.kernel.endpoints_ip.len(), COUNT as usize - 1);
    config.revision_number = 2;
    config.mac_address = mac(2);
    assert_eq!(node.one(&empty().neighbour(UPDATE, config.clone())).status, Success);
    assert_eq!(node.one(&empty().neighbour(DELETE, config)).status, Success);
    assert!(node.kernel.endpoints_ip.is_empty() && node.kernel.endpoints_mac.is_empty());
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

#[test]
fn parts_of_a_listing_are_small_and_complete() {
    let mut node = Node::new();
    node.push(&many(CREATE, 0));
    let filter = crate::Filter { status: Some(Success), ..Default::default() };
    let (mut cursor, mut calls, mut found) = (Some(crate::Cursor::default()), 0, 0);
    while let Some(from) = cursor {
        let (views, next) = node.model.list(&filter, from, 100);
        found += views.len();
        calls += 1;
        cursor = next;
    }
    assert_eq!(found, 0);
    assert!(calls > 10, "one call walked over all of {COUNT}");
    assert_eq!(node.model.counts().iter().map(|count| count.count).sum::<u64>(), u64::from(COUNT));
}
