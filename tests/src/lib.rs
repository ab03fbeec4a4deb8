//! What the tests, the demonstration and the benchmarks share: the testbed of hosts, wires, guests and agents in
//! network namespaces, and the harness for single packets.

pub mod bench;
pub mod many;
pub mod packet;
pub mod testbed;
