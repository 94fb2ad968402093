//! Reads the facts of this host: processor, interfaces, limits, buffers. Changes nothing and never fails: a fact that
//! cannot be read is absent. The other modules of the self-test measure.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use paramedic_engines::host_facts::{self, text};
use paramedic_engines::interface::{duplex_of, speed_bps};
use paramedic_engines::quota;
use paramedic_link::PeerText;
use paramedic_report::self_test::{
    Buffers, CongestionControls, Descriptors, Facts, Governor, Interface, InterfaceKind, Processor, Timestamps,
};

/// Reads the current facts of the host, except timers and timestamps, which must be measured.
pub(super) fn read() -> Facts {
    let setting = |name: &str| text(Path::new("/proc/sys/net").join(name));
    let words = |name: &str| setting(name).map(|text| words(&text)).unwrap_or_default();
    let bytes = |name: &str| last_number(&setting(name)?);
    Facts {
        host: host_facts::read(None),
        processor: Processor {
            cores: rustix::thread::sched_getaffinity(None).ok().map(|cores| cores.count()),
            quota_cores: quota::cores(),
            governors: governors(Path::new("/sys/devices/system/cpu")),
            ..ciphers()
        },
        interfaces: interfaces(Path::new("/sys/class/net")),
        descriptors: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, hard)| Descriptors { soft, hard }),
        buffers: Buffers {
            receive_max_bytes: bytes("core/rmem_max"),
            send_max_bytes: bytes("core/wmem_max"),
            tcp_receive_max_bytes: bytes("ipv4/tcp_rmem"),
            tcp_send_max_bytes: bytes("ipv4/tcp_wmem"),
        },
        congestion: CongestionControls {
            default: words("ipv4/tcp_congestion_control").into_iter().next(),
            allowed: words("ipv4/tcp_allowed_congestion_control"),
            available: words("ipv4/tcp_available_congestion_control"),
        },
        timers: None,
        timestamps: Timestamps::default(),
        huge_pages: text("/sys/kernel/mm/transparent_hugepage/enabled").and_then(|modes| chosen(&modes)),
    }
}

/// Detects the processor instructions that AES-GCM uses. On hosts with them, AES-GCM is the preferred cipher of links
/// and tunnels.
#[cfg(target_arch = "x86_64")]
fn ciphers() -> Processor {
    use std::arch::is_x86_feature_detected as has;
    named([
        ("aes", has!("aes")),
        ("pclmulqdq", has!("pclmulqdq")),
        ("avx2", has!("avx2")),
        ("vaes", has!("vaes")),
        ("vpclmulqdq", has!("vpclmulqdq")),
        ("avx512f", has!("avx512f")),
    ])
}

/// Detects the processor instructions that AES-GCM uses. On hosts with them, AES-GCM is the preferred cipher of links
/// and tunnels.
#[cfg(target_arch = "aarch64")]
fn ciphers() -> Processor {
    use std::arch::is_aarch64_feature_detected as has;
    named([("aes", has!("aes")), ("pmull", has!("pmull")), ("sha3", has!("sha3"))])
}

/// Returns no instructions, because none are detected on this processor architecture.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn ciphers() -> Processor {
    Processor::default()
}

/// Lists the available instructions. Each entry of `instructions` is a name, and whether the processor has the
/// instruction. AES-GCM in hardware needs the first two: one for the rounds of the cipher, one for the multiplication
/// in its tag. The others make AES-GCM faster.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn named<const N: usize>(instructions: [(&str, bool); N]) -> Processor {
    let names = instructions.iter().filter(|(_, has)| *has).map(|(name, _)| (*name).to_owned());
    Processor {
        aes_gcm_in_hardware: Some(instructions.iter().take(2).all(|(_, has)| *has)),
        instructions: names.collect(),
        ..Processor::default()
    }
}

/// The frequency governors of all cores, each with its driver. Equal entries are listed once.
fn governors(cpus: &Path) -> Vec<Governor> {
    let governor = |cpu: PathBuf| {
        let word = |name: &str| Some(PeerText::new(&text(cpu.join("cpufreq").join(name))?));
        Some(Governor { name: word("scaling_governor")?, driver: word("scaling_driver").unwrap_or_default() })
    };
    let mut found = entries(cpus).filter_map(governor).collect::<Vec<_>>();
    found.sort_unstable();
    found.dedup();
    found
}

