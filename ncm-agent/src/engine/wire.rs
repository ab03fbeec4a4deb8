//! Our side of the underlay: which hook takes tunnel frames from each interface, the relay device, and what the packet
//! path is told of its own node.

use std::sync::Arc;

use anyhow::{Context, bail};
use ncm_common::tables::{Name, NameKey, name_kinds, node_flags};
use ncm_dataplane::{Dataplane, Holder, Hook, Tables, held_by_another};

use super::Shared;
use super::guests::Interfaces;
use super::lock::UplinkLocks;
use super::own_tables::OwnTables;
use super::status::{InterfaceStatus, Role};
use crate::config::{Admission, Config, WireMode};
use crate::netlink::relay::{self, Relay};
use crate::netlink::underlay::{Adopted, Settings, TableSink, TableWrite, Underlay};
use crate::netlink::{Kernel, Link};
use crate::telemetry::own;

/// An underlay interface has one agent. Which one shows by the programs there, whether that agent runs or not; while it starts, by its
/// locks.
pub(super) async fn take_uplink_locks(config: &Config, kernel: &mut Kernel) -> anyhow::Result<UplinkLocks> {
    let locks = UplinkLocks::take(&config.underlay.interfaces);
    for name in &config.underlay.interfaces {
        let Some(link) = kernel.link(name).await? else { continue };
        let xdp = kernel.native_xdp(name).await?;
        let holder = held_by_another(&config.paths.bpffs, &config.instance, link.index, xdp)?;
        let Some(Holder { instance, program, id }) = holder else { continue };
        let (whose, remedy) = match instance {
            Some(other) => (
                format!("of instance {other:?}"),
                format!("`ncm-agent --instance {other} --teardown` removes that one"),
            ),
            None => ("of another agent".to_owned(), "end that one".to_owned()),
        };
        bail!(
            "the underlay interface {name} has the program {program} (id {id}) {whose}, and one agent only can take its frames: {remedy}, or give this one other underlay.interfaces"
        );
    }
    Ok(locks?)
}

/// Makes the relay device and attaches its program, if there is a tunnel.
pub(super) async fn relay(
    config: &Config,
    kernel: &mut Kernel,
    dataplane: &Dataplane,
) -> anyhow::Result<Option<Relay>> {
    if config.underlay.endpoints().is_empty() {
        tracing::warn!(
            "neither underlay.endpoint_v4 nor endpoint_v6 is set: nothing is carried to or from other hosts"
        );
        return Ok(None);
    }
    let name = relay::device_name(&config.instance);
    let mut relay = relay::ensure(kernel, &name, config.underlay.relay_port)
        .await
        .with_context(|| format!("cannot make the relay device {name}"))?;
    dataplane.attach(Hook::RelayTc, relay.link.index)?;
    relay::bring_up(kernel, &mut relay)
        .await
        .with_context(|| format!("cannot bring the relay device {name} up"))?;
    Ok(Some(relay))
}

/// How the relay device is shown.
pub(super) fn relay_status(relay: &Relay) -> InterfaceStatus {
    InterfaceStatus {
        name: relay.link.name.clone(),
        ifindex: relay.link.index,
        role: Role::Relay,
        configured_mode: "tc",
        hook: Some(Hook::RelayTc),
        reason: format!("the kernel decapsulates here what XDP does not, on UDP port {}", relay.port),
        mtu: relay.link.mtu,
        xdp_target: false,
    }
}

/// Makes the relay device work again: somebody has deleted it or set it down, and TCP goes through it.
pub(super) async fn renew_relay(shared: &Shared, interfaces: &mut Interfaces) {
    let Shared { config, dataplane, own, .. } = shared;
    let name = relay::device_name(&config.instance);
    let known =
        shared.status().get(&name).filter(|status| status.hook.is_some()).map(|status| status.ifindex);
    // An event may be older than the device's present state, as all those of its making are.
    if let Ok(Some(link)) = interfaces.kernel.link(&name).await
        && link.up
        && known == Some(link.index)
    {
        return;
    }
    let made = match relay(config, &mut interfaces.kernel, dataplane).await {
        Ok(Some(relay)) => node(config, Some(&relay), own).map(|()| relay_status(&relay)),
        Ok(None) => return,
        Err(error) => Err(error),
    };
    match made {
        Ok(status) => {
            tracing::warn!(interface = %status.name, "the relay device was gone or down: it works again");
            shared.status().insert(status.name.clone(), status);
        }
        Err(error) => {
            own::ATTACH_FAILURES.increment();
            tracing::error!("what only the kernel decapsulates is lost: {}", crate::explained(&error));
            if let Some(status) = shared.status().get_mut(&name) {
                status.hook = None;
                status.reason = crate::explained(&error);
            }
        }
    }
}

