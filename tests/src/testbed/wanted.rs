//! What a controller wants of a host, at random, and whether a host has come to it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use ncm_model::wire::security_group_configuration::SecurityGroupRule;
use ncm_model::wire::{
    DhcpConfiguration, DhcpState, GoalState, NeighborConfiguration, NeighborState, OperationType,
    ResourceType, RouterConfiguration, RouterState, SecurityGroupConfiguration, SecurityGroupState,
    SubnetConfiguration, SubnetState, UpdateType, neighbor_configuration, router_configuration,
};
use ncm_model::{Changes, Message, Model, Origin, Progress, Run, Seed, Settings};
use prost::Message as _;
use serde_json::Value;

use super::cloud::Cloud;
use super::host::Host;
use super::lab::eventually;

/// Numbers that look random, and are the same for the same seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From `NCM_SEED`, or else from that seed; says which on standard output, for a test that fails.
    #[must_use]
    pub fn seeded(default: u64) -> Self {
        let seed = std::env::var("NCM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
        super::say(&format!("NCM_SEED={seed}"));
        Self::of(seed)
    }

    /// From a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(bound.max(1))) as u32
    }
}

/// Identity of a resource: its type, and its number.
type Key = (ResourceType, u32);

/// What is wanted: a cloud as it is, and beside it so many resources that come, change and go.
#[derive(Clone, Debug)]
pub struct Wanted {
    ground: GoalState,
    random: Random,
    /// How many there may be of each type.
    pool: Vec<(ResourceType, u32)>,
    held: BTreeMap<Key, GoalState>,
    revision: u32,
}

fn part() -> GoalState {
    GoalState { format_version: 101, ..GoalState::default() }
}

fn add(into: &mut GoalState, other: GoalState) {
    into.subnet_states.extend(other.subnet_states);
    into.neighbor_states.extend(other.neighbor_states);
    into.security_group_states.extend(other.security_group_states);
    into.dhcp_states.extend(other.dhcp_states);
    into.router_states.extend(other.router_states);
}

/// The same states, to be deleted.
fn deleted(mut state: GoalState, revision: u32) -> GoalState {
    macro_rules! each {
        ($($list:ident),+) => {
            $(for state in &mut state.$list {
                state.operation_type = OperationType::Delete.into();
                if let Some(configuration) = &mut state.configuration {
                    configuration.revision_number = revision;
                }
            })+
        };
    }
    each!(subnet_states, neighbor_states, security_group_states, dhcp_states, router_states);
    state
}

impl Wanted {
    /// The cloud as it concerns a host, and up to so many random resources beside it, nine of ten of them neighbours.
    #[must_use]
    pub fn new(cloud: &Cloud, host: &str, resources: u32, random: Random) -> Self {
        let few = if resources == 0 { 0 } else { (resources / 40).max(2) };
        let pool = vec![
            (ResourceType::Neighbor, resources.saturating_sub(4 * few)),
            (ResourceType::Securitygroup, few),
            (ResourceType::Dhcp, few),
            (ResourceType::Subnet, few),
            (ResourceType::Router, few),
        ];
        Self { ground: cloud.goal_state(host), random, pool, held: BTreeMap::new(), revision: 1 }
    }

    /// Everything that is wanted.
    #[must_use]
    pub fn everything(&self) -> GoalState {
        let mut all = self.ground.clone();
        self.held.values().for_each(|state| add(&mut all, state.clone()));
        all
    }

    /// Wants all that there may be, always in the same way; the message that says so.
    pub fn fill(&mut self) -> GoalState {
        let keys: Vec<Key> =
            self.pool.iter().flat_map(|(kind, count)| (0..*count).map(|number| (*kind, number))).collect();
        let mut message = self.ground.clone();
        for key in keys {
            let mut same = Random::of(u64::from(key.1));
            add(&mut message, self.make(key, &mut same));
        }
        message
    }

