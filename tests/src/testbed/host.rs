//! Hosts: a network namespace with underlay interfaces and an agent.

use std::cell::{Ref, RefCell, RefMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::agent::{Agent, AgentConfig, Statuses, binary, ncmctl};
use super::cloud::Cloud;
use super::lab::{Lab, eventually};
use super::namespace::{Namespace, Outcome};
use super::wire::Wire;

/// How the hosts of a test are set up.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Wires behave like those between network cards (only complete checksums, no frame above the MTU).
    pub nic: bool,
    /// MTU of the underlay in bytes.
    pub mtu: u32,
    /// The underlay has IPv6 only.
    pub over_v6: bool,
    /// More configuration of the agents: section, key, value in TOML.
    pub settings: Vec<(&'static str, &'static str, String)>,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self { nic: true, mtu: 1500, over_v6: false, settings: Vec::new() }
    }
}

impl HostOptions {
    /// Virtual wires, which carry segmentation-offloaded frames.
    #[must_use]
    pub fn virtual_wire() -> Self {
        Self { nic: false, ..Self::default() }
    }

    /// Programs at tc are filters, as on a kernel without tcx.
    #[must_use]
    pub fn by_clsact(self) -> Self {
        self.with("programs", "attach", "\"clsact\"")
    }

    /// An underlay that has IPv6 only.
    #[must_use]
    pub fn over_v6(self) -> Self {
        Self { over_v6: true, ..self }
    }

    /// Adds a key to the agents' configuration.
    #[must_use]
    pub fn with(mut self, section: &'static str, key: &'static str, value: &str) -> Self {
        self.settings.push((section, key, value.to_owned()));
        self
    }
}

/// A compute host.
pub struct Host {
    /// Its network stack.
    pub ns: Namespace,
    /// Its tunnel endpoint over IPv4; 0.0.0.0 without one.
    pub address: Ipv4Addr,
    /// Its tunnel endpoint over IPv6; `::` without one.
    pub address6: Ipv6Addr,
    /// Its agent's configuration, for the next start.
    pub config: AgentConfig,
    run: PathBuf,
    agent: Rc<RefCell<Option<Agent>>>,
}

