//! What tables are made of, and how large they are, changes while guests talk, upwards and downwards, and with agents that are killed
//! amid it: nobody feels it.

use std::cell::Cell;

use anyhow::{Context, Result, ensure};
use ncm_tests::testbed::{AgentConfig, Host, HostOptions, Lab, Load, TwoHosts, binary};

/// The sets of tables that a host's agents have pinned.
fn sets(host: &Host) -> Result<Vec<String>> {
    let listed = host.ns.run_words(&["ls", &format!("/sys/fs/bpf/ncm/{}", host.name())])?;
    Ok(listed.split_whitespace().map(str::to_owned).collect())
}

/// Tables as large as they are, or so many times that.
fn capacities(config: &mut AgentConfig, times: u32) {
    for (key, entries) in [
        ("flows", 65_536),
        ("half_open", 1024),
        ("ports", 256),
        ("endpoints", 65_536),
        ("rules", 4096),
        ("classes", 4096),
        ("hosts", 64),
        ("subnets", 64),
        ("names", 1024),
        ("vteps", 1024),
        ("routes", 1024),
        ("sources", 1024),
        ("source_prefixes", 1024),
        ("port_drops", 1024),
        ("policy_counts", 1024),
    ] {
        config.set("capacity", key, (entries * times).to_string());
    }
}

/// The agent whose tables have another layout: `cargo xtask test` builds it.
const OTHER: &str = "layout-test/ncm-agent";

/// Where an agent may be killed while its tables take the place of others.
const PLACES: [&str; 6] = ["filled", "swapping", "swapped", "in-use", "carried", "replaced"];

/// Expects that the tables in use are of that layout, and that there are no others.
fn expect_layout(host: &Host, layout: &str) -> Result<()> {
    let sets = sets(host)?;
    let is_right = |set: &String| set == layout || set.starts_with(&format!("{layout}-"));
    ensure!(sets.len() == 1 && sets.iter().all(is_right), "{sets:?}, and not {layout} alone");
    Ok(())
}

/// Another layout takes over, with a pause of so many milliseconds wherever it may be interrupted, and gives back.
fn there_and_back(host: &Host, pause: &str) -> Result<()> {
    host.restart_with(|config| {
        config.program(OTHER).environment("NCM_PAUSE_MS", pause);
    })?;
    expect_layout(host, "v3")?;
    host.restart_with(|_| ())?;
    expect_layout(host, "v2")?;
    host.expect_ncmctl(&["verify"]).context("as all should be").map(drop)
}

/// An upgrade is killed somewhere, and an agent of either layout goes on from there; then it is as before.
fn killed_at(host: &Host, place: &str, goes_on: &str) -> Result<()> {
    let mut config = host.config.clone();
    config.program(OTHER).environment("NCM_KILLED_AT", place);
    host.stop()?;
    ensure!(host.start_as(&config).is_err(), "it was to be killed when {place}");
    let mut config = host.config.clone();
    host.start_as(config.program(goes_on)).with_context(|| format!("after a kill when {place}"))?;
    expect_layout(host, if goes_on == OTHER { "v3" } else { "v2" })?;
    if goes_on == OTHER {
        host.restart_with(|_| ())?;
    }
    Ok(())
}

