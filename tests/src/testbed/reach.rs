//! Runs topologies: builds what they describe, pushes it, and tries every line of who may reach whom with real sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ncm_model::wire::{OperationStatus, ResourceType};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::cloud::{Cloud, CloudSubnet, gateway_mac};
use super::guest::Guest;
use super::host::{Host, TwoHosts};
use super::lab::Lab;
use super::topology::{Expectation, Topology, Traffic, Verdict};
use crate::packet;

/// How long what is allowed may take: a lost SYN is repeated within it.
const ALLOWED: Duration = Duration::from_secs(4);
/// How long is waited for what is not: what is allowed takes a thousandth of it.
const DENIED: Duration = Duration::from_millis(250);
/// Checks that run at a time. They mostly wait.
const AT_ONCE: usize = 24;

/// Builds topologies side by side on two hosts and checks every expectation of all of them.
///
/// # Errors
/// If a push is not answered as the topology says, or somebody reaches or fails to reach somebody against expectation; all
/// differences are in the message.
pub fn reach_as_told(lab: &Lab, net: &TwoHosts, topologies: &[Topology]) -> Result<()> {
    let mut guests = BTreeMap::new();
    for topology in topologies {
        for port in topology.cloud.ports.keys() {
            guests.insert(port.clone(), guest(lab, net, topology, port)?);
        }
    }
    for topology in topologies {
        push(net, topology).with_context(|| topology.name.clone())?;
    }
    let checks: Vec<(&Topology, &Expectation)> =
        topologies.iter().flat_map(|one| one.expectations.iter().map(move |line| (one, line))).collect();
    let servers = Servers::open(&guests, checks.iter().map(|(_, line)| *line))?;
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        scope.spawn(|| servers.serve());
        let work = || {
            while let Some((topology, line)) = checks.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = check(&topology.cloud, &guests, line)
                    && let Ok(mut wrong) = wrong.lock()
                {
                    wrong.push(format!("{}: {error:#}", line.text));
                }
            }
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let _ = worker.join();
        }
        servers.ended.store(true, Ordering::Relaxed);
    });
    let mut wrong = wrong.into_inner().unwrap_or_default();
    ensure!(next.load(Ordering::Relaxed) >= checks.len(), "a check panicked");
    wrong.extend(unexplained(net, &checks)?);
    ensure!(
        wrong.is_empty(),
        "{} of {} expectations failed:\n{}",
        wrong.len(),
        checks.len(),
        wrong.join("\n")
    );
    Ok(())
}

/// A port's guest, with every address that it is to send from or to be reached at.
fn guest(lab: &Lab, net: &TwoHosts, topology: &Topology, port: &str) -> Result<Guest> {
    let mut spec = topology.cloud.guest_spec(port)?;
    for line in &topology.expectations {
        for (end, address) in [(&line.from, line.source), (&line.to, line.destination)] {
            if end == port && spec.addresses.iter().all(|(known, _)| *known != address) {
                spec.addresses.push((address, if address.is_ipv6() { 128 } else { 32 }));
            }
        }
    }
    Guest::new(lab, &host_of(net, &topology.cloud.ports[port].host)?.ns, spec)
}

fn host_of<'a>(net: &'a TwoHosts, name: &str) -> Result<&'a Host> {
    net.hosts().into_iter().find(|host| host.name() == name).with_context(|| format!("no host {name}"))
}

fn push(net: &TwoHosts, topology: &Topology) -> Result<()> {
    for host in net.hosts() {
        let state = topology.cloud.goal_state_v2(host.name());
        let statuses = host.agent().push_v2(&state)?;
        let wrong: Vec<String> = statuses
            .reply
            .operation_statuses
            .iter()
            .filter_map(|row| {
                let named = |(id, _): &&(String, OperationStatus)| {
                    *id == row.resource_id && row.resource_type() != ResourceType::Neighbor
                };
                let wanted = topology.statuses.iter().find(named);
                let wanted = wanted.map_or(OperationStatus::Success, |(_, status)| *status);
                let came = row.operation_status();
                let differs = format!("{}: expected {wanted:?}, came {came:?}", row.resource_id);
                (came != wanted).then_some(differs)
            })
            .collect();
        ensure!(wrong.is_empty(), "{} answered: {}", host.name(), wrong.join("; "));
    }
    Ok(())
}

