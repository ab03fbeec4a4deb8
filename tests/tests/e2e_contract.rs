//! A controller's flows against an agent that carries real traffic: V1, V2, streams, neighbour rules, full tables.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_model::wire::{
    GoalState, GoalStateV2, HostResources, NeighborRulesRequest, NeighborType, OperationStatus,
    OperationType, ResourceIdType, ResourceType,
};
use ncm_tests::testbed::{Cloud, Guest, HostOptions, Lab, TwoHosts, eventually};

fn cloud() -> Cloud {
    let mut cloud = Cloud::new();
    cloud.vpc("red", 100).subnet("web", "red", "10.1.0.0/24").port("a", "web", "10.1.0.11", "host1").port(
        "b",
        "web",
        "10.1.0.12",
        "host2",
    );
    cloud
}

fn scene(lab: &Lab, cloud: &Cloud) -> Result<(TwoHosts, Guest, Guest)> {
    let net = TwoHosts::new(lab, HostOptions::default())?;
    let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host2, "b")?);
    Ok((net, a, b))
}

#[test]
fn one_host_by_v1_and_the_other_by_v2() {
    Lab::story(|lab| {
        let cloud = cloud();
        let (net, a, b) = scene(lab, &cloud)?;
        let reply = net.host1.agent().push(&cloud.goal_state("host1"))?;
        reply.expect_success()?;
        ensure!(reply.reply.format_version == 101, "the format version is echoed");
        ensure!(reply.reply.operation_statuses.len() == 4, "one row a resource: {:#?}", reply.reply);
        net.host2.agent().push_v2(&cloud.goal_state_v2("host2"))?.expect_success()?;
        a.expect_ping(b.ip())
    });
}

#[test]
fn one_stream_carries_many_messages_and_others_stay_open() {
    Lab::story(|lab| {
        let cloud = cloud();
        let (net, a, b) = scene(lab, &cloud)?;
        let agent = net.host1.agent();
        // Upstream's warm-up: streams with one empty message each, left open.
        let mut warm = Vec::new();
        for _ in 0..10 {
            let mut stream = agent.stream()?;
            stream.send(GoalStateV2::default())?;
            let reply = stream.reply()?.context("an empty message is answered")?;
            ensure!(
                reply.reply.operation_statuses.is_empty(),
                "rows for an empty message: {:?}",
                reply.reply
            );
            warm.push(stream);
        }
        let whole = cloud.goal_state_v2("host1");
        let mut stream = agent.stream()?;
        let first = GoalStateV2 {
            format_version: 1,
            vpc_states: whole.vpc_states.clone(),
            subnet_states: whole.subnet_states.clone(),
            ..Default::default()
        };
        let second = GoalStateV2 {
            format_version: 2,
            port_states: whole.port_states.clone(),
            neighbor_states: whole.neighbor_states.clone(),
            ..Default::default()
        };
        stream.send(first)?;
        stream.send(second)?;
        for version in [1, 2] {
            let reply = stream.reply()?.context("each message is answered")?;
            reply.expect_success()?;
            ensure!(reply.reply.format_version == version, "replies come in order");
        }
        stream.finish()?;
        net.host2.agent().push_v2(&cloud.goal_state_v2("host2"))?.expect_success()?;
        a.expect_ping(b.ip())
    });
}

#[test]
fn host_resources_name_what_a_host_applies() {
    Lab::story(|lab| {
        let cloud = cloud();
        let (net, a, b) = scene(lab, &cloud)?;
        let neighbor_of = |host: &str, port: &str| {
            let mut push = cloud.goal_state_v2(host);
            let listed =
                |kind: ResourceType, id: &str| ResourceIdType { r#type: kind.into(), id: id.to_owned() };
            let own = vec![listed(ResourceType::Port, host_port(host)), listed(ResourceType::Neighbor, port)];
            push.host_resources.insert(cloud.hosts[host].to_string(), HostResources { resources: own });
            push
        };
        fn host_port(host: &str) -> &'static str {
            if host == "host1" { "a" } else { "b" }
        }
        let foreign = neighbor_of("host2", "a");
        let reply = net.host1.agent().push_v2(&foreign)?;
        ensure!(
            reply.reply.operation_statuses.is_empty(),
            "another host's resources were applied: {reply:?}"
        );
        net.host1.agent().push_v2(&neighbor_of("host1", "b"))?.expect_success()?;
        net.host2.agent().push_v2(&neighbor_of("host2", "a"))?.expect_success()?;
        a.expect_ping(b.ip())
    });
}

