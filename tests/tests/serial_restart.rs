//! Nothing that happens to an agent is felt by a guest's packet: numbered datagrams at a steady rate, TCP connections that go on, and
//! new ones, while agents are restarted, killed, told everything again, and lose what they knew.

use std::thread;
use std::time::Duration;

use anyhow::Context;
use ncm_tests::testbed::{Host, HostOptions, Lab, Load, TwoHosts};

#[test]
fn nothing_that_happens_to_the_agents_is_felt() {
    unfelt(HostOptions::default());
}

#[test]
fn nor_is_it_where_programs_are_filters() {
    unfelt(HostOptions::default().by_clsact());
}

fn unfelt(options: HostOptions) {
    Lab::story(|lab| {
        let cloud = Load::cloud();
        let net = TwoHosts::new(lab, options)?;
        let guest = |port: &str, host: &Host| cloud.guest(lab, host, port);
        let (a, b, c) = (guest("a", &net.host1)?, guest("b", &net.host2)?, guest("c", &net.host2)?);
        net.push(&cloud)?;
        let mut load = Load::begin(&net, [&a, &b, &c])?;

        load.expect_unfelt("a restart", || {
            net.hosts().into_iter().try_for_each(|host| host.restart_with(|_| ()))
        })?;
        load.expect_unfelt("a kill", || {
            net.hosts().into_iter().try_for_each(|host| {
                host.kill();
                thread::sleep(Duration::from_millis(200));
                host.start()
            })
        })?;
        load.expect_unfelt("pushes of everything", || (0..20).try_for_each(|_| net.push(&cloud)))?;
        let state = lab.run_directory().join("ncm-state");
        load.expect_unfelt("the loss of the journal, and a push of everything", || {
            for host in net.hosts() {
                host.stop()?;
                std::fs::remove_dir_all(state.join(host.name())).context("remove the journal")?;
                host.start()?;
            }
            net.push(&cloud)?;
            net.hosts().into_iter().try_for_each(|host| host.expect_ncmctl(&["prune"]).map(drop))
        })?;
        load.expect_unfelt("another log level", || {
            net.hosts().into_iter().try_for_each(|host| {
                host.restart_with(|config| {
                    config.set("log", "level", "\"debug\"").set("log", "dataplane", "\"error\"");
                })
            })
        })?;
        Ok(())
    });
}
