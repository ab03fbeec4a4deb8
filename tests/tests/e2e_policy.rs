//! Security groups that change while they are used.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ncm_model::wire::security_group_configuration::SecurityGroupRule;
use ncm_model::wire::{
    GoalState, NeighborType, OperationStatus, OperationType, SecurityGroupConfiguration, SecurityGroupState,
    UpdateType,
};
use ncm_tests::testbed::{Cloud, Guest, Host, HostOptions, Lab, Statuses, Talk, TwoHosts, eventually, rule};

/// A server on the first host, and clients on both, of both families; the server's group is `web`.
fn cloud() -> Cloud {
    let mut cloud = Cloud::new();
    cloud.vpc("red", 100).subnet("net", "red", "10.1.0.0/24").subnet("six", "red", "fd00:1::/64");
    for (name, last, host) in
        [("server", 11, "host1"), ("near", 12, "host1"), ("far", 13, "host2"), ("other", 14, "host1")]
    {
        cloud.port(name, "net", &format!("10.1.0.{last}"), host);
        cloud.address(name, "six", &format!("fd00:1::{last}"));
    }
    cloud.group("web", &["in tcp 80", "in6 tcp 80", "in tcp 443", "in icmp"]).member("server", &["web"]);
    cloud
}

/// Pushes one security group, with rules that have operations or not.
fn push_group(host: &Host, id: &str, update: UpdateType, rules: Vec<SecurityGroupRule>) -> Result<Statuses> {
    let configuration = SecurityGroupConfiguration {
        revision_number: 1,
        id: id.to_owned(),
        update_type: update.into(),
        security_group_rules: rules,
        ..Default::default()
    };
    let state = SecurityGroupState {
        operation_type: OperationType::Update.into(),
        configuration: Some(configuration),
    };
    host.agent().push(&GoalState { security_group_states: vec![state], ..Default::default() })
}

/// A rule with an operation of its own.
fn with(operation: OperationType, text: &str) -> Result<SecurityGroupRule> {
    Ok(SecurityGroupRule { operation_type: operation.into(), ..rule(text)? })
}

struct Cast {
    net: TwoHosts,
    cloud: Cloud,
    server: Guest,
    near: Guest,
    far: Guest,
    other: Guest,
}

impl Cast {
    fn new(lab: &Lab, cloud: Cloud, options: HostOptions) -> Result<Self> {
        let net = TwoHosts::new(lab, options)?;
        let server = cloud.guest(lab, &net.host1, "server")?;
        let near = cloud.guest(lab, &net.host1, "near")?;
        let far = cloud.guest(lab, &net.host2, "far")?;
        let other = cloud.guest(lab, &net.host1, "other")?;
        net.push(&cloud)?;
        Ok(Self { net, cloud, server, near, far, other })
    }

    /// Pushes the groups of the first host as the cloud now has them.
    fn push_groups(&self) -> Result<()> {
        let states = self.cloud.goal_state("host1").security_group_states;
        let state = GoalState { security_group_states: states, ..Default::default() };
        self.net.host1.agent().push(&state)?.expect_success().map(drop)
    }

    /// Connections to port 80 of the server: from both hosts, over both families.
    fn talks(&self) -> Result<Vec<Talk>> {
        let mut talks = Vec::new();
        for client in [&self.near, &self.far] {
            for v6 in [false, true] {
                talks.push(Talk::begin(client, &self.server, 80, v6)?);
            }
        }
        Ok(talks)
    }
}

/// Every connection has stopped, at once.
fn expect_stopped(talks: &mut [Talk]) -> Result<()> {
    thread::scope(|scope| {
        let all: Vec<_> = talks.iter_mut().map(|talk| scope.spawn(|| talk.expect_stopped())).collect();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("a check panicked"))?)
    })
}

fn expect_all_go_on(talks: &mut [Talk]) -> Result<()> {
    talks.iter_mut().try_for_each(Talk::goes_on)
}

