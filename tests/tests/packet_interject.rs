//! What a flow's decision rests on goes between the answer of policy and the flow's entry. The program of this object takes it away
//! itself, so that it happens at that very place: whatever is noted then must not pass for a decision of what is now.

use ncm_common::tables::{
    Flow, FlowKey, MEMBERS, PolicyCountKey, Rule, RuleKey, epoch_slot, flow_kinds, set_direction,
};
use ncm_dataplane::{Hook, TestRun};
use ncm_tests::packet::{A1, A2, SUBNET_A, World, mapped, udp};

/// Where the answers of A2 are asked for.
const SERVER: u16 = 53;

/// The product's programs, with the interjection.
fn world() -> World {
    let path = std::env::var_os("NCM_INTERJECT_OBJECT").expect(
        "NCM_INTERJECT_OBJECT names the object of this test: run `cargo xtask test packet`, or `cargo xtask object \
         --features interject` for its path",
    );
    let object = std::fs::read(path).expect("readable");
    let world = World::with_object(&object, &[]);
    world.change_port(A1, |port| port.set = 1);
    world.beat(0);
    world
}

/// A rule of set 1 that lets UDP out: for all, or for the members of a group.
fn rule(class: u32) -> RuleKey {
    RuleKey { prefix_len: 80, set: set_direction(1, false), class, family: 4, protocol: 17, port: [0; 2] }
}

/// Has the rule go in the middle of the next decision, and the epoch of the port, or of the slot, rise.
fn arm(world: &World, port: u32, slot: u32, rule: RuleKey) {
    let mut bytes = Vec::new();
    for word in [1, port, slot, rule.prefix_len, rule.set, rule.class] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend([rule.family, rule.protocol, rule.port[0], rule.port[1]]);
    world.dataplane().put_other("INTERJECTION", &0_u32.to_ne_bytes(), &bytes).expect("writable");
}

/// Sends a datagram of A1 to A2 through the program.
fn send(world: &World, from: u16) {
    let frame = udp((A1.ip, from), (A2.ip, SERVER), b"a question").frame(A2.mac, A1.mac);
    let run = TestRun::new(frame, world.ifindex(A1.interface));
    world.dataplane().test_run(Hook::GuestTc, &run).expect("it runs");
}

fn flow(world: &World, from: u16) -> Option<Flow> {
    let key = FlowKey {
        port: A1.port,
        local: mapped(A1.ip),
        remote: mapped(A2.ip),
        local_port: from.to_be_bytes(),
        remote_port: SERVER.to_be_bytes(),
        protocol: 17,
        kind: flow_kinds::FLOW,
        reserved: [0; 2],
    };
    let half_open = world.tables().half_open.of(A1.port).expect("readable").expect("the port's table");
    half_open.get(&key).expect("readable")
}

/// Decisions of policy for A1: allowed and denied.
fn decisions(world: &World) -> (u64, u64) {
    let key = PolicyCountKey { port: A1.port, set: set_direction(1, false) };
    let counts = world.tables().policy_counts.get(&key).expect("readable").unwrap_or_default();
    (counts.allowed, counts.denied)
}

fn ports_epoch(world: &World) -> u32 {
    world.tables().ports.get(&A1.port).expect("readable").expect("there").epoch
}

#[test]
fn a_flow_that_began_while_its_rule_went_is_decided_anew() {
    let world = world();
    world.tables().rules.put(&rule(0), &Rule { rules: 1 }).expect("room");
    let before = ports_epoch(&world);
    arm(&world, A1.port, 0, rule(0));
    send(&world, 1000);
    assert_eq!(decisions(&world), (1, 0), "the packet in the middle still has the old policy");
    assert_eq!(ports_epoch(&world), before + 1, "the change was made");
    let begun = flow(&world, 1000).expect("the flow was noted");
    assert_eq!(begun.port_epoch, before, "what was decided by the old rules must not carry the new epoch");
    send(&world, 1000);
    assert_eq!(decisions(&world), (1, 1), "the next packet of the flow is decided by what is now");
    send(&world, 1001);
    assert_eq!(decisions(&world), (1, 2), "nor is the old answer remembered for other flows");
}

#[test]
fn a_flow_that_is_decided_anew_while_its_rule_goes_is_decided_once_more() {
    let world = world();
    world.tables().rules.put(&rule(0), &Rule { rules: 1 }).expect("room");
    send(&world, 1000);
    world.change_port(A1, |port| port.epoch += 1);
    arm(&world, A1.port, 0, rule(0));
    send(&world, 1000);
    assert_eq!(decisions(&world), (2, 0));
    let flow = flow(&world, 1000).expect("the flow is there");
    assert_ne!(flow.port_epoch, ports_epoch(&world), "an old decision must not carry the new epoch");
    send(&world, 1000);
    assert_eq!(decisions(&world), (2, 1));
}

#[test]
fn a_flow_that_began_while_the_other_side_changed_is_decided_anew() {
    const GROUP: u32 = 3 | MEMBERS;
    let world = world();
    let tables = world.tables();
    tables.rules.put(&rule(GROUP), &Rule { rules: 1 }).expect("room");
    let of = ncm_common::tables::IpKey { vni: SUBNET_A.vni, ip: mapped(A2.ip) };
    let mut endpoint = tables.endpoints_ip.get(&of).expect("readable").expect("there");
    endpoint.members = GROUP;
    tables.endpoints_ip.put(&of, &endpoint).expect("writable");
    let slot = epoch_slot(SUBNET_A.vni, &mapped(A2.ip));
    let epoch = || tables.remote_epochs.get(&slot).expect("readable").unwrap_or(0);
    let before = epoch();
    arm(&world, 0, slot, rule(GROUP));
    send(&world, 1000);
    assert_eq!(decisions(&world), (1, 0));
    assert_eq!(epoch(), before + 1, "the change was made");
    let begun = flow(&world, 1000).expect("the flow was noted");
    assert_eq!((begun.remote_slot, begun.remote_epoch), (slot, before), "an old decision with a new epoch");
    send(&world, 1000);
    assert_eq!(decisions(&world), (1, 1), "the next packet of the flow is decided by what is now");
    send(&world, 1001);
    assert_eq!(decisions(&world), (1, 2), "nor is the old answer remembered for other flows");
}
