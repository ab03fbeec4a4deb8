//! 64-byte UDP from a guest on one host to one on another, as fast as it goes: ours and the kernel's in turn.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Plan;
use super::kernel::{BRIDGE, CONNTRACK, Pair, kernel, ours, stateful};
use super::row::{Bound, Row};
use super::turns::in_turn;
use crate::testbed::packets::{ethernet, ipv4, udp};
use crate::testbed::{Generator, Guest, HostOptions, Namespace};

pub(super) fn measure(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    for (guests, mode, least) in [("xdp", "\"xdp\"", 5.0), ("tcx", "\"tc\"", 2.5)] {
        let name = format!("packets_64_bytes_guests_on_{guests}");
        if !plan.wants(&name) {
            continue;
        }
        let options = HostOptions::default;
        let pairs = [
            ours(options().with("guest", "mode", mode), false)?,
            stateful(options(), false)?,
            kernel(options(), false)?,
        ];
        pairs.iter().try_for_each(prepare)?;
        let time = Duration::from_secs(u64::from(plan.seconds())) / 4;
        let values = in_turn(plan, &pairs, |pair| Ok([rate(pair, time)?]))?;
        let ([own], [other], [bare]) = (values[0], values[1], values[2]);
        let reference = |name: &str| format!("{name}, same generator");
        let bound = Some(Bound::AtLeast(least));
        done(Row::new(name.clone(), "packets/s", own, reference(CONNTRACK), other, bound));
        done(Row::new(name + "_stateless", "packets/s", own, reference(BRIDGE), bare, None));
    }
    Ok(())
}

/// Has the guests' frames taken as a polling device does, and an answered flow; then the guests drop what comes as soon as they
/// have it: what their own stacks would do with it is not what is measured.
fn prepare(pair: &Pair) -> Result<()> {
    let ends = [(&pair.net.host1, &pair.a), (&pair.net.host2, &pair.b)];
    for (host, guest) in ends {
        host.ns.features(&guest.spec().interface, "gro on")?;
    }
    let generator = Generator::new()?;
    for (from, to) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
        generator.send(&from.ns, "eth0", &frame(from, to), 64)?;
        // A flow is answered only once it has begun.
        std::thread::sleep(Duration::from_millis(100));
    }
    for (_, guest) in ends {
        let chain = "add chain netdev guest arriving { type filter hook ingress device eth0 priority 0; policy drop; }";
        guest.ns.run_words(&["nft", &format!("add table netdev guest; {chain}")])?;
    }
    Ok(())
}

/// A datagram between guests, in a frame of 64 bytes.
fn frame(from: &Guest, to: &Guest) -> Vec<u8> {
    let datagram = ipv4(from.ip(), to.ip(), 64, 17, &udp(4000, 4000, &[0; 22]));
    ethernet(to.mac(), from.mac(), 0x0800, &datagram)
}

/// Packets a second that arrive at the second guest while the first sends more than the path carries.
fn rate(pair: &Pair, time: Duration) -> Result<f64> {
    let (generator, frame) = (Generator::new()?, frame(&pair.a, &pair.b));
    let (before, begin) = (received(&pair.b.ns)?, Instant::now());
    while begin.elapsed() < time {
        generator.send(&pair.a.ns, "eth0", &frame, 100_000)?;
    }
    let spent = begin.elapsed().as_secs_f64();
    Ok((received(&pair.b.ns)? - before) as f64 / spent)
}

/// Frames that a guest's interface has received.
fn received(guest: &Namespace) -> Result<u64> {
    let shown = guest.inside(|| Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?))?;
    let line = shown.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("no eth0")?;
    line.split_whitespace().nth(1).context("no count")?.parse().context("a count")
}
