//! A second link between two hosts, with a rate and a delay: TAP devices that report a speed and a duplex mode. A
//! Python script moves the packets, because a TAP device needs a system call that has no safe wrapper.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::TwoHosts;

/// The properties of an emulated cable between two hosts.
#[derive(Clone, Copy, Debug)]
pub struct CableSpec {
    /// The speed that the interfaces report, in Mbit/s.
    pub mbps: u32,
    /// Whether the cable is half duplex: both directions share the speed.
    pub is_half_duplex: bool,
    /// The delay of each direction, in milliseconds.
    pub delay_ms: u32,
    /// The link modes that the interfaces support (`ETHTOOL_LINK_MODE_…`, linux/ethtool.h).
    pub modes: u32,
}

/// An emulated cable between two hosts: the interface `tap0` on both. Removed on drop.
#[derive(Debug)]
pub struct Cable {
    script: Child,
    /// The address that the reflector's host has on this cable; it is different for each cable.
    pub near: String,
}

impl Cable {
    /// Connects the hosts by a cable. Prints SKIPPED and returns `None` without Python or without TAP devices.
    pub fn between(hosts: &TwoHosts, spec: CableSpec) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let tag = format!("pp{}-{number}", std::process::id());
        let address = |host: u8| format!("10.97.{}.{host}", number % 256);
        let names = [format!("{tag}a"), format!("{tag}b")];
        let duplex = if spec.is_half_duplex { "half" } else { "full" };
        let numbers = [spec.mbps.to_string(), duplex.to_owned(), spec.delay_ms.to_string(), spec.modes.to_string()];
        let mut command = Command::new("python3");
        command.args(["-c", include_str!("cable.py")]).args(&names).args(numbers);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let script = child.inspect_err(|error| eprintln!("SKIPPED: a cable needs python3: {error}")).ok()?;
        let mut cable = Self { script, near: address(1) };
        let mut line = String::new();
        let said = BufReader::new(cable.script.stdout.as_mut()?).read_line(&mut line);
        if said.is_err() || line.trim() != "ready" {
            eprintln!("SKIPPED: a cable needs TAP devices");
            return None;
        }
        for (host, name, address) in [(&hosts.near, &names[0], address(1)), (&hosts.far, &names[1], address(2))] {
            let moved = Command::new("ip").args(["link", "set", name, "netns", &host.netns, "name", "tap0"]).status();
            assert!(moved.is_ok_and(|status| status.success()), "ip moves {name}");
            host.must(&["ip", "addr", "add", &format!("{address}/24"), "dev", "tap0"]);
            host.must(&["ip", "link", "set", "tap0", "up"]);
        }
        Some(cable)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // The script ends when its stdin is closed, and its devices then disappear.
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}