/// What answers TCP and UDP at every address and port that somebody tries to reach, whether it is to succeed or not: what
/// does not answer has been dropped on the way.
struct Servers {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    ended: AtomicBool,
}

impl Servers {
    fn open<'a>(
        guests: &BTreeMap<String, Guest>,
        lines: impl Iterator<Item = &'a Expectation>,
    ) -> Result<Self> {
        let mut servers = Self { tcp: Vec::new(), udp: Vec::new(), ended: AtomicBool::new(false) };
        let wanted: BTreeSet<_> =
            lines.map(|line| (line.to.clone(), line.destination, line.traffic)).collect();
        for (to, address, traffic) in wanted {
            let ns = &guests[&to].ns;
            match traffic {
                Traffic::Tcp(port) => {
                    let listener = ns.listen(SocketAddr::new(address, port))?;
                    listener.set_nonblocking(true)?;
                    servers.tcp.push(listener);
                }
                Traffic::Udp(port) => {
                    let socket = ns.udp(SocketAddr::new(address, port))?;
                    socket.set_nonblocking(true)?;
                    servers.udp.push(socket);
                }
                Traffic::Ping | Traffic::Icmp(..) | Traffic::Protocol(_) => {}
            }
        }
        Ok(servers)
    }

    fn serve(&self) {
        let mut buffer = [0; 64];
        while !self.ended.load(Ordering::Relaxed) {
            let tcp = self.tcp.iter().map(|one| one.as_fd());
            let fds = tcp.chain(self.udp.iter().map(|one| one.as_fd()));
            let mut ready: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            if !matches!(poll(&mut ready, PollTimeout::from(50_u8)), Ok(1..)) {
                continue;
            }
            for listener in &self.tcp {
                while let Ok((mut stream, _)) = listener.accept() {
                    let _ = stream.write_all(b"hello");
                }
            }
            for socket in &self.udp {
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        }
    }
}

fn check(cloud: &Cloud, guests: &BTreeMap<String, Guest>, line: &Expectation) -> Result<()> {
    let (from, to) = (&guests[&line.from], &guests[&line.to]);
    let allowed = line.verdict == Verdict::Allowed;
    let limit = if allowed { ALLOWED } else { DENIED };
    let reached = match line.traffic {
        Traffic::Tcp(port) => from.ns.inside(|| tcp(SocketAddr::new(line.destination, port), limit))?,
        Traffic::Udp(port) => {
            let socket = from.ns.udp(SocketAddr::new(line.source, 0))?;
            udp(&socket, SocketAddr::new(line.destination, port), limit)?
        }
        Traffic::Ping => {
            let (seconds, to) = (limit.as_secs_f32().to_string(), line.destination.to_string());
            from.ns.outcome(&["ping", "-n", "-c", "1", "-W", &seconds, &to])?.success
        }
        Traffic::Icmp(..) | Traffic::Protocol(_) => one_way(cloud, from, to, line, limit)?,
    };
    match (reached, allowed) {
        (false, true) => bail!("nothing came back within {limit:?}"),
        (true, false) => bail!("it was let through"),
        _ => Ok(()),
    }
}

fn tcp(to: SocketAddr, limit: Duration) -> Result<bool> {
    match TcpStream::connect_timeout(&to, limit) {
        Ok(mut stream) => {
            stream.set_read_timeout(Some(ALLOWED))?;
            let mut said = [0; 5];
            stream.read_exact(&mut said).context("connected, but nothing came")?;
            Ok(&said == b"hello")
        }
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(false),
        Err(error) => Err(error).with_context(|| format!("connect to {to}")),
    }
}