#[test]
fn connections_stop_with_their_rule_and_go_on_with_it() {
    Lab::story(|lab| {
        let cast = Cast::new(lab, cloud(), HostOptions::default())?;
        let host = &cast.net.host1;
        let mut talks = cast.talks()?;
        let mut unrelated = Talk::begin(&cast.far, &cast.server, 443, false)?;
        let all = ["in tcp 80", "in6 tcp 80", "in tcp 443", "in icmp"];
        let less = ["in tcp 443", "in icmp"];
        let plain = |texts: &[&str]| texts.iter().map(|text| rule(text)).collect::<Result<Vec<_>>>();
        let gone =
            vec![with(OperationType::Delete, "in tcp 80")?, with(OperationType::Delete, "in6 tcp 80")?];
        let back =
            vec![with(OperationType::Create, "in tcp 80")?, with(OperationType::Update, "in6 tcp 80")?];
        let ways = [
            ("FULL", UpdateType::Full, plain(&less)?, plain(&all)?),
            ("DELTA with an operation on each rule", UpdateType::Delta, gone, back),
            ("DELTA with the complete list", UpdateType::Delta, plain(&less)?, plain(&all)?),
        ];
        for (way, update, without, again) in ways {
            push_group(host, "web", update, without)?.expect_success()?;
            expect_stopped(&mut talks).context(way)?;
            unrelated.goes_on().context(way)?;
            push_group(host, "web", update, again)?.expect_success()?;
            expect_all_go_on(&mut talks).context(way)?;
        }
        Ok(())
    });
}

#[test]
fn connections_follow_what_groups_a_port_is_in_and_who_is_a_member() {
    Lab::story(|lab| {
        let mut cloud = cloud();
        cloud.group("web", &["in tcp 80 from group clients", "in6 tcp 80 from group clients"]);
        cloud.group("clients", &["out any", "out6 any"]);
        cloud.member("near", &["clients"]).member("far", &["clients"]);
        let mut cast = Cast::new(lab, cloud, HostOptions::default())?;
        let mut talks = cast.talks()?;

        // Members of this host and of another one leave the group.
        cast.cloud.member("near", &[]).member("far", &[]);
        cast.net.push(&cast.cloud)?;
        expect_stopped(&mut talks).context("the clients are members no more")?;
        cast.cloud.member("near", &["clients"]).member("far", &["clients"]);
        cast.net.push(&cast.cloud)?;
        expect_all_go_on(&mut talks).context("they are members again")?;

        // The server changes its groups.
        cast.cloud.group("nothing", &[]).member("server", &["nothing"]);
        cast.net.push(&cast.cloud)?;
        expect_stopped(&mut talks).context("the server is in another group")?;
        cast.cloud.member("server", &["nothing", "web"]);
        cast.net.push(&cast.cloud)?;
        expect_all_go_on(&mut talks).context("the server is in both groups")?;

        // The clients' own policy counts as much.
        cast.cloud.group("clients", &["out udp 53"]);
        cast.net.push(&cast.cloud)?;
        expect_stopped(&mut talks).context("the clients may not send")?;
        cast.cloud.group("clients", &["out any", "out6 tcp 80"]);
        cast.net.push(&cast.cloud)?;
        expect_all_go_on(&mut talks).context("the clients may send again")?;

        // A group that is deleted closes the ports that name it.
        let delete = cast.cloud.group_state("web", OperationType::Delete);
        let state = GoalState { security_group_states: vec![delete], ..Default::default() };
        cast.net.host1.agent().push(&state)?.expect_success()?;
        expect_stopped(&mut talks).context("the server's group is gone")?;
        cast.push_groups()?;
        expect_all_go_on(&mut talks).context("the server's group is back")
    });
}

