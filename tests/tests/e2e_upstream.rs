//! Upstreams that are slow, silent, lying or gone: what was pushed forwards as ever, and limits hold.

#[path = "on_demand/mod.rs"]
mod on_demand;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ncm_tests::testbed::packets::{self, udp};
use ncm_tests::testbed::{Cloud, Guest, HostOptions, Lab, Manner, Upstream, eventually, guest_mac};
use on_demand::{Demand, SOON, known_by_hand, numbered};

/// Guests `a` and `n` of one host, `b`, `c` and `d` of the other.
fn cloud() -> Cloud {
    let mut cloud = Cloud::new();
    cloud
        .vpc("red", 100)
        .subnet("web", "red", "10.1.0.0/16")
        .port("a", "web", "10.1.0.11", "host1")
        .port("n", "web", "10.1.0.12", "host1")
        .port("b", "web", "10.1.0.21", "host2")
        .port("c", "web", "10.1.0.22", "host2")
        .port("d", "web", "10.1.0.23", "host2");
    cloud
}

/// Quick to give up.
fn impatient() -> HostOptions {
    HostOptions::default()
        .with("upstream", "request_timeout_ms", "400")
        .with("upstream", "settle_ms", "200")
        .with("upstream", "retry_after_ms", "100")
}

/// One datagram to a guest whose MAC is known; nobody waits for it.
fn datagram(from: &Guest, to: &Guest) -> Result<()> {
    known_by_hand(from, to)?;
    let sender = from.ns.udp(SocketAddr::new(from.ip().into(), 0))?;
    sender.send_to(b"?", (IpAddr::from(to.ip()), 7000)).context("send")?;
    Ok(())
}

/// Waits until nothing is asked for: a packet goes on as soon as its destination is known, and upstream answers after that.
fn answered(demand: &Demand) -> Result<()> {
    let outstanding = || demand.net.host1.metric(&["ncm_upstream_outstanding"]);
    eventually("an answer", SOON, || Ok(outstanding()? == 0.0))
}

/// A whole life with an upstream that answers so: `c` is not known and its packets are dropped for that reason in the end, while
/// `d`, which was pushed, is reached as ever; an honest answer later is as good as it would have been before.
fn lives_with(lab: &Lab, manner: Manner, reason: &str) -> Result<()> {
    let demand = Demand::new(lab, cloud(), impatient())?;
    let (a, b, c, d) = (demand.guest("a")?, demand.guest("b")?, demand.guest("c")?, demand.guest("d")?);
    demand.push("d")?;
    a.expect_ping(d.ip()).context("what was pushed, before")?;
    demand.upstream.answers(manner);
    demand.net.host1.expect_drop(reason, || datagram(&a, &c))?;
    a.expect_ping(d.ip()).context("what was pushed, meanwhile")?;
    demand.upstream.answers(Manner::Honest);
    eventually("an honest answer", SOON, || {
        datagram(&a, &b)?;
        Ok(demand.released()?.0 > 0.0)
    })?;
    a.expect_ping(b.ip())?;
    a.expect_ping(d.ip())?;
    demand.end()
}

#[test]
fn success_without_a_push_ends_after_a_while() {
    Lab::story(|lab| lives_with(lab, Manner::PushNothing, "ask_unanswered"));
}

#[test]
fn failure_ends_at_once() {
    Lab::story(|lab| lives_with(lab, Manner::Fail, "ask_refused"));
}

#[test]
fn silence_ends_in_time() {
    Lab::story(|lab| lives_with(lab, Manner::Silent, "ask_unanswered"));
}

#[test]
fn a_connection_that_ends_amid_a_request_is_made_again() {
    Lab::story(|lab| lives_with(lab, Manner::Hang, "ask_unanswered"));
}

#[test]
fn a_refused_call_ends_at_once() {
    Lab::story(|lab| lives_with(lab, Manner::Refuse, "ask_unanswered"));
}

#[test]
fn an_answer_that_is_too_long_is_none() {
    Lab::story(|lab| lives_with(lab, Manner::Flood, "ask_unanswered"));
}

