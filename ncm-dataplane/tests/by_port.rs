//! The tables that each port has one of its own of: made, filled, taken away, and found again.

mod common;

use std::time::{Duration, Instant};

use common::{isolate, small};
use ncm_common::tables::{Flow, FlowKey, Port};
use ncm_dataplane::{BPFFS, Dataplane, Options, Reader};

fn key(port: u32, number: u16) -> FlowKey {
    FlowKey { port, remote_port: number.to_be_bytes(), ..FlowKey::default() }
}

fn flow(number: u16) -> Flow {
    Flow { created: u32::from(number), ..Flow::default() }
}

fn port(generation: u32) -> Port {
    Port { generation, ..Port::default() }
}

fn open(options: Options) -> Dataplane {
    Dataplane::open(&small(options)).expect("the object loads")
}

#[test]
fn a_port_has_a_table_of_its_own_that_is_empty_when_the_index_is_used_again() {
    isolate();
    let dataplane = open(Options::unpinned());
    let half_open = &dataplane.tables().half_open;
    assert_eq!((half_open.capacity(), half_open.ports().expect("readable")), (64, vec![]));
    let outcome = half_open.create(&[3, 63, 64]);
    let positions: Vec<usize> = outcome.failed.iter().map(|(position, _)| *position).collect();
    assert_eq!((outcome.done, positions), (2, vec![2]), "an index beyond the capacity");
    assert_eq!(half_open.ports().expect("readable"), [3, 63]);

    let table = half_open.of(3).expect("readable").expect("made above");
    assert_eq!(table.capacity(), 100);
    table.put(&key(3, 1), &flow(1)).expect("writable");
    assert_eq!(half_open.get(&key(3, 1)).expect("readable"), Some(flow(1)));
    assert_eq!(half_open.get(&key(63, 1)).expect("readable"), None);
    assert_eq!(half_open.get(&key(5, 1)).expect("readable"), None, "a port without a table");
    assert_eq!(half_open.count().expect("readable"), 1);

    assert_eq!(half_open.remove(&[3, 4]).done, 2, "having none counts as done");
    assert_eq!(half_open.ports().expect("readable"), [63]);
    assert!(half_open.create(&[3]).is_complete());
    assert_eq!(half_open.count().expect("readable"), 0, "what was there went with the port");
}

#[test]
fn a_flood_of_one_port_evicts_nothing_of_another() {
    isolate();
    let dataplane = open(Options::unpinned());
    let half_open = &dataplane.tables().half_open;
    assert!(half_open.create(&[1, 2]).is_complete());
    let table = |port| half_open.of(port).expect("readable").expect("made above");
    table(1).put(&key(1, 9), &flow(9)).expect("writable");
    let flood = table(2).put_batch((0..5_000).map(|number| (key(2, number), flow(number))));
    assert!(flood.is_complete(), "{:?}", flood.failed.first());
    assert!(table(2).count().expect("readable") <= 100);
    assert_eq!(half_open.get(&key(1, 9)).expect("readable"), Some(flow(9)));
}

#[test]
fn the_next_process_finds_the_tables_of_the_ports_there_are() {
    isolate();
    {
        let dataplane = open(Options::pinned("ports"));
        let tables = dataplane.tables();
        assert!(tables.ports.put_batch([(1, port(7)), (2, port(8))]).is_complete());
        assert!(tables.half_open.create(&[1, 3]).is_complete());
        let table = tables.half_open.of(1).expect("readable").expect("made above");
        table.put(&key(1, 5), &flow(5)).expect("writable");
    }
    {
        let dataplane = open(Options::pinned("ports"));
        let half_open = &dataplane.tables().half_open;
        assert_eq!(half_open.ports().expect("readable"), [1, 2], "made where missing, gone where nobody's");
        assert_eq!(half_open.get(&key(1, 5)).expect("readable"), Some(flow(5)), "what is there stays");
    }
    let mut options = small(Options::pinned("ports"));
    assert!(options.capacities.set("half_open", 300));
    let dataplane = Dataplane::open(&options).expect("tables of another size");
    dataplane.take_over().expect("they take the place of those that are there");
    let half_open = &dataplane.tables().half_open;
    assert_eq!(half_open.of(1).expect("readable").expect("there").capacity(), 300);
    assert_eq!(half_open.get(&key(1, 5)).expect("readable"), Some(flow(5)), "moved into the larger one");

    let reader = Reader::open(BPFFS.as_ref(), "ports").expect("pinned");
    let half_open = &reader.tables().half_open;
    assert_eq!(half_open.count().expect("readable"), 1);
    assert!(half_open.memory_bytes().expect("readable") > 300 * 200);
    let table = half_open.of(1).expect("readable").expect("there");
    assert!(table.put(&key(1, 6), &flow(6)).is_err(), "a reader's tables cannot be written");
    assert!(!half_open.create(&[4]).is_complete(), "nor made");
}

#[test]
fn a_thousand_ports_come_and_go_without_holding_anybody_up() {
    isolate();
    let mut options = small(Options::unpinned());
    options.capacities.set("ports", 1_024);
    let dataplane = Dataplane::open(&options).expect("the object loads");
    let half_open = &dataplane.tables().half_open;
    let ports: Vec<u32> = (1..=1_000).collect();
    let begun = Instant::now();
    assert!(half_open.create(&ports).is_complete());
    let made = begun.elapsed();
    let begun = Instant::now();
    assert!(half_open.remove(&ports).is_complete());
    let removed = begun.elapsed();
    assert!(half_open.ports().expect("readable").is_empty());
    // The kernel waits after each change until no program uses what was there: one after the other that takes half a minute.
    let most = Duration::from_secs(3);
    assert!(made < most && removed < most, "made in {made:?}, removed in {removed:?}");
}
