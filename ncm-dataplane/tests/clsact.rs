//! Programs as filters: they stay without a process, are exchanged, told apart from others', and removed with what was made for them.

mod common;

use std::path::Path;

use common::{ifindex, isolate, list, run, small};
use ncm_dataplane::{
    BPFFS, Dataplane, Error, Hook, Options, PinPaths, TcAttach, attached, held_by_another, teardown,
};

fn options(instance: &str) -> Options {
    Options { tc_attach: TcAttach::Clsact, ..small(Options::pinned(instance)) }
}

fn open() -> Dataplane {
    Dataplane::open(&options("d-test")).expect("the object loads")
}

/// What `tc` says of an interface: its qdiscs beside the default, and its filters.
fn shown(interface: &str) -> String {
    let mut text = run(&format!("tc qdisc show dev {interface} clsact"));
    for place in ["ingress", "egress"] {
        text += &run(&format!("tc filter show dev {interface} {place}"));
    }
    text
}

#[test]
fn a_filter_stays_is_found_by_the_next_process_and_exchanged_in_place() {
    isolate();
    run("ip link add d0 type veth peer name d1");
    let index = ifindex("d0");
    let before = open().attach(Hook::GuestTc, index).expect("attached");
    assert_eq!((before.hook, before.ifindex, before.link), (Hook::GuestTc, index, 0));
    let paths = PinPaths::new(Path::new(BPFFS), "d-test").expect("a good name");
    assert_eq!(attached(&paths).expect("readable"), [before], "it stays without its process");
    assert_eq!(list(&Path::new(BPFFS).join("ncm/d-test/v2/links")), Vec::<String>::new());

    let second = open();
    let [after] = second.attachments()[..] else { panic!("one attachment: {:?}", second.attachments()) };
    assert_eq!((after.hook, after.ifindex), (Hook::GuestTc, index));
    assert_ne!(after.program, before.program, "the new process brought its own program");
    assert_eq!(second.attach(Hook::GuestTc, index).expect("again"), after, "attaching again changes nothing");
    let on_hook = second.on_hook(Hook::GuestTc, index).expect("readable");
    assert_eq!(on_hook.len(), 1, "one took the other's place: {on_hook:?}");
    assert_eq!((on_hook[0].name.as_str(), on_hook[0].program), ("guest_tc", after.program));
    let filters = shown("d0");
    assert!(filters.contains("ncm/d-test/guest_tc") && filters.contains("direct-action"), "{filters}");

    second.detach(Hook::GuestTc, index).expect("detached");
    assert_eq!(second.attachments(), []);
    assert_eq!(shown("d0"), "", "the qdisc was ours");
}

#[test]
fn both_directions_of_an_interface_share_a_qdisc_and_the_last_takes_it_along() {
    isolate();
    run("ip link add d0 type veth peer name d1");
    let (dataplane, index) = (open(), ifindex("d0"));
    for hook in [Hook::HandUpTc, Hook::HandDownTc] {
        dataplane.attach(hook, index).expect("attached");
    }
    assert_eq!(dataplane.attachments().len(), 2);
    dataplane.detach(Hook::HandUpTc, index).expect("detached");
    assert!(shown("d0").contains("ncm/d-test/hand_down_tc"), "{}", shown("d0"));
    dataplane.detach(Hook::HandDownTc, index).expect("detached");
    assert_eq!(shown("d0"), "");
}

#[test]
fn what_others_have_there_stays() {
    isolate();
    run("ip link add d0 type veth peer name d1");
    run("tc qdisc add dev d0 clsact");
    run("tc filter add dev d0 ingress prio 7 u32 match u32 0 0 classid 1:1");
    let (dataplane, index) = (open(), ifindex("d0"));
    let before = shown("d0");
    dataplane.attach(Hook::GuestTc, index).expect("attached");
    let on_hook = dataplane.on_hook(Hook::GuestTc, index).expect("readable");
    let names: Vec<&str> = on_hook.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["guest_tc", "u32"], "ours is the first");
    dataplane.detach(Hook::GuestTc, index).expect("detached");
    assert_eq!(shown("d0"), before);
    run("tc filter del dev d0 ingress prio 7");
    dataplane.attach(Hook::GuestTc, index).expect("attached");
    dataplane.detach(Hook::GuestTc, index).expect("detached");
    assert!(shown("d0").contains("clsact"), "the qdisc was somebody else's");
    run("tc qdisc del dev d0 clsact");

    // Ours, and somebody else uses it.
    dataplane.attach(Hook::GuestTc, index).expect("attached");
    run("tc filter add dev d0 egress prio 7 u32 match u32 0 0 classid 1:1");
    drop(dataplane);
    teardown(Path::new(BPFFS), "d-test").expect("removed");
    let left = shown("d0");
    assert!(left.contains("u32") && !left.contains("ncm/"), "{left}");
}

