//! Interfaces that come late, go and come back; ports that are deleted while others go on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_model::wire::{GoalState, NeighborType, OperationStatus, OperationType};
use ncm_tests::testbed::{Cloud, Guest, HostOptions, Lab, TwoHosts, eventually};

fn cloud() -> Cloud {
    let mut cloud = Cloud::new();
    cloud
        .vpc("red", 100)
        .subnet("web", "red", "10.1.0.0/24")
        .port("a", "web", "10.1.0.11", "host1")
        .port("b", "web", "10.1.0.12", "host2")
        .port("c", "web", "10.1.0.13", "host2");
    cloud
}

fn message() -> GoalState {
    GoalState { format_version: 101, ..Default::default() }
}

#[test]
fn a_port_waits_for_its_interface_and_then_works_by_itself() {
    Lab::story(|lab| {
        let cloud = cloud();
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let mut a = Guest::unplugged(lab, &net.host1.ns, cloud.guest_spec("a")?)?;
        let b = cloud.guest(lab, &net.host2, "b")?;
        let _c = cloud.guest(lab, &net.host2, "c")?;
        let statuses = net.host1.agent().push_v2(&cloud.goal_state_v2("host1"))?;
        statuses.expect("a", OperationStatus::Pending).context("a port without its interface")?;
        let statuses = net.host2.agent().push_v2(&cloud.goal_state_v2("host2"))?;
        statuses.expect_success()?;

        a.plug()?;
        a.expect_ping(b.ip())?;
        eventually("the port is no longer pending", Duration::from_secs(2), || {
            let shown = net.host1.expect_ncmctl(&["get", "port", "a", "-o", "json"])?;
            Ok(shown.to_uppercase().contains("SUCCESS") && !shown.to_uppercase().contains("PENDING"))
        })
    });
}

fn comes_back(lab: &Lab, taps: bool) -> Result<()> {
    let cloud = Cloud { taps, ..cloud() };
    let net = TwoHosts::new(lab, HostOptions::default())?;
    let mut a = cloud.guest(lab, &net.host1, "a")?;
    let b = cloud.guest(lab, &net.host2, "b")?;
    let _c = cloud.guest(lab, &net.host2, "c")?;
    net.push(&cloud)?;
    a.expect_ping(b.ip())?;
    let interface = Cloud::interface("a");
    for _ in 0..3 {
        let before = net.host1.ns.ifindex(&interface)?;
        a.unplug()?;
        a.plug()?;
        let after = net.host1.ns.ifindex(&interface)?;
        ensure!(before != after, "the interface was not re-created under another index");
        a.expect_ping(b.ip()).context("from the re-created interface")?;
        b.expect_ping(a.ip()).context("to the re-created interface")?;
    }
    a.expect_tcp(&b, 1_000_000).map(drop)
}

#[test]
fn a_recreated_veth_is_attached_again() {
    Lab::story(|lab| comes_back(lab, false));
}

#[test]
fn a_recreated_tap_is_attached_again() {
    Lab::story(|lab| comes_back(lab, true));
}

#[test]
fn a_port_deleted_while_it_waits_stays_deleted() {
    Lab::story(|lab| {
        let cloud = cloud();
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let mut a = Guest::unplugged(lab, &net.host1.ns, cloud.guest_spec("a")?)?;
        let (b, _c) = (cloud.guest(lab, &net.host2, "b")?, cloud.guest(lab, &net.host2, "c")?);
        net.host1.agent().push(&cloud.goal_state("host1"))?.expect("a", OperationStatus::Pending)?;
        net.host2.agent().push(&cloud.goal_state("host2"))?.expect_success()?;
        let mut push = message();
        push.port_states.push(cloud.port_state("a", OperationType::Delete));
        net.host1.agent().push(&push)?.expect_success()?;
        a.plug()?;
        ensure!(!a.ns.pings(b.ip())?, "a deleted port came to life with its interface");
        Ok(())
    });
}

