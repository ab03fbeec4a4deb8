//! What the stories of on-demand requests share: two hosts, of which the first knows no neighbours and asks.
#![allow(dead_code, reason = "each story uses a part of it")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_model::wire::{GoalState, NeighborType, OperationType};
use ncm_tests::testbed::{Cloud, Guest, HostOptions, Lab, TwoHosts, Upstream, format_mac};

/// Long enough for anything that is to happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// Two hosts and an upstream, which `host1` asks.
pub(crate) struct Demand {
    pub(crate) net: TwoHosts,
    pub(crate) cloud: Cloud,
    pub(crate) upstream: Upstream,
    guests: RefCell<BTreeMap<String, Rc<Guest>>>,
}

impl Demand {
    /// Starts all of it. `host1` is told of its own ports, subnets and routers, and of no neighbour.
    pub(crate) fn new(lab: &Lab, cloud: Cloud, options: HostOptions) -> Result<Self> {
        Self::with(lab, cloud, options, |_| Ok(()))
    }

    /// The same; `before` sees all of it before the agents start.
    pub(crate) fn with(
        lab: &Lab,
        cloud: Cloud,
        options: HostOptions,
        before: impl FnOnce(&mut Upstream) -> Result<()>,
    ) -> Result<Self> {
        let mut net = TwoHosts::unstarted(lab, options)?;
        let place = SocketAddr::new(net.host2.address.into(), 9016);
        let mut upstream = Upstream::start(&net.host2.ns, place, &net.host1.ns)?;
        let setting = upstream.setting();
        net.host1.config.set("upstream", "address", setting).set("api", "insecure", "true");
        before(&mut upstream)?;
        let demand = Self { net, cloud, upstream, guests: RefCell::default() };
        for (name, port) in &demand.cloud.ports {
            let host = if port.host == "host1" { &demand.net.host1 } else { &demand.net.host2 };
            let guest = demand.cloud.guest(lab, host, name)?;
            demand.guests.borrow_mut().insert(name.clone(), Rc::new(guest));
        }
        demand.net.host1.start()?;
        demand.net.host2.start()?;
        demand.net.host2.agent().push(&demand.cloud.goal_state("host2"))?.expect_success()?;
        demand.net.host1.agent().push(&demand.without_neighbours())?.expect_success()?;
        for (name, port) in &demand.cloud.ports {
            for (_, ip) in port.fixed_ips.iter().filter(|_| port.host != "host1") {
                demand.upstream.knows(*ip, demand.neighbour(name, OperationType::Create));
            }
        }
        Ok(demand)
    }

    /// What `host1` is told at first.
    pub(crate) fn without_neighbours(&self) -> GoalState {
        GoalState { neighbor_states: Vec::new(), ..self.cloud.goal_state("host1") }
    }

    pub(crate) fn guest(&self, name: &str) -> Result<Rc<Guest>> {
        self.guests.borrow().get(name).cloned().with_context(|| format!("no guest {name}"))
    }

    /// A port as a neighbour: of its subnets, and of their routers where there are any.
    pub(crate) fn neighbour(&self, name: &str, operation: OperationType) -> GoalState {
        let mut kinds = vec![NeighborType::L2];
        if !self.cloud.routers.is_empty() {
            kinds.push(NeighborType::L3);
        }
        GoalState {
            format_version: 101,
            neighbor_states: kinds
                .into_iter()
                .map(|kind| self.cloud.neighbor_state(name, kind, operation))
                .collect(),
            ..GoalState::default()
        }
    }

    /// Pushes a neighbour to `host1`.
    pub(crate) fn push(&self, name: &str) -> Result<()> {
        let state = self.neighbour(name, OperationType::Create);
        self.net.host1.agent().push(&state)?.expect_success().map(drop)
    }

    /// Takes a neighbour from `host1`.
    pub(crate) fn forget(&self, name: &str) -> Result<()> {
        let state = self.neighbour(name, OperationType::Delete);
        self.net.host1.agent().push(&state)?.expect_success().map(drop)
    }

    /// Packets and bytes that `host1` held and let go on.
    pub(crate) fn released(&self) -> Result<(f64, f64)> {
        let metric = |name| self.net.host1.metric(&[name, "event=\"released\""]);
        Ok((metric("ncm_path_packets_total")?, metric("ncm_path_bytes_total")?))
    }

    /// Nothing is left over.
    pub(crate) fn end(self) -> Result<()> {
        self.upstream.expect_no_failures()?;
        let held = self.net.host1.metric(&["ncm_held_packets"])?;
        ensure!(held == 0.0, "{held} packets are still held");
        Ok(())
    }
}

/// Has a guest know another one's MAC without asking by ARP.
pub(crate) fn known_by_hand(from: &Guest, to: &Guest) -> Result<()> {
    let mac = format_mac(to.mac());
    from.ns.run(&format!("ip neigh replace {} lladdr {mac} dev eth0", to.ip())).map(drop)
}

/// Sends so many numbered datagrams at once, and expects all of them in order.
pub(crate) fn numbered(from: &Guest, to: &Guest, count: u32) -> Result<()> {
    let receiver = to.ns.udp(SocketAddr::new(to.ip().into(), 7000))?;
    receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
    // All come at once: the usual buffer has room for hardly two hundred.
    nix::sys::socket::setsockopt(&receiver, nix::sys::socket::sockopt::RcvBufForce, &(4 << 20))?;
    let sender = from.ns.udp(SocketAddr::new(from.ip().into(), 0))?;
    for number in 0..count {
        sender.send_to(&number.to_be_bytes(), (IpAddr::from(to.ip()), 7000))?;
    }
    for number in 0..count {
        let mut bytes = [0; 4];
        let length = receiver.recv(&mut bytes).with_context(|| format!("wait for datagram {number}"))?;
        let came = u32::from_be_bytes(bytes);
        ensure!(length == 4 && came == number, "datagram {came} came where {number} was expected");
    }
    Ok(())
}
