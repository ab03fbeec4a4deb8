//! One set of tables takes the place of another while packets come: what one program has begun is known to the other, whichever comes
//! first, at every stage.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::tables::{Endpoint, Flow, FlowKey, IpKey, Rule, RuleKey, flow_kinds, set_direction};
use ncm_dataplane::{Error, Stage};
use ncm_tests::packet::{A1, HOST_1, RA, SUBNET_A, Seen, World, mapped, segment, udp};

const SYN: u8 = 2;
const ACK: u8 = 16;

/// The most instructions that the verifier may walk through for one program.
const BUDGET: u32 = 100_000;

/// Where a test has its pins; gone with it.
struct Pins(PathBuf);

impl Pins {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ncm-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    /// The directories of sets of tables.
    fn sets(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.join("ncm/packets")).expect("pins");
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // Where nothing was mounted there is nothing to take away.
        let _ = nix::mount::umount(&self.0);
        drop(std::fs::remove_dir(&self.0));
    }
}

/// A world where A1 may begin flows of TCP and UDP, and nobody may begin any to it.
fn world(bpffs: &Path) -> World {
    let world = World::pinned(bpffs);
    for protocol in [6, 17] {
        let set = set_direction(1, false);
        let key = RuleKey { prefix_len: 80, set, class: 0, family: 4, protocol, port: [0; 2] };
        world.tables().rules.put(&key, &Rule { rules: 1 }).expect("room");
    }
    world.change_port(A1, |port| (port.set, port.max_flows) = (1, 60));
    world
}

fn key(protocol: u8, local_port: u16) -> FlowKey {
    FlowKey {
        port: A1.port,
        local: mapped(A1.ip),
        remote: mapped(RA.ip),
        local_port: local_port.to_be_bytes(),
        remote_port: 53u16.to_be_bytes(),
        protocol,
        kind: flow_kinds::FLOW,
        reserved: [0; 2],
    }
}

/// A datagram from A1 to RA.
fn out(world: &World, port: u16) -> Seen {
    world.from_guest(A1, udp((A1.ip, port), (RA.ip, 53), b"question").frame(RA.mac, A1.mac))
}

/// The answer.
fn back(world: &World, port: u16) -> Seen {
    let frame = udp((RA.ip, 53), (A1.ip, port), b"answer").frame(A1.mac, RA.mac);
    world.from_relay(SUBNET_A.vni, HOST_1, frame)
}

fn segment_out(world: &World, port: u16, flags: u8) -> Seen {
    world.from_guest(A1, segment((A1.ip, port), (RA.ip, 53), flags).frame(RA.mac, A1.mac))
}

fn segment_back(world: &World, port: u16, flags: u8) -> Seen {
    let frame = segment((RA.ip, 53), (A1.ip, port), flags).frame(A1.mac, RA.mac);
    world.from_relay(SUBNET_A.vni, HOST_1, frame)
}

#[track_caller]
fn expect_known(seen: &Seen) {
    assert!(seen.drops.is_empty(), "a known flow\n{seen}");
    let anew = seen.counters.iter().any(|(counter, _)| *counter == PathCounter::FlowCreated);
    assert!(!anew, "a known flow\n{seen}");
}

/// How many established flows count for A1.
fn share(world: &World) -> u32 {
    world.tables().port_flows.get(&A1.port).expect("readable").map_or(0, |flows| flows.established)
}

fn until(world: &World, stage: Stage) {
    world.dataplane().take_over_until(stage).unwrap_or_else(|error| panic!("{stage:?}: {error}"));
}

/// Flows begun and answered by each of two, in all ways.
fn expect_known_to_each_other(one: &World, other: &World, first_port: u16) {
    for (at, (begins, answers)) in [(one, other), (other, one), (one, one), (other, other)].iter().enumerate()
    {
        let port = first_port + u16::try_from(at).expect("few");
        out(begins, port).assert_counted(PathCounter::FlowCreated);
        let answer = back(answers, port);
        expect_known(&answer);
        answer.assert_counted(PathCounter::FlowEstablished);
        expect_known(&out(answers, port));
        expect_known(&back(begins, port));
        let connection = port + 100;
        segment_out(begins, connection, SYN).assert_counted(PathCounter::FlowCreated);
        expect_known(&segment_back(answers, connection, SYN | ACK));
        let third = segment_out(begins, connection, ACK);
        expect_known(&third);
        third.assert_counted(PathCounter::FlowEstablished);
        expect_known(&segment_back(answers, connection, ACK));
    }
}

