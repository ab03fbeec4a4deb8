//! What is pinned: taken over by the next process, compared first, readable without one, and removed on request.

mod common;

use std::path::Path;

use common::{ifindex, isolate, list, run, small};
use ncm_common::tables::{NameKey, Reference, Vni, VtepKey};
use ncm_dataplane::{BPFFS, Dataplane, Error, Hook, Options, Reader, teardown};

fn options() -> Options {
    small(Options::pinned("d-test"))
}

fn open() -> Dataplane {
    Dataplane::open(&options()).expect("the object loads")
}

#[test]
fn the_next_process_finds_the_tables_as_they_were() {
    isolate();
    let vni = Vni { subnets: 3, reserved: 0 };
    let key = NameKey { kind: 1, index: 2 };
    {
        let first = open();
        first.tables().vnis.put(&77, &vni).expect("writable");
        first.tables().names.put(&key, &Default::default()).expect("writable");
    }
    let reader = Reader::open(Path::new(BPFFS), "d-test").expect("pinned");
    assert_eq!(reader.tables().vnis.get(&77).expect("readable"), Some(vni));
    let error = reader.tables().vnis.put(&78, &vni).expect_err("a reader does not write");
    assert!(error.to_string().contains("vnis"), "{error}");

    let second = open();
    assert_eq!(second.tables().vnis.get(&77).expect("readable"), Some(vni));
    assert_eq!(second.tables().names.count().expect("readable"), 1);
    second.tables().vnis.put(&78, &vni).expect("writable");
    assert_eq!(reader.tables().vnis.count().expect("readable"), 2, "it is the same table");
}

#[test]
fn tables_of_another_capacity_take_the_place_of_what_is_pinned() {
    isolate();
    run("ip link add d0 type veth peer name d1");
    let first = open();
    let before = first.attach(Hook::GuestTc, ifindex("d0")).expect("attached");
    let vteps: Vec<_> =
        (1..=100).map(|vni| (VtepKey { vni, ip: [7; 16] }, Reference { index: 1, generation: 1 })).collect();
    assert!(first.tables().vteps.put_batch(vteps.clone()).is_complete());
    first.tables().port_traffic.reset([3]);
    drop(first);
    let mut other = options();
    other.capacities.set("vteps", 99);
    let error = Dataplane::open(&other).expect_err("there are 100 entries");
    assert!(matches!(&error, Error::NoRoom { capacity: 99, .. }), "{error}");
    assert!(error.to_string().contains("capacity.vteps"), "{error}");
    other.capacities.set("vteps", 200);
    let second = Dataplane::open(&other).expect("it is taken over");
    assert!(second.is_pending());
    assert_eq!(second.attachments(), [before], "the old program forwards meanwhile");
    second.take_over().expect("taken over");
    assert!(!second.is_pending());
    let [after] = second.attachments()[..] else { panic!("one attachment: {:?}", second.attachments()) };
    assert_eq!((after.link, after.ifindex), (before.link, before.ifindex), "the link is the same one");
    assert_ne!(after.program, before.program);
    let mut found = second.tables().vteps.entries().expect("readable");
    found.sort_unstable();
    assert_eq!((found, second.tables().vteps.capacity()), (vteps, 200));
    assert_eq!(list(&Path::new(BPFFS).join("ncm/d-test")), ["v2"]);
    let reader = Reader::open(Path::new(BPFFS), "d-test").expect("pinned");
    assert_eq!(reader.attachments().expect("readable"), [after]);
}

#[test]
fn a_first_start_that_fails_leaves_nothing_behind() {
    isolate();
    let error = Dataplane::open_object(&options(), b"this is no object").expect_err("not an object");
    assert!(matches!(error, Error::Object(_)), "{error}");
    assert_eq!(list(&Path::new(BPFFS).join("ncm")), Vec::<String>::new());
    // What another version pinned goes on forwarding.
    let other = Path::new(BPFFS).join("ncm/d-test/v0/maps");
    std::fs::create_dir_all(&other).expect("bpffs has directories");
    Dataplane::open_object(&options(), b"this is no object").expect_err("not an object");
    assert!(other.exists(), "another layout's tables are gone");
    teardown(Path::new(BPFFS), "d-test").expect("removed");
    drop(open());
    Dataplane::open_object(&options(), b"this is no object").expect_err("not an object");
    assert!(Reader::open(Path::new(BPFFS), "d-test").is_ok(), "what was there before stays");
}

#[test]
fn the_object_defines_every_table() {
    isolate();
    let dataplane = open();
    let pinned = list(&Path::new(BPFFS).join("ncm/d-test/v2/maps"));
    let mut defined: Vec<&str> = dataplane.specs().iter().map(|spec| spec.name).collect();
    defined.sort_unstable();
    assert_eq!(pinned, defined);
    let programs: Vec<String> =
        dataplane.programs().expect("readable").into_iter().map(|program| program.name).collect();
    for hook in Hook::ALL {
        assert!(programs.iter().any(|name| name == hook.program()), "no {hook} among {programs:?}");
    }
    for program in dataplane.programs().expect("readable") {
        assert!(program.verified_instructions <= 100_000, "the verifier walked too far: {program:?}");
    }
}

#[test]
fn teardown_removes_everything_and_may_be_repeated() {
    isolate();
    run("ip link add d0 type veth peer name d1");
    let dataplane = open();
    dataplane.attach(Hook::GuestTc, ifindex("d0")).expect("attached");
    drop(dataplane);
    teardown(Path::new(BPFFS), "d-test").expect("removed");
    assert_eq!(list(&Path::new(BPFFS).join("ncm")), Vec::<String>::new());
    teardown(Path::new(BPFFS), "d-test").expect("nothing to remove is fine");
    let error = Reader::open(Path::new(BPFFS), "d-test").expect_err("gone");
    assert!(matches!(error, Error::NotLoaded { .. }), "{error}");
    let other = Dataplane::open(&small(Options::pinned("d-other"))).expect("the object loads");
    let left = other.on_hook(Hook::GuestTc, ifindex("d0")).expect("readable");
    assert_eq!(left, [], "the program has left the interface");
}

