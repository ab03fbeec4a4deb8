//! The testbed: machines, wires, guests and agents in network namespaces, as builders that read like a story.
//!
//! ```no_run
//! # use ncm_tests::testbed::*;
//! Lab::story(|lab| {
//!     let mut cloud = Cloud::new();
//!     cloud.vpc("red", 100);
//!     cloud.subnet("web", "red", "10.1.0.0/24");
//!     cloud.port("a", "web", "10.1.0.10", "host1");
//!     cloud.port("b", "web", "10.1.0.11", "host2");
//!     let net = TwoHosts::new(lab, HostOptions::default())?;
//!     let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host2, "b")?);
//!     net.push(&cloud)?;
//!     a.expect_ping(b.ip())
//! });
//! ```

mod agent;
mod cloud;
mod controller;
mod generator;
mod guest;
mod host;
mod lab;
mod load;
mod namespace;
pub mod packets;
mod process;
mod reach;
mod rules;
mod sequence;
mod sys;
mod talk;
mod tap;
mod topology;
mod upstream;
mod wanted;
mod wire;

use anyhow::{Context, Result, ensure};

pub use agent::{Agent, AgentConfig, Statuses, Stream, binary};
pub use cloud::{Cloud, CloudPort, CloudSubnet, gateway_mac, guest_mac, to_v2};
pub use controller::{Controller, Line, Pushes};
pub use generator::Generator;
pub use guest::{Guest, GuestSpec, RunningPing};
pub use host::{Host, HostOptions, TwoHosts, on_wire};
pub use lab::{Lab, eventually};
pub use load::Load;
pub use namespace::{Namespace, OnIngress, Outcome};
pub use packets::PacketSocket;
pub use process::{Output, Process};
pub use reach::reach_as_told;
pub use rules::rule;
pub use sequence::{Round, Sequence};
pub use talk::Talk;
pub use tap::Shuttle;
pub use topology::{Expectation, Topology, Traffic, Verdict};
pub use upstream::{Asked, Manner, Upstream};
pub use wanted::{Random, Wanted, expect_converged};
pub use wire::{Switch, Wire};

/// Says something on standard output, which shows when a test fails, or is asked to show it.
#[allow(clippy::print_stdout, reason = "it is what a test says")]
pub fn say(text: &str) {
    println!("{text}");
}

/// Reads `aa:bb:cc:dd:ee:ff`.
///
/// # Errors
/// If it is anything else.
pub fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let mut mac = [0; 6];
    let parts: Vec<&str> = text.split(':').collect();
    ensure!(parts.len() == mac.len(), "`{text}` is no MAC");
    for (byte, part) in mac.iter_mut().zip(parts) {
        *byte = u8::from_str_radix(part, 16).with_context(|| format!("`{text}` is no MAC"))?;
    }
    Ok(mac)
}

/// Writes `aa:bb:cc:dd:ee:ff`.
#[must_use]
pub fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