    /// Changes up to so many of the random resources; the message that says so.
    pub fn change(&mut self, count: u32) -> GoalState {
        let all: u32 = self.pool.iter().map(|(_, count)| count).sum();
        let mut message = part();
        let mut chosen = std::collections::BTreeSet::new();
        for _ in 0..count {
            let mut number = self.random.below(all);
            let mut kind = ResourceType::Neighbor;
            for (of, count) in &self.pool {
                kind = *of;
                if number < *count {
                    break;
                }
                number -= count;
            }
            if !chosen.insert((kind, number)) {
                continue;
            }
            if self.held.contains_key(&(kind, number)) && self.random.below(3) == 0 {
                self.revision += 1;
                let gone = self.held.remove(&(kind, number)).unwrap_or_default();
                add(&mut message, deleted(gone, self.revision));
            } else {
                let mut random = self.random.clone();
                add(&mut message, self.make((kind, number), &mut random));
                self.random = random;
            }
        }
        message
    }

    /// Wants up to so many neighbours less; the message that says so.
    pub fn shrink(&mut self, count: usize) -> GoalState {
        let is_neighbour = |key: &&Key| key.0 == ResourceType::Neighbor;
        let keys: Vec<Key> = self.held.keys().filter(is_neighbour).take(count).copied().collect();
        let mut message = part();
        for key in keys {
            self.revision += 1;
            let gone = self.held.remove(&key).unwrap_or_default();
            add(&mut message, deleted(gone, self.revision));
        }
        message
    }

    /// Wants a resource, in a way of its own.
    fn make(&mut self, (kind, number): Key, random: &mut Random) -> GoalState {
        self.revision += 1;
        let (revision, create) = (self.revision, i32::from(OperationType::Create));
        let full = i32::from(UpdateType::Full);
        let [_, _, high, low] = number.to_be_bytes();
        let subnet = format!("x{}", random.below(4));
        let mut state = part();
        match kind {
            ResourceType::Subnet => {
                state.subnet_states.push(SubnetState {
                    operation_type: create,
                    configuration: Some(SubnetConfiguration {
                        revision_number: revision,
                        id: format!("x{number}"),
                        update_type: full,
                        vpc_id: "red".into(),
                        cidr: format!("172.{}.{}.0/24", 16 + number / 256, number % 256),
                        tunnel_id: u64::from(10_000 + number * 4 + random.below(4)),
                        ..Default::default()
                    }),
                });
            }
            ResourceType::Securitygroup => {
                let id = format!("g{number}");
                let rules = (0..random.below(8)).map(|rule| SecurityGroupRule {
                    security_group_id: id.clone(),
                    id: format!("{id}-{rule}"),
                    protocol: 1,
                    port_range_min: 80,
                    port_range_max: 80 + rule,
                    ..Default::default()
                });
                state.security_group_states.push(SecurityGroupState {
                    operation_type: create,
                    configuration: Some(SecurityGroupConfiguration {
                        revision_number: revision,
                        id: id.clone(),
                        update_type: full,
                        vpc_id: "red".into(),
                        security_group_rules: rules.collect(),
                        ..Default::default()
                    }),
                });
            }
            ResourceType::Dhcp => {
                state.dhcp_states.push(DhcpState {
                    operation_type: create,
                    configuration: Some(DhcpConfiguration {
                        revision_number: revision,
                        update_type: full,
                        subnet_id: "web".into(),
                        mac_address: format!("02:dd:00:00:{high:02x}:{low:02x}"),
                        ipv4_address: format!("10.1.0.{}", 100 + random.below(100)),
                        ..Default::default()
                    }),
                });
            }
            ResourceType::Router => {
                let tables = [router_configuration::SubnetRoutingTable {
                    // No two routers hold one subnet.
                    subnet_id: format!("x{number}"),
                    routing_rules: (0..random.below(5))
                        .map(|rule| router_configuration::RoutingRule {
                            id: format!("r{number}-{rule}"),
                            destination: format!("192.168.{rule}.0/24"),
                            next_hop_ip: format!("172.{}.{}.9", 16 + number / 256, number % 256),
                            ..Default::default()
                        })
                        .collect(),
                }];
                state.router_states.push(RouterState {
                    operation_type: create,
                    configuration: Some(RouterConfiguration {
                        revision_number: revision,
                        id: format!("r{number}"),
                        update_type: full,
                        subnet_routing_tables: tables.to_vec(),
                        ..Default::default()
                    }),
                });
            }
            _ => {
                let (subnet, net) = match random.below(8) {
                    // Its subnet may not be there: it waits.
                    0 => (subnet, 172),
                    _ => ("web".to_owned(), 10),
                };
                state.neighbor_states.push(NeighborState {
                    operation_type: create,
                    configuration: Some(NeighborConfiguration {
                        revision_number: revision,
                        id: format!("{number:08x}-5555-4222-8333-444455556666"),
                        update_type: full,
                        vpc_id: "red".into(),
                        mac_address: format!("06:01:00:00:{high:02x}:{low:02x}"),
                        host_ip_address: format!("172.31.9.{}", 1 + random.below(20)),
                        fixed_ips: vec![neighbor_configuration::FixedIp {
                            subnet_id: subnet,
                            ip_address: format!("{net}.9.{high}.{low}"),
                            ..Default::default()
                        }],
                        ..Default::default()
                    }),
                });
            }
        }
        self.held.insert((kind, number), state.clone());
        state
    }

