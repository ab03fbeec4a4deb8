//! For tests alone, in an object of their own (feature `interject`): the agent's change at the worst of moments, made by the program
//! itself. What a packet is decided by goes after policy has answered and before the decision is noted, and the epoch that tells
//! rises.

use aya_ebpf::{macros::map, maps::Array};
use ncm_common::tables::RuleKey;

use crate::tables::{PORTS, REMOTE_EPOCHS, RULES};

/// What is to happen, once.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Interjection {
    /// 0 for nothing; the program clears it.
    armed: u32,
    /// The port whose epoch rises; 0 for none.
    port: u32,
    /// The slot of the other side whose epoch rises, if `port` is 0.
    slot: u32,
    /// The rule that goes.
    rule: RuleKey,
}

/// The one entry is the test's to write.
#[map]
static INTERJECTION: Array<Interjection> = Array::with_max_entries(1, 0);

/// Does what was asked for.
#[inline(never)]
pub fn interject() -> u32 {
    let Some(asked) = INTERJECTION.get_ptr_mut(0) else { return 0 };
    // SAFETY: the value lives as long as the program runs, and the test does not write while it does.
    let asked = unsafe { &mut *asked };
    if asked.armed == 0 {
        return 0;
    }
    asked.armed = 0;
    RULES.remove(&asked.rule);
    if asked.port != 0 {
        PORTS.change(&asked.port, |port| port.epoch = port.epoch.wrapping_add(1));
    } else {
        REMOTE_EPOCHS.change(&asked.slot, |epoch| *epoch = epoch.wrapping_add(1));
    }
    1
}
