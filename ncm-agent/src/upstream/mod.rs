//! On demand: packets whose destination is not known are held while upstream is asked for it.
//!
//! The packet path hands such a packet up, behind a description of what it wants for ([`ncm_common::asks::Ask`]), under the limit of
//! its port. One thread of its own has the packet socket and everything that waits (`desk`): it holds the packet, asks once for each
//! destination of a VNI (`holds`, `request`), and has what is held go on when the writer says that the entry is in the tables
//! (`outstanding`). Upstream pushes over its own connection meanwhile, which is served like any other.
//!
//! What goes on is sent back with the mark [`RELEASE`](ncm_common::marks::RELEASE), and goes the guest's own way once more. What
//! ends is sent back too, with a mark that says why: so it is dropped, and counted, by the packet path like everything else.

mod connection;
mod desk;
mod holds;
mod outstanding;
mod refusals;
mod request;
mod room;
#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use ncm_dataplane::Tables;

use crate::config;

pub use outstanding::{Outstanding, Standing};

/// Asks upstream from now on, on a thread of its own, until `outstanding` has no other holder. `device` is the interface that hands
/// packets up; it may come later, and be made anew.
///
/// # Errors
/// There is no thread to be had.
pub fn start(
    config: &config::Upstream,
    source: &[IpAddr],
    device: &str,
    tables: &Tables,
    outstanding: &Arc<Outstanding>,
) -> io::Result<()> {
    let Some(address) = config.address.clone() else { return Ok(()) };
    desk::start(desk::Setup {
        config: config.clone(),
        address,
        source: source.to_vec(),
        device: device.to_owned(),
        known: tables.endpoints_ip.clone(),
        outstanding: Arc::downgrade(outstanding),
    })
}