    /// The digests that a host has which holds just that, as `ncmctl digest` shows them.
    ///
    /// # Errors
    /// If it is no valid goal state.
    pub fn digests(&self) -> Result<Vec<Value>> {
        digests(&self.everything())
    }

    /// The host holds just that now.
    ///
    /// # Errors
    /// If the agent does not say what it holds.
    pub fn is_held(&self, host: &Host) -> Result<bool> {
        Ok(held(host)? == self.digests()?)
    }

    /// Expects that the host has come to what is wanted: it holds that and nothing else, and the kernel's tables and hooks are what
    /// follows from it, entry by entry.
    ///
    /// # Errors
    /// If it does not within ten seconds.
    pub fn expect_converged(&self, host: &Host) -> Result<()> {
        expect_converged(host, &self.everything())
    }
}

/// The digests of a goal state, from a model of our own.
fn digests(state: &GoalState) -> Result<Vec<Value>> {
    let mut model = Model::new(Settings::default(), &Seed::default());
    let message = Message::decode_v1(state.encode_to_vec().into()).map_err(|error| anyhow!("{error}"))?;
    let mut run = Run::new(message, Origin::Controller, 1);
    while model.step(&mut run, 8192, &mut Changes::default()) == Progress::More {}
    let digests = model.digests().into_iter();
    Ok(digests
        .map(|digest| {
            serde_json::json!({
                "type": digest.resource_type.as_str_name(),
                "vpcId": digest.vpc,
                "count": digest.count,
                "digest": format!("{:032x}", digest.sum),
            })
        })
        .collect())
}

/// The digests that a host says it has.
fn held(host: &Host) -> Result<Vec<Value>> {
    let shown: Value = serde_json::from_str(&host.expect_ncmctl(&["digest", "-o", "json"])?)?;
    Ok(shown["digests"].as_array().context("digests")?.clone())
}

/// The same of any goal state.
///
/// # Errors
/// If the host does not come to it within ten seconds.
pub fn expect_converged(host: &Host, state: &GoalState) -> Result<()> {
    let expected = digests(state)?;
    let converged =
        eventually("the host holds what is wanted", Duration::from_secs(10), || Ok(held(host)? == expected));
    converged.with_context(|| format!("wanted: {expected:?}\nheld: {:?}", held(host).unwrap_or_default()))?;
    let mut said = String::new();
    let verified = eventually("the tables are what follows from it", Duration::from_secs(10), || {
        let verified = host.ncmctl(&["verify"])?;
        said = verified.stdout + &verified.stderr;
        Ok(verified.success)
    });
    verified.with_context(|| said)?;
    let alive = host.agent_mut().process().runs();
    ensure!(alive, "the agent has ended");
    Ok(())
}
