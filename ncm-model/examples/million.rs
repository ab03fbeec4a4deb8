//! Applies one message of a million neighbours and prints what it cost, per neighbour.
//!
//! `cargo run --release -p ncm-model --example million [COUNT]`

#![allow(clippy::print_stdout, reason = "it prints what it measures")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ncm_model::wire::{
    GoalStateV2, NeighborConfiguration, NeighborState, OperationType, SubnetConfiguration, SubnetState,
    VpcConfiguration, VpcState, neighbor_configuration::FixedIp,
};
use ncm_model::{Changes, Message, Model, Origin, Progress, Run, Seed, Settings};
use prost::Message as _;

/// Counts what is allocated.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; only sizes are added up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn uuid(number: usize) -> String {
    let mixed = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        mixed >> 32,
        mixed >> 16 & 0xffff,
        mixed & 0xfff,
        mixed >> 4 & 0xfff,
        number
    )
}

fn message(count: usize, operation: OperationType, with_subnet: bool) -> Vec<u8> {
    let subnet_id = uuid(2_000_000_001);
    let vpc_id = uuid(2_000_000_000);
    let mut head = GoalStateV2 { format_version: 102, ..GoalStateV2::default() };
    if with_subnet {
        head.vpc_states.insert(
            vpc_id.clone(),
            VpcState {
                operation_type: OperationType::Create as i32,
                configuration: Some(VpcConfiguration {
                    id: vpc_id.clone(),
                    tunnel_id: 77,
                    ..Default::default()
                }),
            },
        );
        head.subnet_states.insert(
            subnet_id.clone(),
            SubnetState {
                operation_type: OperationType::Create as i32,
                configuration: Some(SubnetConfiguration {
                    id: subnet_id.clone(),
                    vpc_id: vpc_id.clone(),
                    cidr: "10.0.0.0/8".into(),
                    tunnel_id: 77,
                    ..Default::default()
                }),
            },
        );
    }
    let mut bytes = head.encode_to_vec();
    for number in 0..count {
        let [_, a, b, c] = (number as u32 + 256).to_be_bytes();
        let state = NeighborState {
            operation_type: operation as i32,
            configuration: Some(NeighborConfiguration {
                revision_number: 1,
                request_id: uuid(3_000_000_000),
                id: uuid(number),
                vpc_id: vpc_id.clone(),
                mac_address: format!("fa:16:3e:{a:02x}:{b:02x}:{c:02x}"),
                host_ip_address: format!("172.16.{}.{}", number % 8, number % 250 + 1),
                fixed_ips: vec![FixedIp {
                    subnet_id: subnet_id.clone(),
                    ip_address: format!("10.{a}.{b}.{c}"),
                    ..Default::default()
                }],
                ..Default::default()
            }),
        };
        let entry =
            GoalStateV2 { neighbor_states: [(format!("L2/{number}"), state)].into(), ..Default::default() };
        entry.encode(&mut bytes).unwrap_or_default();
    }
    bytes.shrink_to_fit();
    bytes
}

/// Time this thread has spent on a CPU: other work on the machine does not count.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or_default())
}

/// Applies a message; changes are dropped as they come, as the engine hands them on.
fn push(model: &mut Model, label: &str, bytes: Vec<u8>, count: usize) {
    let size = bytes.len();
    let before = HELD.load(Ordering::Relaxed) - size;
    PEAK.store(HELD.load(Ordering::Relaxed), Ordering::Relaxed);
    let start = cpu_time();
    let Ok(message) = Message::decode_v2(bytes.into()) else { return };
    let decoded = cpu_time() - start;
    let mut run = Run::new(message, Origin::Controller, 1);
    let (mut entries, mut longest) = (0, Duration::ZERO);
    loop {
        let step = Instant::now();
        let mut changes = Changes::default();
        let progress = model.step(&mut run, 8192, &mut changes);
        entries += changes.len();
        longest = longest.max(step.elapsed());
        if progress == Progress::Done {
            break;
        }
    }
    let all = cpu_time() - start;
    let rows = model.rows(&run).take(50_000).filter(|row| row.cause.is_empty()).count();
    let answered = cpu_time() - start;
    let peak = PEAK.load(Ordering::Relaxed).saturating_sub(before + size);
    drop(run);
    let held = HELD.load(Ordering::Relaxed) as isize - before as isize;
    let each = |value: f64| value / count as f64;
    println!(
        "{label:<28} {:6.1} ns decode, {:6.1} ns in all, longest step {:5.1} ms, {entries} entries, {rows} rows in {:.1} ms, \
         held {:+.1} B, peak {:.1} B each",
        each(decoded.as_nanos() as f64),
        each(all.as_nanos() as f64),
        longest.as_secs_f64() * 1e3,
        (answered - all).as_secs_f64() * 1e3,
        each(held as f64),
        each(peak as f64),
    );
}

fn main() {
    let count = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let mut model = Model::new(Settings::default(), &Seed::default());
    push(&mut model, "create", message(count, OperationType::Create, true), count);
    push(&mut model, "again", message(count, OperationType::Create, true), count);
    push(&mut model, "delete", message(count, OperationType::Delete, false), count);
    let mut model = Model::new(Settings::default(), &Seed::default());
    push(&mut model, "create, without the subnet", message(count, OperationType::Create, false), count);
    push(&mut model, "the subnet", message(0, OperationType::Create, true), count);
}