#[test]
fn a_push_counts_whatever_is_answered_and_whenever_it_comes() {
    Lab::story(|lab| {
        let demand = Demand::new(lab, cloud(), HostOptions::default())?;
        let a = demand.guest("a")?;
        for (manner, to) in [
            (Manner::PushOnly, "b"),
            (Manner::Garbage, "c"),
            (Manner::PushLater(Duration::from_millis(200)), "d"),
        ] {
            let to = demand.guest(to)?;
            demand.upstream.answers(manner);
            known_by_hand(&a, &to)?;
            numbered(&a, &to, 20).with_context(|| format!("{manner:?}"))?;
        }
        ensure!(demand.net.host1.metric(&["ncm_upstream_ignored_total"])? >= 4.0, "nonsense counts");
        ensure!(demand.upstream.asked_for().values().all(|times| *times == 1), "each was asked for once");
        demand.end()
    });
}

#[test]
fn without_upstream_what_is_pushed_forwards_and_a_late_one_is_found() {
    Lab::story(|lab| {
        let mut address = None;
        let demand = Demand::with(lab, cloud(), impatient(), |upstream| {
            address = Some(upstream.address());
            upstream.close();
            Ok(())
        })?;
        let (a, b, d) = (demand.guest("a")?, demand.guest("b")?, demand.guest("d")?);
        demand.push("d")?;
        a.expect_ping(d.ip())?;
        demand.net.host1.expect_drop("ask_unanswered", || datagram(&a, &b))?;
        let status = demand.net.host1.ncmctl(&["status"])?;
        ensure!(status.stdout.contains("not connected"), "{}", status.stdout);
        ensure!(
            status.stdout.contains("ALARM: upstream 192.168.50.2:9016 cannot be reached"),
            "{}",
            status.stdout
        );
        a.expect_ping(d.ip())?;
        // It comes at last.
        let address = address.context("an address")?;
        let late = Upstream::start(&demand.net.host2.ns, address, &demand.net.host1.ns)?;
        late.knows(b.ip(), demand.neighbour("b", ncm_model::wire::OperationType::Create));
        late.wait_for("the word of the start", Duration::from_secs(8), |asked| {
            asked.iter().filter(|asked| asked.is_restart()).count() == 1
        })?;
        a.expect_ping(b.ip())?;
        ensure!(late.restarts() == 1, "one word of the start");
        let status = demand.net.host1.expect_ncmctl(&["status"])?;
        ensure!(status.contains("upstream 192.168.50.2:9016 connected"), "{status}");
        Ok(())
    });
}

#[test]
fn each_start_is_announced_once_and_a_lost_connection_is_no_start() {
    Lab::story(|lab| {
        let demand = Demand::new(lab, cloud(), HostOptions::default())?;
        let restarts = |count: usize| {
            demand.upstream.wait_for(&format!("{count} words of a start"), SOON, |asked| {
                asked.iter().filter(|asked| asked.is_restart()).count() == count
            })
        };
        restarts(1)?;
        demand.upstream.cut();
        eventually("another connection", SOON, || Ok(demand.upstream.connections() >= 2))?;
        let (a, b) = (demand.guest("a")?, demand.guest("b")?);
        a.expect_ping(b.ip())?;
        restarts(1)?;
        answered(&demand)?;
        demand.net.host1.stop()?;
        demand.net.host1.start()?;
        restarts(2)?;
        a.expect_ping(b.ip()).context("what was learned before")?;
        demand.net.host1.kill();
        demand.net.host1.start()?;
        restarts(3)?;
        let peer = demand.upstream.asked().last().context("asked")?.peer.ip();
        ensure!(peer == IpAddr::from(demand.net.host1.address), "asked from {peer}");
        demand.end()
    });
}

/// Sends a frame of a guest's to each address from `first` on, at once.
fn scan(from: &Guest, first: u32, count: u32) -> Result<()> {
    let socket = from.packets()?;
    for number in 0..count {
        let to = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + first + number);
        let packet = packets::ipv4(from.ip(), to, 64, 17, &udp(1, 2, b"scan"));
        // The queue may be full for a moment.
        let frame = packets::ethernet(guest_mac(to), from.mac(), 0x0800, &packet);
        let _sent = socket.try_send(&frame)?;
    }
    Ok(())
}

