//! Wires between machines: veth pairs, and a switch as a namespace with a bridge.

use anyhow::Result;

use super::lab::Lab;
use super::namespace::Namespace;

/// A veth pair: by default a *virtual* wire, on which segmentation-offloaded frames and partial checksums travel as
/// they are.
#[derive(Clone, Debug)]
pub struct Wire {
    /// One end: where and which interface.
    pub left: (Namespace, String),
    /// The other end.
    pub right: (Namespace, String),
}

impl Wire {
    /// Connects an interface of `left` to one of `right` and brings both up.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn connect(left: (&Namespace, &str), right: (&Namespace, &str)) -> Result<Self> {
        left.0.run(&format!(
            "ip link add {} type veth peer name {} netns {}",
            left.1,
            right.1,
            right.0.name()
        ))?;
        left.0.run(&format!("ip link set {} up", left.1))?;
        right.0.run(&format!("ip link set {} up", right.1))?;
        Ok(Self { left: (left.0.clone(), left.1.to_owned()), right: (right.0.clone(), right.1.to_owned()) })
    }

    /// Makes the wire behave like one between network cards: only frames of the MTU's size with complete checksums.
    ///
    /// # Errors
    /// If `ethtool` fails.
    pub fn like_a_nic(self) -> Result<Self> {
        for (namespace, interface) in [&self.left, &self.right] {
            namespace.features(interface, "tx off tso off gso off")?;
            // XDP redirects into a veth are taken only while its peer polls, as it does with GRO.
            namespace.features(interface, "gro on")?;
        }
        Ok(self)
    }

    /// Sets the MTU of both ends.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn mtu(self, bytes: u32) -> Result<Self> {
        for (namespace, interface) in [&self.left, &self.right] {
            namespace.run(&format!("ip link set {interface} mtu {bytes}"))?;
        }
        Ok(self)
    }
}

/// A learning switch.
#[derive(Clone, Debug)]
pub struct Switch {
    namespace: Namespace,
    nic: bool,
}

impl Switch {
    /// Makes one whose wires behave like those between network cards (`nic`) or like virtual ones.
    ///
    /// # Errors
    /// If the namespace cannot be made.
    pub fn new(lab: &Lab, name: &str, nic: bool) -> Result<Self> {
        let namespace = lab.namespace(name)?;
        namespace.ip("link add br0 type bridge\nlink set br0 up")?;
        Ok(Self { namespace, nic })
    }

    /// The namespace that the bridge `br0` is in.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Plugs in an interface of a machine; on the switch it is named after the machine and the interface.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn plug(&self, machine: &Namespace, interface: &str) -> Result<Wire> {
        let port = format!("{}-{interface}", machine.name());
        let wire = Wire::connect((machine, interface), (&self.namespace, &port))?;
        self.namespace.run(&format!("ip link set {port} master br0"))?;
        if self.nic { wire.like_a_nic() } else { Ok(wire) }
    }
}
