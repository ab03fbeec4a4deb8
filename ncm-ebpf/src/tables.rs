//! The maps. What each holds, who writes it and who reads it is declared once, in `ncm_common::tables`; kinds, sizes and
//! capacities come from there, so that the object cannot disagree with the loader.

use core::{arch::asm, cell::UnsafeCell, ffi::c_void, marker::PhantomData, mem::offset_of};

use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC, bpf_map_def,
        bpf_map_type::{
            BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_DEVMAP_HASH, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LPM_TRIE,
            BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_PERCPU_HASH,
        },
        xdp_action,
    },
    btf_maps::{ArrayOfMaps, LruHashMap},
    helpers::{bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem, bpf_redirect_map},
    macros::{btf_map, map},
};
use ncm_common::conversion::LARGEST;
use ncm_common::tables::{
    ClassKey, Classes, Count, Endpoint, Flow, FlowKey, Host, IpKey, MacKey, Name, NameKey, NextHopGroup,
    Node, PolicyCount, PolicyCountKey, Port, PortDropKey, PortFlows, PortLimits, PortTraffic, Reference,
    Route, RouteKey, Rule, RuleKey, Source, SourceKey, SourcePrefixKey, Subnet, SubnetPrefixKey, TABLES,
    TableKind, Vni, VtepKey, capacity,
};

use crate::{
    scratch::Scratch,
    stages::policy::{VERDICTS_EACH, Verdict},
};

/// `-EEXIST`
pub const EXISTS: i64 = -17;
/// `BPF_ANY`
pub const ANY: u64 = 0;
/// `BPF_NOEXIST`
pub const NO_EXIST: u64 = 1;
/// `BPF_EXIST`
pub const EXIST: u64 = 2;

/// A map from `K` to `V`.
#[repr(transparent)]
pub struct Table<K, V> {
    definition: UnsafeCell<bpf_map_def>,
    entries: PhantomData<(K, V)>,
}

// SAFETY: the kernel serialises access to maps; the definition itself is only ever read, by the loader.
unsafe impl<K, V> Sync for Table<K, V> {}

impl<K, V> Table<K, V> {
    /// The table of that name in [`TABLES`].
    const fn named(name: &str) -> Self {
        let mut position = 0;
        while !is_same(TABLES[position].name, name) {
            position += 1;
        }
        let spec = &TABLES[position];
        assert!(spec.key_size as usize == size_of::<K>(), "the key is of another size");
        assert!(spec.value_size as usize == size_of::<V>(), "the value is of another size");
        let (kind, map_flags) = match spec.kind {
            TableKind::Hash => (BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC),
            TableKind::PerCpuHash => (BPF_MAP_TYPE_PERCPU_HASH, BPF_F_NO_PREALLOC),
            TableKind::LongestPrefix => (BPF_MAP_TYPE_LPM_TRIE, BPF_F_NO_PREALLOC),
            TableKind::Array => (BPF_MAP_TYPE_ARRAY, 0),
            TableKind::PerCpuArray => (BPF_MAP_TYPE_PERCPU_ARRAY, 0),
            TableKind::Devices => (BPF_MAP_TYPE_DEVMAP_HASH, 0),
            TableKind::LruByPort => panic!("a table of tables is defined by itself, below"),
        };
        Self {
            definition: UnsafeCell::new(bpf_map_def {
                type_: kind,
                key_size: spec.key_size,
                value_size: spec.value_size,
                max_entries: spec.default_capacity,
                map_flags,
                id: 0,
                pinning: 0,
            }),
            entries: PhantomData,
        }
    }

