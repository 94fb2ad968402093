//! Both ends of `udp` against each other.
