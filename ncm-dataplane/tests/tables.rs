//! Tables over real maps: batches, their partial failures, and reading everything back.

mod common;

use common::{isolate, small};
use ncm_common::tables::{Endpoint, Flow, FlowKey, MacKey, Port, Reference, SubnetPrefixKey, VtepKey};
use ncm_dataplane::{BPFFS, Dataplane, Options, Reader};

fn open() -> Dataplane {
    isolate();
    Dataplane::open(&small(Options::unpinned())).expect("the object loads")
}

fn mac(number: u32) -> MacKey {
    let [a, b, c, d] = number.to_be_bytes();
    MacKey { vni: 5, mac: [2, 0, a, b, c, d], ..MacKey::default() }
}

fn endpoint(number: u32) -> Endpoint {
    Endpoint { target: number, generation: 1, ..Endpoint::default() }
}

fn vtep(number: u8) -> VtepKey {
    let mut ip = [0; 16];
    ip[15] = number;
    VtepKey { vni: 5, ip }
}

const REFERENCE: Reference = Reference { index: 1, generation: 1 };

#[test]
fn a_hash_takes_gives_back_and_loses_entries_in_batches() {
    let dataplane = open();
    let table = &dataplane.tables().endpoints_mac;
    let outcome = table.put_batch((1..=20_000).map(|number| (mac(number), endpoint(number))));
    assert!(outcome.is_complete(), "{:?}", outcome.failed);
    assert_eq!(outcome.done, 20_000);
    assert_eq!(table.get(&mac(12_345)).expect("readable"), Some(endpoint(12_345)));
    assert_eq!(table.get(&mac(20_001)).expect("readable"), None);
    let mut entries = table.entries().expect("readable");
    entries.sort_unstable();
    let wanted: Vec<_> = (1..=20_000).map(|number| (mac(number), endpoint(number))).collect();
    assert_eq!(entries, wanted);

    let outcome = table.delete_batch((1..=20_000).filter(|number| number % 2 == 0).map(mac));
    assert_eq!((outcome.done, outcome.failed.len()), (10_000, 0));
    assert_eq!(table.count().expect("readable"), 10_000);
    let outcome = table.delete_batch((1..=20_000).map(mac));
    assert!(outcome.is_complete(), "what is gone already counts as done: {:?}", outcome.failed);
    assert_eq!(table.count().expect("readable"), 0);
}

#[test]
fn a_walk_in_parts_sees_every_entry_once_and_begins_anew() {
    let dataplane = open();
    let table = &dataplane.tables().endpoints_mac;
    assert!(table.put_batch((1..=5_000).map(|number| (mac(number), endpoint(number)))).is_complete());
    let mut position = ncm_dataplane::Position::default();
    for _ in 0..2 {
        let (mut seen, mut parts) = (Vec::new(), 1);
        while !table.for_some(&mut position, 500, |_, value| seen.push(value.target)).expect("readable") {
            parts += 1;
        }
        seen.sort_unstable();
        assert_eq!(seen, (1..=5_000).collect::<Vec<u32>>());
        assert!((9..=20).contains(&parts), "{parts} parts");
    }
}

#[test]
fn a_full_table_names_the_entries_that_did_not_fit() {
    let dataplane = open();
    let table = &dataplane.tables().vteps;
    assert_eq!(table.capacity(), 100);
    let outcome = table.put_batch((1..=150).map(|number| (vtep(number), REFERENCE)));
    assert_eq!((outcome.done, outcome.failed.len()), (100, 50));
    assert!(outcome.is_full());
    let positions: Vec<usize> = outcome.failed.iter().map(|(position, _)| *position).collect();
    assert_eq!(positions, (100..150).collect::<Vec<_>>());
    let error = table.put(&vtep(200), &REFERENCE).expect_err("full");
    assert!(error.to_string().contains("table vteps"), "{error}");

    // What is there may be replaced, and room that is made is used.
    assert!(table.put(&vtep(7), &Reference { index: 9, generation: 9 }).is_ok());
    assert!(table.delete(&vtep(1)).is_ok());
    assert!(table.put(&vtep(200), &REFERENCE).is_ok());
}

#[test]
fn a_full_table_of_prefixes_says_so_too() {
    let dataplane = open();
    let table = &dataplane.tables().subnet_prefixes;
    let prefix = |number: u32| SubnetPrefixKey { prefix_len: 64, vni: number, ..SubnetPrefixKey::default() };
    let outcome = table.put_batch((0..=table.capacity()).map(|number| (prefix(number), REFERENCE)));
    assert_eq!(outcome.failed.len(), 1);
    assert!(outcome.is_full(), "{:?}", outcome.failed);
}