#[test]
fn a_neighbour_is_a_member_only_of_what_its_state_says() {
    Lab::story(|lab| {
        let mut cloud = cloud();
        cloud.group("web", &["in icmp from group clients"]).group("clients", &["out any"]);
        cloud.member("far", &["clients"]);
        let cast = Cast::new(lab, cloud, HostOptions::default())?;
        cast.far.expect_ping(cast.server.ip())?;
        let mut neighbor = cast.cloud.neighbor_state("far", NeighborType::L2, OperationType::Update);
        if let Some(configuration) = &mut neighbor.configuration {
            configuration.security_group_ids.clear();
        }
        let state = GoalState { neighbor_states: vec![neighbor], ..Default::default() };
        cast.net.host1.agent().push(&state)?.expect_success()?;
        ensure!(!cast.far.ns.pings(cast.server.ip())?, "the neighbour is no member any more");
        Ok(())
    });
}

/// Connects over and over until told to end; how often, and the slowest.
fn connect_on(client: &Guest, server: &TcpListener, end: &AtomicBool) -> Result<(u32, Duration)> {
    let to = server.local_addr()?;
    client.ns.inside(|| {
        let (mut count, mut slowest) = (0, Duration::ZERO);
        while !end.load(Ordering::Relaxed) {
            let begin = Instant::now();
            // Less than a second: a lost SYN is repeated after that long, and would be hidden.
            let connection = TcpStream::connect_timeout(&to, Duration::from_millis(900))
                .with_context(|| format!("connection {count} to {to}"))?;
            slowest = slowest.max(begin.elapsed());
            // One for each that was made: none is ever refused for want of room among those that wait.
            server.accept()?;
            drop(connection);
            count += 1;
        }
        Ok((count, slowest))
    })
}

#[test]
fn no_connection_is_lost_while_another_rule_of_ten_thousand_changes() {
    Lab::story(|lab| {
        let mut cloud = cloud();
        // Hosts and ports in all sizes; what the connections need is in between: a rule of the clients' prefix, over IPv4, and
        // one for everybody, over IPv6.
        let mut rules: Vec<String> = (0..9_998_u32)
            .map(|number| match number % 3 {
                0 => format!("in tcp {} from 10.{}.{}.0/24", 1000 + number, 2 + number % 200, number % 256),
                1 => format!("in udp {}-{}", 2 * number, 2 * number + 10),
                _ => format!("in tcp 80 from 172.16.{}.{}", number / 256, number % 256),
            })
            .collect();
        rules.push("in tcp 80 from 10.1.0.0/24".to_owned());
        rules.push("in6 tcp 80".to_owned());
        let texts: Vec<&str> = rules.iter().map(String::as_str).collect();
        cloud.group("web", &texts);
        let cast = Cast::new(lab, cloud, HostOptions::default())?;
        let host = &cast.net.host1;
        // A prefix around the clients in the group's, another port of theirs, and another range.
        let changing =
            ["in tcp 81 from 10.1.0.8/29", "in6 tcp 81 from fd00:1::/120", "in tcp 70-90 from 10.1.0.12"];
        let end = AtomicBool::new(false);
        let mut changes = Vec::new();
        let listen = |ip: IpAddr| cast.server.ns.listen(SocketAddr::new(ip, 80));
        let servers = [listen(cast.server.ip().into())?, listen(cast.server.ip6().into())?];
        let outcome = thread::scope(|scope| -> Result<Vec<(u32, Duration)>> {
            let mut clients = Vec::new();
            for client in [&cast.near, &cast.far] {
                for server in &servers {
                    let end = &end;
                    clients.push(scope.spawn(move || connect_on(client, server, end)));
                }
            }
            let pushed = (0..50).try_for_each(|round| {
                let operation = if round % 2 == 0 { OperationType::Create } else { OperationType::Delete };
                for text in changing {
                    let begin = Instant::now();
                    let rules = vec![with(operation, text)?];
                    push_group(host, "web", UpdateType::Delta, rules)?.expect_success()?;
                    changes.push(begin.elapsed());
                }
                Ok(())
            });
            end.store(true, Ordering::Relaxed);
            let joined = clients.into_iter().map(|client| client.join());
            let counts = joined.map(|one| one.map_err(|_| anyhow::anyhow!("a client panicked"))?).collect();
            pushed.and(counts)
        });
        let outcome = outcome.with_context(|| cast.server.ns.run("nstat -az").unwrap_or_default())?;
        changes.sort();
        for (count, slowest) in &outcome {
            ensure!(*count > 20, "too few connections to tell: {outcome:?}");
            ensure!(*slowest < Duration::from_millis(900), "{outcome:?}");
        }
        // Milliseconds on an idle machine; what is asserted is only that it does not take the time of the whole group.
        let median = changes[changes.len() / 2];
        ensure!(median < Duration::from_millis(200), "a change takes {median:?}");
        Ok(())
    });
}

