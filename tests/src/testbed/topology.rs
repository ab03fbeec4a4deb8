//! Small topologies as text: what there is, and who may reach whom on what.
//!
//! ```text
//! # Anybody may read the web server; only the web server reaches the database.
//! subnet front 10.1.0.0/24
//! subnet back 10.2.0.0/24
//! router front back
//! group web
//!   in tcp 80
//!   out any
//! group database
//!   in tcp 5432 from group web
//! port www host1 10.1.0.11 groups web
//! port db host2 10.2.0.11 groups database
//! port visitor host2 10.1.0.12
//!
//! visitor -> www : tcp 80
//! visitor -x www : tcp 22, ping                policy_ingress
//! www     -> db  : tcp 5432
//! db      -x www : tcp 80                      policy_egress
//! ```
//!
//! - `subnet NAME CIDR [vni N]`, with a VNI of its own if it says so; gateways are the first address.
//! - `router SUBNET…`
//! - `group NAME`, then its rules, indented (see [`super::rule()`]).
//! - `port NAME HOST ADDRESS… [groups G…] [pairs CIDR…] [down]`; an address is in the subnet that covers it.
//! - `status RESOURCE STATUS`, where pushing it does not end in SUCCESS.
//! - `A -> B : TRAFFIC, …` is let through, `A -x B : TRAFFIC, … REASON` is dropped for that reason at A's port or at B's. An
//!   end may be written `NAME@ADDRESS`. Traffic is `tcp PORT`, `udp PORT`, `ping`, `icmp TYPE/CODE`, `proto NUMBER`, and
//!   the same with a 6 behind its first word for IPv6.
//!
//! All names are the topology's own: several can be in one lab, with the same addresses.

use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use ncm_model::wire::OperationStatus;

use super::cloud::Cloud;
use super::rules::rule;

/// What is sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Traffic {
    /// A TCP connection to a port.
    Tcp(u16),
    /// A UDP datagram to a port, and one back.
    Udp(u16),
    /// An echo request and its reply.
    Ping,
    /// A message of ICMP or ICMPv6, by type and code, one way.
    Icmp(u8, u8),
    /// A packet of another protocol, one way.
    Protocol(u8),
}

/// What is to become of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It arrives, and so does an answer.
    Allowed,
    /// It is dropped for this reason.
    Dropped(String),
}

/// A line of the table of who may reach whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expectation {
    /// The line, for messages.
    pub text: String,
    /// Port that sends.
    pub from: String,
    /// Address that it sends from.
    pub source: IpAddr,
    /// Port that receives.
    pub to: String,
    /// Address that it sends to.
    pub destination: IpAddr,
    /// What is sent.
    pub traffic: Traffic,
    /// What is to become of it.
    pub verdict: Verdict,
}

/// A topology, with the names that it has in its lab.
#[derive(Clone, Debug)]
pub struct Topology {
    /// What it is called.
    pub name: String,
    /// What there is.
    pub cloud: Cloud,
    /// Resources that end in another status than SUCCESS.
    pub statuses: Vec<(String, OperationStatus)>,
    /// Who may reach whom, on what.
    pub expectations: Vec<Expectation>,
}

impl Topology {
    /// Reads a topology. `number` makes its names and its VNI its own.
    ///
    /// # Errors
    /// If a line cannot be read; the message says which.
    pub fn read(name: &str, number: u32, text: &str) -> Result<Self> {
        let mut reader = Reader::new(name, number);
        for (at, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            if !line.trim().is_empty() {
                reader.line(line).with_context(|| format!("{name}, line {}: {}", at + 1, line.trim()))?;
            }
        }
        ensure!(!reader.topology.expectations.is_empty(), "{name} expects nothing");
        Ok(reader.topology)
    }
}

struct Reader {
    topology: Topology,
    prefix: String,
    vpc: String,
    /// VNI of the VPC.
    vni: u32,
    group: Option<String>,
}

impl Reader {
    fn new(name: &str, number: u32) -> Self {
        let (prefix, vpc) = (format!("t{number:02}"), format!("t{number:02}vpc"));
        let mut cloud = Cloud::new();
        let vni = 1000 + 10 * number;
        cloud.vpc(&vpc, vni);
        let topology =
            Topology { name: name.to_owned(), cloud, statuses: Vec::new(), expectations: Vec::new() };
        Self { topology, prefix, vpc, vni, group: None }
    }

