//! Security groups: whether the rules of a port's policy set allow a packet. Rules only allow, so that the verdict is an OR:
//! any class of the other side's address with a match will do.

use ncm_common::tables::{ClassKey, MAX_CLASSES, PolicyCount, PolicyCountKey, Port, RuleKey, set_direction};

use crate::{
    headers::Packet,
    scratch::{NONE, Side},
    tables::{CLASSES, POLICY_COUNTS, RULES},
};

/// Whether the port's policy allows a flow of this packet's, or this packet if it begins none: 1 or 0. `to_guest` is the
/// direction of who begins. It is counted.
#[inline(never)]
pub fn allows(port: &Port, packet: &Packet, side: &Side, to_guest: bool) -> u32 {
    if port.set == 0 {
        return 1;
    }
    let set = set_direction(port.set, to_guest);
    let key = RuleKey {
        prefix_len: 96,
        set,
        class: 0,
        family: packet.family,
        protocol: packet.protocol,
        port: asked(packet, side, to_guest),
    };
    let allowed = has_rule(&key) || of_members(key, side.members) || of_classes(key, side);
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
fn of_members(key: RuleKey, members: u32) -> bool {
    members != 0 && has_rule(&RuleKey { class: members, ..key })
}

/// Whether there is a match for one of the classes of the other side's address.
#[inline(always)]
fn of_classes(key: RuleKey, side: &Side) -> bool {
    let of = ClassKey { prefix_len: 160, set: key.set, ip: side.key.remote };
    let Some(listed) = CLASSES.get(&of) else { return false };
    let mut number = 0;
    while number < MAX_CLASSES {
        let class = listed.classes[number];
        if class == 0 {
            return false;
        }
        if has_rule(&RuleKey { class, ..key }) {
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