fn take_place(name: &str, capacities: &[(&str, u32)]) {
    let pins = Pins::new(name);
    let old = world(&pins.0);
    assert_eq!(pins.sets(), ["v2"]);
    // One is established, one is not answered yet, and one connection is half open.
    out(&old, 1000).assert_counted(PathCounter::FlowCreated);
    back(&old, 1000).assert_counted(PathCounter::FlowEstablished);
    out(&old, 1001).assert_counted(PathCounter::FlowCreated);
    segment_out(&old, 1002, SYN).assert_counted(PathCounter::FlowCreated);
    out(&old, 1003).assert_counted(PathCounter::FlowCreated);
    back(&old, 1003).assert_counted(PathCounter::FlowEstablished);

    let new = old.next(capacities).expect("the tables are taken over");
    assert!(new.dataplane().is_pending());
    assert_eq!(pins.sets(), ["v2", "v2-1"]);
    for program in new.dataplane().programs().expect("readable") {
        let walked = program.verified_instructions;
        assert!(walked <= BUDGET, "{}: {walked} instructions of at most {BUDGET}", program.name);
    }
    expect_known(&back(&old, 1000));
    let ports = |world: &World| world.tables().ports.entries().expect("readable");
    assert_eq!(ports(&old), ports(&new));
    assert_eq!(
        old.tables().endpoints_ip.count().expect("readable"),
        new.tables().endpoints_ip.count().expect("readable")
    );

    until(&new, Stage::Swapped);
    expect_known_to_each_other(&old, &new, 2000);
    expect_known(&back(&new, 1000));
    let answer = back(&new, 1001);
    expect_known(&answer);
    answer.assert_counted(PathCounter::FlowEstablished);
    expect_known(&segment_back(&new, 1002, SYN | ACK));
    expect_known(&segment_out(&old, 1002, ACK));
    back(&new, 1999).assert_dropped(DropReason::PolicyIngress, A1.port);

    until(&new, Stage::InUse);
    // A program of before that was still on its way.
    out(&old, 1004).assert_counted(PathCounter::FlowCreated);
    expect_known(&back(&new, 1004));
    expect_known(&back(&new, 1000));
    expect_known(&out(&new, 1001));
    expect_known(&segment_back(&new, 1002, ACK));
    assert!(new.established(&key(17, 1000)).is_some(), "it was brought by its packet");
    expect_known_to_each_other(&new, &new, 3000);

    until(&new, Stage::Carried);
    assert!(new.established(&key(17, 1003)).is_some(), "it was carried over without a packet");
    expect_known_to_each_other(&new, &new, 4000);

    until(&new, Stage::Done);
    assert!(!new.dataplane().is_pending());
    assert_eq!(pins.sets(), ["v2"]);
    for port in [1000, 1001, 1003] {
        expect_known(&back(&new, port));
        expect_known(&out(&new, port));
    }
    expect_known(&segment_out(&new, 1002, ACK));
    expect_known_to_each_other(&new, &new, 5000);
    let flows = u32::try_from(new.tables().flows.count().expect("readable")).expect("few");
    assert!(share(&new) <= flows, "{} of {flows} count", share(&new));
    drop(old);
    let next = new.next(&[]).expect("what is there is what is wanted");
    assert!(!next.dataplane().is_pending());
    expect_known(&back(&next, 1000));
}

#[test]
fn more_room_for_flows() {
    take_place("flows", &[("flows", 128)]);
}

#[test]
fn more_room_for_half_open_flows() {
    take_place("half-open", &[("half_open", 64)]);
}

#[test]
fn more_room_for_everything() {
    let all =
        ["endpoints", "hosts", "subnets", "ports", "vteps", "routes", "sources", "source_prefixes", "names"];
    let all =
        all.into_iter().chain(["classes", "rules", "flows", "policy_counts", "half_open", "port_drops"]);
    take_place("everything", &all.map(|key| (key, 192)).collect::<Vec<_>>());
}

