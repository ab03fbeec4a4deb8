//! The underlay followed against a real kernel: hosts, gateways and uplinks in network namespaces. Needs root.

mod netlink_common;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use ncm_agent::netlink::underlay::{
    Adopted, Endpoints, HostChange, Settings, TableSink, TableWrite, Underlay, release_neighbours,
};
use ncm_common::tables::{Host, Name, NextHop, NextHopGroup, Uplink};
use netlink_common::{Namespace, eventually};

/// The tables as they were written.
#[derive(Clone, Default)]
struct Tables(Arc<Mutex<Content>>);

#[derive(Default)]
struct Content {
    groups: BTreeMap<u32, NextHopGroup>,
    hosts: BTreeMap<u32, Host>,
    names: BTreeMap<u32, Name>,
    uplinks: [Uplink; 8],
}

impl TableSink for Tables {
    fn write(&mut self, write: &TableWrite) -> Result<(), String> {
        let mut content = self.0.lock().expect("the tables");
        match *write {
            TableWrite::Group { index, value } if value == NextHopGroup::default() => {
                content.groups.remove(&index);
            }
            TableWrite::Group { index, value } => {
                content.groups.insert(index, value);
            }
            TableWrite::Host { index, value } if value == Host::default() => {
                content.hosts.remove(&index);
            }
            TableWrite::Host { index, value } => {
                content.hosts.insert(index, value);
            }
            TableWrite::GroupName { index, name: Some(name) } => {
                content.names.insert(index, name);
            }
            TableWrite::GroupName { index, name: None } => {
                content.names.remove(&index);
            }
            TableWrite::Uplinks(uplinks) => content.uplinks = uplinks,
        }
        Ok(())
    }
}

impl Tables {
    /// The MTU and the next hops that packets to a host take now.
    fn path(&self, host: u32) -> Result<(u16, Vec<NextHop>), String> {
        let content = self.0.lock().expect("the tables");
        let host = content.hosts.get(&host).ok_or("the host's slot is empty")?;
        let template = host.halves[host.active as usize];
        if template.group == 0 {
            return Err("the host has no group".to_owned());
        }
        let group = content.groups.get(&template.group).ok_or("the host's group is empty")?;
        let half = group.halves[group.active as usize];
        Ok((template.mtu, half.hops[..half.count as usize].to_vec()))
    }

    /// The MACs of the underlay's interfaces.
    fn uplinks(&self) -> Vec<[u8; 6]> {
        let content = self.0.lock().expect("the tables");
        content.uplinks.iter().filter(|uplink| uplink.ifindex != 0).map(|uplink| uplink.mac).collect()
    }

    /// The destination MACs of the next hops to a host.
    fn macs(&self, host: u32) -> Result<Vec<[u8; 6]>, String> {
        Ok(self.path(host)?.1.iter().map(|hop| hop.destination).collect())
    }

    fn expect(&self, host: u32, expected: &[[u8; 6]]) -> Result<(), String> {
        let macs = self.macs(host)?;
        if macs == expected {
            Ok(())
        } else {
            Err(format!("the next hops are {macs:02x?}, not {expected:02x?}"))
        }
    }

    fn left(&self) -> Adopted {
        let content = self.0.lock().expect("the tables");
        let text = |index| {
            let name: &Name = &content.names[index];
            String::from_utf8_lossy(&name.text[..name.len as usize]).into_owned()
        };
        Adopted {
            hosts: content.hosts.iter().map(|(index, host)| (*index, *host)).collect(),
            groups: content.groups.iter().map(|(index, group)| (*index, text(index), *group)).collect(),
        }
    }
}

const OWN: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// A host behind the gateway, and one on the link itself.
const BEHIND: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const BESIDE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);

/// The same over IPv6.
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 1);
const BEHIND_V6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);
const BESIDE_V6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2);

fn settings() -> Settings {
    let endpoints = Endpoints { v4: Some(OWN), v6: Some(OWN_V6) };
    Settings::new(endpoints, 4789, vec!["up1".to_owned(), "up2".to_owned()], 64)
}

fn remove(index: u32) -> HostChange {
    HostChange::Remove { index, address: Ipv4Addr::UNSPECIFIED.into() }
}

fn add(index: u32, address: impl Into<IpAddr>) -> HostChange {
    HostChange::Add { index, generation: 1, address: address.into() }
}

/// A MAC that tells gateways apart.
fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

