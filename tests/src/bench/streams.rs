//! One TCP stream between guests on two hosts, and small requests over one: ours and the kernel's in turn.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::kernel::{Pair, kernel, ours};
use super::row::{Bound, Row};
use super::{Plan, median};
use crate::testbed::HostOptions;

/// Traffic is measured in so many times more and shorter rounds than the rest: its figures scatter more.
const SHARE: usize = 3;

pub(super) fn measure(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    let reference = "Linux bridge + vxlan, same wire, same guests";
    let shared = "Linux bridge + vxlan, same wire, same guests; ours with mode = \"tc\", relay_port = 4789";
    let at_least = Some(Bound::AtLeast(1.0));
    // A wire that is a veth cannot be a network card in this: native XDP copies each of its frames. What is measured
    // against the budget is therefore what `docs/operations.md` advises there; with the defaults it is reported.
    let wires = [
        ("nic", true, true, shared, at_least),
        ("nic_defaults", true, false, reference, None),
        ("virtual", false, false, reference, at_least),
    ];
    for (wire, nic, advised, reference, bound) in wires {
        for (guests, taps) in [("veth", false), ("tap", true)] {
            let stream = format!("tcp_stream_{wire}_{guests}");
            let requests = format!("tcp_requests_{wire}_{guests}");
            if !plan.wants(&stream) && !plan.wants(&requests) {
                continue;
            }
            let options = || {
                let defaults = HostOptions { nic, ..HostOptions::default() };
                if !advised {
                    return defaults;
                }
                defaults.with("underlay", "mode", "\"tc\"").with("underlay", "relay_port", "4789")
            };
            let pairs = [ours(options(), taps)?, kernel(options(), taps)?];
            if plan.wants(&stream) {
                let [own, other] = in_turn(plan, &pairs, |pair| gigabits(pair, plan.seconds().div_ceil(2)))?;
                done(Row::new(stream, "Gb/s", own, reference, other, bound));
            }
            if plan.wants(&requests) {
                let time = Duration::from_secs(u64::from(plan.seconds())) / 4;
                let [own, other] = in_turn(plan, &pairs, |pair| transactions(pair, time))?;
                done(Row::new(requests, "1/s", own, reference, other, None));
            }
        }
    }
    Ok(())
}

/// Measures both pairs in turn, and either of them first, so that what disturbs the machine disturbs both; the medians
/// count.
pub(super) fn in_turn<F: Fn(&Pair) -> Result<f64>>(
    plan: &Plan,
    pairs: &[Pair; 2],
    measure: F,
) -> Result<[f64; 2]> {
    let mut values = [Vec::new(), Vec::new()];
    for round in 0..plan.rounds() * SHARE {
        let first = round % 2;
        for which in [first, 1 - first] {
            values[which].push(measure(&pairs[which])?);
        }
    }
    Ok(values.map(median))
}

/// What `iperf3` receives in one stream.
fn gigabits(pair: &Pair, seconds: u32) -> Result<f64> {
    let address = pair.b.ip().to_string();
    let mut server = pair.b.ns.start(&["iperf3", "-s", "-1", "--forceflush", "-B", &address])?;
    server.wait_for("Server listening", Duration::from_secs(5))?;
    let time = seconds.to_string();
    let shown = pair.a.ns.run_words(&["iperf3", "-c", &address, "-t", &time, "-J"])?;
    let value: serde_json::Value = serde_json::from_str(&shown).context("iperf3's JSON")?;
    let bits = value["end"]["sum_received"]["bits_per_second"].as_f64();
    let bits = bits.with_context(|| format!("no result from iperf3: {shown}"))?;
    Ok(bits / 1e9)
}

/// One byte there and one back, one after the other.
fn transactions(pair: &Pair, time: Duration) -> Result<f64> {
    let listener = pair.b.ns.listen(SocketAddr::new(IpAddr::V4(pair.b.ip()), 0))?;
    let address = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 {
            stream.write_all(&byte)?;
        }
        Ok(())
    });
    let mut stream =
        pair.a.ns.inside(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(5))?))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (begin, mut count, mut byte) = (Instant::now(), 0_u32, [1]);
    while begin.elapsed() < time {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte).context("no answer")?;
        count += 1;
    }
    let rate = f64::from(count) / begin.elapsed().as_secs_f64();
    drop(stream);
    echo.join().map_err(|_| anyhow::anyhow!("the echo panicked"))??;
    Ok(rate)
}