#[test]
fn tables_that_are_too_small_are_refused_and_nothing_has_changed() {
    let pins = Pins::new("small");
    let old = world(&pins.0);
    out(&old, 1000).assert_counted(PathCounter::FlowCreated);
    for key in ["endpoints", "ports", "rules"] {
        match old.next(&[(key, 1)]) {
            Err(Error::NoRoom { table, capacity: 1 }) => assert!(table.contains(&key[..4]), "{table}"),
            other => panic!("{key}: {other:?}"),
        }
        assert_eq!(pins.sets(), ["v2"], "{key}");
    }
    expect_known(&back(&old, 1000));
    // As many as there are is enough.
    let rules = u32::try_from(old.tables().rules.count().expect("readable")).expect("few");
    let new = old.next(&[("rules", rules)]).expect("there is room");
    until(&new, Stage::Done);
    expect_known(&back(&new, 1000));
}

#[test]
fn what_a_crash_leaves_at_any_stage_is_taken_up() {
    for (at, stage) in [Stage::Filled, Stage::Swapped, Stage::InUse, Stage::Carried].into_iter().enumerate() {
        for wanted in [&[("flows", 128), ("ports", 80)][..], &[], &[("flows", 256)]] {
            let pins = Pins::new(&format!("crash-{at}-{}", wanted.len()));
            std::thread::scope(|threads| {
                threads.spawn(|| crash(&pins, stage, wanted)).join().expect("known flows stay known");
            });
        }
    }
}

fn crash(pins: &Pins, stage: Stage, wanted: &[(&str, u32)]) {
    let old = world(&pins.0);
    out(&old, 1000).assert_counted(PathCounter::FlowCreated);
    back(&old, 1000).assert_counted(PathCounter::FlowEstablished);
    out(&old, 1001).assert_counted(PathCounter::FlowCreated);
    let new = old.next(&[("flows", 128), ("ports", 80)]).expect("the tables are taken over");
    until(&new, stage);
    let last = if stage >= Stage::InUse { &new } else { &old };
    out(last, 1002).assert_counted(PathCounter::FlowCreated);
    back(last, 1002).assert_counted(PathCounter::FlowEstablished);
    if stage >= Stage::Swapped {
        out(&new, 1003).assert_counted(PathCounter::FlowCreated);
    }
    // Whoever is killed does not clean up.
    std::mem::forget(new);
    let next = old.next(wanted).expect("it is taken up");
    until(&next, Stage::Done);
    for port in [1000, 1001, 1002] {
        let seen = back(&next, port);
        assert!(seen.drops.is_empty(), "{stage:?}, then {wanted:?}: flow {port}\n{seen}");
    }
    if stage >= Stage::Swapped {
        expect_known(&back(&next, 1003));
    }
    assert_eq!(pins.sets().len(), 1, "{stage:?}, then {wanted:?}");
}

#[test]
#[ignore = "takes a gigabyte of memory: `cargo xtask test long`"]
fn a_million_endpoints_and_flows_are_carried_over_in_seconds() {
    const MILLION: u32 = 1_000_000;
    let pins = Pins::new("million");
    let old = World::pinned(&pins.0);
    let large = [("endpoints", MILLION + 1000), ("flows", MILLION + 1000)];
    let first = old.next(&large).expect("there is room");
    until(&first, Stage::Done);
    let tables = first.tables();
    let endpoint = Endpoint { target: 1, generation: 1, ..Endpoint::default() };
    let address = |number: u32| IpKey { vni: 9, ip: mapped(number.to_be_bytes()) };
    assert!(
        tables.endpoints_ip.put_batch((0..MILLION).map(|number| (address(number), endpoint))).is_complete()
    );
    let flow = |number: u32| {
        let [a, b, c, d] = number.to_be_bytes();
        let key = FlowKey { local_port: [a, b], remote_port: [c, d], ..key(132, 0) };
        (key, Flow { port: A1.port, port_again: A1.port, created: number, ..Flow::default() })
    };
    assert!(tables.flows.put_batch((0..MILLION).map(flow)).is_complete());
    let begun = Instant::now();
    let second =
        first.next(&[("endpoints", MILLION + 2000), ("flows", MILLION + 2000)]).expect("there is room");
    let filled = begun.elapsed();
    until(&second, Stage::Done);
    println!("filled in {filled:?}, done in {:?}", begun.elapsed());
    assert_eq!(second.tables().flows.count().expect("readable"), u64::from(MILLION));
    assert_eq!(second.established(&flow(77).0), Some(flow(77).1));
    assert_eq!(second.tables().endpoints_ip.get(&address(77)).expect("readable"), Some(endpoint));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}