/// A host with two uplinks; at the far end of each a gateway (10.1.0.2 and 10.2.0.2, fd01::2 and fd02::2, MACs ending in 1 and 2).
struct Site {
    host: Namespace,
    gateways: [Namespace; 2],
}

impl Site {
    fn new(purpose: &str) -> Self {
        let site = Self::without_uplinks(purpose);
        for number in [1, 2] {
            site.uplink(number);
            site.gateways[usize::from(number) - 1]
                .ip(&format!("addr add fd0{number}::2/64 dev down{number} nodad"));
            site.host.ip(&format!("addr add fd0{number}::1/64 dev up{number} nodad"));
        }
        site
    }

    fn without_uplinks(purpose: &str) -> Self {
        let gateways = [Namespace::new(purpose), Namespace::new(purpose)];
        Self { host: Namespace::new(purpose), gateways }
    }

    fn uplink(&self, number: u8) {
        let gateway = &self.gateways[usize::from(number) - 1];
        self.host.ip(&format!(
            "link add up{number} mtu 1450 type veth peer name down{number} netns {}",
            gateway.name()
        ));
        gateway.ip(&format!("link set down{number} address 02:00:00:00:00:{number:02x} up"));
        gateway.ip(&format!("addr add 10.{number}.0.2/24 dev down{number}"));
        self.host.ip(&format!("addr add 10.{number}.0.1/24 dev up{number}"));
        self.host.ip(&format!("link set up{number} up"));
    }
}

async fn start(tables: &Tables) -> Underlay {
    Underlay::start(settings(), Adopted::default(), Box::new(tables.clone()))
        .await
        .expect("follow the underlay")
}

#[test]
fn a_gateway_is_resolved_kept_and_released() {
    let site = Site::new("keep");
    site.host.ip("route add 10.9.0.0/16 via 10.1.0.2");
    site.host.run(async || {
        let tables = Tables::default();
        let underlay = start(&tables).await;
        assert_eq!(underlay.change_hosts(&[add(1, BEHIND), add(2, BESIDE)]), []);
        eventually("the resolved gateway", || tables.expect(1, &[mac(1)])).await;
        eventually("the resolved neighbour", || tables.expect(2, &[mac(1)])).await;
        let (mtu, hops) = tables.path(1).unwrap();
        assert_eq!((mtu, hops[0].vlan), (1450, 0));
        assert_eq!(tables.path(2).unwrap().1, hops, "the same next hop, as the host beside is the gateway");
        let neighbours = site.host.ip("neigh show dev up1");
        assert!(neighbours.contains("managed"), "the next hop is not kept: {neighbours}");
        underlay.change_hosts(&[remove(1)]);
        assert!(tables.path(1).is_err() && tables.path(2).is_ok());
        underlay.change_hosts(&[remove(2)]);
        eventually("the next hop to be released", || {
            let neighbours = site.host.ip("neigh show dev up1");
            if neighbours.contains("managed") { Err(neighbours) } else { Ok(()) }
        })
        .await;
        assert!(tables.left().groups.is_empty() && tables.left().hosts.is_empty(), "slots are left");
    });
}

#[test]
fn tearing_down_releases_what_was_kept_and_nothing_else() {
    let site = Site::new("down");
    site.host.ip("neigh add 10.1.0.9 dev up1 managed");
    site.host.run(async || {
        let tables = Tables::default();
        let underlay = start(&tables).await;
        underlay.change_hosts(&[add(1, BESIDE)]);
        eventually("the neighbour", || tables.expect(1, &[mac(1)])).await;
        drop(underlay);
        assert_eq!(site.host.ip("neigh show dev up1").matches("managed").count(), 2);
        release_neighbours().await.unwrap();
        let left = site.host.ip("neigh show dev up1");
        let kept: Vec<&str> = left.lines().filter(|line| line.contains("managed")).collect();
        assert!(kept.len() == 1 && kept[0].starts_with("10.1.0.9 "), "kept are: {left}");
    });
}

#[test]
fn an_entry_given_by_hand_is_used_and_left_alone() {
    let site = Site::new("hand");
    site.host.ip("neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev up1 nud permanent");
    site.host.run(async || {
        let tables = Tables::default();
        let underlay = start(&tables).await;
        underlay.change_hosts(&[add(1, Ipv4Addr::new(10, 1, 0, 9))]);
        eventually("the entry's MAC", || tables.expect(1, &[mac(9)])).await;
        underlay.change_hosts(&[remove(1)]);
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        assert!(site.host.ip("neigh show dev up1").contains("PERMANENT"));
    });
}

