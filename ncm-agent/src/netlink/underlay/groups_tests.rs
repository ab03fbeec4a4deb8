//! Tests of the groups: sharing, shares, names and indices.

use super::*;

fn path(hops: &[(u8, u16)]) -> Path {
    hops.iter()
        .map(|(last, weight)| (Hop { interface: 2, address: [10, 0, 0, *last].into() }, *weight))
        .collect()
}

fn hop(ifindex: u32) -> NextHop {
    NextHop { ifindex, ..NextHop::default() }
}

/// How many slots each hop (1, 2, 3…) gets for these weights.
fn slots(weights: &[u16]) -> Vec<usize> {
    let hops: Vec<_> = weights.iter().zip(1..).map(|(weight, index)| (hop(index), *weight)).collect();
    let half = half(&hops);
    let used = &half.hops[..half.count as usize];
    assert!(half.hops[half.count as usize..].iter().all(|hop| *hop == NextHop::default()));
    (1..=hops.len() as u32).map(|index| used.iter().filter(|hop| hop.ifindex == index).count()).collect()
}

#[test]
fn each_hop_gets_slots_by_its_weight_and_at_least_one() {
    assert_eq!(slots(&[]), [0; 0]);
    assert_eq!(slots(&[1]), [1]);
    assert_eq!(slots(&[7]), [1]);
    assert_eq!(slots(&[1, 1, 1]), [1, 1, 1]);
    assert_eq!(slots(&[2, 6]), [1, 3]);
    assert_eq!(slots(&[1, 255]), [1, 7]);
    assert_eq!(slots(&[255, 1, 1]), [6, 1, 1]);
    assert_eq!(slots(&[65535; 8]), [1; 8]);
    assert_eq!(slots(&[9, 1, 1, 1, 1, 1, 1, 1]), [1; 8]);
    assert_eq!(slots(&[0, 1]), [1, 1]);
    assert_eq!(slots(&[1; 20])[..8], [1; 8]);
}

#[test]
fn the_same_path_is_the_same_group_until_its_last_user_goes() {
    let mut groups = Groups::new(16, Vec::new());
    let both = path(&[(1, 1), (2, 1)]);
    assert_eq!(groups.acquire(&both, "both".to_owned()), Some((1, true)));
    assert_eq!(groups.acquire(&both, "both".to_owned()), Some((1, false)));
    assert_eq!(groups.acquire(&path(&[(1, 1)]), "one".to_owned()), Some((2, true)));
    groups.release(1);
    assert_eq!(groups.unused(), [0; 0]);
    groups.release(1);
    assert_eq!(groups.unused(), [1]);
    let needless = groups.forget(1);
    assert_eq!(needless, [both[1].0], "the other next hop is still needed");
    assert!(groups.needs(&both[0].0) && !groups.needs(&both[1].0));
}

#[test]
fn a_freed_index_comes_back_last_and_under_another_generation() {
    let mut groups = Groups::new(4, Vec::new());
    for last in 1..=3 {
        assert_eq!(groups.acquire(&path(&[(last, 1)]), format!("{last}")), Some((last.into(), true)));
    }
    assert_eq!(groups.acquire(&path(&[(4, 1)]), "4".to_owned()), None, "index 0 is never given out");
    for index in [2, 1] {
        groups.release(index);
        groups.forget(index);
    }
    assert_eq!(groups.acquire(&path(&[(5, 1)]), "5".to_owned()), Some((2, true)));
    assert_eq!(groups.get(2).map(|group| group.generation), Some(2));
}

#[test]
fn groups_of_an_agent_before_are_found_by_their_names() {
    let value = |generation| NextHopGroup { generation, ..NextHopGroup::default() };
    let left = vec![(3, "old".to_owned(), value(7)), (5, "older".to_owned(), value(2))];
    let mut groups = Groups::new(16, left);
    assert_eq!(groups.acquire(&path(&[(1, 1)]), "old".to_owned()), Some((3, true)));
    assert_eq!(groups.get(3).map(|group| group.generation), Some(7));
    assert_eq!(groups.unclaimed(), [5]);
    let mut given: Vec<u32> =
        (2..7).filter_map(|last| Some(groups.acquire(&path(&[(last, 1)]), format!("{last}"))?.0)).collect();
    given.sort_unstable();
    assert_eq!(given, [1, 2, 4, 5, 6], "each index once, the unclaimed one included");
}

#[test]
fn names_fit_the_table_and_long_ones_differ() {
    assert_eq!(fitting("10.0.0.1 by eth1"), "10.0.0.1 by eth1");
    let long = "10.0.0.1 by bond0.1234, ".repeat(8);
    let (one, other) = (fitting(&long), fitting(&format!("{long}x")));
    assert!(one.len() <= 120 && other.len() <= 120, "{} {}", one.len(), other.len());
    assert_ne!(one, other);
    assert_eq!(fitting(&one), one, "a fitted name fits as it is");
    let table = name(&long, 3);
    assert_eq!((table.generation, table.len as usize), (3, one.len()));
    assert_eq!(&table.text[..one.len()], one.as_bytes());
}
