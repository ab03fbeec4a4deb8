//! Routes: connected ones to all subnets of the router, and rules with next hops.

use std::net::IpAddr;

use ipnet::IpNet;
use ncm_common::tables::{Route, RouteKey, route_flags};

use crate::compile::{Handle, HandleKind, mapped};
use crate::model::Model;
use crate::resources::{Live, RouterSlot, Rule};

fn route_key(subnet: u32, net: IpNet) -> RouteKey {
    let (ip, length) = mapped::prefix(net);
    RouteKey { prefix_len: 32 + length, subnet, ip }
}

/// The flag of routes for the prefix's version of IP.
fn version(net: IpNet) -> u32 {
    match net {
        IpNet::V4(_) => 0,
        IpNet::V6(_) => route_flags::V6,
    }
}

impl RouterSlot {
    /// How many of its hosts are admitted into its VNIs.
    pub(crate) fn admitted(&self) -> usize {
        self.hosts.len() - self.barred.len()
    }

    /// The member that an address is in: the one with the longest prefix.
    pub(crate) fn member_of(&self, address: IpAddr) -> Option<u32> {
        (0..=IpNet::from(address).prefix_len()).rev().find_map(|length| {
            let net = IpNet::new(address, length).ok()?.trunc();
            self.prefixes.get(&net)?.values().next().copied()
        })
    }

    /// The rules of a subnet's table for exactly one prefix, in the order in which they count.
    fn rules_for(&self, subnet: u32, net: IpNet) -> &[Rule] {
        let Some(rules) = self.tables.get(&subnet) else { return &[] };
        let start = rules.partition_point(|rule| rule.net < net);
        let end = rules.partition_point(|rule| rule.net <= net);
        &rules[start..end]
    }
}

impl Model {
    /// A live subnet becomes a member of its router. Routes change only if it `moves`: they do not tell VNIs.
    pub(crate) fn join_router(&mut self, router: u32, slot: u32, live: Live, moves: bool) {
        self.room.more_routes(self.routers[router].members.len());
        self.routers[router].members.insert(slot);
        let id = self.subnets[slot].id.clone();
        self.routers[router].prefixes.entry(live.net).or_default().insert(id, slot);
        self.join_admission(router, slot, live);
        if moves {
            self.disturb_routes(router, slot, live);
        }
    }

    /// The reverse of [`Model::join_router`].
    pub(crate) fn leave_router(&mut self, router: u32, slot: u32, live: Live, moves: bool) {
        if moves {
            self.disturb_routes(router, slot, live);
        }
        self.leave_admission(router, slot, live);
        let state = &mut self.routers[router];
        state.members.remove(&slot);
        self.room.fewer_routes(state.members.len());
        if let Some(members) = state.prefixes.get_mut(&live.net) {
            members.remove(&self.subnets[slot].id);
            if members.is_empty() {
                state.prefixes.remove(&live.net);
            }
        }
    }

    /// Marks the routes from and to a member to be decided anew, and all rules: their next hops may be in it.
    fn disturb_routes(&mut self, router: u32, slot: u32, live: Live) {
        let state = &self.routers[router];
        let own = self.subnets[slot].index;
        for net in state.prefixes.keys() {
            self.dirty_routes.push(route_key(own, *net));
        }
        for member in &state.members {
            self.dirty_routes.push(route_key(self.subnets[*member].index, live.net));
        }
        for rule in state.tables.get(&slot).into_iter().flatten() {
            self.dirty_routes.push(route_key(own, rule.net));
        }
        self.dirty_routers.insert(router);
    }

    /// Marks the rules of one table to be decided anew.
    pub(crate) fn disturb_table(&mut self, router: u32, slot: u32) {
        let index = self.subnets[slot].index;
        if index == 0 {
            return;
        }
        for rule in self.routers[router].tables.get(&slot).into_iter().flatten() {
            self.dirty_routes.push(route_key(index, rule.net));
        }
    }

    /// Decides all routes that are marked.
    pub(crate) fn write_routes(&mut self) {
        for router in std::mem::take(&mut self.dirty_routers) {
            let Some(state) = self.routers.get(router) else { continue };
            for slot in &state.members {
                let index = self.subnets[*slot].index;
                for rule in state.tables.get(slot).into_iter().flatten() {
                    self.dirty_routes.push(route_key(index, rule.net));
                }
            }
        }
        let mut keys = std::mem::take(&mut self.dirty_routes);
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let value = self.route(key);
            self.tables.routes.assign(key, value);
        }
    }

    fn route(&self, key: RouteKey) -> Option<(Route, Handle)> {
        let slot = self.subnet_at(key.subnet)?;
        let number = self.subnets[slot].live?.router?;
        let router = &self.routers[number];
        let net = mapped::net(key.ip, key.prefix_len.checked_sub(32)?)?;
        if let Some(target) = router.prefixes.get(&net).and_then(|members| members.values().next()) {
            let subnet = &self.subnets[*target];
            let route = Route {
                subnet: subnet.index,
                subnet_generation: subnet.generation,
                flags: route_flags::CONNECTED | version(net),
                ..Route::default()
            };
            return Some((route, Handle::new(HandleKind::Router, number)));
        }
        router.rules_for(slot, net).iter().find_map(|rule| {
            let next_hop = rule.next_hop?;
            let subnet = &self.subnets[router.member_of(next_hop)?];
            let route = Route {
                subnet: subnet.index,
                subnet_generation: subnet.generation,
                flags: version(net),
                next_hop_ip: mapped::address(next_hop),
                next_hop_mac: rule.mac,
                reserved: [0; 6],
            };
            Some((route, Handle::new(HandleKind::Router, number)))
        })
    }
}
