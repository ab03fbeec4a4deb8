//! Security groups: whether the rules of a port's policy set allow a packet. Rules only allow, so that the verdict is an OR:
//! any class of the other side's address with a match will do.

use ncm_common::tables::{ClassKey, MAX_CLASSES, PolicyCount, PolicyCountKey, Port, RuleKey, set_direction};

use crate::{
    headers::{Address, Packet},
    scratch::{NONE, Side},
    tables::{CLASSES, POLICY_COUNTS, RULES, VERDICTS, VERDICTS_KEPT},
};

/// What rules are asked for one port: all that the answer depends on.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Question {
    /// Address of the other side.
    remote: Address,
    /// [`set_direction`] of the policy set.
    set: u32,
    /// Class of the security groups that the other side is a member of.
    members: u32,
    /// Version of IP, protocol, and port or type and code.
    about: u32,
    /// Index of the port.
    port: u32,
    /// The port's generation.
    generation: u32,
    /// The port's epoch as it was before the rules were read: it rises when they have changed.
    epoch: u32,
}

impl Question {
    /// Where its answer is kept.
    #[inline(always)]
    const fn slot(&self) -> u32 {
        let [a, b, c, d] = self.remote.words();
        let one = (a ^ c.rotate_left(7) ^ self.set).wrapping_mul(0x9e37_79b1);
        let other = (b ^ d ^ self.about.rotate_left(9) ^ self.port).wrapping_mul(0x85eb_ca6b);
        let hash = one ^ other.rotate_left(15);
        (hash ^ hash >> 16) & (VERDICTS_KEPT - 1)
    }
}

/// An answer that was found a moment ago: connections mostly come many to the same port of the same server, and looking
/// through prefixes takes the longer the more of them there are.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Verdict {
    question: Question,
    allowed: u32,
}

/// Whether the port's policy allows a flow of this packet's, or this packet if it begins none: 1 or 0. `to_guest` is the
/// direction of who begins. It is counted.
#[inline(never)]
pub fn allows(port: &Port, packet: &Packet, side: &mut Side, to_guest: bool) -> u32 {
    if port.set == 0 {
        return 1;
    }
    let set = set_direction(port.set, to_guest);
    let [first, second] = asked(packet, side, to_guest);
    side.question = Question {
        remote: Address::new(&side.key.remote),
        set,
        members: side.members,
        about: u32::from_ne_bytes([packet.family, packet.protocol, first, second]),
        port: side.key.port,
        generation: side.port_generation,
        epoch: side.port_epoch,
    };
    let Some(verdict) = verdict(side.question.slot()) else { return 0 };
    if verdict.question != side.question {
        let key = RuleKey {
            prefix_len: 96,
            set,
            class: 0,
            family: packet.family,
            protocol: packet.protocol,
            port: [first, second],
        };
        let allowed = has_rule(&key) || of_members(key, side.members) || of_classes(key, side);
        *verdict = Verdict { question: side.question, allowed: allowed.into() };
    }
    let allowed = verdict.allowed != 0;
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

/// A slot for answers, of this CPU's own.
#[inline(always)]
fn verdict(slot: u32) -> Option<&'static mut Verdict> {
    // SAFETY: the memory is this CPU's alone as long as the program runs, and one slot of it is asked for at a time.
    unsafe { VERDICTS.lookup(&slot).as_mut() }
}
