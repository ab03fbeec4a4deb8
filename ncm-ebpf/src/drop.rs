//! The only way to drop a packet: it takes a reason and counts it.

use aya_log_ebpf::debug;
use ncm_common::{
    drops::Dropped,
    tables::{Count, PortDropKey},
};

use crate::{
    context::Context,
    count::add,
    tables::{DROPS, PORT_DROPS},
};

/// Counts the drop of a frame of that many bytes: for its reason (the number of a `DropReason`), and for the port that it came from or was meant for
/// (0 where none is known). Not inlined: every program drops at one place, and seldom.
#[inline(never)]
pub fn drop<C: Context>(context: C, port: u32, reason: u32, bytes: u32) -> Dropped {
    DROPS.change(&reason, |count| add(count, bytes));
    let key = PortDropKey { port, reason };
    if !PORT_DROPS.change(&key, |count| add(count, bytes)) {
        // Without room the drop counts for its reason alone.
        let _ = PORT_DROPS.add(&key, &Count { packets: 1, bytes: u64::from(bytes) });
    }
    debug!(
        context,
        "interface {} port {}: {} bytes dropped, reason {}",
        context.interface(),
        port,
        bytes,
        reason
    );
    Dropped
}
