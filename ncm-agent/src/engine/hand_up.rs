//! The engine's side of the hand-up: the device with its programs, and what the model says to guests' questions.
//!
//! Traffic does not depend on it: where it cannot be had, guests are not answered, which is logged and tried again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context;
use ncm_common::{OVERHEAD_V4, OVERHEAD_V6};
use ncm_dataplane::Hook;
use ncm_model::lease::LeaseFacts;
use tokio::time::sleep;

use super::Shared;
use super::status::Role;
use crate::fault;
use crate::hand_up::{self, Facts};
use crate::netlink::Kernel;

/// How often it is looked whether the device is still as it should be.
const LOOK: Duration = Duration::from_secs(3);

/// Makes the device, and has guests answered from now on.
pub(super) async fn start(shared: &Arc<Shared>) {
    let mut hand_up = HandUp { shared: Arc::downgrade(shared), ifindex: 0, serving: false };
    if let Err(error) = hand_up.look().await {
        tracing::error!(
            "guests' DHCP and router solicitations are not answered: {}",
            crate::explained(&error)
        );
    }
    fault::supervise("the hand-up of guests' questions", hand_up.keep());
}

struct HandUp {
    shared: Weak<Shared>,
    /// The device as we last made it; 0 if we have not.
    ifindex: u32,
    serving: bool,
}

impl HandUp {
    /// Keeps the device as it should be.
    async fn keep(mut self) {
        let mut failing = self.ifindex == 0;
        loop {
            sleep(LOOK).await;
            if self.shared.strong_count() == 0 {
                return;
            }
            match self.look().await {
                Ok(()) if failing => {
                    failing = false;
                    tracing::info!("guests' DHCP and router solicitations are answered again");
                }
                Ok(()) => {}
                Err(error) => {
                    if !failing {
                        tracing::error!(
                            "guests' DHCP and router solicitations are not answered: {}",
                            crate::explained(&error)
                        );
                    }
                    failing = true;
                }
            }
        }
    }

    /// Makes the device anew if somebody has deleted it or set it down.
    async fn look(&mut self) -> anyhow::Result<()> {
        let Some(shared) = self.shared.upgrade() else { return Ok(()) };
        let instance = &shared.config.instance;
        let (name, _) = hand_up::device_names(instance);
        let mut kernel = Kernel::open().context("cannot use netlink")?;
        let found = kernel.link(&name).await?;
        if self.ifindex == 0 || !found.is_some_and(|link| link.index == self.ifindex && link.running) {
            self.ifindex = 0;
            let link = hand_up::ensure(&mut kernel, instance)
                .await
                .with_context(|| format!("cannot make the device {name}"))?;
            for hook in [Hook::HandUpTc, Hook::HandDownTc] {
                shared.dataplane.attach(hook, link.index)?;
            }
            let told = shared.own.amend_node(|node| node.hand_up_ifindex = link.index);
            told.context("cannot tell the packet path which interface hands packets up")?;
            self.ifindex = link.index;
        }
        if !self.serving {
            hand_up::start(&name, Weak::clone(&self.shared))
                .with_context(|| format!("cannot read the device {name}"))?;
            self.serving = true;
        }
        Ok(())
    }
}

impl Facts for Weak<Shared> {
    fn version(&self) -> Option<u64> {
        let shared = self.upgrade()?;
        // Guests are told of the MTU as well, which no goal state brings.
        let mtu = u64::from(shared.tunnel_mtu());
        let version = shared.model().version();
        Some(version << 16 | mtu)
    }

    fn lease(&self, port: u32) -> Option<LeaseFacts> {
        let shared = self.upgrade()?;
        let mut facts = shared.model().lease_facts(port)?;
        facts.mtu = facts.mtu.min(shared.tunnel_mtu());
        Some(facts)
    }

    fn advertised(&self) -> Vec<u32> {
        self.upgrade().map(|shared| shared.model().advertised_ports()).unwrap_or_default()
    }
}

impl Shared {
    /// The largest packet of a guest, in bytes, that the narrowest underlay interface carries through the tunnel.
    pub(super) fn tunnel_mtu(&self) -> u16 {
        let overhead = if self.config.underlay.endpoint_v6.is_some() { OVERHEAD_V6 } else { OVERHEAD_V4 };
        let narrowest = (self.status().values())
            .filter(|status| status.role == Role::Underlay && status.mtu != 0)
            .map(|status| status.mtu)
            .min();
        narrowest.map_or(u16::MAX, |mtu| {
            u16::try_from(mtu.saturating_sub(u32::from(overhead))).unwrap_or(u16::MAX)
        })
    }
}