/// Tells the packet path who we are. What hands packets up comes later, and says so itself; of uplinks an earlier agent's hold until the
/// underlay is followed again: traffic must not stop meanwhile.
pub(super) fn node(config: &Config, relay: Option<&Relay>, own: &OwnTables) -> anyhow::Result<()> {
    let told = own.amend_node(|node| {
        node.endpoint_v4 = config.underlay.endpoint_v4.map_or([0; 4], |address| address.octets());
        node.endpoint_v6 = config.underlay.endpoint_v6.map_or([0; 16], |address| address.octets());
        node.flags = if config.underlay.admission == Admission::Strict { node_flags::STRICT } else { 0 };
        node.tunnel_port = config.underlay.port.to_be_bytes();
        node.relay_port = relay.map_or([0; 2], |relay| relay.port.to_be_bytes());
        node.relay_ifindex = relay.map_or(0, |relay| relay.link.index);
    });
    told.context("cannot tell the packet path who this node is")
}

/// Begins to follow the underlay, with what an earlier run left in the tables.
pub(super) async fn underlay(config: &Config, own: &Arc<OwnTables>) -> anyhow::Result<Option<Underlay>> {
    let endpoints = config.underlay.endpoints();
    if endpoints.is_empty() {
        return Ok(None);
    }
    let tables = own.tables();
    let adopted = adopted(tables)?;
    let interfaces = config.underlay.interfaces.clone();
    let settings =
        Settings::new(endpoints, config.underlay.port, interfaces, tables.next_hop_groups.capacity());
    let underlay = Underlay::start(settings, adopted, Box::new(Sink(Arc::clone(own))));
    Ok(Some(underlay.await.context("cannot follow the underlay's routes and neighbours")?))
}

fn adopted(tables: &Tables) -> anyhow::Result<Adopted> {
    let used = |generation: u32| generation != 0;
    let mut adopted = Adopted::default();
    tables.hosts.for_each(|index, host| {
        if used(host.generation) {
            adopted.hosts.push((index, host));
        }
    })?;
    let mut groups = Vec::new();
    tables.next_hop_groups.for_each(|index, group| {
        if used(group.generation) {
            groups.push((index, group));
        }
    })?;
    for (index, group) in groups {
        let name = tables.names.get(&NameKey { kind: name_kinds::GROUP, index })?;
        let text = name.as_ref().map(text).unwrap_or_default();
        adopted.groups.push((index, text, group));
    }
    Ok(adopted)
}

fn text(name: &Name) -> String {
    let length = (name.len as usize).min(name.text.len());
    String::from_utf8_lossy(&name.text[..length]).into_owned()
}

/// Writes what the underlay decides.
struct Sink(Arc<OwnTables>);

impl TableSink for Sink {
    fn write(&mut self, write: &TableWrite) -> Result<(), String> {
        let written = match write {
            TableWrite::Group { index, value } => self.0.put_group(*index, value),
            TableWrite::Host { index, value } => self.0.put_host(*index, value),
            TableWrite::GroupName { index, name } => {
                let key = NameKey { kind: name_kinds::GROUP, index: *index };
                match name {
                    Some(name) => self.0.tables().names.put(&key, name),
                    None => self.0.tables().names.delete(&key),
                }
            }
            TableWrite::Uplinks(uplinks) => self.0.amend_node(|node| node.uplinks = *uplinks),
        };
        written.map_err(|error| error.to_string())
    }
}