    fn own(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        if line.starts_with(' ') {
            return self.rule(line.trim());
        }
        self.group = None;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["subnet", name, cidr, rest @ ..] => {
                let vni = match rest {
                    [] => 0,
                    ["vni", number] => self.vni + number.parse::<u32>()?,
                    _ => bail!("`{}` after a subnet", rest.join(" ")),
                };
                let (name, vpc) = (self.own(name), self.vpc.clone());
                self.topology.cloud.subnet_with_vni(&name, &vpc, cidr, vni);
            }
            ["router", subnets @ ..] => {
                let subnets: Vec<String> = subnets.iter().map(|name| self.own(name)).collect();
                let name = self.own("router");
                let subnets: Vec<&str> = subnets.iter().map(String::as_str).collect();
                self.topology.cloud.router(&name, &subnets);
            }
            ["group", name] => {
                let name = self.own(name);
                self.topology.cloud.group(&name, &[]);
                self.group = Some(name);
            }
            ["port", name, host, rest @ ..] => self.port(name, host, rest)?,
            ["status", name, status] => {
                let status = OperationStatus::from_str_name(status).context("no status")?;
                self.topology.statuses.push((self.own(name), status));
            }
            _ => self.expectations(line)?,
        }
        Ok(())
    }

    fn rule(&mut self, text: &str) -> Result<()> {
        let group = self.group.as_ref().context("a rule outside of a group")?;
        let mut rule = rule(text)?;
        if !rule.remote_group_id.is_empty() {
            rule.remote_group_id = self.own(&rule.remote_group_id);
        }
        self.topology.cloud.groups.entry(group.clone()).or_default().push(rule);
        Ok(())
    }

    fn port(&mut self, name: &str, host: &str, rest: &[&str]) -> Result<()> {
        let name = self.own(name);
        let (mut groups, mut pairs, mut up, mut list) = (Vec::new(), Vec::new(), true, "");
        let mut known = false;
        for word in rest {
            match (*word, list) {
                ("groups" | "pairs", _) => list = word,
                ("down", _) => up = false,
                (group, "groups") => groups.push(self.own(group)),
                (pair, "pairs") => pairs.push((pair.to_owned(), String::new())),
                (address, _) => {
                    let ip = address.parse().with_context(|| format!("`{address}` is no address"))?;
                    let subnet = self.subnet_of(ip)?;
                    match known {
                        false => self.topology.cloud.port(&name, &subnet, address, host),
                        true => self.topology.cloud.address(&name, &subnet, address),
                    };
                    known = true;
                }
            }
        }
        ensure!(known, "a port has an address");
        let port = self.topology.cloud.port_mut(&name);
        (port.groups, port.allowed, port.up) = (groups, pairs, up);
        Ok(())
    }

    fn subnet_of(&self, ip: IpAddr) -> Result<String> {
        let subnets = self.topology.cloud.subnets.values();
        let covers = subnets.filter(|subnet| covers(&subnet.cidr, ip));
        let name = covers.map(|subnet| subnet.name.clone()).next();
        name.with_context(|| format!("no subnet covers {ip}"))
    }

    /// `A -> B : tcp 80, ping` or `A -x B : tcp 22 policy_ingress`.
    fn expectations(&mut self, line: &str) -> Result<()> {
        let (ends, traffic) = line.split_once(" : ").context("neither a thing nor an expectation")?;
        let ends: Vec<&str> = ends.split_whitespace().collect();
        let (from, to, allowed) = match ends.as_slice() {
            [from, "->", to] => (from, to, true),
            [from, "-x", to] => (from, to, false),
            _ => bail!("`A -> B` or `A -x B` stands before the colon"),
        };
        let mut items: Vec<String> = traffic.split(',').map(|item| item.trim().to_owned()).collect();
        let verdict = if allowed {
            Verdict::Allowed
        } else {
            let last = items.last_mut().context("no traffic")?;
            let (traffic, reason) = last.rsplit_once(' ').context("no reason")?;
            ensure!(reason.contains('_'), "`{reason}` is no drop reason");
            let (traffic, reason) = (traffic.trim().to_owned(), reason.to_owned());
            *last = traffic;
            Verdict::Dropped(reason)
        };
        for item in items {
            let (v6, traffic) = read_traffic(&item)?;
            let (from, source) = self.end(from, v6)?;
            let (to, destination) = self.end(to, v6)?;
            let arrow = if allowed { "->" } else { "-x" };
            let text = format!("{}: {from} {arrow} {to} : {item}", self.topology.name);
            let verdict = verdict.clone();
            self.topology.expectations.push(Expectation {
                text,
                from,
                source,
                to,
                destination,
                traffic,
                verdict,
            });
        }
        Ok(())
    }

    /// A port and one of its addresses.
    fn end(&self, text: &str, v6: bool) -> Result<(String, IpAddr)> {
        let (name, address) = text.split_once('@').unwrap_or((text, ""));
        let name = self.own(name);
        let port = self.topology.cloud.ports.get(&name).with_context(|| format!("no port {name}"))?;
        let address = match address {
            "" => {
                let first = port.fixed_ips.iter().find(|(_, ip)| ip.is_ipv6() == v6);
                first.with_context(|| format!("{name} has no address of that family"))?.1
            }
            address => address.parse()?,
        };
        Ok((name, address))
    }
}

/// What is sent, and whether over IPv6.
fn read_traffic(text: &str) -> Result<(bool, Traffic)> {
    let (word, number) = text.split_once(' ').unwrap_or((text, ""));
    let number = number.trim();
    let traffic = || {
        Ok(match word.trim_end_matches('6') {
            "tcp" => Traffic::Tcp(number.parse()?),
            "udp" => Traffic::Udp(number.parse()?),
            "ping" if number.is_empty() => Traffic::Ping,
            "icmp" => {
                let (kind, code) = number.split_once('/').context("an ICMP type and code")?;
                Traffic::Icmp(kind.parse()?, code.parse()?)
            }
            "proto" => Traffic::Protocol(number.parse()?),
            _ => bail!("unknown"),
        })
    };
    Ok((word.ends_with('6'), traffic().with_context(|| format!("the traffic `{text}`"))?))
}

fn covers(cidr: &str, ip: IpAddr) -> bool {
    let Some((network, length)) = cidr.split_once('/') else { return false };
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
    let shifted = |bits: u128, width: u32| bits.checked_shr(width - length).unwrap_or(0);
    match (network, ip) {
        (IpAddr::V4(network), IpAddr::V4(ip)) => {
            shifted(u32::from(network).into(), 32) == shifted(u32::from(ip).into(), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(ip)) => shifted(network.into(), 128) == shifted(ip.into(), 128),
        _ => false,
    }
}