#[test]
fn a_priority_that_is_taken_is_said() {
    isolate();
    run("ip link add d0 type veth peer name d1");
    run("tc qdisc add dev d0 clsact");
    run("tc filter add dev d0 ingress prio 1 u32 match u32 0 0 classid 1:1");
    let (dataplane, index) = (open(), ifindex("d0"));
    let error = dataplane.attach(Hook::GuestTc, index).expect_err("another kind has the priority");
    assert!(error.to_string().contains("priority 1"), "{error}");
    let error = dataplane.attach(Hook::GuestTc, 4_000_000).expect_err("no such interface");
    assert!(error.to_string().contains("the interface is gone"), "{error}");
}

#[test]
fn a_second_instance_on_the_same_hook_is_refused_and_told_whose_it_is() {
    isolate();
    run("ip link add d0 type veth peer name d1");
    let (first, index) = (open(), ifindex("d0"));
    let attached = first.attach(Hook::GuestTc, index).expect("attached");
    let second = Dataplane::open(&options("d-other")).expect("the object loads");
    match second.attach(Hook::GuestTc, index) {
        Err(Error::Occupied { id, link, .. }) => assert_eq!((id, link), (attached.program, 0)),
        other => panic!("both would run: {other:?}"),
    }
    let bpffs = Path::new(BPFFS);
    assert_eq!(held_by_another(bpffs, "d-test", index, None).expect("readable"), None);
    let holder = held_by_another(bpffs, "d-other", index, None).expect("readable").expect("held");
    assert_eq!((holder.instance.as_deref(), holder.id), (Some("d-test"), attached.program));
    drop(first);
    teardown(bpffs, "d-test").expect("removed");
    assert_eq!(shown("d0"), "");
    teardown(bpffs, "d-test").expect("nothing to remove is fine");
    second.attach(Hook::GuestTc, index).expect("nobody is there");
}

#[test]
fn what_was_on_an_interface_that_has_gone_is_forgotten() {
    isolate();
    run("ip link add d0 type veth peer name d1");
    let (dataplane, index) = (open(), ifindex("d0"));
    dataplane.attach(Hook::GuestTc, index).expect("attached");
    run("ip link del d0");
    assert_eq!(dataplane.attachments(), []);
    run(&format!("ip link add d0 index {index} type veth peer name d1"));
    let attached = dataplane.attach(Hook::GuestTc, index).expect("attached to the new one");
    assert_eq!(dataplane.attachments(), [attached]);
    run("ip link del d0");
    dataplane.forget_gone().expect("forgotten");
}

#[test]
fn what_is_attached_the_other_way_changes_over_at_the_next_start() {
    isolate();
    run("ip link add d0 type veth peer name d1");
    let index = ifindex("d0");
    let by_tcx = small(Options::pinned("d-test"));
    if Dataplane::open(&by_tcx)
        .expect("the object loads")
        .attach(Hook::GuestTc, index)
        .expect("attached")
        .link
        == 0
    {
        return; // This kernel has no tcx.
    }
    let second = open();
    assert_ne!(second.attachments()[0].link, 0, "until it is asked for, what is there goes on");
    let now = second.attach(Hook::GuestTc, index).expect("attached");
    assert_eq!((now.link, second.attachments()), (0, vec![now]));
    assert_eq!(second.on_hook(Hook::GuestTc, index).expect("readable").len(), 1);
    assert_eq!(list(&Path::new(BPFFS).join("ncm/d-test/v2/links")), Vec::<String>::new());
    drop(second);
    let third = Dataplane::open(&by_tcx).expect("the object loads");
    let now = third.attach(Hook::GuestTc, index).expect("attached");
    assert_ne!(now.link, 0);
    assert_eq!((shown("d0"), third.attachments()), (String::new(), vec![now]));
}

#[test]
fn without_an_instance_everything_ends_with_the_process() {
    isolate();
    run("ip link add d0 type veth peer name d1");
    let options = Options { tc_attach: TcAttach::Clsact, ..small(Options::unpinned()) };
    let dataplane = Dataplane::open(&options).expect("the object loads");
    dataplane.attach(Hook::GuestTc, ifindex("d0")).expect("attached");
    assert_eq!(dataplane.attachments().len(), 1);
    drop(dataplane);
    assert_eq!(shown("d0"), "");
}
