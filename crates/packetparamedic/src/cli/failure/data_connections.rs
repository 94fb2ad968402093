//! Explains why a test has no data connections to the reflector although its control connection works, and what to
//! change.

use std::io;
use std::net::SocketAddr;

use paramedic_appliance::payload_transport::PayloadTransport;
use paramedic_link::measurement::DatagramsSeen;
use paramedic_link::test_spec::DataMode;

/// Returns the cause and the advice. `seen` contains how many datagrams of the session the reflector counted; `None` if
/// this is not known.
pub(super) fn explain(
    address: SocketAddr,
    mode: DataMode,
    transport: PayloadTransport,
    source: &io::Error,
    seen: Option<DatagramsSeen>,
) -> (String, String) {
    if source.kind() == io::ErrorKind::InvalidInput {
        // The path does not carry datagrams of the requested size. A change of a firewall does not help.
        return (source.to_string(), "use a smaller -l, or --fragments".to_owned());
    }
    match (transport, mode) {
        (PayloadTransport::Udp, _) => of_datagrams(address.port(), mode, source, seen),
        (PayloadTransport::Tcp, DataMode::Tunneled) => (
            source.to_string(),
            format!(
                "the control connection to TCP port {} works, so a firewall may limit the number of connections: raise \
                 that limit, or use -P 1",
                address.port()
            ),
        ),
        (PayloadTransport::Tcp, _) => (
            source.to_string(),
            "allow TCP to the reflector's data_port_range in the firewalls, or use --data-mode tunneled, which needs \
             only the control port"
                .to_owned(),
        ),
    }
}

fn of_datagrams(port: u16, mode: DataMode, source: &io::Error, seen: Option<DatagramsSeen>) -> (String, String) {
    let without = "omit -u to measure with TCP";
    let open = match mode {
        DataMode::Tunneled => format!("allow UDP to port {port} of the reflector in the firewalls, or {without}"),
        _ => "allow UDP to the reflector's data_port_range in the firewalls, or use --data-mode tunneled, which needs \
              UDP only to the control port"
            .to_owned(),
    };
    match seen {
        None => (
            source.to_string(),
            format!(
                "{open}; if `reflector status` has a line `datagrams`, a NAT rewrites the source address or port of \
                 the datagrams"
            ),
        ),
        Some(DatagramsSeen { from_elsewhere: count @ 1.., .. }) => (
            format!("a NAT on the way rewrites the source address or port of UDP ({count} datagrams of this test)"),
            format!("configure the NAT to keep the mapping of a UDP flow, or {without}"),
        ),
        Some(DatagramsSeen { answered: 0, .. }) => {
            (format!("no datagram of this test reached the reflector ({source})"), open)
        }
        Some(DatagramsSeen { answered, .. }) => (
            format!("{answered} datagrams of this test reached the reflector, but its answers did not arrive here"),
            format!("allow UDP from port {port} of the reflector in the firewalls, or {without}"),
        ),
    }
}
