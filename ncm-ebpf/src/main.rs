//! The kernel programs: one entry point per hook, each a line into the library.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

/// On the host there is nothing to run: the programs exist for the kernel only.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(all(target_arch = "bpf", feature = "bench"))]
mod bench;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        macros::{classifier, xdp},
        programs::{TcContext, XdpContext},
    };
    use ncm_ebpf::{
        context::{Tc, Xdp},
        stages::{guest, hand, tunnel},
    };

    /// A frame from a guest, at XDP. The benchmark's programs share it, as the compiler would lay out two copies of it otherwise
    /// than the one of the product.
    #[cfg_attr(feature = "bench", inline(never))]
    #[cfg_attr(not(feature = "bench"), inline(always))]
    pub(super) fn from_guest(packet: Xdp) -> u32 {
        guest::run(packet) as u32
    }

    /// A frame from the wire, at XDP, likewise.
    #[cfg_attr(feature = "bench", inline(never))]
    #[cfg_attr(not(feature = "bench"), inline(always))]
    pub(super) fn from_wire(packet: Xdp) -> u32 {
        tunnel::wire_xdp(packet) as u32
    }

    /// Native XDP on an underlay interface.
    #[xdp(frags)]
    fn wire_xdp(context: XdpContext) -> u32 {
        from_wire(Xdp::new(&context))
    }

    /// tc ingress on an underlay interface without XDP.
    #[classifier]
    fn wire_tc(context: TcContext) -> i32 {
        tunnel::wire_tc(Tc::new(&context))
    }

    /// tc ingress on the relay device.
    #[classifier]
    fn relay_tc(context: TcContext) -> i32 {
        tunnel::relay_tc(Tc::new(&context))
    }

    /// tc ingress on a guest's interface.
    #[classifier]
    fn guest_tc(context: TcContext) -> i32 {
        guest::run(Tc::new(&context))
    }

    /// Native XDP on a guest's interface, in front of `guest_tc`.
    #[xdp(frags)]
    fn guest_xdp(context: XdpContext) -> u32 {
        from_guest(Xdp::new(&context))
    }

    /// tc ingress on the interface that hands packets up to the agent.
    #[classifier]
    fn hand_up_tc(_: TcContext) -> i32 {
        hand::ended()
    }

    /// tc egress on that interface.
    #[classifier]
    fn hand_down_tc(context: TcContext) -> i32 {
        hand::down(Tc::new(&context))
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        // The verifier refuses a program that could come here.
        loop {}
    }

    /// The helpers of the kernel that the programs call are open to programs under its own licence.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 4] = *b"GPL\0";
}
