//! The local address or interface that the user chose to send from.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use socket2::{Domain, SockRef, Socket, Type};

/// The local address and the interface that packets are sent from. By default the routing table chooses both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The local address to send from; `None`: the routing table chooses.
    pub address: Option<IpAddr>,
    /// The name of the interface to send through; `None`: the routing table chooses.
    pub interface: Option<String>,
}

impl Origin {
    /// Whether packets from this origin can reach `target`: both addresses must be of the same family.
    pub fn suits(&self, target: IpAddr) -> bool {
        self.address.is_none_or(|address| address.to_canonical().is_ipv4() == target.to_canonical().is_ipv4())
    }

    /// Binds a socket to check that the address and the interface exist.
    pub fn check(&self) -> io::Result<()> {
        let address = self.address.unwrap_or(Ipv4Addr::LOCALHOST.into());
        // A link-local address cannot be bound without a scope, which the target provides.
        let tried = Self { address: self.address.filter(|address| !is_link_local(*address)), ..self.clone() };
        let socket = Socket::new(Domain::for_address((address, 0).into()), Type::DGRAM, None)?;
        tried.bind(&socket, (address, 0).into())
    }

    /// Binds `socket`, which will be used for `target`, to this origin. The error names the refused address or
    /// interface.
    pub fn bind<'a>(&self, socket: impl Into<SockRef<'a>>, target: SocketAddr) -> io::Result<()> {
        let socket = socket.into();
        if let Some(interface) = &self.interface {
            socket
                .bind_device(Some(interface.as_bytes()))
                .map_err(|error| refused(&error, format!("cannot use the interface {interface}")))?;
        }
        if let Some(address) = self.address {
            let mut from = SocketAddr::new(address, 0);
            // A link-local address needs a scope; use that of the target.
            if let (SocketAddr::V6(from), SocketAddr::V6(target)) = (&mut from, target)
                && from.ip().is_unicast_link_local()
            {
                from.set_scope_id(target.scope_id());
            }
            socket
                .bind(&from.into())
                .map_err(|error| refused(&error, format!("cannot send from the address {address}")))?;
        }
        Ok(())
    }

    /// A datagram socket that is bound to this origin and connected to `target`.
    pub fn datagrams(&self, target: SocketAddr) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(target), Type::DGRAM, None)?;
        self.bind(&socket, target)?;
        socket.connect(&target.into())?;
        Ok(socket.into())
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn refused(error: &io::Error, what: String) -> io::Error {
    let because = match error.kind() {
        io::ErrorKind::AddrNotAvailable => "this host has no such address".to_owned(),
        io::ErrorKind::PermissionDenied => "this kernel allows it only for root".to_owned(),
        _ if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => "no such interface".to_owned(),
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("{what}: {because}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(origin: &Origin) -> io::Result<SocketAddr> {
        origin.datagrams(([127, 0, 0, 1], 9).into())?.local_addr()
    }

    #[test]
    fn a_socket_is_bound_to_its_origin() {
        let loopback = Origin { address: Some([127, 0, 0, 7].into()), interface: Some("lo".into()) };
        assert_eq!(bind(&loopback).unwrap().ip(), IpAddr::from([127, 0, 0, 7]));
        assert_eq!(bind(&Origin::default()).unwrap().ip(), IpAddr::from([127, 0, 0, 1]));
    }

    #[test]
    fn the_error_names_the_missing_address_or_interface() {
        let address = Origin { address: Some([192, 0, 2, 1].into()), interface: None };
        assert_eq!(
            bind(&address).unwrap_err().to_string(),
            "cannot send from the address 192.0.2.1: this host has no such address"
        );
        assert!(address.check().is_err());
        Origin { address: Some("fe80::1".parse().unwrap()), interface: Some("lo".into()) }.check().unwrap();
        let interface = Origin { address: None, interface: Some("none9".into()) };
        assert_eq!(bind(&interface).unwrap_err().to_string(), "cannot use the interface none9: no such interface");
    }

    #[test]
    fn an_address_suits_its_own_family() {
        let four = Origin { address: Some([127, 0, 0, 1].into()), interface: None };
        assert!(four.suits([127, 0, 0, 1].into()) && four.suits("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!four.suits("::1".parse().unwrap()) && Origin::default().suits("::1".parse().unwrap()));
    }
}