impl Host {
    /// Makes a host with that tunnel endpoint and without interfaces; its agent is not started.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn new(
        lab: &Lab,
        name: &str,
        endpoint: impl Into<IpAddr>,
        interfaces: &[&str],
        options: &HostOptions,
    ) -> Result<Self> {
        let ns = lab.namespace(name)?;
        let endpoint = endpoint.into();
        let mut config = AgentConfig::new(name, endpoint, interfaces);
        for (section, key, value) in &options.settings {
            config.set(section, key, value.clone());
        }
        let agent: Rc<RefCell<Option<Agent>>> = Rc::default();
        let (seen, place) = (Rc::clone(&agent), ns.clone());
        lab.on_failure(move || describe(&place, &seen));
        let (address, address6) = match endpoint {
            IpAddr::V4(address) => (address, Ipv6Addr::UNSPECIFIED),
            IpAddr::V6(address) => (Ipv4Addr::UNSPECIFIED, address),
        };
        Ok(Self { ns, address, address6, config, run: lab.run_directory(), agent })
    }

    /// The host's name, which is its agent's instance and node id too.
    #[must_use]
    pub fn name(&self) -> &str {
        self.ns.name()
    }

    /// Starts the agent and waits until it takes goal states.
    ///
    /// # Errors
    /// If it does not.
    pub fn start(&self) -> Result<()> {
        self.start_as(&self.config)
    }

    /// Starts the agent with another configuration than its own.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_as(&self, config: &AgentConfig) -> Result<()> {
        ensure!(self.agent.borrow().is_none(), "the agent on {} already runs", self.name());
        let agent = Agent::start(&self.ns, &self.run, self.name(), config)?;
        self.agent.replace(Some(agent));
        Ok(())
    }

    /// Runs a second agent on the same underlay interfaces, under a name and sockets of its own, to its end.
    ///
    /// # Errors
    /// If it cannot be run; that it fails is an outcome.
    pub fn run_second(&self) -> Result<Outcome> {
        let mut config = self.config.clone();
        config
            .set("", "instance", "\"second\"")
            .set("api", "socket", "\"/run/ncm/second.sock\"")
            .set("api", "listeners", "[\"127.0.0.1:50002\"]")
            .set("metrics", "listen", "\"127.0.0.1:9478\"")
            .set("underlay", "relay_port", "47891");
        std::fs::write(self.run.join("second.toml"), config.to_toml())?;
        let program = binary("ncm-agent")?.to_string_lossy().into_owned();
        self.ns.outcome(&[program.as_str(), "--config", "/run/second.toml"])
    }

    /// Stops the agent, and starts it with what `change` makes of its configuration.
    ///
    /// # Errors
    /// If it does not stop, or not start.
    pub fn restart_with(&self, change: impl FnOnce(&mut AgentConfig)) -> Result<()> {
        let mut config = self.config.clone();
        change(&mut config);
        self.stop()?;
        self.start_as(&config)
    }

    /// The running agent.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn agent(&self) -> Ref<'_, Agent> {
        Ref::map(self.agent.borrow(), |agent| match agent {
            Some(agent) => agent,
            None => panic!("the agent on {} does not run", self.name()),
        })
    }

    /// The running agent, to wait on.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn agent_mut(&self) -> RefMut<'_, Agent> {
        RefMut::map(self.agent.borrow_mut(), |agent| match agent {
            Some(agent) => agent,
            None => panic!("the agent does not run"),
        })
    }

    /// Stops the agent as a service manager does.
    ///
    /// # Errors
    /// If it does not end with success in time.
    pub fn stop(&self) -> Result<()> {
        let agent = self.agent.take().context("the agent does not run")?;
        let log = agent.log();
        let status = agent.stop()?;
        ensure!(status.success(), "the agent on {} ended with {status}:\n{}", self.name(), log.tail(40));
        Ok(())
    }

    /// Kills the agent without warning.
    pub fn kill(&self) {
        drop(self.agent.take());
    }

    /// Runs `ncmctl` for this host, whether its agent runs or not.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn ncmctl(&self, arguments: &[&str]) -> Result<Outcome> {
        ncmctl(&self.ns, self.name(), arguments)
    }

    /// Runs `ncmctl` and expects success.
    ///
    /// # Errors
    /// If it fails.
    pub fn expect_ncmctl(&self, arguments: &[&str]) -> Result<String> {
        let outcome = self.ncmctl(arguments)?;
        ensure!(
            outcome.success,
            "`ncmctl {}` on {} failed with {}:\n{}{}",
            arguments.join(" "),
            self.name(),
            outcome.code,
            outcome.stdout,
            outcome.stderr
        );
        Ok(outcome.stdout)
    }

    /// Reads one figure from the agent's metrics: the sum of all series whose line contains every one of `parts`.
    ///
    /// # Errors
    /// If the endpoint does not answer.
    pub fn metric(&self, parts: &[&str]) -> Result<f64> {
        let text = self.metrics()?;
        let lines = text
            .lines()
            .filter(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// The agent's metrics, as Prometheus would read them.
    ///
    /// # Errors
    /// If the endpoint does not answer.
    pub fn metrics(&self) -> Result<String> {
        use std::io::{Read, Write};
        self.ns.inside(|| {
            let mut stream =
                std::net::TcpStream::connect("127.0.0.1:9477").context("connect to the metrics")?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text).context("read the metrics")?;
            Ok(text)
        })
    }

    /// How many packets were dropped for a reason, over all ports.
    ///
    /// # Errors
    /// If the metrics do not answer.
    pub fn drops(&self, reason: &str) -> Result<u64> {
        let quoted = format!("\"{reason}\"");
        Ok(self.metric(&["ncm_drops_packets_total{", &quoted])? as u64)
    }

    /// Does `provoke` and expects drops for `reason` to rise by at least one.
    ///
    /// # Errors
    /// If they do not within two seconds.
    pub fn expect_drop(&self, reason: &str, provoke: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.drops(reason)?;
        provoke()?;
        eventually(&format!("{} drops a packet for {reason}", self.name()), Duration::from_secs(2), || {
            Ok(self.drops(reason)? > before)
        })
    }
}