#[test]
fn a_gateways_announced_mac_is_followed_at_once() {
    let site = Site::new("mac");
    site.host.ip("route add 10.9.0.0/16 via 10.1.0.2");
    site.host.run(async || {
        let tables = Tables::default();
        let underlay = start(&tables).await;
        underlay.change_hosts(&[add(1, BEHIND)]);
        eventually("the first MAC", || tables.expect(1, &[mac(1)])).await;
        site.gateways[0].ip("link set down1 down");
        site.gateways[0].ip("link set down1 address 02:00:00:00:00:77 up");
        // It waits for an answer that an announcement does not get.
        site.gateways[0].command_any("arping -c 1 -w 1 -U -I down1 10.1.0.2");
        eventually("the new MAC", || tables.expect(1, &[mac(0x77)])).await;
    });
}

#[test]
fn a_gateways_new_mac_is_found_without_an_announcement_and_without_traffic() {
    let site = Site::new("probe");
    site.host.ip("route add 10.9.0.0/16 via 10.1.0.2");
    site.host.run(async || {
        for (key, value) in [("base_reachable_time_ms", "500"), ("delay_first_probe_time", "1")] {
            std::fs::write(format!("/proc/sys/net/ipv4/neigh/up1/{key}"), value).unwrap();
        }
        let tables = Tables::default();
        let underlay = start(&tables).await;
        underlay.change_hosts(&[add(1, BEHIND)]);
        eventually("the first MAC", || tables.expect(1, &[mac(1)])).await;
        site.gateways[0].ip("link set down1 address 02:00:00:00:00:77");
        for _ in 0..4 {
            tokio::time::sleep(std::time::Duration::from_secs(5)).await;
            if tables.expect(1, &[mac(0x77)]).is_ok() {
                return;
            }
        }
        tables.expect(1, &[mac(0x77)]).expect("the kernel's probing finds the new MAC");
    });
}

#[test]
fn one_of_two_equal_paths_is_lost_and_returns() {
    let site = Site::new("paths");
    site.host.ip("route add 10.9.0.0/16 nexthop via 10.1.0.2 weight 1 nexthop via 10.2.0.2 weight 3");
    site.host.run(async || {
        let tables = Tables::default();
        let underlay = start(&tables).await;
        underlay.change_hosts(&[add(1, BEHIND)]);
        let both = [mac(1), mac(2), mac(2), mac(2)];
        eventually("both paths, by weight", || tables.expect(1, &both)).await;
        site.gateways[0].ip("link set down1 down");
        eventually("the other path alone", || tables.expect(1, &[mac(2)])).await;
        site.gateways[0].ip("link set down1 up");
        eventually("both paths again", || tables.expect(1, &both)).await;
        site.host.ip("route replace 10.9.0.0/16 via 10.2.0.2");
        eventually("the replaced route", || tables.expect(1, &[mac(2)])).await;
        site.host.ip("route add 10.9.0.0/24 via 10.1.0.2");
        eventually("the longer prefix", || tables.expect(1, &[mac(1)])).await;
        site.host.ip("route del 10.9.0.0/24");
        eventually("the shorter prefix again", || tables.expect(1, &[mac(2)])).await;
        site.host.ip("route replace 10.9.0.0/16 via 10.2.0.2 mtu 1300");
        eventually("the route's MTU", || match tables.path(1)? {
            (1300, _) => Ok(()),
            (mtu, _) => Err(format!("the MTU is {mtu}")),
        })
        .await;
    });
}

#[test]
fn next_hop_objects_are_followed() {
    let site = Site::new("objects");
    site.host.ip("nexthop add id 1 via 10.1.0.2 dev up1");
    site.host.ip("nexthop add id 2 via 10.2.0.2 dev up2");
    site.host.ip("nexthop add id 10 group 1/2");
    site.host.ip("route add 10.9.0.0/16 nhid 10");
    site.host.run(async || {
        let tables = Tables::default();
        let underlay = start(&tables).await;
        underlay.change_hosts(&[add(1, BEHIND)]);
        eventually("both objects", || tables.expect(1, &[mac(1), mac(2)])).await;
        site.host.ip("nexthop replace id 10 group 2");
        eventually("the group's one member", || tables.expect(1, &[mac(2)])).await;
        site.host.ip("nexthop replace id 2 via 10.1.0.2 dev up1");
        eventually("the member's new gateway", || tables.expect(1, &[mac(1)])).await;
        site.host.ip("nexthop del id 10");
        eventually("no way at all", || match tables.path(1) {
            Err(_) => Ok(()),
            Ok(path) => Err(format!("{path:?}")),
        })
        .await;
        assert!(underlay.report()[0].problem.is_some());
    });
}