#[test]
fn a_refused_entry_does_not_keep_the_others_out() {
    let dataplane = open();
    let table = &dataplane.tables().subnet_prefixes;
    let key = |prefix_len, last| {
        let ip = std::net::Ipv4Addr::new(10, 0, last, 0).to_ipv6_mapped().octets();
        SubnetPrefixKey { prefix_len, vni: 5, ip }
    };
    let outcome = table.put_batch([
        (key(152, 1), REFERENCE),
        (key(161, 2), REFERENCE),
        (key(152, 3), REFERENCE),
        (key(199, 4), REFERENCE),
        (key(144, 0), REFERENCE),
    ]);
    let positions: Vec<usize> = outcome.failed.iter().map(|(position, _)| *position).collect();
    assert_eq!((outcome.done, positions), (3, vec![1, 3]), "a prefix of more bits than the key has");
    assert_eq!(table.count().expect("readable"), 3);
    let outcome = table.delete_batch([key(152, 1), key(152, 2), key(152, 3)]);
    assert!(outcome.is_complete(), "{:?}", outcome.failed);
    assert_eq!(table.entries().expect("readable"), [(key(144, 0), REFERENCE)]);
}

#[test]
fn an_arrays_entries_are_deleted_to_zero_and_unused_slots_are_not_listed() {
    let dataplane = open();
    let table = &dataplane.tables().heartbeat;
    dataplane.set_heartbeat(76).expect("writable");
    assert_eq!(table.entries().expect("readable"), [(0, 76)]);
    table.delete(&0).expect("writable");
    assert_eq!(table.get(&0).expect("readable"), Some(0));
    assert_eq!(table.count().expect("readable"), 0);

    let ports = &dataplane.tables().ports;
    let port = ncm_common::tables::Port { generation: 1, ..Default::default() };
    let outcome = ports.put_batch([(3, port), (64, port), (63, port)]);
    let positions: Vec<usize> = outcome.failed.iter().map(|(position, _)| *position).collect();
    assert_eq!((outcome.done, positions), (2, vec![1]), "an index beyond the capacity");
    let mut indices: Vec<u32> = ports.entries().expect("readable").into_iter().map(|(key, _)| key).collect();
    indices.sort_unstable();
    assert_eq!(indices, [3, 63]);
}

#[test]
fn a_change_that_is_being_written_marks_the_heartbeat_until_it_is_over() {
    let dataplane = open();
    let beat = || dataplane.tables().heartbeat.get(&0).expect("readable").expect("an array's entry");
    assert!(!dataplane.is_changing());
    dataplane.set_heartbeat(1_001).expect("writable");
    assert_eq!(beat(), 1_000);
    dataplane.set_changing(true).expect("writable");
    assert_eq!(beat(), 1_001);
    dataplane.set_heartbeat(2_000).expect("writable");
    assert_eq!(beat(), 2_001, "time goes on meanwhile");
    dataplane.set_changing(false).expect("writable");
    assert_eq!((beat(), dataplane.is_changing()), (2_000, false));
}

#[test]
fn a_map_type_without_batches_goes_entry_by_entry() {
    let dataplane = open();
    let devices = &dataplane.tables().devices;
    let outcome = devices.put_batch([(1, 1), (2, 4_000_000)]);
    assert_eq!((outcome.done, outcome.failed.len()), (1, 1), "only the loopback interface exists");
    assert_eq!(devices.entries().expect("readable"), [(1, 1)]);
    assert!(devices.delete_batch([1, 2]).is_complete());
    assert_eq!(devices.count().expect("readable"), 0);
}

#[test]
fn a_host_with_three_ports_and_few_flows_takes_little_memory() {
    isolate();
    let dataplane = Dataplane::open(&Options::pinned("memory")).expect("the object loads");
    let tables = dataplane.tables();
    let ports = [1, 2, 3];
    assert!(tables.half_open.create(&ports).is_complete());
    for port in ports {
        let value = Port { generation: 1, ..Port::default() };
        tables.ports.put(&port, &value).expect("writable");
        let half_open = tables.half_open.of(port).expect("readable").expect("made above");
        let flow = |number: u16| {
            let key = FlowKey { port, remote_port: number.to_be_bytes(), ..FlowKey::default() };
            (key, Flow { created: 1, ..Flow::default() })
        };
        assert!(tables.flows.put_batch((0..300).map(flow)).is_complete());
        assert!(half_open.put_batch((0..300).map(flow)).is_complete());
    }
    // As the kernel accounts them, of all that is pinned and of the ports' own tables.
    let reader = Reader::open(BPFFS.as_ref(), "memory").expect("pinned");
    let memory = reader.tables().memory().expect("readable");
    let total: u64 = memory.iter().map(|(_, bytes, _)| bytes).sum();
    let list: Vec<String> =
        memory.iter().map(|(spec, bytes, capacity)| format!("{} {bytes} ({capacity})", spec.name)).collect();
    assert!(total < 64 << 20, "{total} bytes: {list:#?}");
    assert!(total > 1 << 20, "{total} bytes are too few to be true: {list:#?}");
}
