//! While tables of flows take the place of others, of another layout or size: where a flow is that is not in ours yet.
//!
//! First the programs are exchanged, hook by hook, and flows stay in the old tables for all of them. Then a word turns, for all hooks
//! at once: what is written is written to our tables, and what is not found there is brought from the old ones. Nothing is deleted from
//! those, so that there is no moment in which a flow is nowhere.
//!
//! Known flows take the long way meanwhile, unless they are in our tables: the fast path knows nothing of all this. In programs that
//! have nothing to take over, the constant has the verifier leave it all out.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::helpers::{bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem};
use ncm_common::{
    conversion::{Conversion, Copies, phases},
    tables::{Flow, FlowKey, flow_state},
};

use super::settle;
use crate::{
    headers::Packet,
    scratch::{ESTABLISHED, HALF_OPEN, Scratch, Side},
    tables::{
        ANY, EXIST, EXISTS, FLOWS, HalfOpen, NO_EXIST, OLD_FLOWS, OLD_HALF_OPEN, PHASE, SCRATCH, THEIRS,
        Theirs,
    },
};

/// Whether there is something to take over. The agent sets it as it loads the programs.
#[unsafe(no_mangle)]
static TRANSITION: u8 = 0;

/// How to read and write it, likewise.
#[unsafe(no_mangle)]
static CONVERSION: Conversion = Conversion::NONE;

/// Whether there are other tables of flows.
#[inline(always)]
pub fn is_on() -> bool {
    // SAFETY: a static may be read; volatile, as it is another one than the compiler sees.
    unsafe { (&raw const TRANSITION).read_volatile() != 0 }
}

/// Whether flows are in the old tables for all programs.
#[inline(always)]
fn is_swapping() -> bool {
    // SAFETY: a reference may be read; volatile, as the agent changes it meanwhile.
    PHASE.get(&0).is_none_or(|phase| unsafe { core::ptr::from_ref(phase).read_volatile() } != phases::IN_USE)
}

/// Copies what a list says.
#[inline(always)]
fn copy(list: *const Copies, from: *const u8, to: *mut u8) {
    // SAFETY: the agent has made the list for these two layouts; the verifier knows it as a constant, and checks each place.
    unsafe {
        let places: *const [u8; 2] = (&raw const (*list).places).cast();
        let count =
            |kind: usize| usize::from((&raw const (*list).counts).cast::<u8>().add(kind).read_volatile());
        let mut at = 0;
        macro_rules! run {
            ($kind:literal: $word:ty) => {
                let end = at + count($kind);
                while at < end {
                    let place: *const u8 = places.add(at).cast();
                    let (source, target) =
                        (usize::from(place.read_volatile()), usize::from(place.add(1).read_volatile()));
                    let word = from.add(source).cast::<$word>().read_volatile();
                    to.add(target).cast::<$word>().write_volatile(word);
                    at += 1;
                }
            };
        }
        run!(0: u32);
        run!(1: u16);
        run!(2: u8);
    }
}

/// This CPU's memory for a key and a value of the other layout. What the list does not write there is zero, always.
#[inline(always)]
fn theirs() -> Option<&'static mut Theirs> {
    // SAFETY: the memory is this CPU's alone as long as the program runs, and used from one place at a time.
    unsafe { THEIRS.lookup(&0).as_mut() }
}

/// A place of a value of theirs.
macro_rules! at {
    ($field:ident) => {
        // SAFETY: as in `is_on`.
        usize::from(unsafe { (&raw const CONVERSION.at.$field).read_volatile() })
    };
}

/// An entry of an old table.
#[derive(Clone, Copy)]
struct Old(*mut u8);

impl Old {
    #[inline(always)]
    fn word(self, at: usize) -> *mut u32 {
        // SAFETY: the place is one of a value of theirs.
        unsafe { self.0.add(at).cast() }
    }

    #[inline(always)]
    fn read(self, at: usize) -> u32 {
        // SAFETY: the kernel keeps the value as long as the program runs.
        unsafe { self.word(at).read_volatile() }
    }

    /// As `Entry::is_of`.
    #[inline(always)]
    fn is_of(self, port: u32) -> bool {
        let (first, last) = (self.read(at!(port)), self.read(at!(port_again)));
        (first ^ port) | (last ^ port) == 0
    }

