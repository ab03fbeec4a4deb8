//! The sweep over real tables.

use ncm_common::tables::Port;
use ncm_dataplane::{Dataplane, Options};
use nix::time::{ClockId, clock_gettime};

use super::*;

/// Far enough from zero for flows to be long over.
const NOW: u32 = 1_000_000;

fn open() -> Dataplane {
    let dataplane = Dataplane::open(&Options::unpinned()).expect("the object loads");
    for port in [1, 2] {
        let value = Port { generation: 5, ..Port::default() };
        dataplane.tables().ports.put(&port, &value).expect("writable");
    }
    dataplane
}

fn key(port: u32, number: u32) -> FlowKey {
    let mut remote = [0; 16];
    remote[12..].copy_from_slice(&number.to_be_bytes());
    FlowKey { port, remote, protocol: 6, ..FlowKey::default() }
}

/// A flow that has been over for so many ticks; negative: that lasts so long yet.
fn flow(over_for: i64) -> Flow {
    let timeout = 1_000;
    let seen = u32::try_from(i64::from(NOW) - i64::from(timeout) - over_for).expect("in range");
    Flow { timeout, created: seen, seen: [seen, 0], port_generation: 5, ..Flow::default() }
}

/// One whole walk; the number of its slices.
fn walk(tables: &Tables) -> u32 {
    let mut sweep = Sweep::default();
    let mut slices = 0;
    while sweep.half_open.is_none() {
        sweep.step(tables, NOW).expect("readable");
        slices += 1;
    }
    slices
}

#[test]
fn what_has_been_over_for_a_while_is_freed_and_no_longer_counts_for_its_port() {
    let dataplane = open();
    let tables = dataplane.tables();
    let grace = i64::from(GRACE);
    tables.flows.put(&key(1, 1), &flow(grace + 1)).expect("writable");
    tables.flows.put(&key(1, 2), &flow(grace)).expect("writable");
    tables.flows.put(&key(1, 3), &flow(-5)).expect("writable");
    tables.flows.put(&key(2, 1), &flow(grace * 2)).expect("writable");
    let of_another = Flow { port_generation: 4, ..flow(-5) };
    tables.flows.put(&key(2, 2), &of_another).expect("writable");
    let count = |established| PortFlows { established, ..PortFlows::default() };
    tables.port_flows.put(&1, &count(3)).expect("writable");
    tables.port_flows.put(&2, &count(1)).expect("writable");

    walk(tables);
    let mut left: Vec<FlowKey> =
        tables.flows.entries().expect("readable").into_iter().map(|(key, _)| key).collect();
    left.sort_unstable();
    assert_eq!(left, [key(1, 2), key(1, 3)], "what is over for some seconds stays, and what is not over");
    assert_eq!(established(tables, 1).expect("readable"), 2);
    assert_eq!(established(tables, 2).expect("readable"), 0, "the former port's flow was not its own");
}

#[test]
fn a_wrong_count_is_put_right_by_the_next_walk() {
    let dataplane = open();
    let tables = dataplane.tables();
    assert!(tables.flows.put_batch((0..100).map(|number| (key(1, number), flow(-5)))).is_complete());
    for wrong in [0, 7, 5_000] {
        let count = PortFlows { established: wrong, ..PortFlows::default() };
        tables.port_flows.put(&1, &count).expect("writable");
        walk(tables);
        assert_eq!(established(tables, 1).expect("readable"), 100, "from {wrong}");
    }
}

#[test]
fn a_million_flows_take_more_than_a_minute_and_less_than_a_hundredth_of_a_processor() {
    let dataplane = open();
    let tables = dataplane.tables();
    let flows = (0..1_000_000).map(|number| (key(1 + number % 2, number), flow(-5)));
    assert!(tables.flows.put_batch(flows).is_complete());
    let processor = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("there is one"));
    let before = processor();
    let slices = walk(tables);
    let (used, lasted) = (processor() - before, SLICE_EVERY * slices);
    assert!(lasted > Duration::from_secs(70), "{slices} slices");
    assert!(used < lasted / 100, "{used:?} of a processor in {lasted:?}");
}
