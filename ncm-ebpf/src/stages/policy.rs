//! Security groups: whether the rules of a port's policy set allow a packet. Rules only allow, so that the verdict is an OR:
//! any class of the other side's address with a match will do.
//!
//! Each CPU remembers what was answered last: a new flow often asks what another did a moment ago. An answer holds for exactly what
//! a flow's decision would hold for: the port, its epoch, and the epoch of the other side, which were read before the rules were.

use ncm_common::tables::{ClassKey, MAX_CLASSES, PolicyCount, PolicyCountKey, Port, RuleKey, set_direction};

use crate::{
    headers::{Address, Packet},
    scratch::{NONE, Side},
    tables::{CLASSES, POLICY_COUNTS, RULES, VERDICTS},
};

/// How many answers each CPU remembers: a power of two.
pub const VERDICTS_EACH: u32 = 256;

/// An answer of policy, with all that it depends on. Zero is no answer: no port has a generation of zero.
#[repr(C)]
pub struct Verdict {
    port: u32,
    generation: u32,
    epoch: u32,
    slot: u32,
    slot_epoch: u32,
    members: u32,
    set: u32,
    asked: u32,
    remote: [u32; 4],
    allowed: u32,
}

/// Whether the port's policy allows a flow of this packet's, or this packet if it begins none: 1 or 0. `to_guest` is the
/// direction of who begins. It is counted.
#[inline(never)]
pub fn allows(port: &Port, packet: &Packet, side: &Side, to_guest: bool) -> u32 {
    if port.set == 0 {
        return 1;
    }
    let set = set_direction(port.set, to_guest);
    let mut key = RuleKey {
        prefix_len: 96,
        set,
        class: 0,
        family: packet.family,
        protocol: packet.protocol,
        port: asked(packet, side, to_guest),
    };
    let allowed = remembered(&mut key, side);
    let counted = PolicyCountKey { port: side.key.port, set };
    let one = PolicyCount { allowed: u64::from(allowed), denied: u64::from(!allowed) };
    if !POLICY_COUNTS.change(&counted, |count| {
        count.allowed = count.allowed.wrapping_add(one.allowed);
        count.denied = count.denied.wrapping_add(one.denied);
    }) {
        // Without room it is not counted.
        let _ = POLICY_COUNTS.add(&counted, &one);
    }
    u32::from(allowed)
}

/// The answer that is remembered, or else the rules' own, which is remembered from now on.
#[inline(always)]
fn remembered(key: &mut RuleKey, side: &Side) -> bool {
    let asked = u32::from_ne_bytes([key.family, key.protocol, key.port[0], key.port[1]]);
    let remote = Address::new(&side.key.remote).words();
    let hash = (remote[0] ^ remote[1].rotate_left(7) ^ remote[2].rotate_left(13) ^ remote[3])
        .wrapping_add(asked)
        .wrapping_mul(0x9e37_79b1)
        .wrapping_add(key.set ^ side.key.port)
        .wrapping_mul(0x85eb_ca6b);
    // SAFETY: the value is this CPU's alone while the program runs.
    let verdict = unsafe { VERDICTS.lookup(&(hash >> 24 & (VERDICTS_EACH - 1))).as_mut() };
    let Some(verdict) = verdict else { return asks(key, side) };
    let differs = verdict.port ^ side.key.port
        | verdict.generation ^ side.port_generation
        | verdict.epoch ^ side.port_epoch
        | verdict.slot ^ side.flow.remote_slot
        | verdict.slot_epoch ^ side.flow.remote_epoch
        | verdict.members ^ side.members
        | verdict.set ^ key.set
        | verdict.asked ^ asked
        | verdict.remote[0] ^ remote[0]
        | verdict.remote[1] ^ remote[1]
        | verdict.remote[2] ^ remote[2]
        | verdict.remote[3] ^ remote[3];
    if differs == 0 {
        return verdict.allowed != 0;
    }
    let allowed = asks(key, side);
    verdict.port = side.key.port;
    verdict.generation = side.port_generation;
    verdict.epoch = side.port_epoch;
    verdict.slot = side.flow.remote_slot;
    verdict.slot_epoch = side.flow.remote_epoch;
    verdict.members = side.members;
    verdict.set = key.set;
    verdict.asked = asked;
    verdict.remote[0] = remote[0];
    verdict.remote[1] = remote[1];
    verdict.remote[2] = remote[2];
    verdict.remote[3] = remote[3];
    verdict.allowed = u32::from(allowed);
    allowed
}

/// What the rules say. There is one key for all classes, as the stack has no room for more.
#[inline(always)]
fn asks(key: &mut RuleKey, side: &Side) -> bool {
    has_rule(key) || of_members(key, side.members) || of_classes(key, side)
}

/// What rules are about: the port of who is asked; type and code of ICMP, which for a flow are those of the request.
#[inline(always)]
fn asked(packet: &Packet, side: &Side, to_guest: bool) -> [u8; 2] {
    /// The request of a reply.
    const fn request(icmp: [u8; 2]) -> [u8; 2] {
        match icmp[0] {
            0 => [8, 0],
            129 => [128, 0],
            _ => icmp,
        }
    }
    if packet.is_of_icmp() {
        // A reply within a flow that is decided anew stands for the flow's request; one without a flow for itself.
        if side.found == NONE { packet.icmp } else { request(packet.icmp) }
    } else if to_guest {
        side.key.local_port
    } else {
        side.key.remote_port
    }
}

/// Whether there is a match for the members' class of the other side.
#[inline(always)]
fn of_members(key: &mut RuleKey, members: u32) -> bool {
    key.class = members;
    members != 0 && has_rule(key)
}

/// Whether there is a match for one of the classes of the other side's address.
#[inline(always)]
fn of_classes(key: &mut RuleKey, side: &Side) -> bool {
    let of = ClassKey { prefix_len: 160, set: key.set, ip: side.key.remote };
    let Some(listed) = CLASSES.get(&of) else { return false };
    let mut number = 0;
    while number < MAX_CLASSES {
        let class = listed.classes[number];
        if class == 0 {
            return false;
        }
        key.class = class;
        if has_rule(key) {
            return true;
        }
        number += 1;
    }
    false
}

/// Whether there is such a rule.
#[inline(always)]
fn has_rule(key: &RuleKey) -> bool {
    RULES.get(key).is_some()
}