#[test]
fn a_guest_that_scans_troubles_nobody_else() {
    Lab::story(|lab| {
        let options = HostOptions::default()
            .with("upstream", "port_asks_per_second", "1000")
            .with("upstream", "port_asks_at_once", "500")
            .with("upstream", "port_hold_packets", "200");
        let demand = Demand::new(lab, cloud(), options)?;
        let (a, n) = (demand.guest("a")?, demand.guest("n")?);
        let (b, c) = (demand.guest("b")?, demand.guest("c")?);
        demand.push("b")?;
        demand.upstream.takes(Duration::from_millis(20));
        let begin = Instant::now();
        scan(&a, 1_000, 20_000)?;
        n.expect_ping(b.ip()).context("what was pushed, for a neighbour of the scanner")?;
        n.expect_ping(c.ip()).context("what is asked for, for a neighbour of the scanner")?;
        scan(&a, 30_000, 20_000)?;
        let host1 = &demand.net.host1;
        eventually("limits hold", SOON, || {
            Ok(host1.drops("ask_limited")? > 0 && host1.drops("ask_full")? > 0)
        })?;
        let most = 2.0 * 500.0 + 1000.0 * (begin.elapsed().as_secs_f64() + 1.0);
        let asked = host1.metric(&["ncm_path_packets_total", "\"asked_for\""])?;
        ensure!(asked <= most, "{asked} packets were handed up, {most} are allowed");
        eventually("nothing waits any more", Duration::from_secs(10), || {
            Ok(host1.metric(&["ncm_held_packets"])? == 0.0)
        })?;
        demand.end()
    });
}

#[test]
fn what_is_held_is_bounded() {
    Lab::story(|lab| {
        let options = impatient()
            .with("upstream", "hold_packets", "30")
            .with("upstream", "port_hold_packets", "20")
            .with("upstream", "request_timeout_ms", "2000");
        let demand = Demand::new(lab, cloud(), options)?;
        let (a, n, b) = (demand.guest("a")?, demand.guest("n")?, demand.guest("b")?);
        demand.upstream.answers(Manner::Silent);
        let host1 = &demand.net.host1;
        for from in [&a, &n] {
            known_by_hand(from, &b)?;
            let sender = from.ns.udp(SocketAddr::new(from.ip().into(), 0))?;
            for _ in 0..50 {
                sender.send_to(b"?", (IpAddr::from(b.ip()), 7000))?;
            }
        }
        eventually("all are counted", SOON, || Ok(host1.drops("ask_full")? == 70))?;
        ensure!(host1.metric(&["ncm_held_packets"])? == 30.0, "20 of the one and 10 of the other");
        eventually("time is bounded too", SOON, || Ok(host1.drops("ask_unanswered")? == 30))?;
        demand.end()
    });
}

#[test]
fn what_came_on_demand_leaves_when_it_is_not_used_and_what_was_pushed_stays() {
    Lab::story(|lab| {
        let options = HostOptions::default()
            .with("upstream", "learned_idle_seconds", "3")
            .with("flows", "icmp", "2")
            .with("flows", "udp_new", "2")
            .with("flows", "udp_stream", "2");
        let demand = Demand::new(lab, cloud(), options)?;
        let (a, b, c) = (demand.guest("a")?, demand.guest("b")?, demand.guest("c")?);
        demand.push("d")?;
        a.expect_ping(b.ip())?;
        a.expect_ping(c.ip())?;
        let origin = |port: &str| -> Result<String> {
            let list = demand.net.host1.expect_ncmctl(&["get", "neighbors"])?;
            let line =
                list.lines().find(|line| line.split_whitespace().nth(1) == Some(port)).unwrap_or_default();
            Ok(line.to_owned())
        };
        ensure!(origin("b")?.contains("on-demand"), "{}", origin("b")?);
        ensure!(origin("d")?.contains("controller"), "{}", origin("d")?);
        let busy = a.begin_ping(b.ip())?;
        eventually("what is not used leaves", Duration::from_secs(20), || Ok(origin("c")?.is_empty()))?;
        busy.expect_no_loss().context("what is used stays")?;
        ensure!(!origin("d")?.is_empty(), "what was pushed stays");
        // A replay makes the same of it.
        demand.net.host1.kill();
        demand.net.host1.start()?;
        ensure!(origin("c")?.is_empty() && !origin("d")?.is_empty(), "after a kill");
        a.expect_ping(c.ip()).context("it is asked for again")?;
        // Pushed without having been asked for, it stays; what comes until the answer does was asked for.
        answered(&demand)?;
        demand.push("c")?;
        ensure!(origin("c")?.contains("controller"), "{}", origin("c")?);
        demand.end()
    });
}
