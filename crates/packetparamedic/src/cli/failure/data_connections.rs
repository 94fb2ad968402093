//! Explains why a test has no data connections to the reflector although its control connection works, and what to
//! change.

use std::io;
use std::net::SocketAddr;

use paramedic_appliance::payload_transport::PayloadTransport;
use paramedic_link::measurement::DatagramsSeen;
use paramedic_link::test_spec::DataMode;

/// Returns the cause and the advice. `seen` is how many datagrams of the session the reflector counted.
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
                "the link to this port works, so a firewall may limit connections: raise its limit for TCP {}, or use \
                 -P 1",
                address.port()
            ),
        ),
        (PayloadTransport::Tcp, _) => (
            source.to_string(),
            "let TCP to the reflector's data_port_range through, or use --data-mode tunneled, which needs only \
             the control port"
                .to_owned(),
        ),
    }
}

fn of_datagrams(port: u16, mode: DataMode, source: &io::Error, seen: Option<DatagramsSeen>) -> (String, String) {
    let without = "measure with TCP, without -u";
    let open = match mode {
        DataMode::Tunneled => format!("let UDP to port {port} of the reflector through, or {without}"),
        _ => {
            "let UDP to the reflector's data_port_range through, or use --data-mode tunneled, which needs UDP only to \
              the control port"
                .to_owned()
        }
    };
    match seen {
        None => {
            (source.to_string(), format!("{open}; if `reflector status` counts datagrams, a NAT rewrites their source"))
        }
        Some(DatagramsSeen { from_elsewhere: count @ 1.., .. }) => (
            format!("a NAT on the way rewrites the source address or port of UDP ({count} datagrams of this test)"),
            format!("let the NAT keep the mapping of a UDP flow, or {without}"),
        ),
        Some(DatagramsSeen { answered: 0, .. }) => {
            (format!("no datagram of this test reached the reflector ({source})"), open)
        }
        Some(DatagramsSeen { answered, .. }) => (
            format!("{answered} datagrams of this test reached the reflector, but its answers did not arrive here"),
            format!("let UDP from port {port} of the reflector in, or {without}"),
        ),
    }
}
