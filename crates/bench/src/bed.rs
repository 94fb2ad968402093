//! Test beds on which the cells (comparisons) of the benchmark run: a link with a reflector, an appliance that is
//! paired with it, and iperf3 servers when they are needed. Dropping a test bed removes all of them.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use lab::{Appliance, Reflector, Running, TwoHosts, loopback};

use crate::cells::Link;

/// How long a program may take until it reports that it serves.
const PATIENCE: Duration = Duration::from_secs(30);
/// The port of iperf3 servers, outside of the reflector's data ports.
const IPERF3_PORT: u16 = 5201;

/// A link with a reflector at one end and an appliance at the other. The fields are dropped in this order.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) link: Link,
    pub(crate) appliance: Appliance,
    pub(crate) reflector: Reflector,
    hosts: Option<TwoHosts>,
}

impl Bed {
    /// Creates the link, starts the reflector and pairs the appliance.
    pub(crate) fn new(link: Link) -> anyhow::Result<Self> {
        let hosts = match link.veth_mtu() {
            None => None,
            Some(mtu) => {
                let hosts = TwoHosts::new().context("cannot create network namespaces: run this program as root")?;
                for host in [&hosts.near, &hosts.far] {
                    host.must(&["ip", "link", "set", "eth0", "mtu", &mtu.to_string()]);
                }
                Some(hosts)
            }
        };
        // Raise the daily and hourly limits: the benchmark measures the transfer of bytes, not the quotas.
        let environment = [
            ("MODE", "direct_ephemeral"),
            ("DATA_PORT_RANGE", "46201-46299"),
            ("IPERF3_ENABLED", "true"),
            ("MAX_TESTS_PER_HOUR", "1000000"),
            ("MAX_BYTES_PER_DAY", "1000TB"),
            ("MAX_BYTES_PER_DAY_TOTAL", "1000TB"),
        ];
        let (listen, netns) = match &hosts {
            Some(hosts) => (format!("{}:4000", hosts.near.v4), Some(hosts.near.netns.as_str())),
            None => (format!("{}:0", loopback::address()), None),
        };
        let reflector = Reflector::serve_on(&[&listen], netns, &environment);
        let appliance = match &hosts {
            Some(hosts) => Appliance::in_netns(&hosts.far.netns),
            None => Appliance::new(),
        };
        let appliance = appliance.pair(&reflector, reflector.address());
        Ok(Self { link, appliance, reflector, hosts })
    }

    /// The address of the reflector's host, without a port.
    fn host(&self) -> anyhow::Result<String> {
        let address = self.reflector.address();
        Ok(address
            .parse::<SocketAddr>()
            .with_context(|| format!("{address} is not an address with a port"))?
            .ip()
            .to_string())
    }

    /// Builds a command that runs `program` at the server's end of the link, or at the client's.
    fn command(&self, program: &Path, at_the_server: bool) -> Command {
        let mut command = match &self.hosts {
            None => Command::new(program),
            Some(hosts) => {
                let host = if at_the_server { &hosts.near } else { &hosts.far };
                let mut command = Command::new("ip");
                // `ip netns exec` becomes the program, so what the kernel counts for the process is the program's own.
                command.args(["netns", "exec", &host.netns]).arg(program);
                command
            }
        };
        command.process_group(0);
        command
    }

    /// Starts an iperf3 server at the reflector's host and waits until it listens.
    pub(crate) fn iperf3(&self, program: &Path) -> anyhow::Result<Iperf3> {
        let address = self.host()?;
        let mut command = self.command(program, true);
        command.args(["--server", "--bind", &address, "--port", &IPERF3_PORT.to_string(), "--forceflush"]);
        let server =
            Running::start(command, Stdio::null()).with_context(|| format!("cannot start {}", program.display()))?;
        loop {
            match server.line(PATIENCE) {
                Ok(line) if line.contains("Server listening") => return Ok(Iperf3 { server, address }),
                Ok(line) if line.contains("error") => bail!("{} cannot serve: {line}", program.display()),
                Ok(_) => {}
                Err(error) => return Err(error.context(format!("{} does not start as a server", program.display()))),
            }
        }
    }

    /// Builds the command of an iperf3 client on the appliance's host.
    pub(crate) fn iperf3_client(&self, program: &Path, arguments: &[String]) -> Command {
        let mut command = self.command(program, false);
        command.args(arguments);
        command
    }
}

/// An iperf3 server that listens. Dropping this value ends the server.
#[derive(Debug)]
pub(crate) struct Iperf3 {
    pub(crate) server: Running,
    pub(crate) address: String,
}

impl Iperf3 {
    /// The port on which the server listens.
    pub(crate) fn port(&self) -> u16 {
        IPERF3_PORT
    }
}