#[test]
fn deleting_a_port_or_a_neighbour_stops_its_traffic_and_no_other() {
    Lab::story(|lab| {
        let cloud = cloud();
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let a = cloud.guest(lab, &net.host1, "a")?;
        let (b, c) = (cloud.guest(lab, &net.host2, "b")?, cloud.guest(lab, &net.host2, "c")?);
        net.push(&cloud)?;
        a.expect_ping(b.ip())?;
        a.expect_ping(c.ip())?;
        let on = a.begin_ping(c.ip())?;

        let mut push = message();
        push.neighbor_states.push(cloud.neighbor_state("b", NeighborType::L2, OperationType::Delete));
        net.host1.agent().push(&push)?.expect_success()?;
        a.expect_no_ping(b.ip()).context("after the neighbour was deleted")?;
        ensure!(a.arp(b.ip())?.is_none(), "ARP for a deleted neighbour is still answered");

        push.neighbor_states[0].operation_type = OperationType::Create.into();
        net.host1.agent().push(&push)?.expect_success()?;
        a.expect_ping(b.ip()).context("after the neighbour came back")?;

        let mut push = message();
        push.port_states.push(cloud.port_state("b", OperationType::Delete));
        net.host2.agent().push(&push)?.expect_success()?;
        a.expect_no_ping(b.ip()).context("after the port was deleted")?;
        push.port_states[0].operation_type = OperationType::Create.into();
        net.host2.agent().push(&push)?.expect_success()?;
        a.expect_ping(b.ip()).context("after the port came back")?;
        on.expect_no_loss().context("another guest, all the while")
    });
}

#[test]
fn a_port_administratively_down_drops_under_its_own_reason() {
    Lab::story(|lab| {
        let cloud = cloud();
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let a = cloud.guest(lab, &net.host1, "a")?;
        let (b, _c) = (cloud.guest(lab, &net.host2, "b")?, cloud.guest(lab, &net.host2, "c")?);
        net.push(&cloud)?;
        a.expect_ping(b.ip())?;
        let mut push = message();
        push.port_states.push(cloud.port_state("a", OperationType::Update));
        if let Some(configuration) = &mut push.port_states[0].configuration {
            configuration.admin_state_up = false;
        }
        net.host1.agent().push(&push)?.expect_success()?;
        net.host1.expect_drop("port_down", || a.ns.pings(b.ip()).map(drop))?;
        net.host1.expect_drop("port_down", || b.ns.pings(a.ip()).map(drop))?;
        a.expect_no_ping(b.ip())?;
        if let Some(configuration) = &mut push.port_states[0].configuration {
            configuration.admin_state_up = true;
        }
        net.host1.agent().push(&push)?.expect_success()?;
        a.expect_ping(b.ip())
    });
}

#[test]
fn a_port_with_a_security_group_that_is_not_held_stays_closed() {
    Lab::story(|lab| {
        let cloud = cloud();
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let a = cloud.guest(lab, &net.host1, "a")?;
        let (b, _c) = (cloud.guest(lab, &net.host2, "b")?, cloud.guest(lab, &net.host2, "c")?);
        net.host2.agent().push(&cloud.goal_state("host2"))?.expect_success()?;
        let mut push = cloud.goal_state("host1");
        if let Some(configuration) = &mut push.port_states[0].configuration {
            let group = ncm_model::wire::port_configuration::SecurityGroupId { id: "sg-1".to_owned() };
            configuration.security_group_ids.push(group);
        }
        net.host1.agent().push(&push)?.expect("a", OperationStatus::Pending)?;
        net.host1.expect_drop("port_closed", || a.ns.pings(b.ip()).map(drop))?;
        ensure!(!b.ns.pings(a.ip())?, "a closed port was reached");
        net.push(&cloud)?;
        a.expect_ping(b.ip()).context("after the port no longer names the group")
    });
}