    /// The entry of `key`. Another CPU (or the agent) may change it meanwhile: words are whole, groups of words are not.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        // SAFETY: the kernel gives a pointer to a value of the declared size that lives as long as the program runs.
        unsafe { self.lookup(key).as_ref() }
    }

    /// The entry of `key`, to be written; null if there is none.
    #[inline(always)]
    pub(crate) fn lookup(&self, key: &K) -> *mut V {
        // SAFETY: the definition is a map's, and the key is of the declared size.
        unsafe { bpf_map_lookup_elem(self.definition.get().cast(), core::ptr::from_ref(key).cast()).cast() }
    }

    /// Changes the entry of `key` in place, if there is one; tells whether.
    #[inline(always)]
    pub fn change(&self, key: &K, change: impl FnOnce(&mut V)) -> bool {
        // SAFETY: as in `get`. A per-CPU value is this CPU's alone while the program runs; the others that programs
        // write are counters and limits, where a lost update of a concurrent writer is tolerable.
        match unsafe { self.lookup(key).as_mut() } {
            Some(value) => {
                change(value);
                true
            }
            None => false,
        }
    }

    /// Adds an entry; gives 0 or the kernel's error, [`EXISTS`] if there is one already.
    #[inline(always)]
    pub fn add(&self, key: &K, value: &V) -> i64 {
        self.update(key, value, NO_EXIST)
    }

    /// Puts a whole new value in the place of an entry, if there is one; tells whether.
    #[inline(always)]
    pub fn replace(&self, key: &K, value: &V) -> bool {
        self.update(key, value, EXIST) == 0
    }

    /// Removes an entry.
    #[cfg(feature = "interject")]
    #[inline(always)]
    pub(crate) fn remove(&self, key: &K) {
        // SAFETY: the definition is a map's, and the key is of the declared size.
        unsafe {
            bpf_map_delete_elem(self.definition.get().cast(), core::ptr::from_ref(key).cast());
        }
    }

    #[inline(always)]
    fn update(&self, key: &K, value: &V, flags: u64) -> i64 {
        // SAFETY: the definition is a map's, key and value are of the declared sizes.
        unsafe {
            bpf_map_update_elem(
                self.definition.get().cast(),
                core::ptr::from_ref(key).cast(),
                core::ptr::from_ref(value).cast(),
                flags,
            )
        }
    }
}

impl<V> Table<u32, V> {
    /// So many values for each CPU.
    const fn per_cpu(count: u32) -> Self {
        Self::of_kind(BPF_MAP_TYPE_PERCPU_ARRAY, count, 0)
    }
}

impl<K, V> Table<K, V> {
    /// A map that is no table of the product's.
    const fn of_kind(kind: u32, count: u32, flags: u32) -> Self {
        Self {
            definition: UnsafeCell::new(bpf_map_def {
                type_: kind,
                key_size: size_of::<K>() as u32,
                value_size: size_of::<V>() as u32,
                max_entries: count,
                map_flags: flags,
                id: 0,
                pinning: 0,
            }),
            entries: PhantomData,
        }
    }
}

impl<K, V> Table<K, V> {
    /// The map itself.
    #[inline(always)]
    pub(crate) fn map(&self) -> *mut c_void {
        self.definition.get().cast()
    }
}

impl Table<u32, u32> {
    /// Sends the XDP frame out of a device; `None` if the device is not in the table.
    #[inline(always)]
    #[must_use]
    pub fn redirect(&self, ifindex: u32) -> Option<u32> {
        // SAFETY: the definition is a map's. The lowest bits of the flags are the result for a missing key.
        let action = unsafe {
            bpf_redirect_map(
                self.definition.get().cast(),
                u64::from(ifindex),
                u64::from(xdp_action::XDP_ABORTED),
            )
        };
        (action == i64::from(xdp_action::XDP_REDIRECT)).then_some(xdp_action::XDP_REDIRECT)
    }
}

const fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    if one.len() != other.len() {
        return false;
    }
    let mut position = 0;
    while position < one.len() {
        if one[position] != other[position] {
            return false;
        }
        position += 1;
    }
    true
}

macro_rules! maps {
    ($($name:ident: $key:ty => $value:ty;)+) => {
        $(
            #[doc = concat!("The table `", stringify!($name), "` of `ncm_common::tables`.")]
            #[map]
            pub static $name: Table<$key, $value> = Table::named(stringify!($name));
        )+

        const _: () = assert!([$(stringify!($name)),+].len() + 1 == TABLES.len(), "a table has no map");
    };
}

