//! Guests' interfaces: the moment one appears that a port names, it is closed, gets its program, and the model is told.
//!
//! A program stays attached while its interface exists, also when its port is gone: what the guest then sends dies there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use ncm_dataplane::{Dataplane, Hook};
use ncm_model::{Changes, InterfaceFacts, Model};

use super::status::{InterfaceStatus, Role};
use super::times::Times;
use super::{Shared, wire};
use crate::config::{Config, GuestMode};
use crate::netlink::{Kernel, Link, LinkEvent, Links, relay, sysctl};
use crate::telemetry::own;

/// The host's interfaces, and what we did with them.
pub(super) struct Interfaces {
    /// Those that there are, by name.
    pub(super) links: HashMap<String, Link>,
    /// Guests' interfaces that the model was told of, by name.
    guests: HashMap<String, InterfaceFacts>,
    /// Underlay interfaces with an attached program, by name: the interface index.
    pub(super) uplinks: HashMap<String, u32>,
    pub(super) kernel: Kernel,
}

/// Makes interfaces that appear from now on closed to the host's own stack.
pub(super) fn close_defaults() -> anyhow::Result<()> {
    sysctl::close_new_interfaces().context(
        "cannot close new interfaces by default (guest.closed_defaults = false leaves the host as it is)",
    )
}

impl Interfaces {
    /// Reads the events of a start until all interfaces are known.
    pub(super) async fn read(links: &mut Links) -> anyhow::Result<Self> {
        let mut known = HashMap::new();
        loop {
            match links.next().await.context("the stream of interfaces ended")? {
                LinkEvent::Appeared(link) | LinkEvent::Changed(link) => {
                    known.insert(link.name.clone(), link);
                }
                LinkEvent::Gone(link) => {
                    known.remove(&link.name);
                }
                LinkEvent::Synchronised => break,
            }
        }
        let kernel = Kernel::open().context("cannot use netlink")?;
        Ok(Self { links: known, guests: HashMap::new(), uplinks: HashMap::new(), kernel })
    }

    /// Tells the model of the interfaces that have a guest's program from an earlier run: their ports go on having them while
    /// the agent looks after one after the other.
    pub(super) fn adopt(&self, dataplane: &Dataplane, model: &mut Model) {
        let attachments = dataplane.attachments();
        let guests: HashSet<u32> = (attachments.iter())
            .filter(|attachment| attachment.hook == Hook::GuestTc)
            .map(|attachment| attachment.ifindex)
            .collect();
        for link in self.links.values().filter(|link| guests.contains(&link.index)) {
            model.adopt_interface(&link.name, facts(link));
        }
    }

    /// Likewise of those that ports name already: in a replay a port may have come and gone several times.
    pub(super) fn adopt_named(&self, dataplane: &Dataplane, model: &mut Model) {
        for attachment in dataplane.attachments().iter().filter(|attachment| attachment.hook == Hook::GuestTc)
        {
            let link = self.links.values().find(|link| link.index == attachment.ifindex);
            if let Some(link) = link.filter(|link| model.wanted_interface(&link.name)) {
                // All tables are compared with the model before anything is written.
                model.set_interface(&link.name, Some(facts(link)), &mut Changes::default());
            }
        }
    }
}

fn facts(link: &Link) -> InterfaceFacts {
    InterfaceFacts { ifindex: link.index, mtu: link.mtu, xdp_target: link.takes_xdp() }
}

fn mode(config: &Config, name: &str) -> GuestMode {
    if config.guest.xdp_interfaces.iter().any(|other| other == name) {
        GuestMode::Xdp
    } else {
        config.guest.mode
    }
}

impl Shared {
    /// Takes over those of the named interfaces that exist.
    pub(super) async fn take_guests(&self, names: &[String], times: &Arc<Times>) {
        let begun = Instant::now();
        let mut interfaces = self.interfaces.lock().await;
        times.used_netlink(begun.elapsed());
        for name in names {
            // The notification of an interface that was created just before the push may still be on its way.
            if !interfaces.links.contains_key(name)
                && let Ok(Some(link)) = interfaces.kernel.link(name).await
            {
                interfaces.links.insert(name.clone(), link);
            }
            if let Some(link) = interfaces.links.get(name).cloned() {
                self.take_guest(&mut interfaces, &link, Some(times)).await;
            }
        }
    }

    /// Attaches, closes and brings up a guest's interface, and tells the model.
    async fn take_guest(&self, interfaces: &mut Interfaces, link: &Link, times: Option<&Arc<Times>>) {
        let begun = Instant::now();
        let mode = mode(&self.config, &link.name);
        let attached = tokio::task::block_in_place(|| self.attach_guest(link, mode));
        if let Some(times) = times {
            times.wrote(begun.elapsed());
        }
        let begun = Instant::now();
        let taken = match &attached {
            Ok(_) => sysctl::take_over(&mut interfaces.kernel, link).await.map_err(|error| error.to_string()),
            Err(cause) => Err(cause.clone()),
        };
        if let Some(times) = times {
            times.used_netlink(begun.elapsed());
        }
        let status = InterfaceStatus {
            name: link.name.clone(),
            ifindex: link.index,
            role: Role::Guest,
            configured_mode: if mode == GuestMode::Xdp { "xdp" } else { "tc" },
            hook: attached.as_ref().ok().map(|(hook, _)| *hook),
            reason: match (&attached, &taken) {
                (Ok((_, reason)), Ok(())) => reason.clone(),
                (_, Err(cause)) | (Err(cause), _) => cause.clone(),
            },
            mtu: link.mtu,
            xdp_target: link.takes_xdp(),
        };
        self.status().insert(link.name.clone(), status);
        match taken {
            Ok(()) => {
                let facts = facts(link);
                interfaces.guests.insert(link.name.clone(), facts);
                self.change(times, None, |model, changes| {
                    model.set_interface(&link.name, Some(facts), changes)
                });
                tracing::info!(interface = %link, "a guest's interface is taken over");
            }
            Err(cause) => {
                own::ATTACH_FAILURES.increment();
                interfaces.guests.remove(&link.name);
                self.change(times, None, |model, changes| model.attach_failed(&link.name, &cause, changes));
                tracing::error!(interface = %link, "a guest's interface cannot be taken over: {cause}");
            }
        }
    }

