//! On demand: how long first packets wait, how many of them can be asked for, and what a guest that scans does to others.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ncm_model::wire::{GoalState, NeighborType, OperationType};

use super::Plan;
use super::row::{Bound, Row};
use crate::testbed::{Cloud, Guest, HostOptions, Lab, TwoHosts, Upstream, eventually, packets};

/// What upstream takes for an answer, in milliseconds: what the budget is held against.
const ANSWER: f64 = 0.2;
/// First packets at once.
const AT_ONCE: u32 = 200;
/// Misses a second, in the long run.
const MISSES: u32 = 10_000;
const PORT: u16 = 7000;

/// A guest `a` on one host, and on the other a guest `b` that has all of 10.2.0.0/16, behind the router; upstream knows each of its
/// addresses as a neighbour of its own.
struct Demand {
    a: Guest,
    n: Guest,
    b: Guest,
    net: TwoHosts,
    _upstream: Upstream,
    _lab: Lab,
}

/// The address of that number.
fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 2, 1, 0)) + number)
}

impl Demand {
    fn new(known: u32, options: HostOptions) -> Result<Self> {
        let lab = Lab::new()?;
        let mut cloud = Cloud::new();
        cloud
            .vpc("red", 100)
            .subnet("near", "red", "10.1.0.0/16")
            .subnet("far", "red", "10.2.0.0/16")
            .port("a", "near", "10.1.0.11", "host1")
            .port("n", "near", "10.1.0.12", "host1")
            .port("b", "far", "10.2.0.11", "host2")
            .router("r", &["near", "far"]);
        let mut net = TwoHosts::unstarted(&lab, options)?;
        let place = SocketAddr::new(net.host2.address.into(), 9016);
        let upstream = Upstream::start(&net.host2.ns, place, &net.host1.ns)?;
        net.host1.config.set("upstream", "address", upstream.setting()).set("api", "insecure", "true");
        net.host1.start()?;
        net.host2.start()?;
        let [a, n] = ["a", "n"].map(|name| cloud.guest(&lab, &net.host1, name));
        let (a, n, b) = (a?, n?, cloud.guest(&lab, &net.host2, "b")?);
        net.host2.agent().push(&cloud.goal_state("host2"))?.expect_success()?;
        let own = GoalState { neighbor_states: Vec::new(), ..cloud.goal_state("host1") };
        net.host1.agent().push(&own)?.expect_success()?;
        b.ns.run("ip route add local 10.2.0.0/16 dev lo")?;
        let neighbour = cloud.neighbor_state("b", NeighborType::L3, OperationType::Create);
        for number in 0..known {
            let mut one = neighbour.clone();
            if let Some(configuration) = &mut one.configuration {
                configuration.id = format!("00000000-0000-4000-8000-{number:012x}");
                for fixed in &mut configuration.fixed_ips {
                    fixed.ip_address = address(number).to_string();
                }
            }
            let state = GoalState { format_version: 101, neighbor_states: vec![one], ..GoalState::default() };
            upstream.knows(address(number), state);
        }
        // The gateway's MAC is known by then.
        ensure!(a.ns.pings(Ipv4Addr::new(10, 1, 0, 1))? && n.ns.pings(Ipv4Addr::new(10, 1, 0, 1))?);
        eventually("upstream is connected", Duration::from_secs(5), || Ok(upstream.restarts() == 1))?;
        Ok(Self { _lab: lab, net, _upstream: upstream, a, n, b })
    }

    fn receiver(&self) -> Result<UdpSocket> {
        let socket = self.b.ns.udp(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT))?;
        // Without room for a burst the receiver would lose what the network has not.
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(32 << 20))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(socket)
    }
}

/// Milliseconds on the way of each packet that arrives within half a second of the one before.
fn arrivals(socket: &UdpSocket, begin: Instant, most: usize) -> Vec<f64> {
    let (mut times, mut bytes) = (Vec::new(), [0; 8]);
    while times.len() < most
        && let Ok(8) = socket.recv(&mut bytes)
    {
        let sent = Duration::from_nanos(u64::from_be_bytes(bytes));
        times.push((begin.elapsed().saturating_sub(sent)).as_secs_f64() * 1e3);
    }
    times
}

fn send(socket: &UdpSocket, begin: Instant, number: u32) -> std::io::Result<usize> {
    let now = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
    socket.send_to(&now.to_be_bytes(), (IpAddr::from(address(number)), PORT))
}

/// One packet to each of so many addresses, at once: how long each took.
fn burst(demand: &Demand, from: &Guest, numbers: std::ops::Range<u32>) -> Result<Vec<f64>> {
    let receiver = demand.receiver()?;
    let begin = Instant::now();
    let most = numbers.len();
    let reader = std::thread::spawn(move || arrivals(&receiver, begin, most));
    let sender = from.ns.udp(SocketAddr::new(from.ip().into(), 0))?;
    for number in numbers {
        send(&sender, begin, number)?;
    }
    reader.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))
}