/// Takes over an underlay interface that is there, unless it is already.
pub(super) async fn put(shared: &Shared, interfaces: &mut Interfaces, link: &Link) {
    if shared.config.underlay.endpoints().is_empty() {
        return;
    }
    devices(shared, link, link.takes_xdp());
    if interfaces.uplinks.get(&link.name) == Some(&link.index) {
        if let Some(status) = shared.status().get_mut(&link.name) {
            status.mtu = link.mtu;
            status.xdp_target = link.takes_xdp();
        }
        return;
    }
    let late = link.is_veth() && interfaces.kernel.segments_late(link.index).await.unwrap_or(false);
    let attached =
        tokio::task::block_in_place(|| attach(&shared.dataplane, shared.config.underlay.mode, link, late));
    let (hook, reason) = match attached {
        Ok((hook, reason)) => {
            if hook == Hook::WireXdp && !interfaces.kernel.keep_vlan_tags(link.index).await.unwrap_or(false) {
                tracing::warn!(
                    interface = %link,
                    "the device takes VLAN tags off before XDP sees them: a tunnel frame in a VLAN counts as one without \
                     (if VLANs are in use here, set underlay.mode = \"tc\")"
                );
            }
            interfaces.uplinks.insert(link.name.clone(), link.index);
            tracing::info!(interface = %link, program = hook.program(), "tunnel frames are taken here: {reason}");
            (Some(hook), reason)
        }
        Err(cause) => {
            own::ATTACH_FAILURES.increment();
            tracing::error!(interface = %link, "tunnel frames cannot be taken here: {cause}");
            (None, cause)
        }
    };
    let status = InterfaceStatus {
        name: link.name.clone(),
        ifindex: link.index,
        role: Role::Underlay,
        configured_mode: shared.config.underlay.mode.name(),
        hook,
        reason,
        mtu: link.mtu,
        xdp_target: link.takes_xdp(),
    };
    shared.status().insert(link.name.clone(), status);
}

/// Attaches the program that the mode calls for, then takes the other one away, so that one is always there.
fn attach(dataplane: &Dataplane, mode: WireMode, link: &Link, late: bool) -> Result<(Hook, String), String> {
    let only = |hook: Hook, other: Hook| {
        dataplane.attach(hook, link.index)?;
        dataplane.detach(other, link.index)
    };
    let xdp = || only(Hook::WireXdp, Hook::WireTc);
    let tc = || only(Hook::WireTc, Hook::WireXdp).map_err(|error| error.to_string());
    match mode {
        WireMode::Tc => tc().map(|()| (Hook::WireTc, "as configured".to_owned())),
        WireMode::Xdp => {
            xdp().map_err(|error| error.to_string()).map(|()| (Hook::WireXdp, "as configured".to_owned()))
        }
        WireMode::Auto if late => tc().map(|()| {
            let reason = "a virtual wire that carries segmentation-offloaded frames (`ethtool -K` shows \
                          tx-tcp-segmentation on)";
            (Hook::WireTc, reason.to_owned())
        }),
        WireMode::Auto => match xdp() {
            Ok(()) => Ok((Hook::WireXdp, "the driver runs XDP natively".to_owned())),
            Err(error) => tc().map(|()| (Hook::WireTc, format!("no native XDP: {error}"))),
        },
    }
}

/// Forgets an underlay interface that is gone.
pub(super) fn lose(shared: &Shared, interfaces: &mut Interfaces, link: &Link) {
    if interfaces.uplinks.remove(&link.name).is_some() {
        tracing::warn!(interface = %link, "an underlay interface is gone");
        devices(shared, link, false);
        if let Some(status) = shared.status().get_mut(&link.name) {
            status.ifindex = 0;
            status.hook = None;
            "the interface is gone".clone_into(&mut status.reason);
        }
    }
}

/// Lets XDP programs redirect to the interface, or no longer.
fn devices(shared: &Shared, link: &Link, takes_xdp: bool) {
    if let Err(error) = shared.own.put_uplink(link.index, takes_xdp) {
        tracing::warn!(interface = %link, "frames for this interface take the slow way: {error}");
    }
}

impl Shared {
    /// Takes over the underlay interfaces that are there, and says which are not.
    pub(super) async fn take_uplinks(&self) {
        let mut interfaces = self.interfaces.lock().await;
        for name in &self.config.underlay.interfaces {
            if let Some(link) = interfaces.links.get(name).cloned() {
                put(self, &mut interfaces, &link).await;
            } else {
                tracing::warn!(interface = %name, "the underlay interface does not exist yet");
                let status = InterfaceStatus {
                    name: name.clone(),
                    ifindex: 0,
                    role: Role::Underlay,
                    configured_mode: self.config.underlay.mode.name(),
                    hook: None,
                    reason: "the interface does not exist".to_owned(),
                    mtu: 0,
                    xdp_target: false,
                };
                self.status().insert(name.clone(), status);
            }
        }
    }
}
