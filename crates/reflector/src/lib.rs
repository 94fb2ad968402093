//! The reflector as a library: decisions in `sessions`, `door` and `pairing` (pure), the world in `server`.

pub mod door;
pub mod event;
pub mod pairing;
pub mod refusals;
pub mod sessions;