#[test]
fn neighbour_rules_carry_their_own_tunnel_id() {
    Lab::story(|lab| {
        let cloud = cloud();
        let (net, a, b) = scene(lab, &cloud)?;
        let mut push = cloud.goal_state("host1");
        push.neighbor_states.clear();
        net.host1.agent().push(&push)?.expect_success()?;
        net.host2.agent().push(&cloud.goal_state("host2"))?.expect_success()?;
        ensure!(!a.ns.pings(b.ip())?, "a neighbour that was never pushed answered");
        let mut state = cloud.neighbor_state("b", NeighborType::L2, OperationType::Create);
        if let Some(fixed_ip) = state.configuration.as_mut().and_then(|one| one.fixed_ips.first_mut()) {
            fixed_ip.tunnel_id = 100;
        }
        let request = NeighborRulesRequest {
            format_version: 1,
            request_id: "rules-1".to_owned(),
            neigborstates: vec![state],
        };
        net.host1.agent().push_neighbors(&request)?.expect_success()?;
        a.expect_ping(b.ip())
    });
}

#[test]
fn states_in_the_wrong_order_complete_by_themselves() {
    Lab::story(|lab| {
        let mut cloud = cloud();
        cloud.router("r", &["web"]);
        let (net, a, b) = scene(lab, &cloud)?;
        net.host2.agent().push(&cloud.goal_state("host2"))?.expect_success()?;
        let whole = cloud.goal_state("host1");
        let part = || GoalState { format_version: 101, ..Default::default() };
        let parts = [
            GoalState { router_states: whole.router_states.clone(), ..part() },
            GoalState { neighbor_states: whole.neighbor_states.clone(), ..part() },
            GoalState { port_states: whole.port_states.clone(), ..part() },
            GoalState { subnet_states: whole.subnet_states.clone(), ..part() },
        ];
        for push in &parts {
            let reply = net.host1.agent().push(push)?;
            ensure!(reply.count(OperationStatus::Pending) > 0, "expected PENDING, came {:#?}", reply.reply);
        }
        let last = GoalState { vpc_states: whole.vpc_states.clone(), ..part() };
        net.host1.agent().push(&last)?.expect_success()?;
        a.expect_ping(b.ip())?;
        a.expect_ping(std::net::Ipv4Addr::new(10, 1, 0, 1))
    });
}

#[test]
fn a_full_table_is_a_failure_of_what_did_not_fit_and_later_it_fits() {
    Lab::story(|lab| {
        let cloud = cloud();
        let options = HostOptions::default().with("capacity", "endpoints", "64");
        let net = TwoHosts::new(lab, options)?;
        let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host2, "b")?);
        net.push(&cloud)?;
        a.expect_ping(b.ip())?;

        let mut many = cloud.clone();
        for number in 0..200 {
            many.port(&format!("n{number}"), "web", &format!("10.1.0.{}", 20 + number), "host3");
        }
        let neighbors = |range: std::ops::Range<u32>, operation| {
            let mut push = GoalState { format_version: 101, ..Default::default() };
            push.neighbor_states = range
                .map(|number| many.neighbor_state(&format!("n{number}"), NeighborType::L2, operation))
                .collect();
            push
        };
        let reply = net.host1.agent().push(&neighbors(0..200, OperationType::Create))?;
        let (failed, done) = (reply.count(OperationStatus::Failure), reply.count(OperationStatus::Success));
        ensure!(
            failed + done == 200 && failed >= 130 && done > 0,
            "{failed} FAILURE and {done} SUCCESS of 200"
        );
        ensure!(
            reply.reply.operation_statuses[0].operation_status() == OperationStatus::Failure,
            "rows that are not SUCCESS come first"
        );
        a.expect_ping(b.ip()).context("beside a full table")?;
        let shown = net.host1.expect_ncmctl(&["get", "neighbor", "-o", "json"])?;
        ensure!(shown.to_lowercase().contains("full"), "the cause of the failure is not shown:\n{shown}");

        net.host1.agent().push(&neighbors(20..200, OperationType::Delete))?.expect_success()?;
        let again = net.host1.agent().push(&neighbors(0..20, OperationType::Create))?;
        again.expect_success().context("the retry after there is room")?;
        eventually("all twenty are answered by ARP", Duration::from_secs(3), || {
            Ok(a.arp("10.1.0.20".parse()?)?.is_some() && a.arp("10.1.0.39".parse()?)?.is_some())
        })
    });
}