fn mean(times: &[f64]) -> f64 {
    times.iter().sum::<f64>() / times.len().max(1) as f64
}

fn percentile(times: &mut [f64], part: usize) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() * part / 100).copied().unwrap_or(f64::INFINITY)
}

pub(super) fn measure(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    if plan.wants("on_demand_first_packets") {
        first_packets(plan, done)?;
    }
    if plan.wants("on_demand_misses") {
        misses(plan, done)?;
    }
    if plan.wants("on_demand_beside_a_scan") {
        scan(done)?;
    }
    Ok(())
}

fn first_packets(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    let rounds = 2 * plan.rounds() as u32 + 1;
    let demand = Demand::new(rounds * AT_ONCE, HostOptions::default())?;
    let (mut means, mut ends) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let numbers = round * AT_ONCE..(round + 1) * AT_ONCE;
        let mut first = burst(&demand, &demand.a, numbers.clone())?;
        ensure!(first.len() == AT_ONCE as usize, "{} of {AT_ONCE} first packets arrived", first.len());
        let mut second = burst(&demand, &demand.a, numbers)?;
        means.push(mean(&first) - mean(&second));
        ends.push(percentile(&mut first, 99) - percentile(&mut second, 99));
    }
    let reference = "an upstream that answers in 0.2 ms";
    let budget = Some(Bound::AtMost(10.0));
    done(Row::new("on_demand_first_packets_mean", "ms", super::median(means), reference, ANSWER, budget));
    done(Row::new("on_demand_first_packets_p99", "ms", super::median(ends), reference, ANSWER, None));
    Ok(())
}

fn misses(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    let all = MISSES * plan.seconds();
    let demand = Demand::new(all, HostOptions::default())?;
    let receiver = demand.receiver()?;
    let begin = Instant::now();
    let reader = std::thread::spawn(move || arrivals(&receiver, begin, all as usize));
    let sender = demand.a.ns.udp(SocketAddr::new(demand.a.ip().into(), 0))?;
    for number in 0..all {
        let due = Duration::from_secs_f64(f64::from(number) / f64::from(MISSES));
        if let Some(early) = due.checked_sub(begin.elapsed()) {
            std::thread::sleep(early);
        }
        send(&sender, begin, number)?;
    }
    let spent = begin.elapsed().as_secs_f64();
    let mut times = reader.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
    let arrived = times.len() as f64 / spent;
    let sent = "packets a second, each to another unknown destination";
    done(Row::new(
        "on_demand_misses",
        "1/s",
        arrived,
        sent,
        f64::from(all) / spent,
        Some(Bound::AtLeast(0.999)),
    ));
    let waited = mean(&times);
    let reference = "an upstream that answers in 0.2 ms";
    done(Row::new("on_demand_misses_mean", "ms", waited, reference, ANSWER, None));
    done(Row::new("on_demand_misses_p99", "ms", percentile(&mut times, 99), reference, ANSWER, None));
    Ok(())
}

/// First packets of a guest while its neighbour sends to every address of the subnet, as fast as it can.
fn scan(done: &mut dyn FnMut(Row)) -> Result<()> {
    let demand = Demand::new(2 * AT_ONCE, HostOptions::default())?;
    let quiet = burst(&demand, &demand.n, 0..AT_ONCE)?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mac, socket) = (demand.a.mac(), demand.a.packets()?);
    let frames: Vec<Vec<u8>> = (0..65_536_u32)
        .map(|number| {
            let to = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + number);
            let packet = packets::ipv4(demand.a.ip(), to, 64, 17, &packets::udp(1, 2, b"scan"));
            packets::ethernet(crate::testbed::guest_mac(to), mac, 0x0800, &packet)
        })
        .collect();
    let loud = std::thread::scope(|scope| {
        scope.spawn(|| {
            for frame in frames.iter().cycle() {
                if stop.load(std::sync::atomic::Ordering::Relaxed) || socket.try_send(frame).is_err() {
                    return;
                }
            }
        });
        std::thread::sleep(Duration::from_secs(1));
        let loud = burst(&demand, &demand.n, AT_ONCE..2 * AT_ONCE);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        loud
    })?;
    ensure!(demand.net.host1.drops("ask_limited")? > 0, "the scan was within its limit");
    let arrived = loud.len() as f64;
    let reference = "first packets, without a neighbour that scans";
    done(Row::new(
        "on_demand_beside_a_scan",
        "packets",
        arrived,
        reference,
        quiet.len() as f64,
        Some(Bound::AtLeast(1.0)),
    ));
    done(Row::new("on_demand_beside_a_scan_mean", "ms", mean(&loud), reference, mean(&quiet), None));
    Ok(())
}
