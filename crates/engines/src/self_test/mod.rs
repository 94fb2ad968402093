//! What this host can carry, found out in less than a minute and without anybody else: facts that are read, rates that
//! are measured over loopback, and a verdict made of both. Prints nothing; both programs do, each in its own style.

pub mod loopback;