    /// As `Entry::turn`: by whole instructions, on the two words that the state is one of.
    #[inline(always)]
    fn turn(self, set: u32, clear: u32) {
        let place = at!(state);
        let shift = ((place & 4) << 3) as u64;
        let (set, keep) = (u64::from(set) << shift, !(u64::from(clear) << shift));
        // SAFETY: the instructions change two words of the value, which begins at a multiple of 8, as a whole.
        unsafe {
            let words = self.0.add(place & !7);
            asm!("lock *(u64 *)({words} + 0) |= {set}", "lock *(u64 *)({words} + 0) &= {keep}",
                words = in(reg) words, set = in(reg) set, keep = in(reg) keep, options(nostack));
        }
    }
}

/// The old entry of a key, and where it is: established, or half-open. Null if there is none.
#[inline(never)]
fn find(key: &FlowKey, place: &mut u32) -> *mut u8 {
    let Some(theirs) = theirs() else { return core::ptr::null_mut() };
    let theirs = theirs.key.as_mut_ptr();
    copy(&raw const CONVERSION.key, core::ptr::from_ref(key).cast(), theirs);
    // SAFETY: the definition is a map's, and its keys are no longer than the memory: the verifier checks it.
    let entry: *mut u8 = unsafe { bpf_map_lookup_elem(OLD_FLOWS.map(), theirs.cast()) }.cast();
    if !entry.is_null() {
        *place = ESTABLISHED;
        return entry;
    }
    let Some(flows) = OLD_HALF_OPEN.get(key.port) else { return core::ptr::null_mut() };
    // SAFETY: as above, of the port's own table.
    let entry: *mut u8 =
        unsafe { bpf_map_lookup_elem(core::ptr::from_ref(flows).cast_mut().cast(), theirs.cast()) }.cast();
    if !entry.is_null() {
        *place = HALF_OPEN;
    }
    entry
}

/// Reads the old entry of `side.key` into `side.flow`, which is clear; tells whether there is one. Memory of an entry that goes may be
/// another port's: then what was read does not count.
#[inline(never)]
fn read(side: &mut Side) -> u32 {
    let entry = find(&side.key, &mut side.place);
    if entry.is_null() {
        return 0;
    }
    copy(&raw const CONVERSION.from_old, entry, core::ptr::from_mut(&mut side.flow).cast());
    if !Old(entry).is_of(side.key.port) {
        settle::clear(&mut side.flow);
        return 0;
    }
    1
}

/// Where a side is in this CPU's scratch memory. The verifier looks once, and apart from their callers, at functions that take numbers
/// alone.
#[inline(always)]
fn place(side: &Side) -> u64 {
    let scratch = SCRATCH.lookup(&0);
    if scratch.is_null() {
        return u64::MAX;
    }
    (core::ptr::from_ref(side) as u64).wrapping_sub(scratch as u64)
}

/// The side at a place.
#[inline(always)]
fn side(place: u64) -> Option<&'static mut Side> {
    let scratch = SCRATCH.lookup(&0);
    if scratch.is_null() || place > (size_of::<Scratch>() - size_of::<Side>()) as u64 {
        return None;
    }
    // SAFETY: the place is that of a side, and within the memory, which is this CPU's alone as long as the program runs.
    unsafe { scratch.cast::<u8>().add(place as usize).cast::<Side>().as_mut() }
}

/// As `settle::own`: looks where flows are now, and brings what is not there yet.
#[inline(always)]
pub fn look(side: &mut Side) -> u32 {
    transition_look(place(side))
}

/// [`look`] at the side at a place.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn transition_look(at: u64) -> u32 {
    let Some(side) = side(at) else { return 0 };
    side.old = u32::from(is_swapping());
    if side.old != 0 {
        return read(side);
    }
    if settle::own(side) != 0 {
        return 1;
    }
    bring(side)
}

/// Brings the flow of `side.key` from the old tables to ours, and reads it like `read`.
#[inline(always)]
fn bring(side: &mut Side) -> u32 {
    if read(side) == 0 {
        return 0;
    }
    if side.place == ESTABLISHED {
        if matches!(FLOWS.add(&side.key, &side.flow), 0 | EXISTS) {
            return 1;
        }
        // Without room it goes on as others do.
        side.place = HALF_OPEN;
        side.flow.state &= !flow_state::ESTABLISHED;
    }
    if let Some(flows) = HalfOpen::of(side.key.port) {
        flows.update(&side.key, &side.flow, NO_EXIST);
    }
    1
}

