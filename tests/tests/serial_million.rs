//! One message with a million neighbours: applied, answered under the reply's limit, and in use.

use std::time::Instant;

use anyhow::ensure;
use ncm_model::wire::{GoalState, OperationStatus};
use ncm_tests::many;
use ncm_tests::testbed::{HostOptions, Lab, TwoHosts};

#[test]
fn a_million_neighbours_in_one_message() {
    Lab::story(|lab| {
        let cloud = many::cloud();
        let net = TwoHosts::new(lab, HostOptions::default().with("capacity", "endpoints", "1100000"))?;
        let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host2, "b")?);
        net.push(&cloud)?;
        a.expect_ping(b.ip())?;

        let message = GoalState {
            format_version: 101,
            neighbor_states: many::neighbors("web", "red", 1_000_000, net.host2.address),
            ..Default::default()
        };
        let begin = Instant::now();
        // The reply's size is checked by the testbed: a sender's limit is 4 MiB.
        let reply = net.host1.agent().push(&message)?;
        println!("a million neighbours took {:?}", begin.elapsed());
        ensure!(reply.count(OperationStatus::Failure) == 0, "FAILURE among a million neighbours");
        let (first, last) = (many::address(0), many::address(999_999));
        ensure!(a.arp(first)? == Some(many::mac(0)), "the first of a million is not answered by ARP");
        ensure!(a.arp(last)? == Some(many::mac(999_999)), "the last of a million is not answered by ARP");
        a.expect_ping(b.ip())
    });
}