#[test]
fn an_uplink_that_flaps_or_is_made_anew_is_used_again() {
    let site = Site::new("flap");
    site.host.run(async || {
        let tables = Tables::default();
        let underlay = start(&tables).await;
        underlay.change_hosts(&[add(1, BESIDE)]);
        eventually("the neighbour", || tables.expect(1, &[mac(1)])).await;
        site.host.ip("link set up1 down");
        eventually("no way", || match tables.macs(1) {
            Ok(macs) if !macs.is_empty() => Err(format!("{macs:02x?}")),
            _ => Ok(()),
        })
        .await;
        site.host.ip("link set up1 up");
        eventually("the neighbour again", || tables.expect(1, &[mac(1)])).await;
        let before = tables.path(1).unwrap().1[0];
        site.host.ip("link del up1");
        site.uplink(1);
        eventually("the neighbour by the new interface", || {
            tables.expect(1, &[mac(1)])?;
            let now = tables.path(1)?.1[0];
            if now.ifindex == before.ifindex { Err(format!("it is the old one: {now:?}")) } else { Ok(()) }
        })
        .await;
        assert!(underlay.is_following() && underlay.is_settled());
    });
}

#[test]
fn what_is_not_the_underlay_or_is_ourselves_is_no_way() {
    let site = Site::new("alien");
    site.host.ip("link add other type veth peer name far");
    site.host.ip("link set other up");
    site.host.ip("link set far up");
    site.host.ip("addr add 10.4.0.1/24 dev other");
    site.host.run(async || {
        let tables = Tables::default();
        let underlay = start(&tables).await;
        let hosts =
            ["10.4.0.2", "10.1.0.1", "10.2.0.1", "99.0.0.1", "fd01::1", "fd02::1", "fd00::1", "fe80::1"];
        let address = |text: &&str| text.parse::<IpAddr>().unwrap();
        let changes: Vec<HostChange> =
            (1..).zip(hosts.iter().map(address)).map(|(i, ip)| add(i, ip)).collect();
        assert_eq!(underlay.change_hosts(&changes), []);
        for report in underlay.report() {
            assert!(report.problem.is_some() && report.group == 0, "a way to {report:?}");
        }
    });
}

#[test]
fn after_an_overrun_everything_is_right_again() {
    let site = Site::new("lost");
    site.host.run(async || {
        let tables = Tables::default();
        let settings = Settings { receive_buffer: 4096, ..settings() };
        let underlay = Underlay::start(settings, Adopted::default(), Box::new(tables.clone())).await.unwrap();
        underlay.change_hosts(&[add(1, BEHIND)]);
        // Nobody reads while these run: the buffer overflows.
        for number in 0..50 {
            site.host.ip(&format!("route add 10.{}.0.0/24 via 10.1.0.2", 100 + number));
        }
        site.host.ip("route add 10.9.0.0/16 via 10.2.0.2");
        eventually("the route that was not told of", || tables.expect(1, &[mac(2)])).await;
        assert!(underlay.is_following());
    });
}

#[test]
fn a_new_agent_takes_over_hosts_and_groups_under_their_indices() {
    let site = Site::new("adopt");
    site.host.ip("route add 10.9.0.0/16 via 10.1.0.2");
    site.host.run(async || {
        let tables = Tables::default();
        let underlay = start(&tables).await;
        underlay.change_hosts(&[add(7, BEHIND), add(3, Ipv4Addr::new(10, 2, 0, 2))]);
        eventually("the gateway", || tables.expect(7, &[mac(1)])).await;
        eventually("the neighbour", || tables.expect(3, &[mac(2)])).await;
        drop(underlay);
        let left = tables.left();
        let again = Underlay::start(settings(), left.clone(), Box::new(tables.clone())).await.unwrap();
        let now = tables.left();
        assert_eq!((now.hosts, now.groups), (left.hosts, left.groups), "nothing changed, nothing is written");
        assert_eq!(again.change_hosts(&[add(7, BEHIND)]), []);
        site.gateways[0].ip("link set down1 address 02:00:00:00:00:55");
        site.host.ip("neigh replace 10.1.0.2 lladdr 02:00:00:00:00:55 dev up1 nud reachable");
        eventually("the adopted host to be followed", || tables.expect(7, &[mac(0x55)])).await;
        again.change_hosts(&[remove(3), remove(7)]);
        assert!(tables.left().groups.is_empty() && tables.left().hosts.is_empty(), "slots are left");
    });
}