fn describe(ns: &Namespace, agent: &Rc<RefCell<Option<Agent>>>) -> String {
    let name = ns.name();
    let log = agent
        .borrow()
        .as_ref()
        .map_or_else(|| "(the agent does not run)".to_owned(), |agent| agent.log().tail(60));
    let tool = |arguments: &[&str]| match ncmctl(ns, name, arguments) {
        Ok(outcome) => format!("{}{}", outcome.stdout, outcome.stderr),
        Err(error) => format!("{error:#}"),
    };
    let (states, drops) = (tool(&["get"]), tool(&["drops"]));
    let (status, counters) = (tool(&["status"]), tool(&["counters"]));
    format!(
        "--- agent on {name}\n{log}\n--- states on {name}\n{states}\n--- drops on {name}\n{drops}\n\
         --- counters on {name}\n{counters}\n--- status on {name}\n{status}"
    )
}

/// The address of a host on the wire of [`TwoHosts`]: 192.168.50.1 and so on, or fd50::1 and so on.
#[must_use]
pub fn on_wire(number: u8, over_v6: bool) -> IpAddr {
    if over_v6 {
        Ipv6Addr::new(0xfd50, 0, 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(192, 168, 50, number).into()
    }
}

/// Two hosts on one wire, 192.168.50.1 and 192.168.50.2 (or fd50::1 and fd50::2), each with an agent.
pub struct TwoHosts {
    /// `host1`.
    pub host1: Host,
    /// `host2`.
    pub host2: Host,
    /// What connects their interfaces `eth0`.
    pub wire: Wire,
}

impl TwoHosts {
    /// Makes the hosts and starts both agents.
    ///
    /// # Errors
    /// If an agent does not start.
    pub fn new(lab: &Lab, options: HostOptions) -> Result<Self> {
        let both = Self::unstarted(lab, options)?;
        both.host1.start()?;
        both.host2.start()?;
        Ok(both)
    }

    /// Makes the hosts without starting the agents.
    ///
    /// # Errors
    /// If a namespace cannot be made.
    pub fn unstarted(lab: &Lab, options: HostOptions) -> Result<Self> {
        let v6 = options.over_v6;
        let host1 = Host::new(lab, "host1", on_wire(1, v6), &["eth0"], &options)?;
        let host2 = Host::new(lab, "host2", on_wire(2, v6), &["eth0"], &options)?;
        let wire = Wire::connect((&host1.ns, "eth0"), (&host2.ns, "eth0"))?.mtu(options.mtu)?;
        let wire = if options.nic { wire.like_a_nic()? } else { wire };
        for (host, number) in [(&host1, 1), (&host2, 2)] {
            let length = if v6 { "64 nodad" } else { "24" };
            host.ns.run(&format!("ip address add {}/{length} dev eth0", on_wire(number, v6)))?;
        }
        Ok(Self { host1, host2, wire })
    }

    /// Both hosts.
    #[must_use]
    pub fn hosts(&self) -> [&Host; 2] {
        [&self.host1, &self.host2]
    }

    /// Pushes to each host what it needs of a cloud, and expects SUCCESS for all of it.
    ///
    /// # Errors
    /// If a push fails.
    pub fn push(&self, cloud: &Cloud) -> Result<()> {
        for host in self.hosts() {
            push(host, cloud)?;
        }
        Ok(())
    }
}

/// Pushes to a host what it needs of a cloud (V2), and expects SUCCESS for all of it.
fn push(host: &Host, cloud: &Cloud) -> Result<Statuses> {
    let statuses = host.agent().push_v2(&cloud.goal_state_v2(host.name()))?;
    statuses.expect_success().with_context(|| format!("pushed to {}", host.name()))?;
    Ok(statuses)
}
