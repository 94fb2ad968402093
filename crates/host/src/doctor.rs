//! Reads what a diagnosis needs in addition to the facts of a self-test: the container, the state folder, the owner of
//! a port. `paramedic-report` decides what the facts mean. Only [`Bundle::write`] writes a file.

use std::borrow::Cow;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use paramedic_engines::host_facts::text;
use paramedic_report::doctor::{
    Check, Container, ContainerNetwork, Diagnosis, Installation, StateFolderFacts, host_checks,
};
use paramedic_report::self_test::Role;
use rustix::fs::{Access, AtFlags, CWD};
use serde_json::{Value, json};

use crate::self_test;

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortTransport {
    /// TCP. Only a program with a listening socket holds the port.
    Tcp,
    /// UDP.
    Udp,
}

/// Inspects this host and the state folder `state_dir` for the program `role`, and appends the program's own `checks`.
pub fn inspect(role: Role, state_dir: &Path, checks: Vec<Check>) -> Diagnosis {
    let installation = Installation {
        container: container(Path::new("/")),
        state_folder: state_folder(state_dir),
        is_root: rustix::process::geteuid().is_root(),
    };
    let mut all = host_checks(role, &self_test::read_facts(), &installation);
    all.extend(checks);
    Diagnosis::new(role, env!("CARGO_PKG_VERSION"), now(), all)
}

/// Detects the container of this process by the files that container engines leave below `root`, and by the control
/// groups in /proc. `None` if neither shows a container.
fn container(root: &Path) -> Option<Container> {
    let has = |path: &str| root.join(path).exists();
    let groups = text(root.join("proc/1/cgroup")).unwrap_or_default();
    let engine = if has("var/run/secrets/kubernetes.io") || groups.contains("kubepods") {
        "kubernetes"
    } else if has("run/.containerenv") {
        "podman"
    } else if has(".dockerenv") || groups.contains("docker") {
        "docker"
    } else {
        return None;
    };
    Some(Container { engine: engine.to_owned(), network: container_network(&root.join("sys/class/net")) })
}

/// Detects from the interfaces in `net` whether a container has a bridged network or the network of the host. The
/// network is bridged if every interface except loopback is one end of a virtual pair (veth). Such an interface has no
/// device, and its index (`ifindex`) differs from that of the other end (`iflink`), which is in another network
/// namespace.
fn container_network(net: &Path) -> ContainerNetwork {
    let interfaces = fs::read_dir(net).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut others = interfaces.filter(|interface| interface.file_name().is_some_and(|name| name != "lo")).peekable();
    let is_pair_end = |interface: PathBuf| {
        let index = |name: &str| text(interface.join(name));
        !interface.join("device").exists() && index("ifindex") != index("iflink")
    };
    // Without an interface there is nothing to judge.
    let is_bridged = others.peek().is_some() && others.all(is_pair_end);
    if is_bridged { ContainerNetwork::Bridged } else { ContainerNetwork::Host }
}

/// Checks the state folder at `path`. If it does not exist, checks the nearest existing folder above it.
fn state_folder(path: &Path) -> StateFolderFacts {
    let exists = path.exists();
    let nearest = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let access = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    let fault = if !nearest.is_dir() {
        Some(format!("{} is not a folder", nearest.display()))
    } else {
        let allowed = rustix::fs::accessat(CWD, nearest, access, AtFlags::EACCESS);
        allowed.err().map(|error| format!("{}: {}", nearest.display(), std::io::Error::from(error)))
    };
    let kind = rustix::fs::statfs(nearest).ok().and_then(|of| network_file_system(of.f_type as u64));
    StateFolderFacts { path: path.display().to_string(), network_file_system: kind, fault, exists }
}

/// The name of a network file system, by its magic number (statfs(2), linux/magic.h). `None` for any other file system.
fn network_file_system(magic: u64) -> Option<&'static str> {
    // On 32-bit systems the type is signed.
    Some(match magic & 0xffff_ffff {
        0x6969 => "NFS",
        0xff53_4d42 => "CIFS",
        0xfe53_4d42 => "SMB2",
        0x517b => "SMB",
        0x00c3_6400 => "Ceph",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x0102_1997 => "9P",
        0x7461_636f => "OCFS2",
        0x0bd0_0bd0 => "Lustre",
        _ => return None,
    })
}