#[test]
fn a_tenant_beyond_the_bound_fails_alone() {
    Lab::story(|lab| {
        let options = HostOptions::default().with("limits", "set_entries", "200");
        let mut cloud = cloud();
        cloud.member("other", &["greedy"]).group("greedy", &["in tcp 80"]);
        let cast = Cast::new(lab, cloud, options)?;
        let host = &cast.net.host1;
        let mut talks = cast.talks()?;
        let mut kept = Talk::begin(&cast.far, &cast.other, 80, false)?;

        let many: Vec<String> =
            (0..500).map(|number| format!("in tcp {} from 10.1.0.13", 2 * number + 1)).collect();
        let texts: Vec<&str> = many.iter().map(String::as_str).collect();
        let mut cloud = cast.cloud.clone();
        cloud.group("greedy", &texts).group("web", &["in tcp 80", "in6 tcp 80", "in tcp 443", "in tcp 22"]);
        let statuses = host.agent().push(&cloud.goal_state("host1"))?;
        statuses.expect("greedy", OperationStatus::Failure)?;
        statuses.expect("web", OperationStatus::Success)?;
        ensure!(statuses.count(OperationStatus::Failure) == 1, "{statuses:?}");
        expect_all_go_on(&mut talks)?;
        kept.goes_on().context("what the tenant had before stays in force")?;
        drop(
            Talk::begin(&cast.near, &cast.server, 22, false)
                .context("the other tenant's change is in force")?,
        );
        let shown = host.expect_ncmctl(&["get", "security-group", "--status", "failure"])?;
        ensure!(shown.contains("greedy") && shown.contains("limits.set_entries"), "{shown}");
        cloud.group("greedy", &["in tcp 80", "in tcp 22"]);
        host.agent().push(&cloud.goal_state("host1"))?.expect_success()?;
        let shown = host.expect_ncmctl(&["get", "security-group", "--status", "failure"])?;
        ensure!(!shown.contains("greedy"), "{shown}");
        Ok(())
    });
}

#[test]
fn what_policy_allows_and_denies_is_counted_by_port_and_groups() {
    Lab::story(|lab| {
        let cast = Cast::new(lab, cloud(), HostOptions::default())?;
        let host = &cast.net.host1;
        let count = |what: &str| {
            host.metric(&[
                &format!("ncm_policy_{what}_total{{"),
                "port=\"server\"",
                "groups=\"web\"",
                "direction=\"ingress\"",
            ])
        };
        cast.near.expect_ping(cast.server.ip())?;
        drop(Talk::begin(&cast.far, &cast.server, 80, true)?);
        ensure!(!cast.far.connects(SocketAddr::new(cast.server.ip().into(), 22))?, "no rule allows port 22");
        eventually("both are in the metrics", Duration::from_secs(2), || {
            Ok(count("allowed")? >= 2.0 && count("denied")? >= 1.0)
        })?;
        let shown = host.expect_ncmctl(&["map", "dump", "policy_counts"])?;
        let line = shown.lines().find(|line| line.contains("server") && line.contains("web"));
        ensure!(line.is_some_and(|line| line.contains("ingress")), "{shown}");
        let drops = host.expect_ncmctl(&["drops", "--port", "server"])?;
        ensure!(drops.contains("policy_ingress"), "{drops}");
        Ok(())
    });
}