#[test]
fn more_next_hops_than_the_neighbour_table_usually_holds_are_kept() {
    let site = Site::new("many");
    let many = 2_500;
    site.host.ip("addr add 10.17.0.1/15 dev up1");
    site.gateways[0].ip("addr add 10.17.0.2/15 dev down1");
    // The far side answers for all of the prefix.
    site.gateways[0].ip("route add local 10.16.0.0/16 dev lo");
    site.host.run(async || {
        let tables = Tables::default();
        let settings = Settings { groups: 4096, ..settings() };
        let underlay = Underlay::start(settings, Adopted::default(), Box::new(tables.clone())).await.unwrap();
        let address = |index: u32| Ipv4Addr::from_bits(0x0a10_0100 + index);
        let changes: Vec<HostChange> = (1..=many).map(|index| add(index, address(index))).collect();
        assert_eq!(underlay.change_hosts(&changes), []);
        eventually("all next hops to be resolved", || match underlay.counts() {
            (2_500, 0) => Ok(()),
            (hosts, unresolved) => Err(format!("{unresolved} of {hosts} are unresolved")),
        })
        .await;
        for index in [1, many] {
            tables.expect(index, &[mac(1)]).unwrap();
        }
    });
}

#[test]
fn an_agent_may_start_before_its_uplinks() {
    let site = Site::without_uplinks("early");
    site.host.run(async || {
        let tables = Tables::default();
        let underlay = start(&tables).await;
        assert_eq!(underlay.change_hosts(&[add(1, BESIDE), add(2, BEHIND)]), []);
        assert_eq!(underlay.counts(), (2, 2));
        site.uplink(1);
        eventually("the neighbour", || tables.expect(1, &[mac(1)])).await;
        site.host.ip("route add default via 10.1.0.2");
        eventually("the default route", || tables.expect(2, &[mac(1)])).await;
        assert_eq!(underlay.counts(), (2, 0));
    });
}

#[test]
fn an_uplink_that_appears_late_is_opened_when_new_interfaces_are_closed() {
    let site = Site::new("open");
    site.host.ip("link del up2");
    site.host.run(async || {
        ncm_agent::netlink::sysctl::close_new_interfaces().unwrap();
        let tables = Tables::default();
        let underlay = start(&tables).await;
        site.uplink(2);
        underlay.change_hosts(&[add(1, Ipv4Addr::new(10, 2, 0, 2))]);
        eventually("the neighbour", || tables.expect(1, &[mac(2)])).await;
        site.gateways[1].ip("neigh flush all");
        site.gateways[1].command("ping -c 1 -W 2 10.2.0.1");
    });
}