/// As `settle::note`, where flows are in the old tables.
#[inline(always)]
pub fn note(packet: &Packet, side: &mut Side, set: u32, clear: u32, to_guest: bool) {
    transition_note(place(side), packet.protocol, set, clear, to_guest.into());
}

/// [`note`] for the side at a place.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn transition_note(at: u64, protocol: u8, set: u32, clear: u32, to_guest: u32) -> u32 {
    let Some(side) = side(at) else { return 0 };
    let to_guest = to_guest != 0;
    if side.changed == 0 {
        turn(side, protocol, set, clear, to_guest);
        return 0;
    }
    settle::take(protocol, side, set, clear, to_guest);
    if side.place == ESTABLISHED && put(side, ESTABLISHED, EXIST) == 0 {
        return 0;
    }
    side.flow.state &= !flow_state::ESTABLISHED;
    put(side, HALF_OPEN, ANY);
    0
}

/// As `settle::turn`.
#[inline(always)]
fn turn(side: &mut Side, protocol: u8, set: u32, clear: u32, to_guest: bool) {
    let entry = find(&side.key, &mut side.place);
    if entry.is_null() {
        return;
    }
    let (entry, flow) = (Old(entry), &side.flow);
    if entry.read(at!(port_epoch)) != flow.port_epoch
        || entry.read(at!(remote_slot)) != flow.remote_slot
        || entry.read(at!(remote_epoch)) != flow.remote_epoch
        || !entry.is_of(side.key.port)
    {
        return;
    }
    entry.turn(set, clear);
    let timeout = settle::timeout(protocol, entry.read(at!(state)));
    let (last, seen) = (entry.word(at!(timeout)), entry.word(at!(seen)));
    // SAFETY: the kernel keeps the value as long as the program runs; two aligned words are written.
    unsafe {
        last.write_volatile(timeout);
        seen.add(usize::from(to_guest)).write_volatile(side.now);
    }
}

/// Puts `side.flow` into an old table; gives 0 or the kernel's error.
#[inline(never)]
fn put(side: &Side, place: u32, flags: u64) -> i64 {
    let Some(theirs) = theirs() else { return -1 };
    let (key, value) = (theirs.key.as_mut_ptr(), theirs.value.as_mut_ptr());
    copy(&raw const CONVERSION.key, core::ptr::from_ref(&side.key).cast(), key);
    copy(&raw const CONVERSION.to_old, core::ptr::from_ref(&side.flow).cast(), value);
    let map = if place == ESTABLISHED {
        OLD_FLOWS.map()
    } else {
        match OLD_HALF_OPEN.get(side.key.port) {
            Some(flows) => core::ptr::from_ref(flows).cast_mut().cast(),
            None => return -1,
        }
    };
    // SAFETY: the map's keys and values are no longer than the memory: the verifier checks it.
    unsafe { bpf_map_update_elem(map, key.cast(), value.cast(), flags) }
}

/// Moves `side.flow` from the old half-open flows to the old table of flows: whether it is there (1), was there already (2), or finds no
/// room (0).
#[inline(always)]
pub fn establish(side: &Side) -> u32 {
    transition_establish(place(side))
}

/// [`establish`] for the side at a place.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn transition_establish(at: u64) -> u32 {
    let Some(side) = side(at) else { return 0 };
    match put(side, ESTABLISHED, NO_EXIST) {
        0 => {}
        EXISTS => return 2,
        _ => return 0,
    }
    if let Some(theirs) = theirs()
        && let Some(flows) = OLD_HALF_OPEN.get(side.key.port)
    {
        // SAFETY: the port's own table, whose keys are no longer than the memory; the key is the one that was put.
        unsafe {
            bpf_map_delete_elem(
                core::ptr::from_ref(flows).cast_mut().cast(),
                theirs.key.as_ptr().cast_mut().cast(),
            );
        }
    }
    1
}

/// Remembers a first fragment, in `side`, where half-open flows are.
#[inline(always)]
pub fn remember(side: &Side) {
    transition_remember(place(side));
}

/// [`remember`] for the side at a place.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn transition_remember(at: u64) -> u32 {
    let Some(side) = side(at) else { return 0 };
    if is_swapping() {
        put(side, HALF_OPEN, ANY);
    } else if let Some(flows) = HalfOpen::of(side.key.port) {
        flows.put(&side.key, &side.flow);
    }
    0
}

const _: () = {
    assert!(size_of::<Flow>() <= 256 && size_of::<FlowKey>() <= 256);
    assert!(offset_of!(Theirs, value) % 8 == 0);
};