    /// The tc program is always there: it takes what XDP passes on.
    fn attach_guest(&self, link: &Link, mode: GuestMode) -> Result<(Hook, String), String> {
        self.dataplane.attach(Hook::GuestTc, link.index).map_err(|error| error.to_string())?;
        if mode == GuestMode::Tc {
            // An earlier run may have been configured otherwise.
            self.dataplane.detach(Hook::GuestXdp, link.index).map_err(|error| error.to_string())?;
            return Ok((Hook::GuestTc, "as configured".to_owned()));
        }
        match self.dataplane.attach(Hook::GuestXdp, link.index) {
            Ok(_) => Ok((Hook::GuestXdp, "as configured; frames that XDP cannot take go to tc".to_owned())),
            Err(error) => {
                tracing::warn!(interface = %link, "no XDP on a guest's interface, tc takes everything: {error}");
                Ok((Hook::GuestTc, error.to_string()))
            }
        }
    }

    /// Follows one event of the host's interfaces.
    pub(super) async fn follow(&self, event: LinkEvent) {
        let mut interfaces = self.interfaces.lock().await;
        match event {
            LinkEvent::Synchronised => {}
            LinkEvent::Appeared(link) | LinkEvent::Changed(link) => {
                let renewed = self.is_relay(&link) && !link.up;
                self.put(&mut interfaces, link).await;
                if renewed {
                    wire::renew_relay(self, &mut interfaces).await;
                }
            }
            LinkEvent::Gone(link) => {
                // A namesake with another index may have come already.
                if interfaces.links.get(&link.name).is_some_and(|known| known.index == link.index) {
                    self.lose(&mut interfaces, &link);
                    if self.is_relay(&link) {
                        wire::renew_relay(self, &mut interfaces).await;
                    }
                }
            }
        }
    }

    fn is_relay(&self, link: &Link) -> bool {
        link.name == relay::device_name(&self.config.instance)
    }

    async fn put(&self, interfaces: &mut Interfaces, link: Link) {
        let before = interfaces.links.insert(link.name.clone(), link.clone());
        if let Some(before) = before.filter(|before| before.index != link.index) {
            self.lose(interfaces, &before);
            interfaces.links.insert(link.name.clone(), link.clone());
        }
        if self.config.underlay.interfaces.contains(&link.name) {
            wire::put(self, interfaces, &link).await;
        } else if interfaces.guests.get(&link.name).is_some_and(|held| *held != facts(&link)) {
            let facts = facts(&link);
            interfaces.guests.insert(link.name.clone(), facts);
            if let Some(status) = self.status().get_mut(&link.name) {
                status.mtu = link.mtu;
                status.xdp_target = link.takes_xdp();
            }
            self.change(None, None, |model, changes| model.set_interface(&link.name, Some(facts), changes));
        } else if !interfaces.guests.contains_key(&link.name) && self.model().wanted_interface(&link.name) {
            self.take_guest(interfaces, &link, None).await;
        }
    }

    fn lose(&self, interfaces: &mut Interfaces, link: &Link) {
        interfaces.links.remove(&link.name);
        // Also one that could not be taken over: its failure goes with it.
        let known = self.status().get(&link.name).is_some_and(|status| status.role == Role::Guest);
        let adopted = self.model().is_adopted(&link.name);
        if interfaces.guests.remove(&link.name).is_some() || known || adopted {
            tracing::info!(interface = %link, "a guest's interface is gone");
            self.status().remove(&link.name);
            self.change(None, None, |model, changes| model.set_interface(&link.name, None, changes));
        }
        wire::lose(self, interfaces, link);
        if let Err(error) = self.dataplane.forget_gone() {
            tracing::warn!(interface = %link, "cannot remove what is left of an interface that is gone: {error}");
        }
    }

    /// Tries again what could not be taken over.
    pub(super) async fn retry_interfaces(&self) {
        let mut interfaces = self.interfaces.lock().await;
        let relay = relay::device_name(&self.config.instance);
        if self.status().get(&relay).is_some_and(|status| status.hook.is_none()) {
            wire::renew_relay(self, &mut interfaces).await;
        }
        let failed: Vec<Link> = interfaces
            .links
            .values()
            .filter(|link| {
                // A guest's interface may have its program and yet not be closed or not be up.
                let name = &link.name;
                self.status().contains_key(name)
                    && !interfaces.guests.contains_key(name)
                    && !interfaces.uplinks.contains_key(name)
            })
            .cloned()
            .collect();
        for link in failed {
            if self.config.underlay.interfaces.contains(&link.name) {
                wire::put(self, &mut interfaces, &link).await;
            } else if self.model().wanted_interface(&link.name) {
                self.take_guest(&mut interfaces, &link, None).await;
            }
        }
    }
}