/// The programs that hold a port, such as `nginx (process 812)`. `None` if no program can be found, for example because
/// it belongs to another user.
pub fn port_owners(transport: PortTransport, port: u16) -> Option<String> {
    let files: [&str; 2] = match transport {
        PortTransport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        PortTransport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let tables = files.iter().filter_map(text);
    let sockets = tables.flat_map(|table| socket_inodes(&table, transport, port)).collect::<Vec<_>>();
    let targets = sockets.iter().map(|inode| format!("socket:[{inode}]")).collect::<Vec<_>>();
    let processes = fs::read_dir("/proc").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let owners = processes.filter(|process| {
        let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten();
        let mut links = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.any(|link| targets.iter().any(|target| link.as_os_str() == target.as_str()))
    });
    let named = owners.filter_map(|owner| {
        let name = text(owner.join("comm"))?;
        Some(format!("{} (process {})", name.trim(), owner.file_name()?.to_string_lossy()))
    });
    let named = named.collect::<Vec<_>>();
    (!named.is_empty()).then(|| named.join(", "))
}

/// The inodes of the sockets at the local `port`, from a table such as /proc/net/tcp. For TCP, only listening sockets
/// are included.
fn socket_inodes(table: &str, transport: PortTransport, port: u16) -> Vec<u64> {
    /// The state of a listening socket, `TCP_LISTEN` (net/tcp_states.h), in hexadecimal digits.
    const LISTEN: &str = "0A";
    let row = |line: &str| {
        let columns = line.split_whitespace().collect::<Vec<_>>();
        let (_, local_port) = columns.get(1)?.rsplit_once(':')?;
        let is_wanted = u16::from_str_radix(local_port, 16).ok()? == port;
        let is_listening = transport == PortTransport::Udp || *columns.get(3)? == LISTEN;
        if is_wanted && is_listening { columns.get(9)?.parse().ok() } else { None }
    };
    table.lines().skip(1).filter_map(row).collect()
}

/// The content of a file that describes an installation, for a support request.
pub struct Bundle {
    content: Value,
    names: Vec<String>,
}

impl Bundle {
    /// A bundle with a diagnosis, the facts of this host, and the configuration as text.
    pub fn new(diagnosis: &Diagnosis, configuration: String) -> Self {
        let facts = self_test::read_facts();
        let content = json!({ "diagnosis": diagnosis, "facts": facts, "configuration": configuration });
        let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { content, names: vec![host_name] }
    }

    /// Adds the status of the running program.
    pub fn set_status(&mut self, status: Value) {
        self.content["status"] = status;
    }

    /// Adds names that a redacted bundle must not contain.
    pub fn add_names(&mut self, names: impl IntoIterator<Item = String>) {
        self.names.extend(names);
    }

    /// Writes the bundle to a new file that only this user can read. With `is_redacted`, replaces the names, Endpoint
    /// IDs and IP addresses that identify a host.
    ///
    /// # Errors
    /// The file exists or cannot be written.
    pub fn write(mut self, path: &Path, is_redacted: bool) -> io::Result<()> {
        if is_redacted {
            redact_value(&mut self.content, &self.names);
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(serde_json::to_string_pretty(&self.content)?.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    }
}

/// Redacts every text in a JSON value, except the names of fields.
fn redact_value(value: &mut Value, names: &[String]) {
    match value {
        Value::String(text) => *text = redact(text, names),
        Value::Array(items) => items.iter_mut().for_each(|item| redact_value(item, names)),
        Value::Object(fields) => fields.values_mut().for_each(|item| redact_value(item, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Replaces `names`, Endpoint IDs, and IP addresses that identify a host.
fn redact(text: &str, names: &[String]) -> String {
    let mut text = text.to_owned();
    for name in names.iter().filter(|name| !name.is_empty()) {
        text = text.replace(name.as_str(), "NAME");
    }
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '%' | '[' | ']');
    let mut redacted = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(begin) = rest.find(is_of_word) {
        let (before, word_on) = rest.split_at(begin);
        let end = word_on.find(|c| !is_of_word(c)).unwrap_or(word_on.len());
        let (word, after) = word_on.split_at(end);
        redacted.push_str(before);
        redacted.push_str(&redacted_word(word));
        rest = after;
    }
    redacted.push_str(rest);
    redacted
}

/// Replaces a word that identifies a host. Addresses that mean "this host" or "every address" stay.
fn redacted_word(word: &str) -> Cow<'_, str> {
    let bare = word.trim_end_matches(['.', ':']);
    let tail = &word[bare.len()..];
    let identifies = |ip: IpAddr| !ip.is_loopback() && !ip.is_unspecified();
    let host = bare.trim_start_matches('[').trim_end_matches(']').split('%').next().unwrap_or_default();
    if bare.starts_with("PP-") {
        return format!("PP-REDACTED{tail}").into();
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return if identifies(ip) { format!("ADDRESS{tail}").into() } else { word.into() };
    }
    match bare.parse::<SocketAddr>() {
        Ok(address) if identifies(address.ip()) => format!("ADDRESS:{}{tail}", address.port()).into(),
        _ => word.into(),
    }
}

#[expect(clippy::disallowed_methods, reason = "the shell that dates a diagnosis")]
fn now() -> Timestamp {
    Timestamp::now()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;
    use crate::test_files::tree;

    #[test]
    fn a_container_is_recognised_and_so_is_its_network() {
        assert_eq!(container(tree(&[("proc/1/cgroup", "0::/init.scope\n")]).path()), None);
        let of = |files: &[(&str, &str)]| container(tree(files).path()).map(|found| (found.engine, found.network));
        let podman = |network| Some(("podman".to_owned(), network));
        let own = [("run/.containerenv", ""), ("sys/class/net/eth0/ifindex", "2"), ("sys/class/net/eth0/iflink", "14")];
        assert_eq!(of(&own), podman(ContainerNetwork::Bridged));
        // The host has interfaces with a device, and ends of the virtual pairs (veth) of containers.
        let host = [
            ("run/.containerenv", ""),
            ("sys/class/net/eth0/device/vendor", "0x8086"),
            ("sys/class/net/veth7/ifindex", "9"),
            ("sys/class/net/veth7/iflink", "2"),
        ];
        assert_eq!(of(&host), podman(ContainerNetwork::Host));
        assert_eq!(of(&[("run/.containerenv", ""), ("sys/class/net/lo/ifindex", "1")]), podman(ContainerNetwork::Host));
        let pod = [("proc/1/cgroup", "0::/kubepods/besteffort/pod7\n"), (".dockerenv", "")];
        assert_eq!(of(&pod).unwrap().0, "kubernetes");
    }

    #[test]
    fn a_state_folder_is_judged_without_creating_it() {
        let root = tree(&[("file", "")]);
        let at = |name: &str| state_folder(&root.path().join(name));
        assert!(at("").exists && at("").fault.is_none());
        let later = at("a/b");
        assert!(!later.exists && later.fault.is_none(), "{later:?}");
        assert!(!root.path().join("a").exists());
        assert!(at("file/below").fault.unwrap().contains("not a folder"));
        let names = [0x6969, 0xff53_4d42, 0xffff_ffff_ff53_4d42, 0xef53, 0x0102_1994].map(network_file_system);
        assert_eq!(names, [Some("NFS"), Some("CIFS"), Some("CIFS"), None, None]);
    }

    #[test]
    fn a_redacted_text_identifies_no_host() {
        let names = ["attic".to_owned(), String::new()];
        let of = |text: &str| redact(text, &names);
        assert_eq!(of("attic at 203.0.113.7:4000."), "NAME at ADDRESS:4000.");
        assert_eq!(
            of("listen = [\"0.0.0.0:4000\", \"[2001:db8::7]:4000\"]"),
            "listen = [\"0.0.0.0:4000\", \"ADDRESS:4000\"]"
        );
        assert_eq!(of("fe80::1%eth0, ::1 and 127.0.0.1: not 1.2"), "ADDRESS, ::1 and 127.0.0.1: not 1.2");
        assert_eq!(of("PP-ABCD-EFGH is paired"), "PP-REDACTED is paired");
        assert_eq!(of(""), "");
        let mut value = json!({ "a": ["203.0.113.7", 7], "b": { "name": "attic" } });
        redact_value(&mut value, &names);
        assert_eq!(value, json!({ "a": ["ADDRESS", 7], "b": { "name": "NAME" } }));
    }

    #[test]
    fn a_bundle_is_private_and_overwrites_nothing() {
        let folder = tree(&[("old", "kept")]);
        let diagnosis = Diagnosis::new(Role::Appliance, "0.1.0", now(), vec![Check::passed("a", "at 203.0.113.7")]);
        let bundle = || Bundle::new(&diagnosis, "listen = 203.0.113.7".to_owned());
        let path = folder.path().join("new");
        bundle().write(&path, true).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("203.0.113.7") && text.contains("ADDRESS"), "{text}");
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions()) & 0o777, 0o600);
        assert!(bundle().write(&folder.path().join("old"), true).is_err());
        assert_eq!(fs::read_to_string(folder.path().join("old")).unwrap(), "kept");
    }

    #[test]
    fn the_owners_of_a_port_are_found() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let this = format!("(process {})", std::process::id());
        let tcp_port = tcp.local_addr().unwrap().port();
        let udp_port = udp.local_addr().unwrap().port();
        for (transport, port) in [(PortTransport::Tcp, tcp_port), (PortTransport::Udp, udp_port)] {
            // Other programs may use the same port at another address.
            let owners = port_owners(transport, port).unwrap();
            assert!(owners.contains(&this), "{transport:?} {port}: {owners}");
        }
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:0FA0 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n   \
                     1: 0100007F:0FA0 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 4712 1\n\
                     garbage\n   2: x:y\n";
        assert_eq!(socket_inodes(table, PortTransport::Tcp, 4000), [4711]);
        assert_eq!(socket_inodes(table, PortTransport::Udp, 4000), [4711, 4712]);
        assert_eq!(socket_inodes(table, PortTransport::Tcp, 4001), [0; 0]);
    }
}
