//! The appliance as a library: the command line, the reflector's client, the runner, the history.