maps! {
    NAMES: NameKey => Name;
    NODE: u32 => Node;
    HEARTBEAT: u32 => u64;
    NEXT_HOP_GROUPS: u32 => NextHopGroup;
    HOSTS: u32 => Host;
    RULES: RuleKey => Rule;
    CLASSES: ClassKey => Classes;
    SUBNETS: u32 => Subnet;
    PORTS: u32 => Port;
    VNIS: u32 => Vni;
    SUBNET_PREFIXES: SubnetPrefixKey => Reference;
    VTEPS: VtepKey => Reference;
    ENDPOINTS_MAC: MacKey => Endpoint;
    ENDPOINTS_IP: IpKey => Endpoint;
    ROUTES: RouteKey => Route;
    SOURCES: SourceKey => Source;
    SOURCE_PREFIXES: SourcePrefixKey => Source;
    REMOTE_EPOCHS: u32 => u32;
    TIMEOUTS: u32 => u32;
    FLOWS: FlowKey => Flow;
    PORT_FLOWS: u32 => PortFlows;
    POLICY_COUNTS: PolicyCountKey => PolicyCount;
    DEVICES: u32 => u32;
    PORT_BY_INTERFACE: u32 => Reference;
    DROPS: u32 => Count;
    PORT_DROPS: PortDropKey => Count;
    PORT_TRAFFIC: u32 => PortTraffic;
    COUNTERS: u32 => Count;
    LIMITS: u32 => PortLimits;
}

/// Memory of each CPU for the packet at hand. No table: nobody else reads it, and it is not kept.
#[map]
pub static SCRATCH: Table<u32, Scratch> = Table::per_cpu(1);

/// What policy answered each CPU last, by a hash of the question. No table either.
#[map]
pub static VERDICTS: Table<u32, Verdict> = Table::per_cpu(VERDICTS_EACH);

/// The table of flows that ours is to take the place of: the agent puts it there. Its layout is its own.
#[map]
pub static OLD_FLOWS: Table<FlowKey, Flow> = Table::of_kind(BPF_MAP_TYPE_HASH, 1, BPF_F_NO_PREALLOC);

/// How far that is: `ncm_common::conversion::phases`. The agent puts it there, and changes it.
#[map]
pub static PHASE: Table<u32, u32> = Table::of_kind(BPF_MAP_TYPE_ARRAY, 1, 0);

/// Memory of each CPU for a key and a value of those tables.
#[map]
pub static THEIRS: Table<u32, Theirs> = Table::per_cpu(1);

/// A key and a value of another layout.
#[repr(C, align(8))]
pub struct Theirs {
    /// The key.
    pub key: [u8; LARGEST],
    /// The value.
    pub value: [u8; LARGEST],
}

/// The half-open flows that ours are to take the place of, likewise.
#[btf_map]
pub static OLD_HALF_OPEN: ArrayOfMaps<LruHashMap<FlowKey, Flow, TEMPLATE_ENTRIES>, 1> = ArrayOfMaps::new();

impl Table<u32, PortFlows> {
    /// One more established flow of a port.
    #[inline(always)]
    pub fn add_established(&self, port: u32) {
        let flows = self.lookup(&port);
        if !flows.is_null() {
            // SAFETY: the kernel keeps the value as long as the program runs; the instruction adds to an aligned word. (The
            // target has no atomic types.)
            unsafe {
                asm!("lock *(u32 *)({count} + 0) += {one}", count = in(reg) &raw mut (*flows).established,
                    one = in(reg) 1u64, options(nostack));
            }
        }
    }
}

/// Entries of the inner table that the kernel learns the inner tables' type from; the agent gives each port's its size.
const TEMPLATE_ENTRIES: usize = 64;

/// The table `HALF_OPEN` of `ncm_common::tables`: for each port a table of its own, so that what one guest begins evicts
/// nobody else's. Entries may be reused for another flow of the same port while they are read.
#[btf_map]
pub static HALF_OPEN: ArrayOfMaps<
    LruHashMap<FlowKey, Flow, TEMPLATE_ENTRIES>,
    { capacity::HALF_OPEN as usize },
> = ArrayOfMaps::new();

/// An entry of a table of flows. Its state and times are changed in place, by several CPUs. The kernel uses the memory of an
/// entry that goes again at once, also while it is read: see [`Entry::is_of`].
#[derive(Clone, Copy)]
pub struct Entry(*mut Flow);

impl Entry {
    #[inline(always)]
    fn new(flow: *mut Flow) -> Option<Self> {
        if flow.is_null() { None } else { Some(Self(flow)) }
    }

    /// The entry of the table `FLOWS`.
    #[inline(always)]
    #[must_use]
    pub fn established(key: &FlowKey) -> Option<Self> {
        Self::new(FLOWS.lookup(key))
    }