fn udp(socket: &UdpSocket, to: SocketAddr, limit: Duration) -> Result<bool> {
    socket.set_read_timeout(Some(limit.min(Duration::from_secs(1))))?;
    // A datagram may be lost for want of memory alone.
    for attempt in 0..limit.as_secs().max(1) {
        socket.send_to(&[attempt as u8; 8], to).context("send")?;
        match socket.recv_from(&mut [0; 64]) {
            Ok((_, from)) => {
                ensure!(from == to, "{from} answered for {to}");
                return Ok(true);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("receive"),
        }
    }
    Ok(false)
}

/// Sends one packet that nobody needs to answer, and looks whether it arrives.
fn one_way(cloud: &Cloud, from: &Guest, to: &Guest, line: &Expectation, limit: Duration) -> Result<bool> {
    // What tells this packet from those of other checks.
    let mark: Vec<u8> = line.text.bytes().collect();
    let mac = next_mac(cloud, line)?;
    let frame = match (line.source, line.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let (source, destination) = (source.octets(), destination.octets());
            let packet = match line.traffic {
                Traffic::Icmp(kind, code) => packet::icmp(source, destination, kind, code, [0; 4], &mark),
                Traffic::Protocol(number) => packet::Ip::new(source, destination, number, mark.clone()),
                _ => bail!("not one-way traffic"),
            };
            packet.frame(mac, from.mac())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let (source, destination) = (source.octets(), destination.octets());
            let packet = match line.traffic {
                Traffic::Icmp(kind, code) => packet::icmp6(source, destination, kind, code, [0; 4], &mark),
                Traffic::Protocol(number) => {
                    packet::Ip6::new(source, destination, number, mark.clone(), None)
                }
                _ => bail!("not one-way traffic"),
            };
            packet.frame(mac, from.mac())
        }
        _ => bail!("addresses of two families"),
    };
    let sight = to.packets()?;
    from.packets()?.send(&frame)?;
    let arrived =
        sight.receive(limit, |frame| frame.windows(mark.len()).any(|part| part == mark.as_slice()))?;
    Ok(arrived.is_some())
}

/// The MAC that a guest's stack would send to: the other guest's within a subnet, else the gateway's.
fn next_mac(cloud: &Cloud, line: &Expectation) -> Result<[u8; 6]> {
    let subnet = |port: &str, address: IpAddr| -> Option<&CloudSubnet> {
        let fixed = &cloud.ports.get(port)?.fixed_ips;
        let same_family = |(_, ip): &&(String, IpAddr)| ip.is_ipv6() == address.is_ipv6();
        let own = fixed.iter().find(|(_, ip)| *ip == address).or_else(|| fixed.iter().find(same_family))?;
        cloud.subnets.get(&own.0)
    };
    let from = subnet(&line.from, line.source).context("the sender has no subnet")?;
    let to = subnet(&line.to, line.destination).context("the receiver has no subnet")?;
    if from.name == to.name { Ok(cloud.ports[&line.to].mac) } else { Ok(gateway_mac(from.gateway)) }
}

/// Which drops cannot be seen under the reason that they were expected for, at the sender's port or at the receiver's.
fn unexplained(net: &TwoHosts, checks: &[(&Topology, &Expectation)]) -> Result<Vec<String>> {
    let metrics = [net.host1.metrics()?, net.host2.metrics()?].concat();
    let seen = |port: &str, reason: &str| {
        let (port, reason) = (format!("port=\"{port}\""), format!("reason=\"{reason}\""));
        let mut lines = metrics.lines().filter(|line| line.starts_with("ncm_port_drops_packets_total{"));
        lines.any(|line| line.contains(&port) && line.contains(&reason))
    };
    let mut wrong = Vec::new();
    for (_, line) in checks {
        if let Verdict::Dropped(reason) = &line.verdict {
            let at = match reason.as_str() {
                "policy_egress" => vec![&line.from],
                "policy_ingress" => vec![&line.to],
                _ => vec![&line.from, &line.to],
            };
            if !at.iter().any(|port| seen(port, reason)) {
                wrong.push(format!("{}: no drop for {reason} was counted at {at:?}", line.text));
            }
        }
    }
    Ok(wrong)
}
