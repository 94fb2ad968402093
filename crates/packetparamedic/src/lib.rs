//! The appliance's command line, over `paramedic-appliance`.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