fn under_load(story: impl Fn(&TwoHosts, &mut Load<'_>) -> Result<()>) {
    under_load_with(HostOptions::default(), story);
}

fn under_load_with(options: HostOptions, story: impl Fn(&TwoHosts, &mut Load<'_>) -> Result<()>) {
    Lab::story(|lab| {
        let cloud = Load::cloud();
        let net = TwoHosts::new(lab, options)?;
        let guest = |port: &str, host: &Host| cloud.guest(lab, host, port);
        let (a, b, c) = (guest("a", &net.host1)?, guest("b", &net.host2)?, guest("c", &net.host2)?);
        net.push(&cloud)?;
        let mut load = Load::begin(&net, [&a, &b, &c])?;
        story(&net, &mut load)?;
        a.expect_ping(b.ip())
    });
}

#[test]
fn without_a_journal_what_another_layout_has_left_forwards_on_until_any_version_tears_it_down() {
    Lab::story(|lab| {
        let cloud = Load::cloud();
        let net = TwoHosts::new(lab, HostOptions::default().with("store", "journal", "false"))?;
        let guest = |port: &str, host: &Host| cloud.guest(lab, host, port);
        let (a, b, _c) = (guest("a", &net.host1)?, guest("b", &net.host2)?, guest("c", &net.host2)?);
        net.push(&cloud)?;
        let on = b.begin_ping(a.ip())?;
        on.goes_on(3)?;
        let host = &net.host1;
        host.restart_with(|config| {
            config.program(OTHER);
        })?;
        expect_layout(host, "v3")?;
        on.goes_on(3)?;
        a.expect_ping(b.ip()).context("a new flow by entries that nobody has pushed again")?;
        let entries = host.expect_ncmctl(&["get"])?;
        ensure!(!entries.contains("router"), "nothing is known of it: {entries}");

        host.kill();
        on.goes_on(3)?;
        let told = host.ncmctl(&["map", "dump", "ports"])?;
        ensure!(!told.success && told.stderr.contains("layout 3"), "{}", told.stderr);
        on.expect_no_loss()?;
        let program = binary("ncm-agent")?.to_string_lossy().into_owned();
        host.ns.run_words(&[program.as_str(), "--config", "/run/host1.toml", "--teardown"])?;
        let left = host.ns.outcome(&["ls", "/sys/fs/bpf/ncm/host1"])?;
        ensure!(!left.success, "{} is left", left.stdout);
        a.expect_no_ping(b.ip())
    });
}

#[test]
fn another_layout_takes_over_and_gives_back_unfelt() {
    under_load(|net, load| {
        load.expect_unfelt("another layout", || {
            net.hosts().into_iter().try_for_each(|host| there_and_back(host, "20"))
        })?;
        Ok(())
    });
}

#[test]
fn so_it_does_where_programs_are_filters() {
    under_load_with(HostOptions::default().by_clsact(), |net, load| {
        load.expect_unfelt("another layout", || {
            net.hosts().into_iter().try_for_each(|host| there_and_back(host, "20"))
        })?;
        load.expect_unfelt("a kill amid the exchange of programs", || {
            net.hosts().into_iter().try_for_each(|host| killed_at(host, "swapping", OTHER))
        })?;
        Ok(())
    });
}

#[test]
fn programs_change_from_tcx_to_filters_and_back_unfelt() {
    under_load(|net, load| {
        load.expect_unfelt("another way of attaching", || {
            net.hosts().into_iter().try_for_each(|host| {
                host.restart_with(|config| {
                    config.set("programs", "attach", "\"clsact\"");
                })?;
                host.expect_ncmctl(&["verify"]).context("by filters")?;
                let filters = host.ns.run(&format!("tc filter show dev ncm-{} ingress", host.name()))?;
                ensure!(filters.contains("relay_tc"), "no filter of ours: {filters}");
                host.restart_with(|_| ())?;
                host.expect_ncmctl(&["verify"]).map(drop)
            })
        })?;
        Ok(())
    });
}

#[test]
fn an_upgrade_that_is_killed_is_taken_up_or_taken_back_unfelt() {
    for (at, place) in PLACES.iter().enumerate() {
        // One host goes on, the other goes back, by turns.
        let agents = if at % 2 == 0 { [OTHER, "ncm-agent"] } else { ["ncm-agent", OTHER] };
        under_load(|net, load| {
            load.expect_unfelt(&format!("a kill when {place}"), || {
                let mut hosts = net.hosts().into_iter().zip(agents);
                hosts.try_for_each(|(host, goes_on)| killed_at(host, place, goes_on))
            })?;
            Ok(())
        });
    }
}

#[test]
#[ignore = "takes minutes: `cargo xtask test long`"]
fn many_upgrades_and_kills_are_unfelt() {
    for round in 0..4 {
        let pause = if round % 2 == 0 { "0" } else { "150" };
        under_load(|net, load| {
            load.expect_unfelt("another layout", || {
                net.hosts().into_iter().try_for_each(|host| there_and_back(host, pause))
            })?;
            Ok(())
        });
        for place in PLACES {
            under_load(|net, load| {
                for goes_on in [OTHER, "ncm-agent"] {
                    let what = format!("a kill when {place}, then {goes_on}");
                    load.expect_unfelt(&what, || {
                        net.hosts().into_iter().try_for_each(|host| killed_at(host, place, goes_on))
                    })?;
                }
                Ok(())
            });
        }
    }
}

#[test]
fn tables_get_larger_and_smaller_unfelt() {
    under_load(|net, load| {
        let round = Cell::new(0);
        load.expect_unfelt("tables of other sizes", || {
            // Larger and smaller by turns.
            for _ in 0..2 {
                round.set(round.get() + 1);
                for host in net.hosts() {
                    host.restart_with(|config| capacities(config, 1 + round.get() % 2))?;
                    let sets = sets(host)?;
                    ensure!(sets.len() == 1, "one set of tables is left: {sets:?}");
                    host.expect_ncmctl(&["verify"]).context("as all should be")?;
                }
            }
            Ok(())
        })?;
        Ok(())
    });
}