    /// What only changes with the whole value.
    #[inline(always)]
    #[must_use]
    pub fn flow(self) -> &'static Flow {
        // SAFETY: the kernel keeps the value as long as the program runs.
        unsafe { &*self.0 }
    }

    /// `Flow::state`
    #[inline(always)]
    #[must_use]
    pub fn state(self) -> u32 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).state).read_volatile() }
    }

    /// `Flow::seen`
    #[inline(always)]
    #[must_use]
    pub fn seen(self) -> [u32; 2] {
        // SAFETY: as above.
        unsafe {
            [(&raw const (*self.0).seen[0]).read_volatile(), (&raw const (*self.0).seen[1]).read_volatile()]
        }
    }

    /// Notes when a packet was seen: in the guest's direction, or to it.
    #[inline(always)]
    pub fn see(self, to_guest: bool, now: u32) {
        // SAFETY: as above; one aligned word is written.
        unsafe {
            if to_guest {
                (&raw mut (*self.0).seen[1]).write_volatile(now);
            } else {
                (&raw mut (*self.0).seen[0]).write_volatile(now);
            }
        }
    }

    /// Sets and clears bits of the state. Each in one instruction: what another CPU does to other bits stays.
    #[inline(always)]
    pub fn turn(self, set: u32, clear: u32) {
        // Such instructions are to be had for two words only: the state, and the one beside it.
        const STATE: usize = offset_of!(Flow, state);
        const { assert!(cfg!(target_endian = "little")) };
        let shift = (STATE as u64 & 4) << 3;
        let (set, keep) = (u64::from(set) << shift, !(u64::from(clear) << shift));
        // SAFETY: as above; the instructions change two words, which are aligned, as a whole.
        unsafe {
            let words = self.0.cast::<u8>().add(STATE & !7);
            asm!("lock *(u64 *)({words} + 0) |= {set}", "lock *(u64 *)({words} + 0) &= {keep}",
                words = in(reg) words, set = in(reg) set, keep = in(reg) keep, options(nostack));
        }
    }

    /// Changes the timeout.
    #[inline(always)]
    pub fn last(self, timeout: u32) {
        // SAFETY: as above; one aligned word is written.
        unsafe { (&raw mut (*self.0).timeout).write_volatile(timeout) };
    }

    /// Whether what was read of the entry before this is the port's: memory of a flow that goes may be another port's at once.
    #[inline(always)]
    #[must_use]
    pub fn is_of(self, port: u32) -> bool {
        // SAFETY: as above.
        let (first, last) = unsafe {
            ((&raw const (*self.0).port).read_volatile(), (&raw const (*self.0).port_again).read_volatile())
        };
        (first ^ port) | (last ^ port) == 0
    }
}

/// A port's half-open flows.
#[derive(Clone, Copy)]
pub struct HalfOpen(*mut c_void);

impl HalfOpen {
    /// Those of the port with that index, once the agent has made them a table.
    #[inline(always)]
    #[must_use]
    pub fn of(port: u32) -> Option<Self> {
        HALF_OPEN.get(port).map(|inner| Self(core::ptr::from_ref(inner).cast_mut().cast()))
    }

    /// The entry of `key`.
    #[inline(always)]
    #[must_use]
    pub fn get(self, key: &FlowKey) -> Option<Entry> {
        // SAFETY: the kernel gave the table, and gives a pointer to a value of the declared size.
        Entry::new(unsafe { bpf_map_lookup_elem(self.0, core::ptr::from_ref(key).cast()) }.cast())
    }

    /// Puts a whole value for `key`; the table makes room if it is full.
    #[inline(always)]
    pub fn put(self, key: &FlowKey, value: &Flow) {
        self.update(key, value, ANY);
    }

    /// The same with the kernel's flags.
    #[inline(always)]
    pub fn update(self, key: &FlowKey, value: &Flow, flags: u64) {
        // SAFETY: the kernel gave the table; key and value are of the declared sizes.
        unsafe {
            bpf_map_update_elem(
                self.0,
                core::ptr::from_ref(key).cast(),
                core::ptr::from_ref(value).cast(),
                flags,
            );
        }
    }

    /// Removes the entry of `key`, if there is one.
    #[inline(always)]
    pub fn remove(self, key: &FlowKey) {
        // SAFETY: the kernel gave the table; the key is of the declared size.
        unsafe {
            bpf_map_delete_elem(self.0, core::ptr::from_ref(key).cast());
        }
    }
}