/// The interfaces in `net` that are up, except loopback, ordered by name.
fn interfaces(net: &Path) -> Vec<Interface> {
    /// The interface type of loopback, `ARPHRD_LOOPBACK` (linux/if_arp.h).
    const LOOPBACK: &str = "772";
    let interface = |folder: PathBuf| {
        let file = |name: &str| Some(text(folder.join(name))?.trim().to_owned());
        // A tunnel that is set up reports an unknown state.
        let is_up = file("operstate").is_some_and(|state| state == "up" || state == "unknown");
        if !is_up || file("type").is_some_and(|kind| kind == LOOPBACK) {
            return None;
        }
        let kind = if folder.join("wireless").exists() || folder.join("phy80211").exists() {
            InterfaceKind::Wireless
        } else if folder.join("device").exists() {
            InterfaceKind::Wired
        } else {
            InterfaceKind::Virtual
        };
        let attribute = |name: &str| if kind == InterfaceKind::Virtual { None } else { file(name) };
        Some(Interface {
            name: PeerText::new(&folder.file_name()?.to_string_lossy()),
            kind,
            mtu_bytes: file("mtu").and_then(|mtu| mtu.parse().ok()),
            speed_bps: attribute("speed").and_then(|speed| speed_bps(&speed)),
            duplex: attribute("duplex").and_then(|duplex| duplex_of(&duplex)),
        })
    };
    let mut interfaces = entries(net).filter_map(interface).collect::<Vec<_>>();
    interfaces.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    interfaces
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// The last of the numbers in `text`, such as 6291456 in `4096 131072 6291456`.
fn last_number(text: &str) -> Option<u64> {
    text.split_whitespace().next_back()?.parse().ok()
}

/// The word in brackets, such as `madvise` in `always [madvise] never`.
fn chosen(modes: &str) -> Option<String> {
    let (word, _) = modes.split_once('[')?.1.split_once(']')?;
    Some(word.to_owned())
}

#[cfg(test)]
mod tests {
    use paramedic_link::measurement::Duplex;

    use super::*;
    use crate::test_files::tree;

    #[test]
    fn the_facts_of_this_host_are_read() {
        let facts = read();
        let descriptors = facts.descriptors.unwrap();
        assert!(descriptors.soft > 0 && descriptors.soft <= descriptors.hard);
        assert!(facts.congestion.default.is_some());
        assert!(facts.interfaces.iter().all(|interface| interface.name.as_str() != "lo"));
        if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
            let has = |name: &str| facts.processor.instructions.iter().any(|has| has == name);
            let both = has("aes") && (has("pclmulqdq") || has("pmull"));
            assert_eq!(facts.processor.aes_gcm_in_hardware, Some(both));
        }
    }

    #[test]
    fn interfaces_that_are_up_have_the_facts_of_their_driver() {
        let net = tree(&[
            ("eth0/operstate", "up\n"),
            ("eth0/type", "1\n"),
            ("eth0/mtu", "1500\n"),
            ("eth0/speed", "100\n"),
            ("eth0/duplex", "half\n"),
            ("eth0/device/vendor", "0x8086\n"),
            ("wlan0/operstate", "up\n"),
            ("wlan0/wireless/status", ""),
            ("wlan0/device/vendor", ""),
            ("wlan0/mtu", "1500\n"),
            ("tun0/operstate", "unknown\n"),
            ("tun0/speed", "10\n"),
            ("tun0/duplex", "full\n"),
            ("eth1/operstate", "down\n"),
            ("lo/operstate", "unknown\n"),
            ("lo/type", "772\n"),
        ]);
        let found = interfaces(net.path());
        let names = found.iter().map(|interface| interface.name.as_str()).collect::<Vec<_>>();
        assert_eq!(names, ["eth0", "tun0", "wlan0"]);
        assert_eq!((found[0].speed_bps, found[0].duplex), (Some(100_000_000), Some(Duplex::Half)));
        assert_eq!((found[0].kind, found[0].mtu_bytes), (InterfaceKind::Wired, Some(1500)));
        // The speed that a tunnel reports has no meaning.
        assert_eq!((found[1].kind, found[1].speed_bps, found[1].duplex), (InterfaceKind::Virtual, None, None));
        assert_eq!((found[2].kind, found[2].speed_bps), (InterfaceKind::Wireless, None));
        assert_eq!(interfaces(Path::new("/nonesuch")), []);
    }

    #[test]
    fn each_governor_is_listed_once() {
        let cpus = tree(&[
            ("cpu0/cpufreq/scaling_governor", "powersave\n"),
            ("cpu0/cpufreq/scaling_driver", "cppc_cpufreq\n"),
            ("cpu1/cpufreq/scaling_driver", "cppc_cpufreq\n"),
            ("cpu1/cpufreq/scaling_governor", "powersave\n"),
            ("cpu2/cpufreq/scaling_governor", "performance\n"),
            ("online", "0-2\n"),
        ]);
        let governor = |name, driver| Governor { name: PeerText::new(name), driver: PeerText::new(driver) };
        assert_eq!(governors(cpus.path()), [governor("performance", ""), governor("powersave", "cppc_cpufreq")]);
    }

    #[test]
    fn an_unreadable_fact_is_absent() {
        assert_eq!(last_number("4096\t131072\t6291456\n"), Some(6_291_456));
        assert_eq!([last_number(""), last_number("many")], [None; 2]);
        assert_eq!(chosen("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(chosen("always madvise never"), None);
    }
}