#[test]
fn an_attached_program_stays_and_is_swapped_by_the_next_process() {
    isolate();
    run("ip link add d0 type veth peer name d1");
    let index = ifindex("d0");
    let before = open().attach(Hook::GuestTc, index).expect("attached");
    let reader = Reader::open(Path::new(BPFFS), "d-test").expect("pinned");
    assert_eq!(reader.attachments().expect("readable"), [before], "it stays without its process");

    let second = open();
    let [after] = second.attachments()[..] else { panic!("one attachment: {:?}", second.attachments()) };
    assert_eq!((after.hook, after.ifindex, after.link), (Hook::GuestTc, index, before.link));
    assert_ne!(after.program, before.program, "the new process brought its own program");
    assert_eq!(second.attach(Hook::GuestTc, index).expect("again"), after, "attaching again changes nothing");
    second.detach(Hook::GuestTc, index).expect("detached");
    assert_eq!(second.attachments(), []);
    assert_eq!(second.on_hook(Hook::GuestTc, index).expect("readable"), []);
}

#[test]
fn another_layout_that_nothing_is_known_of_is_left_alone_and_named() {
    isolate();
    run("ip link add d0 type veth peer name d1");
    open().attach(Hook::GuestTc, ifindex("d0")).expect("attached");
    // As a build with another layout has pinned it.
    let directory = Path::new(BPFFS).join("ncm/d-test");
    let [own] = &list(&directory)[..] else { panic!("one layout in {directory:?}") };
    std::fs::rename(directory.join(own), directory.join("v1")).expect("bpffs has directories");
    std::fs::remove_file(directory.join("v1/fields")).expect("what its tables are made of is kept");
    let error = Dataplane::open(&options()).expect_err("two programs on one hook");
    assert!(matches!(&error, Error::OtherLayout { found, .. } if *found == 1), "{error}");
    assert!(error.to_string().contains("--teardown"), "it says what helps: {error}");
    assert_eq!(list(&directory), ["v1"], "nothing was made beside it");
    teardown(Path::new(BPFFS), "d-test").expect("removed");
    drop(open());
}

#[test]
fn the_link_of_an_interface_that_has_gone_goes_too() {
    isolate();
    let links = Path::new(BPFFS).join("ncm/d-test/v2/links");
    run("ip link add d0 type veth peer name d1");
    let first = open();
    let index = ifindex("d0");
    first.attach(Hook::GuestTc, index).expect("attached");
    run("ip link del d0");
    assert_eq!(first.attachments(), []);
    drop(first);
    assert_eq!(list(&links), [format!("guest_tc-{index}")], "the pin outlives the interface");
    let second = open();
    assert_eq!(list(&links), Vec::<String>::new(), "the next process removes it");

    // The same index may come back.
    run(&format!("ip link add d0 index {index} type veth peer name d1"));
    second.attach(Hook::GuestTc, index).expect("attached");
    run("ip link del d0");
    run(&format!("ip link add d0 index {index} type veth peer name d1"));
    let attached = second.attach(Hook::GuestTc, index).expect("attached to the new one");
    assert_eq!(second.attachments(), [attached]);
    run("ip link del d0");
    second.forget_gone().expect("removed");
    assert_eq!(list(&links), Vec::<String>::new());
}

#[test]
fn a_second_instance_on_the_same_hook_is_refused() {
    isolate();
    run("ip link add d0 type veth peer name d1");
    let first = open();
    let attached = first.attach(Hook::GuestTc, ifindex("d0")).expect("attached");
    let second = Dataplane::open(&small(Options::pinned("d-other"))).expect("the object loads");
    match second.attach(Hook::GuestTc, ifindex("d0")) {
        Err(Error::Occupied { id, link, .. }) => assert_eq!((id, link), (attached.program, attached.link)),
        other => panic!("both would run: {other:?}"),
    }
}

#[test]
fn xdp_is_native_or_an_error_with_a_remedy() {
    isolate();
    run("ip link add d0 type veth peer name d1");
    run("ip link add br0 type bridge");
    let dataplane = open();
    dataplane.attach(Hook::WireXdp, ifindex("d0")).expect("veth has native XDP");
    let error = dataplane.attach(Hook::WireXdp, ifindex("br0")).expect_err("a bridge has none");
    assert!(error.to_string().contains("tc mode"), "{error}");
    let other = Dataplane::open(&small(Options::pinned("d-other"))).expect("the object loads");
    let error = other.attach(Hook::WireXdp, ifindex("d0")).expect_err("held");
    assert!(error.to_string().contains("`wire_xdp` (link "), "{error}");
    let error = dataplane.attach(Hook::GuestTc, 4_000_000).expect_err("no such interface");
    assert!(error.to_string().contains("the interface is gone"), "{error}");
}

#[test]
fn a_bpffs_is_mounted_where_there_is_none() {
    isolate();
    run("mount -t tmpfs none /mnt");
    let options = Options { bpffs: "/mnt/bpf".into(), ..options() };
    let dataplane = Dataplane::open(&options).expect("mounted and loaded");
    assert!(dataplane.programs().expect("readable").iter().any(|program| program.verified_instructions > 0));
    assert!(Path::new("/mnt/bpf/ncm/d-test/v2/maps/NODE").exists());
}
