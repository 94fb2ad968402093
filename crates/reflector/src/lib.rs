//! The reflector as a library: decisions in `sessions`, `door`, `pairing` (pure), the world in `server`.

pub mod event;