#[test]
fn hosts_over_ipv6_are_followed_as_those_over_ipv4() {
    let site = Site::new("six");
    site.host.ip("-6 route add fd09::/16 via fd01::2");
    site.host.run(async || {
        let tables = Tables::default();
        let underlay = start(&tables).await;
        assert_eq!(underlay.change_hosts(&[add(1, BEHIND_V6), add(2, BESIDE_V6), add(3, BESIDE)]), []);
        for host in [1, 2, 3] {
            eventually("the resolved neighbour", || tables.expect(host, &[mac(1)])).await;
        }
        assert_eq!(tables.path(1).unwrap(), (1450, tables.path(2).unwrap().1));
        let neighbours = site.host.ip("-6 neigh show dev up1");
        assert!(neighbours.contains("managed"), "the next hop is not kept: {neighbours}");

        // A gateway with another MAC, which its kernel announces.
        site.gateways[0].command("sysctl -qw net.ipv6.conf.down1.ndisc_notify=1");
        site.gateways[0].ip("link set down1 address 02:00:00:00:00:07");
        eventually("the gateway's new MAC", || tables.expect(1, &[mac(7)])).await;

        // Another route, then two ways, added in one piece and one by one.
        site.host.ip("-6 route replace fd09::/16 via fd02::2");
        eventually("the other gateway", || tables.expect(1, &[mac(2)])).await;
        site.host.ip("-6 route replace fd09::/16 nexthop via fd01::2 nexthop via fd02::2");
        eventually("both gateways", || tables.expect(1, &[mac(7), mac(2)])).await;
        site.host.ip("-6 route del fd09::/16 via fd01::2");
        eventually("one gateway", || tables.expect(1, &[mac(2)])).await;
        site.host.ip("-6 route append fd09::/16 via fd01::2");
        eventually("both gateways again", || tables.expect(1, &[mac(7), mac(2)])).await;
        site.host.ip("-6 route del fd09::/16");
        site.host.ip("-6 route add fd09::/16 via fd01::2 metric 50 mtu lock 1300");
        eventually("the route's MTU", || match tables.path(1) {
            Ok((1300, hops)) if hops.len() == 1 => Ok(()),
            other => Err(format!("{other:x?}")),
        })
        .await;
        // A next-hop object, and the kernel that removes what is over it without a word.
        site.host.ip("-6 route del fd09::/16");
        site.host.ip("nexthop add id 7 via fd02::2 dev up2");
        site.host.ip("-6 route add fd09::/16 nhid 7");
        eventually("the object's gateway", || tables.expect(1, &[mac(2)])).await;
        site.host.ip("nexthop del id 7");
        eventually("no way any more", || match tables.path(1) {
            Err(_) => Ok(()),
            Ok(path) => Err(format!("{path:x?}")),
        })
        .await;
        // The link goes, and with it its routes and neighbours.
        site.host.ip("-6 route add fd09::/16 nexthop via fd01::2 nexthop via fd02::2");
        eventually("both gateways once more", || tables.expect(1, &[mac(7), mac(2)])).await;
        site.host.ip("link set up1 down");
        eventually("the link that is left", || tables.expect(1, &[mac(2)])).await;
        assert_eq!(underlay.change_hosts(&[1, 2, 3].map(remove)), []);
        eventually("the next hops to be released", || {
            let neighbours = site.host.ip("-6 neigh show");
            if neighbours.contains("managed") { Err(neighbours) } else { Ok(()) }
        })
        .await;
    });
}

#[test]
fn a_host_of_a_version_without_an_endpoint_is_refused_by_name() {
    let site = Site::new("only4");
    site.host.run(async || {
        let tables = Tables::default();
        let endpoints = Endpoints { v6: None, ..settings().endpoints };
        let settings = Settings { endpoints, ..settings() };
        let underlay = Underlay::start(settings, Adopted::default(), Box::new(tables.clone())).await.unwrap();
        let refused = underlay.change_hosts(&[add(1, BESIDE_V6), add(2, BESIDE)]);
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].0, 1);
        assert!(refused[0].1.contains("underlay.endpoint_v6 is not set"), "{refused:?}");
        eventually("the other host", || tables.expect(2, &[mac(1)])).await;
    });
}

#[test]
fn the_macs_of_the_uplinks_and_the_endpoints_are_followed() {
    let site = Site::new("macs");
    site.host.run(async || {
        let tables = Tables::default();
        let underlay = start(&tables).await;
        assert_eq!(tables.uplinks().len(), 2);
        assert_eq!(underlay.missing_endpoints(), [] as [IpAddr; 0]);
        site.host.ip("link set up1 address 02:00:00:00:01:07");
        eventually("the new MAC", || {
            let macs = tables.uplinks();
            if macs.contains(&[2, 0, 0, 0, 1, 7]) { Ok(()) } else { Err(format!("{macs:x?}")) }
        })
        .await;
        for (address, length) in [(IpAddr::from(OWN), 24), (IpAddr::from(OWN_V6), 64)] {
            site.host.ip(&format!("addr del {address}/{length} dev up1"));
            eventually("the missing endpoint", || match &underlay.missing_endpoints()[..] {
                [missing] if *missing == address => Ok(()),
                other => Err(format!("missing are {other:?}")),
            })
            .await;
            site.host.ip(&format!("addr add {address}/{length} dev up1"));
            eventually("the endpoint", || match &underlay.missing_endpoints()[..] {
                [] => Ok(()),
                other => Err(format!("missing are {other:?}")),
            })
            .await;
        }
    });
}
